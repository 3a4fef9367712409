"""Servers, models, images and clients that several tests share."""
