"""The sentence VAE, plain, and the remedies against its collapse: each an option that changes nothing else.

The plain step is the language model's with z beside it: nll + KL, divided by the tokens as every decoder's loss is.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from outlines.checkpoint import write_state
from outlines.errors import OutlinesError
from outlines.metrics.collapse import Posterior, active_units, drift, mutual_information, signal_noise
from outlines.models.base import block_seed
from outlines.models.vae import VAE, drop_words
from outlines.networks.losses import (
    bag_of_words_nll,
    cyclical_kl_weight,
    free_bits,
    kl_to_standard_normal,
    linear_kl_weight,
)
from outlines.options import option
from train.config import RunConfig
from train.data import Batch, Dataset
from train.evaluation.figures import VALIDATION_DRAWS, held_out, swapped_gap, term_figures
from train.evaluation.pictures import signal_noise_picture
from train.method import Method, Stage, Update, Views, adamw
from train.methods.lm import DecoderOptions, LanguageModelMethod, decoder_config, decoder_stage, decoder_step
from train.runtime.ranks import Ranks

VALIDATION_SEED = 13
NUM_PROBES = 256
"""Validation sentences, at most, whose posteriors are followed from one validation to the next."""
INNER_COMPARED = 10
"""Encoder steps whose mean loss is compared with that of as many before (He et al. 2019, their code)."""


@dataclass(frozen=True)
class VAEOptions(DecoderOptions):
    """The decoder's options, the encoder's, and the remedies'; by default none is on."""

    latent_dim: int = option(32, "width of the latent z", low=1)
    encoder_hidden_dim: int = option(256, "width of each direction of the encoder's GRU", low=1)
    kl_weight: float = option(1.0, "weight of the KL term, after annealing; 1 trains the ELBO", low=0)
    kl_anneal: str = option("none", "how the KL weight rises from 0: not at all, once, or in every cycle",
                            ("none", "linear", "cyclical"))
    kl_rise: float = option(0.5, "share of training (linear) or of each cycle (cyclical), 0 to 1, over which the KL weight "
                                 "rises", low=1e-6, high=1)
    kl_cycles: int = option(4, "cycles of cyclical annealing", low=1)
    free_bits: float = option(0.0, "nats of KL, a group of dimensions, that cost nothing; 0 charges all", low=0)
    free_bits_groups: int = option(0, "groups that --free-bits counts by; 0 makes each dimension one", low=0)
    word_dropout: float = option(0.0, "share of the words that the decoder reads in training, 0 to 1, replaced by the "
                                      "unknown word; what it must predict stays whole", low=0, high=1)
    z_into: str = option("every_step", "where the decoder sees z: at its first state and every step, or there alone",
                         ("every_step", "first_state"))
    bow_weight: float = option(0.0, "weight of the bag-of-words loss; 0 leaves it out", low=0)
    aggressive_steps: int = option(0, "steps of the encoder alone, at most, before each step of the decoder alone, for as "
                                      "long as mutual information climbs on validation; 0 trains both together", low=0)
    aggressive_checks: int = option(40, "looks at that mutual information in all of training", low=1)

    def __post_init__(self) -> None:
        if self.free_bits_groups > self.latent_dim:
            raise OutlinesError(f"--free-bits-groups {self.free_bits_groups} is more than z has dimensions "
                                f"(--latent-dim {self.latent_dim})")

    def without_effect(self) -> dict[str, str]:
        needs = {"kl_rise": ("--kl-anneal", self.kl_anneal != "none"),
                 "kl_cycles": ("--kl-anneal cyclical", self.kl_anneal == "cyclical"),
                 "free_bits_groups": ("--free-bits", self.free_bits > 0),
                 "aggressive_checks": ("--aggressive-steps", self.aggressive_steps > 0)}
        return {name: f"without {flag}" for name, (flag, present) in needs.items() if not present}

    def kl_weight_at(self, step: int) -> float:
        """The KL term's weight at a step of the stage."""
        if self.kl_anneal == "linear":
            return self.kl_weight * linear_kl_weight(step, self.kl_rise * self.decoder_steps)
        if self.kl_anneal == "cyclical":
            return self.kl_weight * cyclical_kl_weight(step, self.decoder_steps, self.kl_cycles, self.kl_rise)
        return self.kl_weight


