"""One file a method: what a step of it is, what its validation is. A file here is all that a new family needs."""
