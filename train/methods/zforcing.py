"""Z-Forcing: a latent per step, and what forces it to say what is to come; without forcing, the ablation.

The step is the language model's with a latent beside every word: nll + beta · KL + alpha · auxiliary + gamma · backward nll,
divided by the tokens as every decoder's loss is. The bound that is reported is nll + KL alone.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from outlines.metrics.collapse import (
    Steps,
    active_positions,
    active_units,
    kl_by_position,
    signal_noise,
)
from outlines.models.zforcing import Forcing, StochasticDecoderConfig, ZForcing, bound_terms
from outlines.networks.losses import gaussian_nll, kl_to_standard_normal, moving_weight, total_nll
from outlines.options import option
from train.config import RunConfig
from train.data import Batch, Dataset
from train.evaluation.figures import VALIDATION_DRAWS, held_out, swapped_gap, term_figures
from train.evaluation.pictures import kl_picture, signal_noise_picture
from train.method import Method, Stage, Update, Views, adamw
from train.methods.lm import DecoderOptions, LanguageModelMethod, decoder_config, decoder_stage

VALIDATION_SEED = 13


@dataclass(frozen=True)
class ZForcingOptions(DecoderOptions):
    """The decoder's options, the posterior's, and the weights; by default the latents are forced."""

    hidden_dim: int = option(512, "width of the forward LSTM's state", low=1)
    num_layers: int = option(1, "layers of the forward LSTM", low=1)
    latent_dim: int = option(32, "width of the latent z of a step", low=1)
    mlp_dim: int = option(256, "width of the hidden layer of prior, posterior and auxiliary network", low=1)
    backward_hidden_dim: int = option(256, "width of the backward LSTM's state", low=1)
    kl_start: float = option(0.2, "weight of the KL term (beta) at the first update", low=0)
    kl_weight: float = option(1.0, "weight of the KL term once it has moved; 1 trains the ELBO", low=0)
    kl_step: float = option(5e-5, "by how much an update moves the KL weight", low=0)
    aux_start: float = option(0.005, "weight of the auxiliary cost (alpha) at the first update; it is a sum over the width "
                                     "of the backward state", low=0)
    aux_weight: float = option(0.005, "weight of the auxiliary cost once it has moved", low=0)
    aux_step: float = option(0.0, "by how much an update moves the auxiliary weight", low=0)
    aux_form: str = option("gaussian", "the auxiliary cost: -log of a Gaussian density of the backward state, or its "
                                       "squared distance from the mean", ("gaussian", "squared"))
    aux_sees: str = option("z", "what it is told from: z alone (z-forced), or z and the forward state before it",
                           ("z", "z_and_state"))
    # 1, for z can say no more of what is to come than the backward state knows: with 0.01 forcing drove the latents out.
    backward_weight: float = option(1.0, "weight of the backward LSTM's own nll (gamma); 0 leaves it out", low=0)

    @property
    def forces(self) -> bool:
        return self.aux_start > 0 or self.aux_weight > 0

    def without_effect(self) -> dict[str, str]:
        reasons = {}
        if self.kl_start == self.kl_weight:
            reasons["kl_step"] = "--kl-start is --kl-weight"
        if self.aux_start == self.aux_weight:
            reasons["aux_step"] = "--aux-start is --aux-weight"
        if not self.forces:
            reasons |= dict.fromkeys(("aux_step", "aux_form", "aux_sees"), "--aux-start and --aux-weight are 0")
        return reasons

    def kl_weight_at(self, step: int) -> float:
        return moving_weight(self.kl_start, self.kl_weight, self.kl_step, step)

    def aux_weight_at(self, step: int) -> float:
        return moving_weight(self.aux_start, self.aux_weight, self.aux_step, step)


class Updates(nn.Module):
    """How many there have been, in a buffer, so that a checkpoint holds it."""

    step: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("step", torch.tensor(0))


@dataclass(frozen=True)
class Terms:
    """A batch's loss and what it is made of: this rank's shares of the global means, nats a token; kl, nats a sentence."""

    loss: Tensor
    nll_per_token: Tensor
    kl: Tensor
    auxiliary: Tensor | None
    backward_nll: Tensor | None


class ZForcingMethod(Method):
    family = "zforcing"
    config_class = ZForcingOptions
    # Sizes are those of every family. The published step of the KL weight, 5e-5, takes 16,000 updates from 0.2 to 1: `full`
    # has them; the shorter ones arrive after the same two fifths to half of their training.
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        **LanguageModelMethod.presets,
        "tiny": {**LanguageModelMethod.presets["tiny"], "latent_dim": 8, "mlp_dim": 16, "backward_hidden_dim": 16,
                 "kl_step": 0.05},
        "default": {**LanguageModelMethod.presets["default"], "kl_step": 2e-3},
        "small": {**LanguageModelMethod.presets["small"], "kl_step": 7e-4},
        "full": {**LanguageModelMethod.presets["full"], "mlp_dim": 512, "backward_hidden_dim": 512},
        "zforcing": {},
        "zforcing-off": {"aux_start": 0.0, "aux_weight": 0.0, "backward_weight": 0.0},
    }
    model: ZForcing
    validated: Steps
    """the posterior of the last validation, along its first draw"""

    def __init__(self, config: RunConfig, data: Dataset, bfloat16: bool):
        options: ZForcingOptions = config.model
        self.data, self.bfloat16, self.options = data, bfloat16, options
        # The longest sentence takes a step more than it has tokens: the one that writes eos.
        shape = decoder_config(options, data, options.latent_dim * (data.corpus.meta["max_len"] + 1))
        self.model = ZForcing(options.backward_hidden_dim, StochasticDecoderConfig(
            **dataclasses.asdict(shape), latent_dim=options.latent_dim, mlp_dim=options.mlp_dim)).to(data.device)
        # Made last and always, so that the model starts alike with and without forcing.
        self.forcing = Forcing(self.model, options.aux_sees == "z_and_state").to(data.device)
        self.updates = Updates()
        self.modules = {"model": self.model, "forcing": self.forcing, "updates": self.updates}
        # It passes over weights without a gradient: those of a term that is left out rest.
        self.optimizers = {"decoder": adamw([self.model, self.forcing], options.decoder_learning_rate, (0.9, 0.99), 0.01)}
        self.stages = (dataclasses.replace(decoder_stage(options, "valid/negative_elbo_per_token"),
                                           modules=("model", "forcing")),)

    def step(self, stage: Stage, batch: Batch, update: Update) -> dict[str, Tensor]:
        step, world = int(self.updates.step), batch.ranks.world
        terms = self._terms(batch, int(torch.randint(2**62, ())))
        norm = update("negative ELBO, forced", self.optimizers["decoder"], terms.loss)
        self.updates.step += 1
        per_sentence = batch.num_targets / batch.num_rows
        logged = {"train/reconstruction_nll_per_token": terms.nll_per_token,
                  "train/reconstruction_nll": terms.nll_per_token * per_sentence, "train/kl": terms.kl,
                  "train/negative_elbo_per_token": terms.nll_per_token + terms.kl / per_sentence,
                  "train/kl_weight": torch.tensor(self.options.kl_weight_at(step) / world, device=terms.kl.device),
                  "norm/decoder": norm}
        if terms.auxiliary is not None:
            logged["train/auxiliary_per_token"] = terms.auxiliary
            logged["train/auxiliary_weight"] = torch.tensor(self.options.aux_weight_at(step) / world, device=terms.kl.device)
        if terms.backward_nll is not None:
            logged["train/backward_nll_per_token"] = terms.backward_nll
        return {key: value.detach() for key, value in logged.items()}

    def _terms(self, batch: Batch, seed: int) -> Terms:
        """The loss of this batch, a token. Noise is drawn for the global batch, position by position, so that what a
        sentence draws does not hang on how far its rank pads.
        """
        options, tokens, rng = self.options, batch.tokens, torch.Generator().manual_seed(seed)
        drawn = [torch.randn(batch.num_rows, options.latent_dim, generator=rng) for _ in range(tokens.inputs.shape[1])]
        noise = torch.stack(drawn, dim=1)[batch.ranks.rank::batch.ranks.world].to(tokens.inputs.device)
        auxiliary = backward_nll = None
        decoder, head, step = self.model.decoder, self.forcing.head, int(self.updates.step)
        with torch.autocast(tokens.inputs.device.type, torch.bfloat16, enabled=self.bfloat16):
            backward = self.model.backward_states(tokens)
            path = self.model.follow(tokens, backward, noise)
            nll = total_nll(path.hidden, decoder.embedding.weight, decoder.output_bias, tokens.targets, tokens.mask)
            if options.forces:
                mean, logvar = self.forcing.predict(self.model, path.before, backward, noise)
                auxiliary = self._auxiliary(backward.detach().float(), mean, logvar, tokens.mask) / batch.num_targets
            if options.backward_weight:
                backward_nll = total_nll(backward, head.weight, head.bias, tokens.inputs, tokens.mask) / batch.num_targets
        kl = (kl_to_standard_normal(*path.in_units_of_the_prior()) * tokens.mask[:, :, None]).sum()
        loss = (nll + options.kl_weight_at(step) * kl) / batch.num_targets
        if auxiliary is not None:
            loss = loss + options.aux_weight_at(step) * auxiliary
        if backward_nll is not None:
            loss = loss + options.backward_weight * backward_nll
        return Terms(loss, nll / batch.num_targets, kl / batch.num_rows, auxiliary, backward_nll)

    def _auxiliary(self, states: Tensor, mean: Tensor, logvar: Tensor, mask: Tensor) -> Tensor:
        """The sum over real steps of -log p(b_t | z_t), nats, or of the squared distance."""
        gaussian = self.options.aux_form == "gaussian"
        cost = gaussian_nll(states, mean, logvar) if gaussian else (states - mean).square()
        return (cost.sum(dim=2) * mask).sum()

    def validate(self, stage: Stage) -> dict[str, float]:
        rows = held_out(self.data, "valid", self.options.num_validation)[0]
        rng = torch.Generator().manual_seed(VALIDATION_SEED)
        draws = list(self.model.draws(rows, VALIDATION_DRAWS, rng))
        self.validated = steps = draws[0].steps
        gap = swapped_gap(self.model, rows, steps.drawn.flatten(1), draws[0].nll)
        return {**term_figures("valid", bound_terms(draws), rows),
                "valid/active_units": float(active_units(steps.real(steps.mu))),
                "valid/active_positions": float(active_positions(steps)), "valid/latent_gap_per_token": gap}

    def views(self, stage: Stage) -> Views:
        steps = self.validated
        mu, logvar = steps.real(steps.mu), steps.real(steps.logvar)
        strength = signal_noise(mu, logvar)
        return Views({"posterior/mu": mu, "posterior/sigma": (logvar / 2).exp()},
                     {"posterior/signal_noise": signal_noise_picture(strength.signal.tolist(), strength.noise.tolist()),
                      "posterior/kl_by_position": kl_picture(kl_by_position(steps).tolist())})
