"""A GRU for training on a CPU, with the parameters and the values of torch's own.

torch's CPU backward adds to the recurrent weight's gradient once a step: T small products where one large one does. Here
the backward pass keeps each step's gate gradients and multiplies once. Everywhere else (a GPU, autocast, evaluation)
torch's own kernels are used. The gain is small, 0 to 5 % of a training step in three runs of benchmarks/decoder_speed.py.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class GRU(nn.GRU):
    """torch.nn.GRU with batch_first; see there for shapes and equations."""

    def forward(self, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Outputs [B, T, H] and last states [layers, B, H], from inputs [B, T, E] and first states [layers, B, H]."""
        autocast = torch.is_autocast_enabled(inputs.device.type)
        if inputs.device.type != "cpu" or autocast or not torch.is_grad_enabled():
            outputs, last = super().forward(inputs, state)
            return outputs, last
        values, last_states = inputs.transpose(0, 1), []
        for layer in range(self.num_layers):
            w_input, w_state, b_input, b_state = (getattr(self, f"{name}_l{layer}") for name in
                                                  ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
            projected = functional.linear(values, w_input, b_input)
            values = _GRULayer.apply(projected, state[layer], w_state, b_state)
            last_states.append(values[-1])
            if layer + 1 < self.num_layers:
                values = functional.dropout(values, self.dropout, self.training)
        return values.transpose(0, 1), torch.stack(last_states)


class _GRULayer(torch.autograd.Function):
    """States h_1…h_T [T, B, H] of one layer, from its projected inputs [T, B, 3 H] (reset, update, new) and h_0 [B, H].

    reset = σ(p_r + a_r), update = σ(p_u + a_u), new = tanh(p_n + reset · a_n), where a = W h_{t-1} + b;
    h_t = new + update · (h_{t-1} - new).
    """

    @staticmethod
    def forward(ctx: Any, projected: Tensor, first: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        steps, batch, width = projected.shape[0], projected.shape[1], first.shape[1]
        states = projected.new_empty(steps + 1, batch, width)
        states[0] = first
        gates = projected.new_empty(steps, batch, 2 * width)
        new, recurrent_new = torch.empty_like(states[1:]), torch.empty_like(states[1:])
        transposed = weight.t()
        for step in range(steps):
            recurrent = torch.addmm(bias, states[step], transposed)
            torch.add(projected[step, :, :2 * width], recurrent[:, :2 * width], out=gates[step]).sigmoid_()
            recurrent_new[step] = recurrent[:, 2 * width:]
            torch.addcmul(projected[step, :, 2 * width:], gates[step, :, :width], recurrent_new[step],
                          out=new[step]).tanh_()
            torch.lerp(new[step], states[step], gates[step, :, width:], out=states[step + 1])
        ctx.save_for_backward(states, gates, new, recurrent_new, weight)
        return states[1:]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        states, gates, new, recurrent_new, weight = ctx.saved_tensors
        steps, batch, width = new.shape
        reset, update = gates[..., :width], gates[..., width:]
        # What each gate's pre-activation moves h_t by; a whole sentence at a time.
        slope_new = (1 - update) * (1 - new.square())
        slope_update = (states[:-1] - new) * update * (1 - update)
        slope_reset = recurrent_new * reset * (1 - reset)
        of_projected, of_recurrent = new.new_empty(steps, batch, 3 * width), new.new_empty(steps, batch, 3 * width)
        of_state = torch.zeros_like(states[0])
        for step in range(steps - 1, -1, -1):
            of_state = of_state + gradients[0][step]
            of_new = torch.mul(of_state, slope_new[step], out=of_projected[step, :, 2 * width:])
            torch.mul(of_new, slope_reset[step], out=of_recurrent[step, :, :width])
            torch.mul(of_state, slope_update[step], out=of_recurrent[step, :, width:2 * width])
            torch.mul(of_new, reset[step], out=of_recurrent[step, :, 2 * width:])
            of_state = torch.addmm(of_state * update[step], of_recurrent[step], weight)
        of_projected[..., :2 * width] = of_recurrent[..., :2 * width]
        rows = of_recurrent.view(steps * batch, 3 * width)
        return of_projected, of_state, rows.t() @ states[:-1].reshape(steps * batch, width), rows.sum(dim=0)
