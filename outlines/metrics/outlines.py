"""Quality and diversity of generated outlines, against real held-out outlines.

The same functions serve generated *text* that the frozen encoder has turned into outlines again, so every
family can be measured. "Real" must be held-out rows: against training rows, a generator that memorised them
looks perfect. All are deterministic, and none touches the global random state.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from outlines.errors import OutlinesError

Outlines = Tensor | np.ndarray


def _rows(outlines: Outlines, metric: str, dtype: torch.dtype) -> Tensor:
    """[N, D] on the CPU; a wrong shape or a value that is not finite is an error."""
    # A copy, because torch cannot share the memory of a read-only array (a memory-mapped store is one).
    rows = outlines.detach().cpu() if isinstance(outlines, Tensor) else torch.from_numpy(np.array(outlines))
    if rows.ndim != 2:
        raise OutlinesError(f"{metric}: outlines must be [N, D], got {list(rows.shape)}")
    num_bad = int((~rows.isfinite()).any(dim=1).sum())
    if num_bad:
        raise OutlinesError(f"{metric}: {num_bad} of {len(rows)} outlines hold NaN or infinity")
    return rows.to(dtype)


def _pair(a: Outlines, b: Outlines, metric: str, dtype: torch.dtype, min_rows: int,
          same_size: bool = True) -> tuple[Tensor, Tensor]:
    first, second = _rows(a, metric, dtype), _rows(b, metric, dtype)
    if first.shape[1] != second.shape[1]:
        raise OutlinesError(f"{metric}: one set has {first.shape[1]} dimensions, the other {second.shape[1]}")
    if same_size and len(first) != len(second):
        raise OutlinesError(f"{metric}: {len(first)} rows against {len(second)}; cut both to the same number")
    if min(len(first), len(second)) < min_rows:
        raise OutlinesError(f"{metric}: needs {min_rows} rows of each, has {len(first)} and {len(second)}")
    return first, second


def frechet_distance(a: Outlines, b: Outlines) -> float:
    """Fréchet distance between the Gaussians fitted to two sets, in squared units of the outlines; 0 = alike.

    |mean_a - mean_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), in float64, with covariances over N - 1.
    Estimator: plug-in, biased upwards, the more so the fewer rows for D dimensions: compare equal N only, and
    lay two sets of real rows beside it, whose distance is the floor. There is no ceiling. A Gaussian fitted
    to the real rows scores like real rows: this distance cannot see what a Gaussian lacks.
    a: [N, D]; b: [M, D]; two or more rows each, fewer than D if need be.
    Source: Heusel et al., GANs Trained by a Two Time-Scale Update Rule (2017), equation 6 (FID); for the
    embeddings of generated text, Cífka et al., Eval All, Trust a Few (2018).
    """
    first, second = _pair(a, b, "Fréchet distance", torch.float64, min_rows=2, same_size=False)
    # With C = R'R, the roots of the eigenvalues of C_a C_b are the singular values of R_a R_b', which stay
    # exact where a covariance is singular; a root of an eigenvalue near 0 would lose half of its digits.
    root_a, root_b = (torch.linalg.qr((rows - rows.mean(dim=0)) / math.sqrt(len(rows) - 1), mode="r").R
                      for rows in (first, second))
    mean_term = (first.mean(dim=0) - second.mean(dim=0)).square().sum()
    overlap = torch.linalg.svdvals(root_a @ root_b.T).sum()
    spread_term = root_a.square().sum() + root_b.square().sum() - 2 * overlap
    return max(0.0, float(mean_term + spread_term))  # rounding may leave a little less than 0


class PrecisionRecall(NamedTuple):
    """Both in 0..1."""

    precision: float  # the share of fake rows that lie where real rows lie
    recall: float  # the share of real rows that lie where fake rows lie


def energy_score(draws: Tensor, observed: Tensor) -> Tensor:
    """How well draws from p(x | condition) foretell what was observed, [N]; lower is better, in the outlines' units.

    mean |draw - observed| - mean |draw - another draw| / 2, both over draws, the second over pairs of different ones, so
    that it is unbiased for any number M >= 2 of them. It is strictly proper: no p but the true one scores best in the mean,
    so neither a copy of the likeliest nor too much noise pays. Sharp for the place of p, blunt for its shape: a Gaussian of
    the right mean and covariance is hard to beat in it.
    draws: [N, M, D]; observed: [N, D].
    Source: Gneiting and Raftery, Strictly Proper Scoring Rules, Prediction, and Estimation (2007), section 4.3.
    """
    num = draws.shape[1]
    if num < 2:
        raise OutlinesError(f"energy score: needs 2 draws or more, got {num}")
    away = (draws - observed[:, None]).norm(dim=2).mean(dim=1)
    apart = torch.cdist(draws, draws, compute_mode="donot_use_mm_for_euclid_dist").sum(dim=(1, 2)) / (num * (num - 1))
    return away - apart / 2


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared Euclidean distances [N, M] between the rows of a [N, D] and b [M, D]."""
    products = torch.addmm(b.square().sum(dim=1), a, b.T, alpha=-2)
    return products.add_(a.square().sum(dim=1, keepdim=True))


