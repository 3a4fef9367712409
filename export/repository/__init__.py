"""What is written into a Triton model repository, and read back."""
