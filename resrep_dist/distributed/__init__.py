"""The ranks of a run: Horovod, launchers, and what keeps a run safe when a rank, a host or a disk fails."""
