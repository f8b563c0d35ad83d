"""Neural outlines: what a model is, and what is measured of it.

The way from text to text, file by file:

    corpus/reading.py, corpus/grammar.py    sentences in
    corpus/tokenizer.py, corpus/batching.py sentences → tokens → batches
    encoders/, outline_store.py             sentences → outlines, once, on disk
    gan.py                                  noise → outlines
    decoder.py, sampling.py                 outlines → tokens → text
    text_model.py, outline_model.py         the whole, as those who sample see it
    baselines/, families.py                 what it is compared with; all of them, and on disk
    losses.py, scoring.py, metrics/         what is minimised, what is measured
    collapse.py                             is the vector used, and if not, why not
    checkpoint.py                           state on disk: atomic, verified, no pickle

Shape legend: B batch, N dataset rows, T tokens, D outline width, Z latent width, V vocabulary, K centres.
`train` and `generate` import this package and never each other; it imports neither.
"""
