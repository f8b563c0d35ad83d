"""MAUVE: similarity of the distributions of generated and real text, which are quantised in an encoder's feature space.

Own implementation from the papers: Pillutla et al., MAUVE: Measuring the Gap Between Neural Text and Human Text using
Divergence Frontiers (NeurIPS 2021), and MAUVE Scores for Generative Models (JMLR 2023). The settings are the defaults of the
authors' package mauve-text 0.4.0. The licence of that package is the GPL, so this project does not depend on it. A test
compares with scores that the package computed.

- Features are divided by their L2 norm. PCA of both sets together keeps the fewest components with at least 90 % of the
  variance, without whitening.
- k-means quantises both sets together. There is one cluster per 10 rows of the smaller set, at least 2. Lloyd's algorithm
  starts 5 times at random rows and runs until convergence, at most 500 iterations. The clustering with the smallest error
  is used.
- Two histograms over the clusters are compared. MAUVE uses the counts. MAUVE* first adds 1/2 to every count (Krichevsky and
  Trofimov), which corrects some of the bias of small samples.
- The divergence frontier has 25 mixtures with weights from 1e-6 to 1 - 1e-6, equally spaced. The scaling factor is 5.

The score depends on the number of rows, on the features and on these settings. Compare only scores that share all three.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from outlines.metrics.outlines import Outlines, checked
from outlines.networks.mixture import k_means, nearest_centre

ROWS_PER_CLUSTER = 10
MIN_ROWS = 2 * ROWS_PER_CLUSTER  # two clusters
EXPLAINED_VARIANCE = 0.9
NUM_STARTS = 5
MAX_ITERATIONS = 500
NUM_WEIGHTS = 25
MARGIN = 1e-6  # distance of the outermost mixture weights from 0 and 1
SCALING = 5.0


class Mauve(NamedTuple):
    """MAUVE and MAUVE*, each from 0 to 1; 1: the distributions are equal."""

    mauve: float  # from the counts; the value that papers report
    star: float  # MAUVE*, from smoothed histograms


def mauve(real: Outlines, fake: Outlines, seed: int = 0) -> Mauve:
    """Return MAUVE and MAUVE* of two sets of features. The module's docstring describes the settings.

    real: [N, D]; fake: [M, D]. At least 20 rows each; useful scores need a few thousand. seed: for the starts of k-means.
    """
    rows_real, rows_fake = checked("MAUVE", torch.float64, MIN_ROWS, real, fake)
    clusters = quantized(rows_real, rows_fake, seed)
    num_clusters = 1 + max(int(labels.max()) for labels in clusters)
    counts_real, counts_fake = (torch.bincount(labels, minlength=num_clusters) for labels in clusters)
    return Mauve(frontier_area(counts_real, counts_fake), frontier_area(counts_real + 0.5, counts_fake + 0.5))


def quantized(real: Tensor, fake: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Return the cluster of each row of features [N, D] and [M, D], which are clustered together: [N] and [M]."""
    rows = _principal(torch.nn.functional.normalize(torch.cat([real, fake]), dim=1)).float()
    num_clusters = max(2, round(min(len(real), len(fake)) / ROWS_PER_CLUSTER))
    found = (k_means(rows, num_clusters, NUM_STARTS * seed + start, max_iterations=MAX_ITERATIONS)
             for start in range(NUM_STARTS))
    centres, _, _ = min(found, key=lambda clustering: float(clustering[2].square().sum()))
    labels = nearest_centre(rows, centres)
    return labels[:len(real)], labels[len(real):]


def _principal(rows: Tensor) -> Tensor:
    """Return the coordinates of rows [N, D] on the principal components that explain EXPLAINED_VARIANCE: [N, C], C >= 1."""
    centered = rows - rows.mean(dim=0)
    values, directions = torch.linalg.eigh(centered.T @ centered)  # in ascending order
    explained = values.flip(0).clamp(min=0).cumsum(dim=0)
    num_kept = 1 + int((explained < EXPLAINED_VARIANCE * explained[-1]).sum())
    # Rows that differ only by rounding become equal. Otherwise k-means would split copies of one sentence.
    return (centered @ directions.flip(1)[:, :num_kept]).round(decimals=6)


def frontier_area(p: Tensor, q: Tensor) -> float:
    """Return the area under the divergence frontier of two histograms [K], from 0 to 1.

    p and q are first normalised. For each mixture r = w p + (1 - w) q, the frontier has the point (exp(-c KL(q | r)),
    exp(-c KL(p | r))), with c = SCALING. The ends of the frontier are (1, 0) and (0, 1). The area is symmetric in p and q,
    because the weights w are symmetric.
    Source: Pillutla et al. (2021), equations 1 and 2; trapezoidal rule.
    """
    p, q = p.double() / p.sum(), q.double() / q.sum()
    weights = torch.linspace(MARGIN, 1 - MARGIN, NUM_WEIGHTS, dtype=torch.float64)[:, None]
    mixtures = weights * p + (1 - weights) * q
    x, y = (torch.exp(-SCALING * _kl(one, mixtures)) for one in (q, p))
    x = torch.cat([x.new_tensor([1.0]), x, x.new_tensor([0.0])])
    y = torch.cat([y.new_tensor([0.0]), y, y.new_tensor([1.0])])
    return float(-torch.trapezoid(y, x))  # x falls from 1 to 0


def _kl(p: Tensor, mixtures: Tensor) -> Tensor:
    """Return KL(p | r) of a histogram [K] for each mixture r [W, K], in nats: [W]. Clusters with p = 0 add 0."""
    return torch.special.xlogy(p, p / mixtures.clamp(min=torch.finfo(p.dtype).tiny)).sum(dim=1).clamp(min=0)
