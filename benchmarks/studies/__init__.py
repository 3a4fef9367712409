"""Answers single questions by measurement; tables of the docs cite them."""
