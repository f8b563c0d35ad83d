"""Decoding of vectors to tokens, and the negative log-likelihood (nll) of tokens."""
