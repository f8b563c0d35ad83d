"""The sentence VAE. Its loss is nll + KL, per token. Each remedy against posterior collapse is enabled by one option."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from outlines.checkpoint import write_state
from outlines.decoding.scoring import bound_terms
from outlines.encoders.recurrent import RecurrentEncoderConfig
from outlines.errors import OutlinesError
from outlines.metrics.collapse import Posterior, active_units, drift, mutual_information
from outlines.models.base import block_seed
from outlines.models.vae import VAE, drop_words
from outlines.networks import losses
from outlines.networks.decoder import decoder_class
from outlines.options import option
from train.config import DecoderOptions, RunConfig
from train.data import Batch, Dataset
from train.evaluation.figures import VALIDATION_DRAWS, swapped_gap, term_figures
from train.method import Method, Update, Validation, draw_seed, frozen
from train.methods.decoder_stage import LatentStage, decoder_config
from train.runtime.ranks import Ranks

VALIDATION_SEED = 13
NUM_PROBES = 256  # number of probes: validation sentences whose posteriors are compared from one validation to the next
INNER_COMPARED = 10  # encoder steps per sum of losses; each sum is compared with the previous one (code of He et al. 2019)


@dataclass(frozen=True)
class VAEOptions(DecoderOptions):
    """Options of decoder, encoder and remedies against posterior collapse. By default, no remedy is enabled."""

    group: ClassVar[str] = "VAE"
    reads_words: ClassVar[bool] = True
    latent_dim: int = option(32, "width of the latent z", low=1)
    encoder_hidden_dim: int = option(256, "width of each direction of the encoder's GRU", low=1)
    kl_weight: float = option(1.0, "KL weight after annealing; 1: the loss is the negative ELBO", low=0)
    kl_anneal: str = option("none", "schedule of the KL weight; none: constant; linear: one rise; cyclical: several",
                            ("none", "linear", "cyclical"))
    kl_rise: float = option(0.5, "duration of a rise of the KL weight, as a fraction of training (linear) or of a cycle",
                            low=1e-6, high=1)
    kl_cycles: int = option(4, "number of cycles of cyclical annealing", low=1)
    free_bits: float = option(0.0, "KL below this value has no cost; nats per group of dimensions", low=0)
    free_bits_groups: int = option(0, "number of groups of dimensions for --free-bits; 0: each dimension is a group", low=0)
    word_dropout: float = option(0.0, "probability of replacing a decoder input token by the special token unk, 0 to 1",
                                 low=0, high=1)
    z_into: str = option("every_step", "where the decoder reads z: in its first state and at every step, or only in its "
                                       "first state", ("every_step", "first_state"))
    bow_weight: float = option(0.0, "weight of the bag-of-words loss; 0 disables it", low=0)
    aggressive_steps: int = option(0, "maximum number of encoder updates before each decoder update, until the mutual "
                                      "information stops rising; 0: always update both together", low=0)
    aggressive_checks: int = option(40, "maximum number of times that --aggressive-steps measures the mutual information",
                                    low=1)

    def __post_init__(self) -> None:
        if self.free_bits_groups > self.latent_dim:
            raise OutlinesError(f"--free-bits-groups {self.free_bits_groups} is more than the {self.latent_dim} dimensions "
                                f"of z. Use at most {self.latent_dim} groups, or raise --latent-dim.")

    def without_effect(self) -> dict[str, str]:
        needs = {"kl_rise": ("--kl-anneal", self.kl_anneal != "none"),
                 "kl_cycles": ("--kl-anneal cyclical", self.kl_anneal == "cyclical"),
                 "free_bits_groups": ("--free-bits", self.free_bits > 0),
                 "aggressive_checks": ("--aggressive-steps", self.aggressive_steps > 0)}
        reasons = {name: f"without {flag}" for name, (flag, present) in needs.items() if not present}
        if "vector_into" not in decoder_class(self.decoder).config_class.__dataclass_fields__:
            reasons["z_into"] = f"decoder {self.decoder!r} does not use it"
        reasons = super().without_effect() | reasons
        if self.bow_weight:
            reasons.pop("hidden_dim", None)
        return reasons

    def kl_weight_at(self, step: int) -> float:
        if self.kl_anneal == "linear":
            return self.kl_weight * losses.linear_kl_weight(step, self.kl_rise * self.decoder_steps)
        if self.kl_anneal == "cyclical":
            return self.kl_weight * losses.cyclical_kl_weight(step, self.decoder_steps, self.kl_cycles, self.kl_rise)
        return self.kl_weight


class VAEState(nn.Module):
    """Training state in addition to weights and step. It is stored in buffers, so that checkpoints contain it."""

    aggressive: Tensor  # whether training is still aggressive: several encoder updates per decoder update
    mutual_information: Tensor  # the value that was measured last, nats
    num_probed: Tensor  # number of validations so far
    probe_mu: Tensor  # [2, P, Z], means of P probes at the last two validations, older first; probe_logvar: same shape
    probe_logvar: Tensor

    def __init__(self, aggressive: bool, num_probes: int, latent_dim: int):
        super().__init__()
        self.register_buffer("num_probed", torch.tensor(0))
        for name in ("probe_mu", "probe_logvar"):
            self.register_buffer(name, torch.zeros(2, num_probes, latent_dim))
        self.register_buffer("aggressive", torch.tensor(aggressive))
        self.register_buffer("mutual_information", torch.tensor(0.0, dtype=torch.double))

    def probe(self, mu: Tensor, logvar: Tensor) -> None:
        """Store the posteriors of the probes: the first P rows of mu and logvar, [N, Z] each, of this validation."""
        for probes, values in ((self.probe_mu, mu), (self.probe_logvar, logvar)):
            probes.copy_(torch.stack([probes[1], values[:probes.shape[1]].to(probes)]))
        self.num_probed += 1

    def probes(self) -> list[Posterior]:
        """Return the posteriors of the probes at the last two validations, or [] before the second validation."""
        return list(zip(self.probe_mu, self.probe_logvar, strict=True)) if int(self.num_probed) > 1 else []


class VAEStage(LatentStage):
    def __init__(self, options: VAEOptions, data: Dataset, model: VAE, bfloat16: bool, seed: int):
        modules: dict[str, nn.Module] = {"encoder": model.encoder, "decoder": model.decoder}
        self.bow: nn.Module | None = None
        if options.bow_weight:  # Built last, so that the other initial weights are the same as in the plain VAE.
            self.bow = modules["bow"] = nn.Sequential(
                nn.Linear(options.latent_dim, options.hidden_dim), nn.Tanh(),
                nn.Linear(options.hidden_dim, data.tokenizer.vocab_size)).to(data.device)
        # One optimiser for all modules: AdamW skips weights without a gradient, so a step can update only a part of them.
        super().__init__(options, data, model, bfloat16, seed, **modules)
        self.generative = [module for name, module in modules.items() if name != "encoder"]
        num_probes = min(NUM_PROBES, options.num_validation, data.num_rows("valid"))
        self.progress = VAEState(options.aggressive_steps > 0, num_probes, options.latent_dim)
        self.several_updates = options.aggressive_steps > 0
        self.order = data.order(options.decoder_batch_size, True, seed)

    def step(self, step: int, batch: Batch, update: Update) -> dict[str, Tensor]:
        seed, aggressive = draw_seed(), bool(self.progress.aggressive)
        encoder_steps = self.train_encoder(step, batch.ranks, update) if aggressive else 1
        with frozen(*([self.model.encoder] if aggressive else [])):
            loss, terms = self.terms(step, batch, seed)
            terms["norm/decoder"] = update("negative ELBO", self.optimizers["decoder"], loss)
        if aggressive and (step + 1) % max(1, self.options.decoder_steps // self.options.aggressive_checks) == 0:
            self._check_mutual_information(batch.ranks)
        if self.options.aggressive_steps:
            terms["train/encoder_steps"] = batch.share(encoder_steps)
        return {key: value.detach() for key, value in terms.items()}

    def terms(self, step: int, batch: Batch, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss nll + kl_weight · KL + bow_weight · bag-of-words nll, per token, and its terms by log key."""
        options, tokens, rng = self.options, batch.tokens, torch.Generator().manual_seed(seed)
        mu, logvar = self.model.encode(tokens.inputs, tokens.lengths)
        # The noise of the global batch, from its own random number generator, does not depend on ranks or dropout.
        noise = batch.own(torch.randn(batch.num_rows, options.latent_dim, generator=rng)).to(mu.device)
        z = mu + (logvar / 2).exp() * noise
        read = batch
        if options.word_dropout:
            # Random numbers are drawn position by position, so they do not depend on a rank's padding.
            uniforms = batch.own(torch.rand(tokens.inputs.shape[1], batch.num_rows, generator=rng).T).to(mu.device)
            inputs = drop_words(tokens.inputs, tokens.lengths, options.word_dropout, uniforms,
                                self.data.tokenizer.special.unk_id)
            read = dataclasses.replace(batch, read_tokens=lambda: dataclasses.replace(tokens, inputs=inputs))
        nll = self.nll(read, z)
        kl = losses.kl_to_standard_normal(mu, logvar).sum(dim=0) / batch.num_rows
        charged = kl.sum()
        if options.free_bits:
            # The minimum applies to the mean KL of the global batch: use its value, but the gradient of this rank's KL.
            mean_kl = kl.detach().clone()
            batch.ranks.sum_([mean_kl])
            charged = losses.free_bits(mean_kl + kl - kl.detach(), options.free_bits,
                                options.free_bits_groups or options.latent_dim).sum()
        kl_weight = options.kl_weight_at(step)
        terms, extra = self.elbo_terms(batch, nll, kl.sum() * batch.num_rows, kl_weight), kl_weight * charged
        if self.bow is not None:
            bow = losses.bag_of_words_nll(self.bow(z), tokens.targets, tokens.mask).sum() / batch.num_rows
            terms["train/bow_nll"], extra = bow, extra + options.bow_weight * bow
        return nll / batch.num_targets + extra * (batch.num_rows / batch.num_targets), terms

    def train_encoder(self, step: int, ranks: Ranks, update: Update) -> int:
        """Update only the encoder, on new batches, until the loss stops falling; return the number of updates.

        Source: He et al., Lagging Inference Networks and Posterior Collapse (2019), algorithm 1.
        """
        first, seed = int(torch.randint(2**31, ())), draw_seed()
        before, total = float("inf"), torch.zeros((), device=self.data.device)
        for index in range(self.options.aggressive_steps):
            with frozen(*self.generative):
                loss, _ = self.terms(step, self.data.batch(self.order.batch(first + index), ranks), block_seed(seed, index))
                update("negative ELBO of the encoder", self.optimizers["decoder"], loss)
            total += loss.detach()
            if (index + 1) % INNER_COMPARED == 0:
                ranks.sum_([total])
                if float(total) > before:
                    return index + 1
                before, total = float(total), torch.zeros_like(total)
        return self.options.aggressive_steps

    def _check_mutual_information(self, ranks: Ranks) -> None:
        """End aggressive training if I(x; z) on the validation split has not risen since the last check.

        Source: He et al. (2019), section 4.2.
        """
        mu, logvar = self.model.posterior(self.validation_rows())
        value = ranks.agree(mutual_information(mu, logvar, torch.Generator().manual_seed(VALIDATION_SEED)).nats)
        if value <= float(self.progress.mutual_information):
            self.progress.aggressive.fill_(False)
        self.progress.mutual_information.fill_(value)

    def validate(self) -> Validation:
        rows, rng = self.validation_rows(), torch.Generator().manual_seed(VALIDATION_SEED)
        posterior = self.model.posterior(rows)
        mu, logvar = posterior[0].cpu(), posterior[1].cpu()
        draws = list(self.model.draws(rows, VALIDATION_DRAWS, rng, (mu, logvar)))
        figures = {**term_figures("valid", bound_terms(draws), rows),
                   "valid/mutual_information": mutual_information(mu, logvar, rng).nats,
                   "valid/active_units": float(active_units(mu)),
                   "valid/latent_gap_per_token": swapped_gap(self.model, rows, draws[0].latent, draws[0].nll)}
        self.progress.probe(mu, logvar)
        if probes := self.progress.probes():  # The median, because a dimension that hardly varies has a huge drift.
            figures["valid/drift"] = float(drift(probes).mu.median())
        return self.validation(figures, mu, logvar)

    def finish(self, directory: Path) -> None:
        """Write the posteriors of the probes to `probes/`. The report computes their drift."""
        if self.progress.probes():
            write_state(directory / "probes", {"mu": self.progress.probe_mu, "logvar": self.progress.probe_logvar}, {})


class VAEMethod(Method):
    family = "vae"
    config_class = VAEOptions

    def __init__(self, config: RunConfig, data: Dataset, bfloat16: bool):
        options: Any = config.model
        settings = {} if options.z_into == "every_step" else {"vector_into": options.z_into}
        decoder = decoder_config(options, data, options.latent_dim, **settings)
        encoder = RecurrentEncoderConfig(data.tokenizer.vocab_size, options.embed_dim, options.encoder_hidden_dim,
                                         2 * options.latent_dim, dropout=0.0)
        self.model = VAE(encoder, decoder).to(data.device)
        stage = VAEStage(options, data, self.model, bfloat16, config.training.seed)
        self.assemble(stage, progress=stage.progress)
