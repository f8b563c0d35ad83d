"""Walks, inversion of the generator, and smoothness, against known answers."""

import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from outlines.decoding.scoring import nll_of_rows
from outlines.inference.interpolation import folded, gradient, linear, noise, smoothness, spherical
from outlines.inference.inversion import invert
from outlines.models.outlines import OutlineModel
from outlines.networks.flow import FlowConfig
from outlines.networks.gan import GeneratorConfig
from outlines.networks.gru import GRUConfig, GRUDecoder
from outlines.networks.mixture import Mixture
from outlines.networks.scaling import Scaling

E1, E2 = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])


def test_linear_and_spherical_by_hand() -> None:
    half = math.sqrt(0.5)
    assert torch.allclose(linear(E1, E2, 3), torch.tensor([[1, 0], [0.5, 0.5], [0, 1]]))
    assert torch.allclose(spherical(E1, E2, 3), torch.tensor([[1, 0], [half, half], [0, 1]]))
    thirds = spherical(E1, E2, 4)[1]
    assert torch.allclose(thirds, torch.tensor([math.cos(math.pi / 6), math.sin(math.pi / 6)]))


def test_a_spherical_walk_keeps_the_norm_and_turns_evenly() -> None:
    start, end = 3 * functional.normalize(torch.randn(2, 20, generator=torch.Generator().manual_seed(0)), dim=1)
    walk = spherical(start, end, 9)
    assert torch.allclose(walk.norm(dim=1), torch.full((9,), 3.0), atol=1e-5)
    turns = torch.cosine_similarity(walk[1:], walk[:-1], dim=1)
    assert float(turns.max() - turns.min()) < 1e-5
    assert torch.allclose(walk[[0, -1]], torch.stack([start, end]), atol=1e-5)


@pytest.mark.parametrize("end", [2 * E1, -E1, E1])
def test_parallel_vectors_have_a_straight_walk(end: Tensor) -> None:
    assert torch.allclose(spherical(E1, end, 5), linear(E1, end, 5))


def decoder(vector_dim: int = 6) -> GRUDecoder:
    torch.manual_seed(3)
    made = GRUDecoder(GRUConfig(12, vector_dim, embed_dim=16, hidden_dim=16)).eval().requires_grad_(False)
    torch.nn.init.normal_(made.embedding.weight)
    return made


ROW = np.array([5, 9, 4, 11])


def unit(vectors: Tensor) -> Tensor:
    return functional.normalize(vectors, dim=1)


def test_a_gradient_walk_has_bounded_steps_and_stops_at_the_given_nll() -> None:
    model = decoder()
    start = unit(torch.randn(1, 6, generator=torch.Generator().manual_seed(0)))[0]
    first = float(nll_of_rows(model, [ROW], start[None])[0][0])
    vectors, ended = gradient(model, start, ROW, first - 0.5, step=0.05, normalise=unit)
    nll, _ = nll_of_rows(model, [ROW] * len(vectors), vectors)
    assert ended == "reached" and torch.equal(vectors[0], start)
    assert (np.diff(nll) < 0).all()
    assert nll[-1] <= first - 0.5 < nll[-2], "it stops at the first vector that is likely enough"
    assert torch.allclose(vectors.norm(dim=1), torch.ones(len(vectors)))
    assert float((vectors[1:] - vectors[:-1]).norm(dim=1).max()) <= 0.05 + 1e-5


def test_the_first_step_follows_the_gradient() -> None:
    model, start, width = decoder(), torch.zeros(6), 1e-2
    vector = gradient(model, start, ROW, -1.0, step=width, max_steps=1)[0][1]
    numeric = torch.stack([
        torch.tensor(np.subtract(*nll_of_rows(model, [ROW] * 2, torch.stack([1e-2 * axis, -1e-2 * axis]))[0]))
        for axis in torch.eye(6)])
    assert float(vector.norm()) == pytest.approx(width, rel=1e-4)
    assert float(torch.cosine_similarity(vector.double(), -numeric, dim=0)) > 0.999


def test_a_gradient_walk_says_why_it_ended() -> None:
    model, start = decoder(), torch.zeros(6)
    assert gradient(model, start, ROW, 1e9, step=0.1)[0].shape == (1, 6)
    vectors, ended = gradient(model, start, ROW, -1.0, step=0.1, max_steps=4)
    assert (ended, len(vectors)) == ("max_steps", 5)
    # normalise maps every step back to the start, so no step helps.
    assert gradient(model, start, ROW, -1.0, step=0.1, normalise=lambda vector: 0 * vector)[1] == "stuck"
    assert gradient(model, start, ROW, -1.0, step=0.0)[1] == "stuck"


