"""Neural outlines: first train a decoder on pairs of outline and sentence, then a generator of outlines."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from outlines.encoders import encoder_name
from outlines.errors import OutlinesError
from outlines.inference.rejection import fit_slope
from outlines.metrics.collapse import latent_gap, other_rows
from outlines.metrics.gan_verdict import memorised_share
from outlines.metrics.outlines import f1, knn_precision_recall
from outlines.models.base import TextModel
from outlines.models.outlines import OutlineDecoding, OutlineModel
from outlines.models.registry import load_model
from outlines.networks.decoder import DecoderConfig, weakened
from outlines.networks.flow import VelocityField
from outlines.networks.gan import Generator
from outlines.networks.generator import GENERATORS
from outlines.networks.mixture import fit_mixture, moment_map
from outlines.options import option
from outlines.pretrained import run_path
from train.config import DecoderOptions, RunConfig
from train.data import MAX_FITTED_ROWS, Batch, Dataset
from train.evaluation.figures import NUM_DECODED, decoded_nll, held_out
from train.method import EVALUATION_SAMPLES, Method, Validation
from train.methods.decoder_stage import DecoderStage, decoder_config
from train.methods.gan_stage import FitStage, Game, GanStage
from train.methods.generator_stages import GENERATOR_HELP, GENERATOR_STAGES, GeneratorOptions
from train.runtime.log import charts
from train.runtime.progress import Progress
from train.runtime.run_directory import read_run

NOISE_SEED = 7
NUM_MATCHED = 20_000  # maximum number of generated and of real outlines for matching mean and covariance


@dataclass(frozen=True)
class OutlineDecoderOptions(DecoderOptions):
    """Options of a decoder that reads the outlines of a frozen encoder."""

    group: ClassVar[str] = "outlines"
    encoder: str = option("minilm", "frozen sentence encoder: minilm, multilingual-minilm, st:MODEL or recurrent:DIRECTORY")
    encoder_prompt: str = option("", "prompt before each sentence, such as 'query: '; few encoders need one")
    encoder_dim: int = option(0, "keep only the first INT dimensions of each outline; 0: keep all", low=0, high=2**20)
    min_strength: float = option(0.0, "smallest strength in decoder training: some outlines are multiplied by a random "
                                      "strength from this value to 1, and noise is added; with 1, none is changed",
                                 low=0, high=1)
    exact_outlines: float = option(0.5, "fraction of outlines that keep strength 1 in decoder training; with --min-strength "
                                        "below 1", low=0, high=1, flag=False)
    outline_dropout: float = option(0.1, "probability of replacing an outline by zero in decoder training; above 0 the "
                                         "decoder also learns p(x), which generate --guidance needs", low=0, high=0.99)
    decoder_from: str = option("", "copy the decoder of this finished run, or of english, instead of training one; use its "
                                   "tokenizer, encoder and decoder options")

    def encoder_name(self) -> str:
        return encoder_name(self.encoder, self.encoder_prompt, self.encoder_dim)

    def decides_decoder(self) -> set[str]:
        """Return the names of the options that a run copies from the run of --decoder-from if both use the same corpus."""
        return {field.name for field in dataclasses.fields(OutlineDecoderOptions)} - {
            "num_validation", "decoder_from"}

    def without_effect(self) -> dict[str, str]:
        names = ("encoder_prompt", "encoder_dim") if self.encoder.startswith("recurrent:") else ()
        exact = {"exact_outlines": "with --min-strength 1 all outlines are exact"} if self.min_strength == 1 else {}
        return super().without_effect() | dict.fromkeys(names, "recurrent encoders do not use it") | exact


@dataclass(frozen=True)
class OutlineOptions(GeneratorOptions, OutlineDecoderOptions):
    """Options of neural outlines: decoder, flow, GAN, and the initial distribution of the generator."""

    generator: str = option("gan", GENERATOR_HELP, choices=GENERATORS)
    start: str = option("mixture", "distribution of the untrained generator: a mixture or one Gaussian fitted to training "
                                  "outlines; or noise: nothing is fitted", ("mixture", "gaussian", "noise"))
    num_centres: int = option(5000, "number of k-means centres of the mixture, at most one per 20 training outlines", low=2)
    num_offsets: int = option(0, "number of offsets that can be added to each centre of the mixture; k-means finds them in "
                              "the differences between outlines and centres", low=0)
    free_moments: bool = option(False, "do not match the mean and covariance of a GAN's outlines to the training outlines",
                                flag=False)

    def without_effect(self) -> dict[str, str]:
        names = ("num_offsets", "free_moments") if GENERATORS[self.generator].learns_moments else ()
        return super().without_effect() | self.unused() | dict.fromkeys(names, f"with generator {self.generator}")


class OutlineDecoderStage(DecoderStage):
    """Trains a decoder that reads outlines, or copies it from another run."""

    def __init__(self, options: Any, data: Dataset, model: Any, bfloat16: bool, seed: int,
                 copied: Callable[[TextModel, int], None] = lambda model, seed: None):
        """copied: called with the model and the seed of the --decoder-from run, if that run has the same corpus."""
        super().__init__(options, data, model, bfloat16, seed, decoder=model.decoder)
        self.copied = copied
        if options.decoder_from:  # The stage still counts, because its number determines the noise of the next stage.
            self.num_steps = 0

    def begin(self, progress: Progress) -> None:
        if not self.options.decoder_from:
            return super().begin(progress)
        run = run_path(self.options.decoder_from)
        description, own = read_run(run), self.data.hashes()
        hashes = description.get("hashes", {})
        for name in ("tokenizer", "encoder"):
            if hashes.get(name) != own[name]:
                raise OutlinesError(f"--decoder-from {run}: it has another {name}. Use the same {name} in both runs.")
        self.copy_weights(found := load_model(run / "model"))
        if hashes.get("corpus") == own["corpus"]:
            self.copied(found, description["training"]["seed"])

    def copy_weights(self, found: Any) -> None:
        """Copy the decoder weights of another run's model, and the outline scaling with which this decoder was trained."""
        super().copy_weights(found)
        if isinstance(found, OutlineDecoding):
            self.model.scaling.load_state_dict(found.scaling.state_dict())

    def vector(self, batch: Batch) -> Tensor:
        """Return this rank's outlines [B, D], weakened to random strengths; outline dropout replaces some by zeros."""
        assert batch.outlines is not None
        outlines, options = batch.outlines, self.options
        strength = torch.empty(batch.num_rows, 1, device=outlines.device).uniform_(options.min_strength, 1)
        strength[torch.rand_like(strength) < options.exact_outlines] = 1.0
        if options.outline_dropout:
            strength = strength * torch.empty_like(strength).bernoulli_(1 - options.outline_dropout)
        noise = torch.randn(batch.num_rows, outlines.shape[1], device=outlines.device)
        return weakened(outlines, batch.own(strength), batch.own(noise))

    @torch.no_grad()
    def validate(self) -> Validation:
        found = super().validate()
        tokens, real, _ = held_out(self.data, "valid", self.options.num_validation)
        assert real is not None
        others = other_rows(len(real), 1, torch.Generator().manual_seed(NOISE_SEED))[0]
        gap = latent_gap(self.model.decoder, tokens, real, real[others])
        # The generator is not trained yet, so this stage writes its samples from real outlines.
        return dataclasses.replace(found, figures={**found.figures, "valid/latent_gap_per_token": gap.per_token},
                                   vectors=real[:EVALUATION_SAMPLES])


