"""What is measured of a generator: text by its words, outlines by their geometry, families by their curves.

text      distinct-n, unique and copied rates, nearest overlap, lengths
bleu      BLEU against a test set, self-BLEU, corpus BLEU, reconstruction BLEU
outline   Fréchet distance, k-NN precision and recall, classifier two-sample test, nearest neighbours
ngram     an n-gram language model (modified Kneser-Ney), the evaluator behind forward and reverse nll
curves    quality against diversity over temperature

Functions of samples and references alone; a neural evaluator's nll is `outlines.decoding.scoring`'s.
"""

from outlines.metrics.bleu import References, bleu_scores, corpus_bleu, reconstruction_bleu, self_bleu_scores
from outlines.metrics.curves import CurveGap, efficient_points, interpolated_gap
from outlines.metrics.ngram import NgramModel
from outlines.metrics.outlines import (
    PrecisionRecall,
    TwoSampleResult,
    energy_score,
    frechet_distance,
    knn_precision_recall,
    two_sample_accuracy,
    wilson_interval,
)
from outlines.metrics.text import (
    NearestOverlap,
    copied_rate,
    distinct_n,
    length_distance,
    nearest_overlap,
    unique_rate,
    words,
)

__all__ = [
    "CurveGap",
    "NearestOverlap",
    "NgramModel",
    "PrecisionRecall",
    "References",
    "TwoSampleResult",
    "bleu_scores",
    "copied_rate",
    "corpus_bleu",
    "distinct_n",
    "efficient_points",
    "energy_score",
    "frechet_distance",
    "interpolated_gap",
    "knn_precision_recall",
    "length_distance",
    "nearest_overlap",
    "reconstruction_bleu",
    "self_bleu_scores",
    "two_sample_accuracy",
    "unique_rate",
    "wilson_interval",
    "words",
]
