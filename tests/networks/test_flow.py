"""The flow-matching generator of outlines."""

import pytest
import torch
from torch import Tensor, nn

from outlines.networks.flow import FlowConfig, FlowGenerator, Velocity, flow_matching_loss, moved
from outlines.networks.mixture import Mixture


def flow(num_steps: int = 2) -> FlowGenerator:
    """Return a flow of 4 dimensions that starts at a mixture of three Gaussians."""
    torch.manual_seed(0)
    made = FlowGenerator(FlowConfig(4, 3, 16, 2, num_steps))
    made.start_at(Mixture(5 * torch.randn(3, 4), torch.tensor([0.5, 0.3, 0.2]), torch.randn(4, 4)))
    return made


def noise(num: int) -> torch.Generator:
    return torch.Generator().manual_seed(num)


class Linear(nn.Module):
    """The velocity a · x + b, whatever the time."""

    def __init__(self, rate: float, constant: float):
        super().__init__()
        self.rate, self.constant = rate, constant

    def forward(self, points: Tensor, times: Tensor) -> Tensor:
        return self.rate * points + self.constant


def test_an_untrained_flow_is_the_mixture_that_it_starts_at() -> None:
    made = flow()
    drawn = made.draw(50, noise(1))
    assert torch.equal(made(drawn), made.start(drawn))


def test_a_constant_field_is_exact_in_one_step_and_a_linear_one_converges() -> None:
    points = torch.randn(20, 4)
    assert torch.allclose(moved(Linear(0.0, 3.0), points, 1), points + 3)
    exact = 2 + (points - 2) * torch.tensor(-1.0).exp()
    errors = [float((moved(Linear(-1.0, 2.0), points, num_steps) - exact).abs().max()) for num_steps in (4, 8)]
    assert 3.5 < errors[0] / errors[1] < 5  # Heun's method is of second order


def trained(num_steps: int = 2) -> FlowGenerator:
    """Return a flow with a velocity that depends on point and time."""
    made = flow(num_steps)
    for parameter in made.velocity.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return made.eval().requires_grad_(False)


@pytest.mark.parametrize("num_steps", [1, 2, 8])
def test_the_inverse_returns_the_noise(num_steps: int) -> None:
    made = trained(num_steps)
    made.start.centres.mul_(20)  # far apart, so the likeliest centre is the drawn one
    drawn = made.draw(200, noise(4))
    reached = made(drawn)
    assert float((reached - made.start(drawn)).abs().mean()) > 0.5
    normal, centre = made.inverse(reached)
    assert torch.equal(centre, made.start.centres[drawn.centre])
    assert float(torch.cosine_similarity(normal, drawn.normal, dim=1).min()) > 0.999
    assert torch.allclose(made.around(centre, normal), reached, atol=1e-2)


def test_the_inverse_gives_outlines_again_even_if_their_centre_was_another() -> None:
    made = trained()
    reached = made(made.draw(200, noise(5)))
    normal, centre = made.inverse(reached)
    assert torch.allclose(made.around(centre, normal), reached, atol=1e-3)


def test_a_path_begins_at_a_draw_around_the_outlines_own_centre() -> None:
    made = flow()
    near = made.start.centres[[2, 0, 1]] + 0.01
    normal = torch.randn(3, 4)
    begin = made.pair(made.nearest(near), normal)
    assert torch.allclose(begin, made.start.centres[[2, 0, 1]] + normal @ made.start.factor.T, atol=1e-5)


def test_the_loss_is_zero_for_the_velocity_of_the_straight_path() -> None:
    begin = torch.randn(6, 4)
    constant: Velocity = Linear(0.0, 3.0)  # type: ignore[assignment]
    assert torch.allclose(flow_matching_loss(constant, begin, begin + 3, torch.rand(6)), torch.zeros(6), atol=1e-10)
    assert torch.allclose(flow_matching_loss(constant, begin, begin + 1, torch.rand(6)), torch.full((6,), 4.0))


def test_training_moves_the_mixture_to_the_data() -> None:
    torch.manual_seed(0)
    # The data fill a ring; the start is the Gaussian with its moments, which also fills the hole.
    angles = 6.2832 * torch.rand(4000)
    data = torch.stack([angles.cos(), angles.sin()], dim=1)
    made = FlowGenerator(FlowConfig(2, 1, 64, 2, 8))
    made.start_at(Mixture(torch.zeros(1, 2), torch.ones(1), 0.7 * torch.eye(2)))
    optimizer = torch.optim.Adam(made.velocity.parameters(), 5e-3)
    for _ in range(400):
        end = data[torch.randint(len(data), (256,))]
        begin = made.pair(made.nearest(end), torch.randn(256, 2))
        loss = flow_matching_loss(made.velocity, begin, end, torch.rand(256)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        drawn = made.draw(1000, noise(3))
        before, after = made.start(drawn).norm(dim=1), made(drawn).norm(dim=1)
    assert float((after - 1).abs().mean()) < 0.3 * float((before - 1).abs().mean())
    assert float(made(drawn).mean(dim=0).norm()) < 0.2  # on all sides
