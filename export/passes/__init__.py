"""Exact rewrites of a graph; ``build`` runs them in their order."""