def outline_model(num_centres: int, normalized: bool = True, width: int = 8, num_offsets: int = 0) -> OutlineModel:
    """A model whose generator differs a little from its mixture, as after training."""
    torch.manual_seed(1)
    generator = {"kind": "gan", **asdict(GeneratorConfig(width, num_centres, num_offsets, hidden_dim=32))}
    model = OutlineModel(GRUConfig(12, width), generator, GeneratorConfig(width, max(1, num_centres)), None, normalized,
                         {}).eval().requires_grad_(False)
    model.scaling = Scaling(torch.zeros(width), 1 / math.sqrt(width))
    if num_centres:
        factor = 0.3 * torch.diag(torch.logspace(0, -1, width))
        centres = 2 * torch.randn(num_centres, width)
        offsets = (0.5 * torch.randn(num_offsets, width), torch.full((num_offsets,), 1 / num_offsets)) if num_offsets else ()
        model.generator.start_at(Mixture(centres, torch.full((num_centres,), 1 / num_centres), factor, *offsets))
        torch.nn.init.normal_(model.generator.mlp[-1].weight, std=0.03)  # type: ignore[arg-type]
    return model


@pytest.mark.parametrize("normalized", [True, False])
def test_a_noise_walk_of_a_flow_ends_at_its_outlines(normalized: bool) -> None:
    torch.manual_seed(1)
    generator = {"kind": "flow", **asdict(FlowConfig(8, 5, 16, 2, 2))}
    model = OutlineModel(GRUConfig(12, 8), generator, GeneratorConfig(8, 5), None, normalized,
                         {}).eval().requires_grad_(False)
    model.scaling = Scaling(torch.zeros(8), 1 / math.sqrt(8))
    model.generator.start_at(Mixture(torch.randn(5, 8), torch.full((5,), 0.2), 0.3 * torch.eye(8)))
    for parameter in model.generator.velocity.parameters():  # type: ignore[union-attr]
        torch.nn.init.normal_(parameter, std=0.1)
    ends = model.vectors(2, torch.Generator().manual_seed(2), "generator")
    walk = noise(model, ends[0], ends[1], 7)
    assert torch.allclose(walk[[0, -1]], ends, atol=1e-3)
    steps = (walk[1:] - walk[:-1]).norm(dim=1)
    assert float(steps.max()) < 0.5 * float((ends[1] - ends[0]).norm())


@pytest.mark.parametrize(("normalized", "num_offsets"), [(True, 0), (False, 0), (False, 4)])
def test_inversion_recovers_the_generators_own_noise(normalized: bool, num_offsets: int) -> None:
    model = outline_model(5, normalized, num_offsets=num_offsets)
    noise = model.generator.draw(100, torch.Generator().manual_seed(2))
    normal, centre = invert(model, model.normalise(model.generator(noise)))
    assert torch.allclose(model.normalise(model.generator.around(centre, normal)),
                          model.normalise(model.generator(noise)), atol=0.05)
    if not normalized:  # normalisation loses one of the noise's eight dimensions
        cosine = torch.cosine_similarity(normal, noise.normal, dim=1)
        assert int((cosine >= 0.95).sum()) >= 90
        drawn = model.generator.centres[noise.centre]
        drawn = drawn + model.generator.offsets[noise.offset] if num_offsets else drawn
        assert int((centre == drawn).all(dim=1).sum()) >= (90 if num_offsets else 100)


@pytest.mark.parametrize("num_centres", [0, 5])
def test_a_noise_walk_joins_the_two_outlines_through_what_the_generator_makes(num_centres: int) -> None:
    model = outline_model(num_centres)
    ends = model.normalise(model.generator(model.generator.draw(2, torch.Generator().manual_seed(4))))
    walk = noise(model, ends[0], ends[1], 7)
    assert torch.allclose(walk[[0, -1]], ends, atol=0.1)
    assert torch.allclose(model.scaling.unscale(walk).norm(dim=1), torch.ones(7), atol=1e-5)


def test_equal_neighbours_are_folded() -> None:
    nll_start, nll_end = list(range(7)), list(range(10, 17))
    points = folded(["a", "a", "b", "a", "c", "c", "c"], nll_start, nll_end)  # type: ignore[arg-type]
    assert [(point.step, len(point.nll_start)) for point in points] == [(0, 2), (2, 1), (3, 1), (4, 3)]
    assert points[3] == (4, "c", [4, 5, 6], [14, 15, 16])
    assert folded([], [], []) == []


def test_smoothness_by_hand() -> None:
    encoded = torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 5.0], [3.0, 5.0]])
    measured = smoothness(encoded, np.array([100.0, 6.0, 4.0, 100.0]), np.array([9, 2, 3, 9]))
    assert measured == pytest.approx((4, 2.0, 5.0, 2.0))
    assert math.isnan(smoothness(encoded[:2], np.ones(2), np.ones(2)).middle_nll_per_token)
    assert smoothness(encoded[:1], np.ones(1), np.ones(1))[:3] == (1, 0.0, 0.0)
