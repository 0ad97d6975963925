"""The version of this package, for the package itself and for its metadata."""

__version__ = "0.2.0"
