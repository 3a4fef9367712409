"""One question each, answered by a measurement."""
