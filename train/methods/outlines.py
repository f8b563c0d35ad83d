"""Neural outlines: first the decoder by maximum likelihood on (outline, sentence), then the generator and its critic.

The two never meet in training: the outlines are fixed, so each stage takes the batches that suit it (batches of like
length for the decoder, uniform ones for the GAN, which must see the whole distribution in every batch).
"""

import copy
import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from outlines.errors import OutlinesError
from outlines.inference.rejection import fit_slope
from outlines.metrics.collapse import latent_gap, other_rows
from outlines.metrics.outlines import knn_precision_recall
from outlines.metrics.verdicts import memorised_share
from outlines.models.base import TextModel
from outlines.models.outlines import OutlineModel
from outlines.models.registry import load_model
from outlines.networks.decoder import DecoderConfig
from outlines.networks.gan import GeneratorConfig, fit_mixture, moment_map, update_ema
from outlines.networks.losses import (
    one_centred_penalty,
    relativistic_critic_loss,
    relativistic_generator_loss,
    score_gradients,
    wasserstein_critic_loss,
    wasserstein_generator_loss,
    zero_centred_penalty,
)
from outlines.options import option
from train.config import RunConfig
from train.data import MAX_FITTED_ROWS, Batch, Dataset
from train.evaluation.figures import NUM_DECODED, decoded_nll, held_out, nll_figures
from train.method import Method, Stage, Update, Views, adamw
from train.methods.lm import DecoderOptions, LanguageModelMethod, decoder_config, decoder_stage, decoder_step
from train.runtime.progress import Progress
from train.runtime.run_directory import read_run

NOISE_SEED = 7
NUM_MATCHED = 20_000
"""Generated outlines that their moments are taken of, against as many training ones where there are."""
DECIDES_DECODER = {field.name for field in dataclasses.fields(DecoderOptions)} - {"num_validation"} | {
    "outline_noise", "outline_dropout", "whiten"}
"""The options that decide a decoder, which a run must share with the one whose decoder it takes."""


@dataclass(frozen=True)
class GanOptions(DecoderOptions):
    """The decoder's options, and the GAN's; the same names and defaults in every family that has one."""

    encoder: str = option("minilm", "the frozen sentence encoder: minilm, st:NAME_OR_DIRECTORY, or recurrent:DIRECTORY")
    outline_noise: float = option(0.0, "standard deviation of the noise on the decoder's outlines in training, in units "
                                       "of the outlines' own scale", low=0)
    outline_dropout: float = option(0.1, "share of the decoder's outlines in training, 0 to 1, that are left out; above 0 "
                                         "it learns p(x) as well, and can be guided (--guidance)", low=0, high=0.99)
    decoder_from: str = option("", "a finished run of the family on the same corpus and encoder, with the same options of "
                                   "the decoder: its decoder is taken, and none trained")
    objective: str = option("r3", "what generator and critic play", ("r3", "wgan-gp"))
    gan_hidden_dim: int = option(512, "width of the generator's and the critic's layers", low=1)
    gan_num_layers: int = option(3, "hidden layers of the generator and of the critic", low=1)
    gan_steps: int = option(1000, "generator steps", low=1)
    gan_batch_size: int = option(512, "outlines a step of the GAN", low=2)
    gan_learning_rate: float = option(1e-3, "Adam's peak rate for generator and critic", low=0)
    gan_beta2: float = option(0.99, "Adam's second beta for generator and critic; the first is 0", low=0, high=0.9999)
    critic_steps: int = option(1, "critic steps a generator step, each with new noise on the same real outlines", low=1)
    penalty_weight: float = option(2.0, "weight of the gradient penalty: r3's gamma, wgan-gp's lambda", low=0)
    penalty_share: float = option(1.0, "share of a step's outlines, above 0 to 1, that the gradient penalty is taken at; a "
                                       "quarter of them saves a fifth of a step's time", low=1e-3, high=1)
    ema_decay: float = option(0.995, "decay a step of the generator's moving average, which is the one that is kept",
                              low=0, high=0.99999)
    gan_patience: int = option(10, "validations without a new best after which the GAN stops early; 0 never", low=0)
    whiten: bool = option(False, "whiten the outlines instead of scaling them by one number; it hides their structure "
                                 "from the critic")
    gan_validate_every: int = option(200, "generator steps between two validations", low=1)


