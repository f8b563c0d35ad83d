"""Metrics: they need samples and references; a few also need a decoder, none a training run.

Of sentences: text, bleu, ngram, curves (quality against diversity over temperature). Of outlines: outlines, verdicts (on a
generator). Of the decoder's vector: collapse (the instruments), diagnosis (the verdict).
"""
