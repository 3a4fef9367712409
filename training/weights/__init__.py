"""Weights from elsewhere: read, renamed, and brought under this project's files."""