@dataclass(frozen=True)
class OutlinesOptions(GanOptions):
    """And where an unconditional generator starts."""

    start: str = option("mixture", "where the generator starts", ("mixture", "gaussian", "noise"))
    num_centres: int = option(5000, "k-means centres of the mixture, at most a twentieth of the outlines", low=2)
    num_offsets: int = option(0, "centres of a second k-means, of what the first leaves, each of which may be added to any "
                                 "of the first; at most a twentieth of the outlines, 0 for none", low=0)
    free_moments: bool = option(False, "leave the mean and covariance of the generated outlines as the adversary left them; "
                                       "else they are given those of training outlines when training ends")


def outline_decoder_config(options: GanOptions, data: Dataset) -> DecoderConfig:
    """The decoder's shape for this corpus and its outlines."""
    return dataclasses.replace(decoder_config(options, data, data.stores["train"].dim), vector_noise=options.outline_noise,
                               vector_dropout=options.outline_dropout)


class OutlinesMethod(Method):
    family = "outlines"
    config_class: ClassVar[type] = OutlinesOptions
    uses_outlines = True
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {**LanguageModelMethod.presets["tiny"], "num_centres": 8, "gan_hidden_dim": 16, "gan_num_layers": 2,
                 "gan_steps": 20, "gan_batch_size": 32, "gan_validate_every": 10},
        "default": {**LanguageModelMethod.presets["default"], "gan_steps": 450, "penalty_share": 0.25},
        "small": {**LanguageModelMethod.presets["small"], "gan_steps": 2500, "gan_validate_every": 250},
        "full": {**LanguageModelMethod.presets["full"], "gan_hidden_dim": 2048, "gan_num_layers": 4,
                 "gan_steps": 100000, "gan_batch_size": 2048, "gan_learning_rate": 1e-4, "ema_decay": 0.9995,
                 "gan_validate_every": 5000},
    }

    layout: ClassVar[dict[str, dict[str, list[Any]]]] = {"generator and critic": {
        **{title: ["Multiline", [f"valid/{tag}(_mixture|_gaussian|_real)?$"]] for title, tag in {
            "precision": "precision", "recall": "recall", "decoded nll per token": "decoded_nll_per_token"}.items()},
        "critic's mean scores": ["Multiline", ["scores/(real|fake|held_out|generated)$"]],
        "share learnt by heart of what the critic tells apart": ["Multiline", ["scores/memorised$"]],
        "gradient norms": ["Multiline", ["norm/(generator|critic)$"]],
        "forward nll per token against 100 T": [
            "Multiline", ["evaluation/forward_nll_per_token(_mixture|_gaussian|_real_outlines)?$"]]}}

    model: OutlineModel
    critic: nn.Module

    def __init__(self, config: RunConfig, data: Dataset, bfloat16: bool):
        options: OutlinesOptions = config.model
        self.options, self.data, self.bfloat16, self.seed = options, data, bfloat16, config.training.seed
        self.model = self._new_model()
        assert data.scaling is not None
        self.model.scaling.load_state_dict(data.scaling.state_dict())
        self.model.to(data.device)
        # The model keeps the moving average; this is the generator that the critic's gradient moves.
        self.generator = copy.deepcopy(self.model.generator)
        self.critic = self.model.critic
        self.modules = {"decoder": self.model.decoder, "generator": self.generator, "ema": self.model.generator,
                        "critic": self.critic, **self._fixed_modules(), "scaling": self.model.scaling}
        betas = (0.0, options.gan_beta2)
        self.optimizers = {
            "decoder": adamw([self.model.decoder], options.decoder_learning_rate, (0.9, 0.99), 0.01),
            "generator": adamw([self.generator], options.gan_learning_rate, betas, 0.0),
            "critic": adamw([self.critic], options.gan_learning_rate, betas, 0.0)}
        decoder = decoder_stage(options, "valid/reconstruction_nll_per_token")
        self.stages = (
            # Of no steps rather than left out, so that the GAN's own noise is the same either way.
            dataclasses.replace(decoder, num_steps=0) if options.decoder_from else decoder,
            Stage("gan", options.gan_steps, options.gan_batch_size, False, options.gan_validate_every,
                  "valid/outline_shortfall", ("generator", "critic"), ("generator", "ema", "critic"),
                  options.gan_patience))

    def _new_model(self) -> OutlineModel:
        options, store = self.options, self.data.stores["train"]
        most = min(len(store), MAX_FITTED_ROWS) // 20
        num_centres, num_offsets = max(2, min(options.num_centres, most)), min(options.num_offsets, most)
        mixture = GeneratorConfig(store.dim, num_centres, num_offsets, hidden_dim=1, num_layers=1)
        generator = GeneratorConfig(store.dim, {"mixture": num_centres, "gaussian": 1, "noise": 0}[options.start],
                                    num_offsets if options.start == "mixture" else 0,
                                    options.gan_hidden_dim, options.gan_num_layers)
        return OutlineModel(outline_decoder_config(options, self.data), generator, mixture,
                            self.data.normalized, store.encoder, options.whiten)

    def _fixed_modules(self) -> dict[str, nn.Module]:
        """What the GAN's stage fits as it begins, and never trains."""
        return {"mixture": self.model.mixture, "gaussian": self.model.gaussian}

    def _critic_beside(self, batch: Batch, rows: slice = slice(None)) -> Callable[[Tensor], Tensor]:
        """The scores [B] of outlines [B, D] that stand beside these of a batch's: where there are conditions, under them."""
        return self.critic

    def begin(self, stage: Stage, progress: Progress) -> None:
        """Take over a decoder; or fit the controls, and start the generator at the one that was asked for."""
        if stage.name != "gan":
            if self.options.decoder_from:
                self._take_decoder(Path(self.options.decoder_from))
            return
        model = self.model
        if not self.has_controls:
            rows = self.data.sample_rows("train", MAX_FITTED_ROWS, seed=self.seed)
            outlines = self.data.outlines("train", rows)
            shape = model.mixture.config
            model.mixture.start_at(fit_mixture(outlines, shape.num_centres, self.seed, shape.num_offsets, progress))
            model.gaussian.start_at(fit_mixture(outlines, 1, self.seed))
        if self.options.start != "noise":
            control = model.mixture if self.options.start == "mixture" else model.gaussian
            start = {name: values for name, values in control.state_dict().items() if not name.startswith("mlp.")}
            for generator in (self.generator, model.generator):
                generator.load_state_dict(start, strict=False)

    def _take_decoder(self, run: Path) -> None:
        """The decoder of a finished run; and its controls, where this run would fit the very same."""
        found, seed = self._decoder_of(run)
        assert isinstance(found, OutlineModel)
        self.model.decoder.load_state_dict(found.decoder.state_dict())
        if (seed, found.mixture.config) == (self.seed, self.model.mixture.config):
            self.model.mixture.load_state_dict(found.mixture.state_dict())
            self.model.gaussian.load_state_dict(found.gaussian.state_dict())

    def _decoder_of(self, run: Path) -> tuple[TextModel, int]:
        """The model and the seed of a finished run of this family, whose decoder is the one that this run would train."""
        description = read_run(run)
        if description.get("family") != self.family:
            raise OutlinesError(f"--decoder-from {run}: a run of the family {description.get('family')}, not {self.family}")
        if not (run / "model").is_dir():
            raise OutlinesError(f"--decoder-from {run}: its training has not finished")
        hashes = description.get("hashes", {})
        for name, own in self.data.hashes().items():
            if hashes.get(name) != own:
                raise OutlinesError(f"--decoder-from {run}: of another {name} than this run")
        for name in sorted(DECIDES_DECODER):
            own, theirs = getattr(self.options, name), description["model"].get(name)
            if own != theirs:
                flag = "--" + name.replace("_", "-")
                raise OutlinesError(f"--decoder-from {run}: it was trained with {flag} {theirs}, not {own}: "
                                    "give its decoder's options here too")
        return load_model(run / "model"), description["training"]["seed"]

    @property
    def has_controls(self) -> bool:
        """The controls have been fitted, here or by the run that the decoder is of: untrained ones stand at 0."""
        return bool(self.model.mixture.centres.any())

    def finish(self, directory: Path) -> None:
        """Write the finished model, with what its critic's scores are worth on held-out outlines."""
        self._calibrate()
        real = held_out(self.data, "valid", self.options.num_validation)[1]
        assert real is not None
        with torch.no_grad():
            fake = self.model.vectors(len(real), torch.Generator().manual_seed(NOISE_SEED), "generator")
            self.model.score_slope.fill_(fit_slope(self.critic(real), self.critic(fake)))
        super().finish(directory)

    @torch.no_grad()
    def _calibrate(self) -> None:
        """What the adversary leaves wrong in the outlines' first two moments is put right in closed form."""
        if self.options.free_moments:
            return
        fake = self.model.vectors(NUM_MATCHED, torch.Generator().manual_seed(NOISE_SEED), "generator")
        self.model.generator.compose_affine(*moment_map(fake, self._training_outlines(NUM_MATCHED)))

    def step(self, stage: Stage, batch: Batch, update: Update) -> dict[str, Tensor]:
        if stage.name == "decoder":
            per_token, per_sentence = decoder_step(self.model.decoder, self._not_all(batch), batch, self.bfloat16)
            norm = update("decoder nll", self.optimizers["decoder"], per_token)
            return {"train/reconstruction_nll_per_token": per_token.detach(), "train/reconstruction_nll": per_sentence,
                    "norm/decoder": norm}
        terms: dict[str, Tensor] = {}
        for _ in range(self.options.critic_steps):
            terms |= self._critic_step(batch, update)
        terms |= self._generator_step(batch, update)
        update_ema(self.model.generator, self.generator, self.options.ema_decay)
        return terms

    def _not_all(self, batch: Batch) -> Tensor:
        """This rank's outlines [B, D], some of them zero; which ones is drawn for the global batch, so that ranks agree."""
        assert batch.outlines is not None
        if not self.options.outline_dropout:
            return batch.outlines
        kept = torch.empty(batch.num_rows, 1, device=batch.outlines.device).bernoulli_(1 - self.options.outline_dropout)
        return batch.outlines * kept[batch.ranks.rank::batch.ranks.world]

    def _fake(self, batch: Batch) -> Tensor:
        """This rank's generated outlines [B, D]; the noise is drawn for the global batch, so that ranks agree."""
        noise = self.generator.draw(batch.num_rows, self._noise_rng())[batch.ranks.rank::batch.ranks.world]
        return self.model.normalise(self.generator(noise))

    def _noise_rng(self) -> torch.Generator:
        """What a step's noise is drawn from, seeded by the step."""
        # On the GPU itself, which takes a whole step in the time that a CPU needs for so many normal numbers.
        device = self.data.device if self.data.device.type == "cuda" else "cpu"
        return torch.Generator(device).manual_seed(int(torch.randint(2**62, ())))

    def _critic_step(self, batch: Batch, update: Update) -> dict[str, Tensor]:
        """The critic's phase: the generated outlines are constants in it."""
        assert batch.outlines is not None
        real = batch.outlines
        with torch.no_grad():
            fake = self._fake(batch)
        # The penalised ones are the global batch's first, so that ranks agree.
        num_penalised = math.ceil(self.options.penalty_share * batch.num_rows)
        own = len(range(batch.ranks.rank, num_penalised, batch.ranks.world))
        penalised, others = (self._critic_beside(batch, rows) for rows in (slice(own), slice(own, None)))
        if self.options.objective == "r3":
            real_scores, real_gradients = score_gradients(penalised, real[:own])
            fake_scores, fake_gradients = score_gradients(penalised, fake[:own])
            if own < len(real):
                real_scores = torch.cat([real_scores, others(real[own:])])
                fake_scores = torch.cat([fake_scores, others(fake[own:])])
            adversarial = relativistic_critic_loss(real_scores, fake_scores)
            penalty = zero_centred_penalty(real_gradients) + zero_centred_penalty(fake_gradients)
        else:
            critic = self._critic_beside(batch)
            real_scores, fake_scores = critic(real), critic(fake)
            adversarial = wasserstein_critic_loss(real_scores, fake_scores)
            share = torch.rand(batch.num_rows, 1)[batch.ranks.rank::batch.ranks.world].to(real.device)
            _, gradients = score_gradients(penalised, torch.lerp(fake, real, share)[:own])
            penalty = one_centred_penalty(gradients)
        penalty = penalty.sum() / num_penalised
        loss = adversarial.sum() / batch.num_rows + self.options.penalty_weight * penalty
        norm = update("critic loss", self.optimizers["critic"], loss)
        return {"train/critic_loss": adversarial.detach().sum() / batch.num_rows,
                "train/gradient_penalty": penalty.detach(),
                "scores/real": real_scores.detach().sum() / batch.num_rows,
                "scores/fake": fake_scores.detach().sum() / batch.num_rows, "norm/critic": norm}

    def _generator_step(self, batch: Batch, update: Update) -> dict[str, Tensor]:
        """The generator's phase: the critic passes gradients on and keeps none."""
        assert batch.outlines is not None
        self.critic.requires_grad_(False)
        try:
            critic = self._critic_beside(batch)
            fake_scores = critic(self._fake(batch))
            if self.options.objective == "r3":
                adversarial = relativistic_generator_loss(critic(batch.outlines), fake_scores)
            else:
                adversarial = wasserstein_generator_loss(fake_scores, fake_scores)
            loss = adversarial.sum() / batch.num_rows
            norm = update("generator loss", self.optimizers["generator"], loss)
        finally:
            self.critic.requires_grad_(True)
        return {"train/generator_loss": loss.detach(), "norm/generator": norm}

    @torch.no_grad()
    def validate(self, stage: Stage) -> dict[str, float]:
        tokens, real, _ = held_out(self.data, "valid", self.options.num_validation)
        assert real is not None
        rng = torch.Generator().manual_seed(NOISE_SEED)
        if stage.name == "decoder":
            gap = latent_gap(self.model.decoder, tokens, real, real[other_rows(len(real), 1, rng)[0]])
            return {**nll_figures("valid", self.model, tokens, real, num_draws=0),
                    "valid/latent_gap_per_token": gap.per_token}
        fake = self.model.vectors(len(real), rng, "generator")
        precision, recall = knn_precision_recall(real, fake)
        training = self._training_outlines(len(real))
        return {"valid/precision": precision, "valid/recall": recall,
                # The harmonic mean, so that neither can be bought with the other; lower is better for a criterion.
                "valid/outline_shortfall": 1 - 2 * precision * recall / max(precision + recall, 1e-9),
                "valid/decoded_nll_per_token": decoded_nll(self.model, fake[:NUM_DECODED]),
                "scores/held_out": float(self.critic(real).mean()),
                "scores/generated": float(self.critic(fake).mean()),
                "scores/memorised": memorised_share(self.critic(training), self.critic(real), self.critic(fake))}

    def views(self, stage: Stage) -> Views:
        return Views(levels=self._levels) if stage.name == "gan" else Views()

    def _training_outlines(self, num: int) -> Tensor:
        return self.data.outlines("train", self.data.sample_rows("train", num))

    @cached_property
    @torch.no_grad()
    def _levels(self) -> dict[str, float]:
        """What the generator's figures are seen against: those of both controls, and of real outlines."""
        real = held_out(self.data, "valid", self.options.num_validation)[1]
        assert real is not None
        rng = torch.Generator().manual_seed(NOISE_SEED)
        others = {name: self.model.vectors(len(real), rng, name) for name in self.model.sources[1:]}
        others["real"] = self._training_outlines(len(real))
        levels: dict[str, float] = {}
        for name, vectors in others.items():
            size = min(len(real), len(vectors))
            near = knn_precision_recall(real[:size], vectors[:size])
            levels |= {f"valid/precision_{name}": near.precision, f"valid/recall_{name}": near.recall,
                       # Of real outlines the held-out ones, for the decoder has learnt the others' sentences.
                       f"valid/decoded_nll_per_token_{name}": decoded_nll(self.model, (
                           real if name == "real" else vectors)[:NUM_DECODED])}
        return levels
