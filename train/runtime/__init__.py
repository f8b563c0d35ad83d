"""What every run needs: directory, ranks, signals, progress, log, environment."""
