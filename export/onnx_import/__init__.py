"""Networks made elsewhere, brought under the project's contract."""
