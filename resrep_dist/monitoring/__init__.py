"""What observes a run: curves, progress, warnings, the sample log, and hooks for other trackers."""
