"""tats: a command-line toolkit for masked video modelling."""

__version__ = "0.1.0"
