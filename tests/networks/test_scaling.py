"""Scaling of outlines: round trip, moments."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from outlines.errors import OutlinesError
from outlines.networks.scaling import Scaling


def fitted(outlines: torch.Tensor) -> Scaling:
    return Scaling(outlines.mean(dim=0), outlines.var(dim=0, correction=0).mean().sqrt())


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32))
def test_scaling_round_trips_in_float64(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(5, 5, generator=generator, dtype=torch.float64) + 3 * torch.eye(5)
    outlines = torch.randn(60, 5, generator=generator, dtype=torch.float64) @ mixing + 2
    scaling = fitted(outlines)
    torch.testing.assert_close(scaling.unscale(scaling.scale(outlines)), outlines, rtol=0, atol=1e-9)
    assert scaling.scale(outlines.float()).dtype == torch.float32


def test_scaled_outlines_have_zero_mean_and_unit_scale_and_keep_their_shape() -> None:
    torch.manual_seed(0)
    outlines = torch.randn(500, 4, dtype=torch.float64) * torch.tensor([1.0, 2.0, 3.0, 4.0]) + 5
    scaled = fitted(outlines).scale(outlines)
    torch.testing.assert_close(scaled.mean(dim=0), torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-6)
    assert scaled.var(dim=0, correction=0).mean().item() == pytest.approx(1, rel=1e-6)
    ratio = scaled.std(dim=0) / outlines.std(dim=0)
    torch.testing.assert_close(ratio, ratio[:1].expand(4))


def test_equal_outlines_cannot_be_scaled() -> None:
    with pytest.raises(OutlinesError, match="equal"):
        fitted(torch.ones(10, 3))
