"""One training phase: its plan, its steps, its evaluations, and callbacks that do the same in `fit`."""
