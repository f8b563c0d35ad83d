"""The columns of all tables: key of the figure, title, decimals, legend. yardstick.py computes the figures.

A new metric: a function in METRICS of yardstick.py, a line in COLUMNS, and its key in QUICK or MAIN.
"""

from typing import NamedTuple


class Column(NamedTuple):
    """One column of a table."""

    key: str
    title: str
    decimals: int
    legend: str = ""  # one short phrase; empty if the title explains itself


COLUMNS = (
    Column("forward_nll_per_token", "forward NLL/token", 3, "of samples, under a language model of real text"),
    Column("reverse_nll_per_token", "reverse NLL/token", 3, "of real text, under a language model of the samples"),
    Column("forward_ngram_nll_per_token", "forward, 5-gram", 3, "the same with a 5-gram model"),
    Column("reverse_ngram_nll_per_token", "reverse, 5-gram", 3, "the same with a 5-gram model"),
    Column("forward_ppl_per_word", "forward PPL/word", 1),
    Column("reverse_ppl_per_word", "reverse PPL/word", 1),
    *(Column(f"bleu_{n}", f"BLEU-{n}", 3) for n in range(2, 6)),
    *(Column(f"self_bleu_{n}", f"self-BLEU-{n}", 3, "" if n != 4 else "high = less diverse")
      for n in range(2, 6)),
    Column("distinct_2", "distinct-2", 3, "distinct bigrams / bigrams"),
    Column("unique", "unique", 3, "distinct sentences / sentences"),
    Column("copied", "copied", 3, "sentences found in the training text"),
    Column("near_copies", "near copies", 3, "sentences with over 90 % of their 4-grams in one training sentence"),
    Column("length_distance", "length distance", 2, "1-Wasserstein distance of sentence lengths, words"),
    Column("in_language", "in grammar", 3, "sentences that the grammar of the corpus generates"),
    Column("grammar_nll", "grammar NLL", 2, "their NLL under the grammar, nats per sentence"),
    Column("outline_precision", "precision", 3, "share of outlines near real ones (5-NN)"),
    Column("outline_recall", "recall", 3, "share of real outlines near these"),
    Column("outline_frechet", "Fréchet", 3, "Fréchet distance, outlines scaled by one number"),
    Column("outline_two_sample", "two-sample", 3, "accuracy of a classifier, 0.5 = cannot tell"),
    Column("outline_nearest_cosine", "nearest training outline", 3, "mean cosine"),
    Column("text_precision", "text: precision", 3, "the same for the generated text after encoding it again"),
    Column("text_recall", "text: recall", 3),
    Column("text_frechet", "text: Fréchet", 3),
    Column("text_two_sample", "text: two-sample", 3),
    Column("test/nll_per_token", "NLL/token", 3),
    Column("num_draws", "draws", 0, "NLL/token is the importance-weighted bound with this many draws"),
    Column("test/negative_elbo_per_token", "-ELBO/token", 3),
    Column("test/reconstruction_nll_per_token", "reconstruction NLL/token", 3,
           "conditioned on the sentence's own vector; do not compare it with an unconditional NLL"),
    Column("test/reconstruction_bleu", "reconstruction BLEU", 2, "greedy"),
    Column("test/reconstruction_chrf", "chrF", 2, "of the same reconstructions"),
    Column("verdict", "vector", 0),
    Column("test/kl", "KL", 2, "to the prior, nats per sentence"),
    Column("test/mutual_information", "mutual information", 2, "of vector and sentence, nats"),
    Column("test/mutual_information_ceiling", "MI ceiling", 1, "largest value that the estimate can have"),
    Column("test/active_units", "active units", 0, "dimensions whose mean depends on the sentence"),
    Column("test/active_positions", "active positions", 0, "positions whose latent depends on the sentence"),
    Column("test/latent_gap_per_token", "NLL gap (swapped vector)", 3, "rise of the NLL with another sentence's vector"),
    Column("test/prior_gap_per_token", "NLL gap (new vector)", 3, "with a vector from the generator or prior"),
    Column("test/distinct_outputs", "distinct outputs", 2, "share of greedy outputs"),
    Column("test/output_change", "output change", 2, "share of tokens that change with the vector"),
    Column("forward_nll_0.7", "NLL/token, T = 0.7", 3, "forward NLL"),
    Column("forward_nll_1", "NLL/token, T = 1", 3),
    Column("memorised", "memorised", 2, "share of the critic's margin that is memorised training outlines"),
    Column("steps", "steps", 0),
    Column("seconds", "GAN seconds", 0, "training steps only"),
)


def select(*keys: str) -> tuple[Column, ...]:
    """Return the columns with these keys, in this order."""
    known = {column.key: column for column in COLUMNS}
    return tuple(known[key] for key in keys)


QUICK = select("forward_nll_per_token", "outline_precision", "outline_recall", "distinct_2", "self_bleu_4", "copied",
               "in_language", "unique", "grammar_nll")  # the most important first: a terminal shows only those that fit
MAIN = select("forward_nll_per_token", "reverse_nll_per_token", "forward_ngram_nll_per_token", "reverse_ngram_nll_per_token",
              "forward_ppl_per_word", "reverse_ppl_per_word", "bleu_4", "self_bleu_4", "distinct_2", "unique", "copied",
              "near_copies", "length_distance", "in_language", "grammar_nll")
BLEU = select(*(f"{kind}_{n}" for kind in ("bleu", "self_bleu") for n in range(2, 6)))
OUTLINES = select(*(f"{name}_{figure}" for name in ("outline", "text")
                    for figure in ("precision", "recall", "frechet", "two_sample")), "outline_nearest_cosine")
RECONSTRUCTION = select("test/nll_per_token", "num_draws", "test/negative_elbo_per_token",
                        "test/reconstruction_nll_per_token", "test/reconstruction_bleu", "test/reconstruction_chrf")
VECTOR = select("verdict", "test/kl", "test/mutual_information", "test/mutual_information_ceiling", "test/active_units",
                "test/active_positions", "test/latent_gap_per_token", "test/prior_gap_per_token", "test/distinct_outputs",
                "test/output_change")
CLOSING = select("verdict", "test/latent_gap_per_token", "test/nll_per_token", "test/reconstruction_nll_per_token",
                 "test/reconstruction_bleu", "test/kl", "test/mutual_information")  # on a terminal
ABLATION = (*select("outline_precision", "outline_recall", "outline_frechet", "outline_two_sample", "forward_nll_0.7",
                    "forward_nll_1", "memorised", "steps", "seconds"), Column("verdict", "verdict", 0))
