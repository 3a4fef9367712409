"""Turns an MXNet symbol and its parameters into a model repository, without MXNet."""
