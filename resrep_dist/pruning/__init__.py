"""Choice of the masks, and the optimizer that drives masked rows to zero."""