class Progress(nn.Module):
    """What training remembers, in buffers, so that a checkpoint holds it: of its course, and of the last two validations.

    probe_mu, probe_logvar: posteriors of the probes, [2, P, Z] each, the older first.
    """

    step: Tensor
    aggressive: Tensor
    mutual_information: Tensor
    num_probed: Tensor
    probe_mu: Tensor
    probe_logvar: Tensor

    def __init__(self, aggressive: bool, num_probes: int, latent_dim: int):
        super().__init__()
        self.register_buffer("num_probed", torch.tensor(0))
        for name in ("probe_mu", "probe_logvar"):
            self.register_buffer(name, torch.zeros(2, num_probes, latent_dim))
        self.register_buffer("step", torch.tensor(0))
        self.register_buffer("aggressive", torch.tensor(aggressive))
        self.register_buffer("mutual_information", torch.tensor(0.0, dtype=torch.double))

    def probe(self, mu: Tensor, logvar: Tensor) -> None:
        """Take the posteriors [N, Z] of a validation, of which the probes come first."""
        for probes, values in ((self.probe_mu, mu), (self.probe_logvar, logvar)):
            probes.copy_(torch.stack([probes[1], values[:probes.shape[1]].to(probes)]))
        self.num_probed += 1

    def probes(self) -> list[Posterior]:
        """The probes' posteriors at the last two validations, or none before there have been two."""
        return list(zip(self.probe_mu, self.probe_logvar, strict=True)) if int(self.num_probed) > 1 else []


@dataclass(frozen=True)
class Terms:
    """A batch's loss and what it is made of: this rank's shares of the global means; kl is [Z], nats a sentence."""

    loss: Tensor
    nll_per_token: Tensor
    nll: Tensor
    kl: Tensor
    bow: Tensor | None


