"""Metrics of sentences, of outlines and of the decoder's vector. No metric needs a run."""