def knn_precision_recall(real: Outlines, fake: Outlines, k: int = 5, chunk: int = 1024) -> PrecisionRecall:
    """k-NN precision (are the fakes realistic?) and recall (is all that is real covered?).

    A set's region is the union of balls around its rows, each out to the row's k-th nearest neighbour in the
    set. Balls shrink as rows are added, and grow with k: the sets must have the same size, and only figures
    of one N and one k compare. The ceiling is 1 in name; two sets of real rows show what is reached. Exact,
    in float64, by matrix products of `chunk` rows: memory is chunk x N.
    real, fake: [N, D], N > k; `OutlinesError` where the sizes differ.
    Source: Kynkäänniemi et al., Improved Precision and Recall Metric for Assessing Generative Models (2019).
    """
    rows_real, rows_fake = _pair(real, fake, "k-NN precision and recall", torch.float64, min_rows=k + 1)
    center = rows_real.mean(dim=0)  # distances stay, and rounding is smallest near the origin
    rows_real, rows_fake = rows_real - center, rows_fake - center
    # An exact copy at the centre of a ball of radius 0 must count as inside it, whatever the last digit says.
    slack = 1e-12 * float(rows_real.square().sum(dim=1).mean() + rows_fake.square().sum(dim=1).mean())

    def covered(points: Tensor, centers: Tensor) -> float:
        radii = torch.cat([_squared_distances(part, centers).kthvalue(k + 1, dim=1).values  # + 1: itself
                           for part in centers.split(chunk)])
        inside = [(_squared_distances(part, centers) <= radii + slack).any(dim=1)
                  for part in points.split(chunk)]
        return float(torch.cat(inside).double().mean())

    return PrecisionRecall(precision=covered(rows_fake, rows_real), recall=covered(rows_real, rows_fake))


class TwoSampleResult(NamedTuple):
    """A classifier's accuracy on rows it never saw, with its 95 % Wilson interval."""

    accuracy: float
    low: float
    high: float
    num_test: int


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % confidence interval of a proportion.

    Source: Wilson, Probable Inference, the Law of Succession, and Statistical Inference (1927).
    """
    z, share = 1.959964, successes / trials
    center = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return max(0.0, center - half), min(1.0, center + half)


def two_sample_accuracy(real: Outlines, fake: Outlines, learn_from: tuple[Outlines, Outlines] | None = None,
                        seed: int = 0, device: torch.device | str = "cpu") -> TwoSampleResult:
    """Classifier two-sample test: how often a classifier tells fake from real; 0.5 = it cannot, 1 = always.

    Estimator: an MLP, trained until its falling learning rate is 0 on the first half of the rows and scored once on
    the second (num_test = about N, half of it real), or trained on all of `learn_from` (other rows, real and fake) and
    scored on all of `real` and `fake` (num_test = 2 N). No half is shuffled, so give rows in their file's order:
    captions of one picture that fell on both sides would teach the classifier which pictures are real, and lift real
    against real above 0.5. Outlines are centred and divided by *one* scale: to whiten each dimension would hide
    structure. More rows teach it finer differences, and thousands are needed where means and covariances agree, so
    compare equal numbers only. An interval that holds 0.5 says that *this* classifier saw nothing in so many rows.
    real, fake: [N, D], N >= 20; learn_from: two of [M, D]; `OutlinesError` where the sizes of a pair differ.
    Deterministic given the seed and the device, where the classifier learns.
    Source: Lopez-Paz & Oquab, Revisiting Classifier Two-Sample Tests (2017).
    """
    test_real, test_fake = _pair(real, fake, "two-sample accuracy", torch.float32, min_rows=20)
    if learn_from is None:
        half = len(test_real) // 2
        learn_real, test_real = test_real[:half], test_real[half:]
        learn_fake, test_fake = test_fake[:half], test_fake[half:]
    else:
        learn_real, learn_fake = _pair(*learn_from, "two-sample accuracy", torch.float32, min_rows=10)
        if learn_real.shape[1] != test_real.shape[1]:
            raise OutlinesError(f"two-sample accuracy: learns from {learn_real.shape[1]} dimensions, is scored on "
                                f"{test_real.shape[1]}")
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


def _train_classifier(rows: Tensor, num_real: int, num_epochs: int = 100, max_steps: int = 2000) -> nn.Module:
    """An MLP whose logit is above 0 where a row is one of the first `num_real`.

    It is not stopped early: where only high moments differ its loss on other rows rises for a long time before, and while,
    its accuracy does (MiniLM outlines and a mixture of 2,000 centres, 20,000 rows of each: 0.50 where the loss on a
    validation share was lowest, 0.93 at the end).
    """
    classifier = nn.Sequential(nn.Linear(rows.shape[1], 512), nn.SiLU(), nn.Dropout(0.3),
                               nn.Linear(512, 512), nn.SiLU(), nn.Dropout(0.3), nn.Linear(512, 1)).to(rows.device)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=2e-3, weight_decay=0.1)
    batch_size = min(256, len(rows))
    num_steps = min(max_steps, num_epochs * len(rows) // batch_size)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=num_steps)
    for _ in range(num_steps):
        batch = torch.randint(len(rows), (batch_size,)).to(rows.device)
        optimizer.zero_grad()
        logits = classifier(rows[batch]).squeeze(1)
        nn.functional.binary_cross_entropy_with_logits(logits, (batch < num_real).float()).backward()
        optimizer.step()
        schedule.step()
    return classifier.eval()
