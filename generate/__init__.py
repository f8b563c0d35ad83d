"""Use a finished run: `python -m generate [VERB] RUN`."""
