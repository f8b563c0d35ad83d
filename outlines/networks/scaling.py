"""The map from raw outlines to scaled outlines, and back."""

import torch
from torch import Tensor, nn

from outlines.errors import OutlinesError


class Scaling(nn.Module):
    """Maps raw outlines to scaled outlines (mean 0), and back. mean: [D]. std: one number for all dimensions."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor | float):
        super().__init__()
        self.register_buffer("mean", mean.clone())
        self.register_buffer("std", torch.as_tensor(std, dtype=mean.dtype).clone())
        if not self.std.is_meta and not self.std > 0:
            raise OutlinesError("All outlines are equal, so they cannot be scaled. Check the corpus and the encoder.")

    def scale(self, outlines: Tensor) -> Tensor:
        """Return scaled outlines for raw outlines [..., D], in the same dtype."""
        return (outlines - self.mean.to(outlines.dtype)) / self.std.to(outlines.dtype)

    def unscale(self, scaled: Tensor) -> Tensor:
        """Return raw outlines for scaled outlines [..., D]. The inverse of `scale`."""
        return scaled * self.std.to(scaled.dtype) + self.mean.to(scaled.dtype)
