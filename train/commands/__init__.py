"""One file per `python -m train VERB`."""
