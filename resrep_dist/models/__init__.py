"""Models: built by name, and read from and written to files."""
