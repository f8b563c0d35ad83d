"""From vectors to tokens, and from tokens to their negative log-likelihood."""
