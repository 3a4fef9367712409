"""MXNet's graph and parameter files, read without MXNet: shapes, sizes, where a symbol is found."""
