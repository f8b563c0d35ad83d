"""Metrics. They need samples and references; a few also need a decoder, none a training run.

text       distinct-n, unique and copied rates, nearest overlap, lengths
bleu       BLEU against a test set, self-BLEU, reconstruction BLEU
outlines   Fréchet distance, k-NN precision and recall, two-sample test, energy score
ngram      n-gram language model (modified Kneser-Ney) for forward and reverse NLL
curves     quality against diversity over temperature
collapse   instruments for posterior collapse; diagnosis turns them into a verdict
verdicts   verdict on a generator compared with its untrained controls
"""
