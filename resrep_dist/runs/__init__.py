"""A whole run in its folder: base training, pruning, merge, report."""
