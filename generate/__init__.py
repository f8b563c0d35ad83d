"""Sentences from a finished run: `python -m generate RUN`."""
