"""Replaces the model in training by a smaller one when enough channels are dead."""
