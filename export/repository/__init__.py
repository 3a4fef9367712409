"""Writes models into a Triton model repository, and reads them back."""
