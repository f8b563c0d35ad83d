"""What can be done with a finished run: `python -m generate [VERB] RUN`."""
