"""Metrics of sentences, of outlines and of the decoder's vector. All of them work without a run."""
