"""Z-Forcing: a latent per step, and an auxiliary cost that makes the latents predict the rest of the sentence.

The loss per token is nll + beta · KL + alpha · auxiliary + gamma · backward nll. The reported bound is nll + KL.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from outlines.decoding.scoring import bound_terms
from outlines.metrics.collapse import active_positions, active_units, kl_by_position
from outlines.models.zforcing import Forcing, ZForcing
from outlines.networks.losses import gaussian_nll, kl_to_standard_normal, linear_nll, moving_weight
from outlines.networks.stochastic import StochasticDecoderConfig
from outlines.options import option
from train.config import DecoderOptions, RunConfig
from train.data import Batch, Dataset
from train.evaluation.figures import VALIDATION_DRAWS, swapped_gap, term_figures
from train.evaluation.pictures import kl_picture
from train.method import Method, Update, Validation, draw_seed
from train.methods.decoder_stage import LatentStage

VALIDATION_SEED = 13
KL_START = 0.2  # KL weight (beta) at the first update, as in the authors' code


@dataclass(frozen=True)
class ZForcingOptions(DecoderOptions):
    """Options of decoder and posterior, and the weights of the loss. The auxiliary loss is on by default."""

    group: ClassVar[str] = "Z-Forcing"
    hidden_dim: int = option(512, "width of the forward LSTM's state", low=1)
    num_layers: int = option(1, "layers of the forward LSTM", low=1, flag=False)
    latent_dim: int = option(32, "width of z, one z per token", low=1)
    mlp_dim: int = option(256, "width of the hidden layer of prior, posterior and auxiliary network", low=1)
    backward_hidden_dim: int = option(256, "width of the backward LSTM's state", low=1)
    kl_weight: float = option(1.0, "final KL weight; 1: the loss contains the negative ELBO", low=0)
    kl_step: float = option(5e-5, "change of the KL weight per update", low=0)
    aux_start: float = option(0.005, "weight of the auxiliary loss (alpha) at the first update; the loss is a sum over the "
                                     "dimensions of the backward LSTM's state", low=0)
    aux_weight: float = option(0.005, "final weight of the auxiliary loss", low=0)
    aux_step: float = option(0.0, "change of the auxiliary loss's weight per update", low=0)
    aux_form: str = option("gaussian", "auxiliary loss. gaussian: negative log density of the backward state; squared: its "
                                       "squared distance from the predicted mean", ("gaussian", "squared"))
    aux_sees: str = option("z", "input of the auxiliary network: only z, or z and the previous forward state",
                           ("z", "z_and_state"))
    # With weight 0.01, the backward state contains little information, and the latents lose all information.
    backward_weight: float = option(1.0, "weight of the backward LSTM's NLL (gamma); 0 disables it", low=0)

    @property
    def forces(self) -> bool:
        return self.aux_start > 0 or self.aux_weight > 0

    def without_effect(self) -> dict[str, str]:
        # mix_dim = 0 (none) also describes its own decoder, so a file of options for several families can contain it.
        names = ("decoder", "init_from", *(["mix_dim"] if self.mix_dim else []))
        reasons = super().without_effect() | dict.fromkeys(names, "Z-Forcing has its own decoder")
        if self.kl_weight == KL_START:
            reasons["kl_step"] = f"--kl-weight equals the start of the KL weight, {KL_START:g}"
        if self.aux_start == self.aux_weight:
            reasons["aux_step"] = "--aux-start equals --aux-weight"
        if not self.forces:
            reasons |= dict.fromkeys(("aux_step", "aux_form", "aux_sees"), "--aux-start and --aux-weight are 0")
        return reasons

    def kl_weight_at(self, step: int) -> float:
        return moving_weight(KL_START, self.kl_weight, self.kl_step, step)

    def aux_weight_at(self, step: int) -> float:
        return moving_weight(self.aux_start, self.aux_weight, self.aux_step, step)


class ZForcingStage(LatentStage):
    def __init__(self, options: ZForcingOptions, data: Dataset, model: ZForcing, bfloat16: bool, seed: int):
        # Always built, and after the model, so that the model starts with the same weights with and without forcing.
        self.forcing = Forcing(model, options.aux_sees == "z_and_state").to(data.device)
        # AdamW skips weights without a gradient, such as the weights of a disabled term.
        super().__init__(options, data, model, bfloat16, seed, model=model, forcing=self.forcing)

    def step(self, step: int, batch: Batch, update: Update) -> dict[str, Tensor]:
        loss, terms = self.terms(step, batch, draw_seed())
        terms["norm/decoder"] = update("negative ELBO with forcing", self.optimizers["decoder"], loss)
        return {key: value.detach() for key, value in terms.items()}

    def terms(self, step: int, batch: Batch, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a batch at a step, and its terms by their names in the training log."""
        options, tokens, rng = self.options, batch.tokens, torch.Generator().manual_seed(seed)
        # The noise is drawn for the global batch, position by position, so that it does not depend on a rank's padding.
        drawn = [torch.randn(batch.num_rows, options.latent_dim, generator=rng) for _ in range(tokens.inputs.shape[1])]
        noise = batch.own(torch.stack(drawn, dim=1)).to(tokens.inputs.device)
        terms, extra = dict[str, Tensor](), list[Tensor]()
        head, kl_weight, aux_weight = self.forcing.head, options.kl_weight_at(step), options.aux_weight_at(step)
        with torch.autocast(tokens.inputs.device.type, torch.bfloat16, enabled=self.bfloat16):
            backward = self.model.backward_states(tokens)
            path = self.model.follow(tokens, backward, noise)
            nll = self.model.decoder.hidden_nll(path.hidden, tokens).sum()
            if options.forces:
                mean, logvar = self.forcing.predict(self.model, path.before, backward, noise)
                states = backward.detach().float()
                # -log p(b_t | z_t) in nats, or the squared distance
                cost = gaussian_nll(states, mean, logvar) if options.aux_form == "gaussian" else (states - mean).square()
                auxiliary = (cost.sum(dim=2) * tokens.mask).sum() / batch.num_targets
                terms = {"train/auxiliary_per_token": auxiliary, "train/auxiliary_weight": batch.share(aux_weight)}
                extra.append(aux_weight * auxiliary)
            if options.backward_weight:
                backward_nll = linear_nll(backward, head.weight, head.bias, tokens.inputs, tokens.mask).sum()
                terms["train/backward_nll_per_token"] = backward_nll / batch.num_targets
                extra.append(options.backward_weight * terms["train/backward_nll_per_token"])
        kl = (kl_to_standard_normal(*path.in_units_of_the_prior()) * tokens.mask[:, :, None]).sum()
        loss = sum(extra, (nll + kl_weight * kl) / batch.num_targets)
        return loss, self.elbo_terms(batch, nll, kl, kl_weight) | terms

    def validate(self) -> Validation:
        rows = self.validation_rows()
        draws = list(self.model.draws(rows, VALIDATION_DRAWS, torch.Generator().manual_seed(VALIDATION_SEED)))
        steps = draws[0].latent
        mu, logvar = steps.real(steps.mu), steps.real(steps.logvar)
        figures = {**term_figures("valid", bound_terms(draws), rows), "valid/active_units": float(active_units(mu)),
                   "valid/active_positions": float(active_positions(steps)),
                   "valid/latent_gap_per_token": swapped_gap(self.model, rows, steps.drawn.flatten(1), draws[0].nll)}
        return self.validation(figures, mu, logvar, kl_by_position=kl_picture(kl_by_position(steps).tolist()))


class ZForcingMethod(Method):
    family = "zforcing"
    config_class = ZForcingOptions

    def __init__(self, config: RunConfig, data: Dataset, bfloat16: bool):
        options: Any = config.model
        # The number of steps is the number of tokens plus one, because eos is written too.
        vector_dim = options.latent_dim * (data.corpus.meta["max_len"] + 1)
        known = StochasticDecoderConfig.__dataclass_fields__
        shape = {name: value for name, value in vars(options).items() if name in known}
        self.model = ZForcing(options.backward_hidden_dim, StochasticDecoderConfig(
            data.tokenizer.vocab_size, vector_dim, **shape)).to(data.device)
        self.assemble(ZForcingStage(options, data, self.model, bfloat16, config.training.seed))
