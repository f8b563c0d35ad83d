"""Training, evaluation and comparison: `python -m train`."""

from train.runtime.busy import share_processor

share_processor()  # here, because torch must not be imported yet
