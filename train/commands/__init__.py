"""The commands of `python -m train`, one file each, and their shared modules (parsing.py, judges.py)."""
