"""Use of a finished run: sampling, encoding, decoding, interpolation and search."""
