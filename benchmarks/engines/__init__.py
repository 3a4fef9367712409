"""Runs one network on one engine, without a server around it."""
