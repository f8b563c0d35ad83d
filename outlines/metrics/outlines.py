"""Quality and diversity of generated outlines, compared with real held-out outlines.

Real rows must be held out, because a generator that memorised the training rows looks perfect if it is compared with them.
All functions are deterministic and leave the global random state unchanged.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from outlines.errors import OutlinesError

Outlines = Tensor | np.ndarray


def checked(metric: str, dtype: torch.dtype, min_rows: int, *sets: Outlines) -> list[Tensor]:
    """Return the sets as tensors on the CPU. Raises OutlinesError for a non-finite value or fewer than `min_rows` rows."""
    found = [torch.as_tensor(outlines).detach().cpu().to(dtype) for outlines in sets]
    for rows in found:
        if num_bad := int((~rows.isfinite()).any(dim=1).sum()):
            raise OutlinesError(f"{metric}: {num_bad} of {len(rows)} outlines contain NaN or infinity. "
                                "Train again with a lower learning rate.")
        if len(rows) < min_rows:
            raise OutlinesError(f"{metric}: needs {min_rows} outlines of each set, has {len(rows)}. Add held-out sentences.")
    return found


def frechet_distance(a: Outlines, b: Outlines) -> float:
    """Return the Fréchet distance between Gaussians fitted to two sets, in squared units of the outlines.

    It is |mean_a - mean_b|² + tr(C_a + C_b - 2 (C_a C_b)^½), where C is a covariance with divisor N - 1. The value is too
    large for few rows, so compare equal N.
    a: [N, D]; b: [M, D]; at least two rows each.
    Source: Heusel et al., GANs Trained by a Two Time-Scale Update Rule (2017), equation 6 (FID).
    """
    first, second = checked("Fréchet distance", torch.float64, 2, a, b)
    # With C = R'R, the square roots of the eigenvalues of C_a C_b are the singular values of R_a R_b'. They stay exact
    # for singular covariances; the square root of an eigenvalue near 0 would lose half of its digits.
    root_a, root_b = (torch.linalg.qr((rows - rows.mean(dim=0)) / math.sqrt(len(rows) - 1), mode="r").R
                      for rows in (first, second))
    mean_term = (first.mean(dim=0) - second.mean(dim=0)).square().sum()
    overlap = torch.linalg.svdvals(root_a @ root_b.T).sum()
    spread_term = root_a.square().sum() + root_b.square().sum() - 2 * overlap
    return max(0.0, float(mean_term + spread_term))  # rounding can lead to a value slightly below 0


class PrecisionRecall(NamedTuple):
    """k-NN precision and recall, each from 0 to 1."""

    precision: float  # share of fake rows inside the region of the real rows
    recall: float  # share of real rows inside the region of the fake rows


def energy_score(draws: Tensor, observed: Tensor) -> Tensor:
    """Return the energy score [N] of samples from p(x | condition) for the observed outlines, in the outlines' units.

    It is mean(|sample - observed|) - mean(|sample - another sample|) / 2. Lower is better. Unbiased for M >= 2 samples.
    draws: M samples for each of N observed outlines, [N, M, D]; observed: [N, D].
    Source: Gneiting and Raftery, Strictly Proper Scoring Rules, Prediction, and Estimation (2007), section 4.3.
    """
    num = draws.shape[1]
    away = (draws - observed[:, None]).norm(dim=2).mean(dim=1)
    apart = torch.cdist(draws, draws, compute_mode="donot_use_mm_for_euclid_dist").sum(dim=(1, 2)) / (num * (num - 1))
    return away - apart / 2


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Return squared Euclidean distances [N, M] between the rows of a [N, D] and b [M, D]."""
    products = torch.addmm(b.square().sum(dim=1), a, b.T, alpha=-2)
    return products.add_(a.square().sum(dim=1, keepdim=True))


def knn_precision_recall(real: Outlines, fake: Outlines, k: int = 5, chunk: int = 1024) -> PrecisionRecall:
    """Return k-NN precision (are the fake rows realistic?) and recall (do the fake rows cover the whole real set?).

    The region of a set is a union of balls. Each row is the centre of a ball, whose radius is the distance to the row's k-th
    nearest neighbour. real, fake: [N, D], N > k.
    Source: Kynkäänniemi et al., Improved Precision and Recall Metric for Assessing Generative Models (2019).
    """
    rows_real, rows_fake = checked("k-NN precision and recall", torch.float64, k + 1, real, fake)
    center = rows_real.mean(dim=0)  # distances do not change; rounding is smallest near the origin
    rows_real, rows_fake = rows_real - center, rows_fake - center
    # Rounding must not exclude an exact copy at the centre of a ball of radius 0.
    slack = 1e-12 * float(rows_real.square().sum(dim=1).mean() + rows_fake.square().sum(dim=1).mean())

    def covered(points: Tensor, centers: Tensor) -> float:
        radii = torch.cat([_squared_distances(part, centers).kthvalue(k + 1, dim=1).values  # + 1: the row itself
                           for part in centers.split(chunk)])
        inside = [(_squared_distances(part, centers) <= radii + slack).any(dim=1) for part in points.split(chunk)]
        return float(torch.cat(inside).double().mean())

    return PrecisionRecall(precision=covered(rows_fake, rows_real), recall=covered(rows_real, rows_fake))


