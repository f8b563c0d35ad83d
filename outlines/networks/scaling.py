"""Raw outlines to scaled outlines and back."""

import torch
from torch import Tensor, nn

from outlines.errors import OutlinesError


class Scaling(nn.Module):
    """An affine map between raw and scaled outlines. Scaled outlines have zero mean.

    mean: [D]. std: one number for all dimensions. whitening: [D, D]; replaces std, and hides structure from the critic.
    """

    mean: Tensor
    std: Tensor
    whitening: Tensor | None

    def __init__(self, mean: Tensor, std: Tensor | float, whitening: Tensor | None = None):
        super().__init__()
        self.register_buffer("mean", mean.clone())
        self.register_buffer("std", torch.as_tensor(std, dtype=mean.dtype).clone())
        self.register_buffer("whitening", None if whitening is None else whitening.clone())
        if not self.std.is_meta and not self.std > 0:
            raise OutlinesError("All outlines are equal, so they cannot be scaled. Check the corpus and the encoder.")

    @classmethod
    def fit(cls, outlines: Tensor, whiten: bool = False) -> "Scaling":
        """Return the scaling of outlines [N, D] by population moments. whiten: by ZCA, the covariance's inverse root."""
        outlines = outlines.double()
        mean = outlines.mean(dim=0)
        variance, axes = torch.linalg.eigh(torch.cov(outlines.T, correction=0))
        std = variance.mean().clamp(min=0).sqrt()  # the trace is the sum of the variances of the dimensions
        whitening = (axes / variance.clamp(min=1e-6 * float(variance.max())).sqrt()) @ axes.T if whiten else None
        return cls(mean.float(), std.float(), None if whitening is None else whitening.float())

    def scale(self, outlines: Tensor) -> Tensor:
        """Map raw outlines [..., D] to scaled outlines of the same dtype."""
        centred = outlines - self.mean.to(outlines.dtype)
        if self.whitening is not None:
            return centred @ self.whitening.to(outlines.dtype)
        return centred / self.std.to(outlines.dtype)

    def unscale(self, scaled: Tensor) -> Tensor:
        """Map scaled outlines [..., D] to raw outlines: the inverse of `scale`."""
        if self.whitening is not None:
            centred = torch.linalg.solve(self.whitening.to(scaled.dtype), scaled, left=False)
        else:
            centred = scaled * self.std.to(scaled.dtype)
        return centred + self.mean.to(scaled.dtype)
