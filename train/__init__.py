"""Training, evaluation and comparison: `python -m train`."""
