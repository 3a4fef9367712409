"""What the other servers run, each in an environment of its own: scripts that import each other
by bare name and nothing of this project."""