class VAEMethod(Method):
    family = "vae"
    config_class = VAEOptions
    # Sizes are those of every family. Settings of the remedies are their papers', steps as shares of training.
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        **LanguageModelMethod.presets,
        "tiny": {**LanguageModelMethod.presets["tiny"], "latent_dim": 8, "encoder_hidden_dim": 16},
        "default": {**LanguageModelMethod.presets["default"], "encoder_hidden_dim": 192},
        "full": {**LanguageModelMethod.presets["full"], "encoder_hidden_dim": 1024},
        "vae": {},
        # Bowman et al. (2016), section 3.1; one rise over a quarter of training is what Fu et al. compare cycles with in
        # their code (M = 1, R = 0.25), and He et al.'s first 10 epochs of some 40.
        "vae-annealed": {"kl_anneal": "linear", "kl_rise": 0.25},
        # Fu et al. (2019), section 4: M = 4 cycles, each rising over R = 0.5 of it.
        "vae-cyclical": {"kl_anneal": "cyclical", "kl_cycles": 4, "kl_rise": 0.5},
        # Kingma et al. (2016), appendix C.8, found floors of 0.125 to 2 a group alike; 32 dimensions of 0.25 are 8 nats.
        "vae-freebits": {"free_bits": 0.25},
        # Bowman et al. (2016), section 5: "a fixed word dropout rate of 75 %".
        "vae-worddrop": {"word_dropout": 0.75},
        # He et al. (2019), algorithm 1, with at most 100 inner steps as in their code. They look at mutual information
        # once in each of some 40 epochs.
        "vae-lagging": {"aggressive_steps": 100, "aggressive_checks": 40},
        # Zhao et al. (2017), section 3.3, who give the loss the weight 1.
        "vae-bow": {"bow_weight": 1.0},
    }
    model: VAE
    validated: tuple[Tensor, Tensor]
    """the posterior of the last validation, on the CPU: to encode the sentences costs as much as to score them"""

    def __init__(self, config: RunConfig, data: Dataset, bfloat16: bool):
        options: VAEOptions = config.model
        self.data, self.bfloat16, self.options = data, bfloat16, options
        decoder = dataclasses.replace(decoder_config(options, data, options.latent_dim), vector_into=options.z_into)
        self.model = VAE(options.encoder_hidden_dim, decoder).to(data.device)
        num_probes = min(NUM_PROBES, options.num_validation, data.num_rows("valid"))
        self.progress = Progress(options.aggressive_steps > 0, num_probes, options.latent_dim)
        self.modules = {"encoder": self.model.encoder, "decoder": self.model.decoder, "progress": self.progress}
        self.generative: list[nn.Module] = [self.model.decoder]
        if options.bow_weight:  # Made last, so that the other weights start as the plain VAE's.
            bow = nn.Sequential(nn.Linear(options.latent_dim, options.hidden_dim), nn.Tanh(),
                                nn.Linear(options.hidden_dim, data.tokenizer.vocab_size)).to(data.device)
            self.modules["bow"] = bow
            self.generative.append(bow)
        # One optimiser for both halves: it passes over weights without a gradient, and that is how a half rests.
        self.optimizers = {"decoder": adamw([self.model.encoder, *self.generative], options.decoder_learning_rate,
                                            (0.9, 0.99), 0.01)}
        trained = tuple(name for name in self.modules if name != "progress")
        self.stages = (dataclasses.replace(decoder_stage(options, "valid/negative_elbo_per_token"), modules=trained),)
        self.order = data.order(options.decoder_batch_size, True, config.training.seed)

    def step(self, stage: Stage, batch: Batch, update: Update) -> dict[str, Tensor]:
        progress, optimizer = self.progress, self.optimizers["decoder"]
        seed = _draw_seed()
        aggressive = bool(progress.aggressive)
        encoder_steps = self._train_encoder(batch.ranks, update) if aggressive else 1
        with _resting([self.model.encoder] if aggressive else []):
            terms = self._terms(batch, seed)
            norm = update("negative ELBO", optimizer, terms.loss)
        kl_weight = self.options.kl_weight_at(int(progress.step))
        progress.step += 1
        if aggressive and int(progress.step) % max(1, self.options.decoder_steps // self.options.aggressive_checks) == 0:
            self._look_at_mutual_information(batch.ranks)
        kl = terms.kl.sum()
        logged = {"train/reconstruction_nll_per_token": terms.nll_per_token, "train/reconstruction_nll": terms.nll,
                  "train/kl": kl,
                  "train/negative_elbo_per_token": terms.nll_per_token + kl * batch.num_rows / batch.num_targets,
                  "train/kl_weight": torch.tensor(kl_weight / batch.ranks.world, device=kl.device), "norm/decoder": norm}
        if terms.bow is not None:
            logged["train/bow_nll"] = terms.bow
        if self.options.aggressive_steps:
            logged["train/encoder_steps"] = torch.tensor(encoder_steps / batch.ranks.world, device=kl.device)
        return {key: value.detach() for key, value in logged.items()}

    def _terms(self, batch: Batch, seed: int) -> Terms:
        """The loss of this batch: nll + kl_weight · KL + bow_weight · bag of words, a token.

        Noise is drawn for the global batch with a generator of its own, so that ranks agree whatever dropout draws.
        """
        options, tokens, ranks, rng = self.options, batch.tokens, batch.ranks, torch.Generator().manual_seed(seed)
        mu, logvar = self.model.encode(tokens.inputs, tokens.lengths)
        noise = torch.randn(batch.num_rows, options.latent_dim, generator=rng)[ranks.rank::ranks.world].to(mu.device)
        z = mu + (logvar / 2).exp() * noise
        read = batch
        if options.word_dropout:
            # Position by position, so that what a word draws does not hang on how far its rank pads.
            uniforms = torch.rand(tokens.inputs.shape[1], batch.num_rows, generator=rng).T[ranks.rank::ranks.world]
            inputs = drop_words(tokens.inputs, tokens.lengths, options.word_dropout, uniforms.to(mu.device))
            read = dataclasses.replace(batch, read_tokens=lambda: dataclasses.replace(tokens, inputs=inputs))
        per_token, per_sentence = decoder_step(self.model.decoder, z, read, self.bfloat16)
        kl = kl_to_standard_normal(mu, logvar).sum(dim=0) / batch.num_rows
        charged = kl.sum()
        if options.free_bits:
            # The floor is the global batch's: its value, with this rank's gradient.
            mean_kl = kl.detach().clone()
            ranks.sum_([mean_kl])
            charged = free_bits(mean_kl + kl - kl.detach(), options.free_bits,
                                options.free_bits_groups or options.latent_dim).sum()
        extra, bow = options.kl_weight_at(int(self.progress.step)) * charged, None
        if options.bow_weight:
            bow = bag_of_words_nll(self.modules["bow"](z), tokens.targets, tokens.mask).sum() / batch.num_rows
            extra = extra + options.bow_weight * bow
        return Terms(per_token + extra * (batch.num_rows / batch.num_targets), per_token, per_sentence, kl, bow)

    def _train_encoder(self, ranks: Ranks, update: Update) -> int:
        """Steps of the encoder alone, on batches drawn anew, until its loss stops falling; returns how many.

        Source: He et al., Lagging Inference Networks and Posterior Collapse (2019), algorithm 1.
        """
        first, seed = int(torch.randint(2**31, ())), _draw_seed()
        before, losses = float("inf"), torch.zeros((), device=self.data.device)
        for index in range(self.options.aggressive_steps):
            with _resting(self.generative):
                terms = self._terms(self.data.batch(self.order.batch(first + index), ranks), block_seed(seed, index))
                update("negative ELBO, encoder alone", self.optimizers["decoder"], terms.loss)
            losses += terms.loss.detach()
            if (index + 1) % INNER_COMPARED == 0:
                ranks.sum_([losses])
                if float(losses) > before:
                    return index + 1
                before, losses = float(losses), torch.zeros_like(losses)
        return self.options.aggressive_steps

    def _look_at_mutual_information(self, ranks: Ranks) -> None:
        """Leave aggressive training for good once I(x; z) on validation no longer climbs (He et al. 2019, section 4.2)."""
        mu, logvar = self.model.posterior(self._validation_rows())
        value = ranks.agree(mutual_information(mu, logvar, torch.Generator().manual_seed(VALIDATION_SEED)).nats)
        if value <= float(self.progress.mutual_information):
            self.progress.aggressive.fill_(False)
        self.progress.mutual_information.fill_(value)

    def _validation_rows(self) -> list[Any]:
        return held_out(self.data, "valid", self.options.num_validation)[0]

    def validate(self, stage: Stage) -> dict[str, float]:
        rows, rng = self._validation_rows(), torch.Generator().manual_seed(VALIDATION_SEED)
        posterior = self.model.posterior(rows)
        mu, logvar = self.validated = posterior[0].cpu(), posterior[1].cpu()
        bounds = self.model.bounds(rows, VALIDATION_DRAWS, rng, posterior=self.validated)
        figures = {**term_figures("valid", bounds.terms(), rows),
                   "valid/mutual_information": mutual_information(mu, logvar, rng).nats,
                   "valid/active_units": float(active_units(mu)),
                   "valid/latent_gap_per_token": swapped_gap(self.model, rows, bounds.first_z, bounds.first_nll)}
        self.progress.probe(mu, logvar)
        if probes := self.progress.probes():  # The median: where a dimension hardly varies, its unit is next to nothing.
            figures["valid/drift"] = float(drift(probes).mu.median())
        return figures

    def views(self, stage: Stage) -> Views:
        mu, logvar = self.validated
        strength = signal_noise(mu, logvar)
        return Views({"posterior/mu": mu, "posterior/sigma": (logvar / 2).exp()},
                     {"posterior/signal_noise": signal_noise_picture(strength.signal.tolist(), strength.noise.tolist())})

    def finish(self, directory: Path) -> None:
        """Beside the model, `probes/`: what the report's drift is measured on."""
        if self.progress.probes():
            write_state(directory / "probes", {"mu": self.progress.probe_mu, "logvar": self.progress.probe_logvar}, {})
        super().finish(directory)


def _draw_seed() -> int:
    """A seed from torch's generator, which the loop seeds before each step."""
    return int(torch.randint(2**62, ()))


@contextlib.contextmanager
def _resting(modules: list[nn.Module]) -> Iterator[None]:
    """Modules that pass gradients on and keep none, so that the optimiser leaves them as they are."""
    for module in modules:
        module.requires_grad_(False)
    try:
        yield
    finally:
        for module in modules:
            module.requires_grad_(True)
