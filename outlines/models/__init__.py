"""One file per family of generators."""
