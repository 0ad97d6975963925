"""The command line, `resrep`."""
