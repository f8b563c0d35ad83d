"""Metrics of sentences, outlines and the decoder's vector; none needs a training run."""
