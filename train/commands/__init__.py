"""The commands of `python -m train`, one file each, and what they share (parsing.py, judges.py)."""
