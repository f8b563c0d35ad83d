"""Training, evaluation and comparison: `python -m train`."""

from train.runtime.busy import share_processor

share_processor()  # called here, because it must run before torch is imported
