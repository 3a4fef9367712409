"""Scripts that the other servers run, each in its own environment.

They import each other by bare name, and nothing else of this project.
"""
