"""The environment of a run: directory, ranks, signals, progress, log, versions, other busy processes."""
