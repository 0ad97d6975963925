"""Keras layers of this package, and how they get into a model."""