class TwoSampleResult(NamedTuple):
    """Accuracy of a classifier on `num_test` unseen rows, and the 95 % Wilson interval of this accuracy."""

    accuracy: float
    low: float
    high: float
    num_test: int


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of a proportion (Wilson 1927)."""
    z, share = 1.959964, successes / trials
    center = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return max(0.0, center - half), min(1.0, center + half)


def two_sample_accuracy(real: Outlines, fake: Outlines, learn_from: tuple[Outlines, Outlines] | None = None,
                        seed: int = 0, device: torch.device | str = "cpu") -> TwoSampleResult:
    """Return the accuracy of an MLP that classifies real and fake outlines: 0.5 is chance, 1 is always correct.

    Without `learn_from`, the MLP is trained on the first half of the rows and scored on the second half (num_test about N).
    With `learn_from`, it is trained on these two sets and scored on all rows (num_test = 2 N). Pass rows in the file's
    order: if captions of one picture are in both halves, even two real sets have an accuracy above 0.5. More rows reveal
    smaller differences.
    real, fake: [N, D], N >= 20; learn_from: two sets [M, D].
    Source: Lopez-Paz and Oquab, Revisiting Classifier Two-Sample Tests (2017).
    """
    test_real, test_fake = checked("two-sample accuracy", torch.float32, 20, real, fake)
    if learn_from is None:
        (learn_real, test_real), (learn_fake, test_fake) = (rows.tensor_split([len(rows) // 2])
                                                            for rows in (test_real, test_fake))
    else:
        learn_real, learn_fake = checked("two-sample accuracy", torch.float32, 10, *learn_from)
    learn, test = torch.cat([learn_real, learn_fake]).to(device), torch.cat([test_real, test_fake]).to(device)
    mean = learn.mean(dim=0)
    scale = (learn - mean).square().mean().sqrt().clamp_min(torch.finfo(learn.dtype).tiny)
    with torch.random.fork_rng(devices=[learn.device] if learn.is_cuda else []), torch.enable_grad():
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed every accelerator
        if learn.is_cuda:
            torch.cuda.manual_seed(seed)
        classifier = _train_classifier((learn - mean) / scale, len(learn_real))
    with torch.no_grad():
        is_real = classifier((test - mean) / scale).squeeze(1) > 0
    hits = int(is_real[:len(test_real)].sum() + (~is_real[len(test_real):]).sum())
    return TwoSampleResult(hits / len(test), *wilson_interval(hits, len(test)), len(test))


def _train_classifier(rows: Tensor, num_real: int) -> nn.Module:
    """Return an MLP, trained to have a positive logit for the first `num_real` rows and a negative logit for the others."""
    # No early stopping: if only higher moments differ, the validation loss rises long before the accuracy does (20,000
    # MiniLM outlines against a mixture of 2,000 centres: accuracy 0.50 at the lowest validation loss, 0.93 at the end).
    classifier = nn.Sequential(nn.Linear(rows.shape[1], 512), nn.SiLU(), nn.Dropout(0.3),
                               nn.Linear(512, 512), nn.SiLU(), nn.Dropout(0.3), nn.Linear(512, 1)).to(rows.device)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=2e-3, weight_decay=0.1)
    batch_size = min(256, len(rows))
    num_steps = min(2000, 100 * len(rows) // batch_size)  # at most 100 epochs
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=num_steps)
    for _ in range(num_steps):
        batch = torch.randint(len(rows), (batch_size,)).to(rows.device)
        optimizer.zero_grad()
        logits = classifier(rows[batch]).squeeze(1)
        nn.functional.binary_cross_entropy_with_logits(logits, (batch < num_real).float()).backward()
        optimizer.step()
        schedule.step()
    return classifier.eval()


def f1(precision: float, recall: float) -> float:
    """Return the harmonic mean of precision and recall. It is high only if both arguments are high."""
    return 2 * precision * recall / max(precision + recall, 1e-9)
