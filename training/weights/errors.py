"""What goes wrong with weights from elsewhere."""

from __future__ import annotations


class WeightsError(ValueError):
    """A file of weights that cannot be read, is not the one that was named, or does not fit."""
