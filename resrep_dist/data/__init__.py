"""Data sources and the order of their samples."""
