"""Encoded images to pixels: what a file may hold, who decodes it, and where that happens."""
