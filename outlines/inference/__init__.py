"""Use a finished run."""
