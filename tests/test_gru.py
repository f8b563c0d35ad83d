import pytest
import torch

from outlines.gru import GRU


@pytest.mark.parametrize("num_layers", [1, 2])
def test_values_and_gradients_are_torchs_own(num_layers: int) -> None:
    torch.manual_seed(0)
    ours = GRU(5, 7, num_layers, batch_first=True).double()
    inputs, state = torch.randn(3, 6, 5).double(), torch.randn(num_layers, 3, 7).double()
    weight, weight_last = torch.randn(3, 6, 7).double(), torch.randn(num_layers, 3, 7).double()

    def gradients(module: torch.nn.GRU) -> list[torch.Tensor]:
        at = [inputs.clone().requires_grad_(), state.clone().requires_grad_()]
        outputs, last = module(*at)
        total = (outputs * weight).sum() + (last * weight_last).sum()
        return [outputs, last, *torch.autograd.grad(total, [*at, *module.parameters()])]

    reference = torch.nn.GRU(5, 7, num_layers, batch_first=True).double()
    reference.load_state_dict(ours.state_dict())
    for mine, theirs in zip(gradients(ours), gradients(reference), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-12)


def test_training_and_evaluation_paths_agree() -> None:
    torch.manual_seed(0)
    module = GRU(5, 7, 1, batch_first=True)
    inputs, state = torch.randn(3, 6, 5), torch.randn(1, 3, 7)
    trained, _ = module(inputs, state)
    with torch.no_grad():
        evaluated, _ = module(inputs, state)
    assert torch.allclose(trained, evaluated, atol=1e-6)


def test_dropout_between_layers_only_in_training() -> None:
    torch.manual_seed(0)
    module = GRU(5, 7, 2, batch_first=True, dropout=0.5)
    inputs, state = torch.randn(3, 6, 5), torch.zeros(2, 3, 7)
    assert not torch.equal(module(inputs, state)[0], module(inputs, state)[0])
    module.eval()
    assert torch.equal(module(inputs, state)[0], module(inputs, state)[0])
