"""One file per method, and the stages that methods share. A new family is one new file here and one in outlines/models."""
