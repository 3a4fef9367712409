"""Checkpoints made elsewhere, and their names for the networks of this project."""
