"""The families that outlines are compared with: each one file, none imports another."""
