import pytest
import torch

from outlines.errors import OutlinesError
from outlines.networks.gan import (
    Critic,
    Generator,
    GeneratorConfig,
    MixtureNoise,
    update_ema,
)
from outlines.networks.mixture import fit_mixture, moment_map, nearest_centre


def clusters(num: int = 600) -> torch.Tensor:
    """Three clusters in 4 dimensions, with shares 1/2, 1/3, 1/6 and standard deviation 0.1."""
    torch.manual_seed(0)
    means = torch.tensor([[3.0, 0, 0, 0], [0, 3, 0, 0], [0, 0, 3, 0]])
    which = torch.tensor([0, 0, 0, 1, 1, 2]).repeat(num // 6)
    return means[which] + 0.1 * torch.randn(num, 4)


def test_mixture_finds_planted_clusters() -> None:
    mixture = fit_mixture(clusters(), 3, seed=1)
    order = mixture.shares.argsort(descending=True)
    assert mixture.shares[order].tolist() == pytest.approx([1 / 2, 1 / 3, 1 / 6])
    assert torch.allclose(mixture.centres[order], 3 * torch.eye(3, 4), atol=0.05)
    assert torch.allclose(mixture.factor @ mixture.factor.T, 0.01 * torch.eye(4), atol=0.002)


def test_one_centre_is_the_fitted_gaussian() -> None:
    outlines = clusters()
    mixture = fit_mixture(outlines, 1, seed=1)
    assert torch.allclose(mixture.centres[0], outlines.mean(dim=0), atol=1e-5)
    assert torch.allclose(mixture.factor @ mixture.factor.T, outlines.T.cov(), atol=1e-4)


def test_too_many_offsets_is_an_error_for_people() -> None:
    with pytest.raises(OutlinesError, match="Only 0 outlines differ from their centres, too few for 3 offsets"):
        fit_mixture(torch.eye(3).repeat(4, 1)[:, :2].mul(0), 1, seed=1, num_offsets=3)


def test_nearest_centre_by_brute_force_over_chunks() -> None:
    torch.manual_seed(0)
    outlines, centres = torch.randn(50, 3), torch.randn(7, 3)
    assert torch.equal(nearest_centre(outlines, centres, chunk=8), torch.cdist(outlines, centres).argmin(dim=1))


def test_generator_starts_as_exactly_the_mixture() -> None:
    mixture = fit_mixture(clusters(), 3, seed=1)
    generator = Generator(GeneratorConfig(4, 3, hidden_dim=8, num_layers=2))
    generator.start_at(mixture)
    noise = generator.draw(5, torch.Generator().manual_seed(2))
    expected = mixture.centres[noise.centre] + noise.normal @ mixture.factor.T
    assert torch.allclose(generator(noise), expected, atol=1e-6)


def sums_of_two(num: int = 1800) -> torch.Tensor:
    """Three far places, and beside each, alike, three near ones, each with its own share; standard deviation 0.05."""
    rng = torch.Generator().manual_seed(0)
    far = 10 * torch.eye(4)[:3]
    near = torch.tensor([[0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, -1.0], [0.7, -0.7, 0.0, 0.0]])
    which = torch.randint(6, (num,), generator=rng)
    return (far[torch.randint(3, (num,), generator=rng)] + near[torch.tensor([0, 0, 0, 1, 1, 2])[which]]
            + 0.05 * torch.randn(num, 4, generator=rng))


def test_offsets_find_what_is_alike_around_every_centre() -> None:
    outlines = sums_of_two()
    # A seed from which both k-means come to their best end; from others two places may share one centre.
    one, two = fit_mixture(outlines, 3, seed=3), fit_mixture(outlines, 3, seed=3, num_offsets=3)
    assert one.offsets is None and two.offsets is not None and two.offset_shares is not None
    assert torch.equal(one.centres, two.centres)
    assert sorted(two.offset_shares.tolist()) == pytest.approx([1 / 6, 1 / 3, 1 / 2], abs=0.05)
    # Relative to the common centre the places have moved. Their distances have not changed.
    ordered = two.offsets[two.offset_shares.argsort()]
    assert torch.allclose(ordered[2] - ordered[1], torch.tensor([0.0, 0.0, 0.0, 2.0]), atol=0.02)
    assert float((two.factor @ two.factor.T).trace()) == pytest.approx(4 * 0.05**2, rel=0.2)
    assert float((one.factor @ one.factor.T).trace()) > 0.5
    generator = Generator(GeneratorConfig(4, 3, 3, hidden_dim=8))
    generator.start_at(two)
    made = generator(generator.draw(1800, torch.Generator().manual_seed(3))).detach()
    assert float(torch.cdist(made, outlines).min(dim=1).values.max()) < 0.3, "every sum is near an outline"
    assert torch.allclose(made.mean(dim=0), outlines.mean(dim=0), atol=0.5)


def test_generator_draws_centres_with_their_shares() -> None:
    generator = Generator(GeneratorConfig(4, 3))
    generator.shares.copy_(torch.tensor([0.7, 0.0, 0.3]))
    drawn = torch.bincount(generator.draw(4000, torch.Generator().manual_seed(0)).centre, minlength=3) / 4000
    assert drawn[1] == 0
    assert drawn[0].item() == pytest.approx(0.7, abs=0.03)


def test_started_at_noise_there_are_no_centres() -> None:
    generator = Generator(GeneratorConfig(4, 0, hidden_dim=8))
    names = {name.split(".")[0] for name, _ in generator.named_parameters()}
    assert names == {"mlp"}
    assert generator(generator.draw(3, torch.Generator().manual_seed(0))).shape == (3, 4)


def test_the_moment_map_gives_mean_and_covariance_and_moves_nothing_more() -> None:
    rng = torch.Generator().manual_seed(0)
    mix = torch.eye(6) + 0.1 * torch.randn(6, 6, generator=rng)
    outlines, like = torch.randn(500, 6, generator=rng), 1 + torch.randn(400, 6, generator=rng) @ mix
    matrix, shift = moment_map(outlines, like)
    moved = outlines.double() @ matrix.T + shift
    assert torch.allclose(moved.mean(dim=0), like.double().mean(dim=0), atol=1e-6)
    assert torch.allclose(moved.T.cov(), like.double().T.cov(), atol=1e-6)
    # Of all maps that do so, the symmetric positive definite one is the shortest way: any other is that one, turned.
    assert torch.allclose(matrix, matrix.T) and bool((torch.linalg.eigvalsh(matrix) > 0).all())
    same, still = moment_map(outlines, outlines)
    assert torch.allclose(same, torch.eye(6).double(), atol=1e-6)
    assert float(still.abs().max()) < 1e-6


def test_the_moment_map_makes_no_direction_from_noise() -> None:
    flat = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    flat[:, 3] *= 1e-4
    matrix, shift = moment_map(flat, torch.randn(200, 4, generator=torch.Generator().manual_seed(1)))
    assert float(torch.linalg.eigvalsh(matrix).max()) == pytest.approx(2)
    assert float((flat.double() @ matrix.T + shift)[:, 3].std()) < 0.1


@pytest.mark.parametrize(("num_centres", "num_offsets"), [(0, 0), (1, 0), (3, 0), (3, 5)])
def test_an_affine_map_composed_with_a_generator(num_centres: int, num_offsets: int) -> None:
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(4, num_centres, num_offsets, hidden_dim=8, num_layers=2))
    for parameter in generator.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    noise = generator.draw(20, torch.Generator().manual_seed(2))
    before = generator(noise).double()
    matrix, shift = torch.eye(4).double() + 0.2 * torch.randn(4, 4).double(), torch.randn(4).double()
    generator.compose_affine(matrix, shift)
    assert torch.allclose(generator(noise).double(), before @ matrix.T + shift, atol=1e-4)