def outline_decoder_config(options: Any, data: Dataset) -> DecoderConfig:
    return decoder_config(options, data, data.stores["train"].dim, vector_dropout=options.outline_dropout,
                          min_strength=options.min_strength)


class OutlineGame(Game):
    """The Game of neural outlines: generates outlines; a critic, if there is one, compares them with real outlines."""

    def begin(self, progress: Progress) -> None:
        model, start = self.model, self.options.start
        rows = self.data.sample_rows("train", MAX_FITTED_ROWS, seed=self.seed)
        outlines = self.data.outlines("train", rows)
        if not model.mixture.centres.any():  # With --decoder-from, the baselines may have been copied.
            shape = model.mixture.config
            model.mixture.start_at(fit_mixture(outlines, shape.num_centres, self.seed, shape.num_offsets, progress))
            model.gaussian.start_at(fit_mixture(outlines, 1, self.seed))
        self.generator.fit(outlines, self.seed)
        if start != "noise":
            self.generator.start_at((model.mixture if start == "mixture" else model.gaussian).mixture())

    def copy_baselines(self, found: Any, seed: int) -> None:
        """Copy the baselines of another run if this run would fit equal ones. found, seed: that run's model and seed."""
        if (seed, found.mixture.config) == (self.seed, self.model.mixture.config):
            self.model.mixture.load_state_dict(found.mixture.state_dict())
            self.model.gaussian.load_state_dict(found.gaussian.state_dict())

    @cached_property
    def _nearest(self) -> Tensor:
        """Index of the nearest centre of each training outline; -1: not yet known. On the CPU, so no GPU has to wait."""
        return torch.full((self.data.num_rows("train"),), -1)

    def path(self, generator: Any, batch: Any, normal: Tensor) -> tuple[Tensor, VelocityField]:
        rows = torch.from_numpy(batch.rows)
        if (self._nearest[rows] < 0).any():
            self._nearest[rows] = generator.nearest(batch.outlines).cpu()
        return generator.pair(self._nearest[rows].to(normal.device), normal), generator.velocity

    def fake(self, generator: Any, batch: Batch, rng: torch.Generator) -> Tensor:
        return self.model.normalise(generator(batch.own(generator.draw(batch.num_rows, rng))))

    @torch.no_grad()
    def validate(self) -> Validation:
        real = self._held_out()
        fake = self._drawn(len(real))
        figures = self._quality(real, fake, fake)
        figures["valid/outline_shortfall"] = 1 - f1(figures["valid/precision"], figures["valid/recall"])
        if self.critic is not None:
            training = self.critic(self._training(len(real)))
            held, generated = self.critic(real), self.critic(fake)
            figures |= {"scores/held_out": float(held.mean()), "scores/generated": float(generated.mean()),
                        "scores/memorised": memorised_share(training, held, generated)}
        return Validation(figures, figures["valid/outline_shortfall"], self._levels)

    @cached_property
    @torch.no_grad()
    def _levels(self) -> dict[str, float]:
        """Return the metrics of the baselines and of real outlines. These metrics do not change during the stage."""
        real, rng = self._held_out(), torch.Generator().manual_seed(NOISE_SEED)
        others = {name: self.model.vectors(len(real), rng, name) for name in self.model.sources[1:]}
        others["real"] = self._training(len(real))
        levels: dict[str, float] = {}
        for name, vectors in others.items():
            # Of real outlines, decode held-out ones, because the decoder was trained on the training sentences.
            levels |= self._quality(real, vectors, real if name == "real" else vectors, f"_{name}")
        return levels

    def _quality(self, real: Tensor, vectors: Tensor, decoded: Tensor, suffix: str = "") -> dict[str, float]:
        size = min(len(real), len(vectors))
        near = knn_precision_recall(real[:size], vectors[:size])
        return {f"valid/precision{suffix}": near.precision, f"valid/recall{suffix}": near.recall,
                f"valid/decoded_nll_per_token{suffix}": decoded_nll(self.model, decoded[:NUM_DECODED])}

    def _held_out(self) -> Tensor:
        return self.data.outlines("valid", self.data.sample_rows("valid", self.options.num_validation))

    def _drawn(self, num: int) -> Tensor:
        return self.model.vectors(num, torch.Generator().manual_seed(NOISE_SEED), "generator")

    def _training(self, num: int) -> Tensor:
        return self.data.outlines("train", self.data.sample_rows("train", num))

    @torch.no_grad()
    def finish(self) -> None:
        """Match the generator's mean and covariance to training outlines, if training does not, and fit the score slope.

        The score slope is the slope of the log density ratio over the critic's score. Without a critic, it is not fitted.
        """
        if not (self.generator.learns_moments or self.options.free_moments):
            self.generator.compose_affine(*moment_map(self._drawn(NUM_MATCHED), self._training(NUM_MATCHED)))
        if self.critic is not None:
            real = self._held_out()
            self.model.score_slope.fill_(fit_slope(self.critic(real), self.critic(self._drawn(len(real)))))


