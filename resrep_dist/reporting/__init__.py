"""Measures models, and shows the results of runs as tables and as a page."""