def test_everything_but_the_shares_is_trained() -> None:
    generator = Generator(GeneratorConfig(4, 3, hidden_dim=8))
    generator(generator.draw(64, torch.Generator().manual_seed(0))).square().sum().backward()
    assert all(parameter.grad is not None for parameter in generator.parameters())
    assert not generator.shares.requires_grad


def test_critic_never_mixes_examples() -> None:
    torch.manual_seed(0)
    critic, outlines = Critic(4, 8, 2), torch.randn(5, 4)
    alone = torch.cat([critic(row[None]) for row in outlines])
    assert torch.allclose(critic(outlines), alone, atol=1e-6)


def test_noise_slices_keep_rows_together() -> None:
    noise = MixtureNoise(torch.arange(6.0)[:, None], torch.arange(6), torch.arange(6))
    half = noise[slice(1, None, 2)]
    assert half.normal[:, 0].tolist() == half.centre.tolist() == half.offset.tolist() == [1, 3, 5]
    scaled = noise * 0.5
    assert scaled.normal[:, 0].tolist() == [0, 0.5, 1, 1.5, 2, 2.5] and torch.equal(scaled.centre, noise.centre)


def test_ema_by_hand() -> None:
    average, current = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    torch.nn.init.constant_(average.weight, 1.0)
    torch.nn.init.constant_(current.weight, 3.0)
    update_ema(average, current, decay=0.75)
    assert average.weight.item() == pytest.approx(1.5)