class OutlinesMethod(Method):
    family = "outlines"
    config_class = OutlineOptions
    layout = charts("generator and critic")

    def __init__(self, config: RunConfig, data: Dataset, bfloat16: bool):
        options: Any = config.model
        store, values, seed = data.stores["train"], dataclasses.asdict(options), config.training.seed
        num_rows, kind = min(len(store), MAX_FITTED_ROWS), GENERATORS[options.generator]
        mixture = dataclasses.replace(Generator.configure(store.dim, num_rows, {**values, "start": "mixture"}), hidden_dim=1,
                                      num_layers=1)
        shape = {"kind": options.generator, **dataclasses.asdict(kind.configure(store.dim, num_rows, values))}
        stages = GENERATOR_STAGES.get(options.generator, (FitStage,))
        critic = {"hidden_dim": options.gan_hidden_dim, "num_layers": options.gan_num_layers}
        self.model = model = OutlineModel(
            outline_decoder_config(options, data), shape, mixture, critic if issubclass(stages[-1], GanStage) else None,
            data.normalized, store.encoder)
        data.set_scaling(model)
        game = OutlineGame(options, data, model, seed, bfloat16)
        decoder = OutlineDecoderStage(options, data, model, bfloat16, seed, game.copy_baselines)
        self.assemble(decoder, *(stage(game) for stage in stages), mixture=model.mixture, gaussian=model.gaussian,
                      scaling=model.scaling)
