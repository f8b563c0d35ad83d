"""The training loop of all methods. At the end of a stage, it loads the weights with the lowest validation criterion.

A step depends only on the weights, the optimiser states and (seed, stage, step). Therefore a checkpoint contains weights,
optimiser states, stage and step. On the same CPU with the same number of threads, a resumed run equals an uninterrupted run
bit for bit.
"""

import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from outlines import checkpoint
from outlines.checkpoint import load_modules, module_tensors
from outlines.decoding.sample import SamplingConfig
from outlines.errors import OutlinesError, memory_advice, one_line, quoted
from outlines.models.base import block_seed
from outlines.pretrained import TEMPERATURE
from train.config import TrainingConfig
from train.data import Dataset
from train.method import EVALUATION_SAMPLES, Method, NotFinite, Snapshot, Stage, Update
from train.runtime.busy import SlowSteps
from train.runtime.log import RunLog
from train.runtime.progress import Reporter
from train.runtime.ranks import VERSIONS, Ranks, machine
from train.runtime.run_directory import checkpoint_path, newest_checkpoint, prune
from train.runtime.signals import Stopped, StopSignals

MAX_BAD_STEPS = 10  # number of consecutive steps with a non-finite loss or gradient after which a run stops
NUM_KEPT = 3  # number of checkpoints on disk; each contains the best weights on validation
SHOWN_AFTER, NUM_SHOWN = 60, 2  # after 60 s, each validation prints two samples
TIMED_STEPS = 20  # number of first steps whose duration gives an estimate of the run's duration
COUNTERS = ("step", "begun", "examples", "stale", "bad_steps", "bad_in_a_row")
"""attributes of the loop that a checkpoint stores under the same names"""


def learning_rate_factor(step: int, num_steps: int, warmup_steps: int, smallest: float) -> float:
    """Return the factor on the peak learning rate at a step: linear warm-up from 0, times cosine decay to `smallest`."""
    warm = min(1.0, (step + 1) / max(1, min(warmup_steps, num_steps // 4)))
    return warm * (smallest + (1 - smallest) * (1 + math.cos(math.pi * step / max(1, num_steps))) / 2)


class Loop:
    """Runs the stages of a method, from the start or from the newest checkpoint."""

    def __init__(self, method: Method, data: Dataset, config: TrainingConfig, directory: Path, ranks: Ranks,
                 reporter: Reporter, signals: StopSignals):
        self.method, self.data, self.config, self.directory = method, data, config, directory
        self.ranks, self.reporter, self.signals = ranks, reporter, signals
        self.update = Update(ranks, config.clip_norm)
        self.stage_index = self.step = self.examples = self.bad_steps = self.bad_in_a_row = 0
        self.begun = False  # whether the stage's `begin` has run
        self.stale = 0  # number of validations since the best one
        self.saved: tuple[int, int, bool] | None = None
        self.best_criterion = math.inf
        self.best: dict[str, Tensor] = {}
        try:
            with memory_advice("Free some memory, or use --device cpu; the checkpoints are intact."):
                log_offset = self._restore()
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise OutlinesError(f"{directory}: the checkpoint does not fit this run ({one_line(error)}). "
                                "Start a new run.") from error
        ranks.barrier()  # A slower rank must not restore a checkpoint that the first rank saves later.
        self.log = RunLog(directory if ranks.first else None, log_offset, self.examples)
        if method.layout:
            self.log.writer.add_custom_scalars(method.layout)

    def run(self) -> None:
        """Train to the end. After a signal, saves the state, then raises Stopped. Raises NotFinite if training diverges."""
        self.signals.deferred = True
        try:
            while self.stage_index < len(self.method.stages):
                stage = self.method.stages[self.stage_index]
                if not self.begun:
                    self.best_criterion, self.best, self.stale = math.inf, {}, 0
                    self._check_signals()
                    self._seed_step()
                    # A signal may interrupt `begin` at once, because `begin` can last minutes and writes no files.
                    self.signals.deferred = False
                    with self.reporter.timed(stage.name), self.reporter.bar(f"begin {stage.name}", "iterations") as progress:
                        stage.begin(progress)
                    self.signals.deferred = True
                    self.begun = True
                    self._save()
                advice = f"Free memory and use --resume, or start a new run with a lower {stage.batch_flag}."
                with self.reporter.timed(stage.name), memory_advice(advice):
                    self._run_stage(stage)
                self.stage_index, self.step, self.begun = self.stage_index + 1, 0, False
                self._save()
        finally:
            self.signals.deferred = False
            self.log.close()
        self._check_signals()  # A signal may have come after the last step.

    def _check_signals(self) -> None:
        if signal_number := self.ranks.largest(self.signals.received):
            self._save()
            raise Stopped(signal_number)

    def _run_stage(self, stage: Stage) -> None:
        order = self.data.order(stage.batch_size, stage.like_length, self.config.seed)
        # A single update checks loss and gradient before it changes weights, so a step with one update needs no snapshot.
        before = Snapshot(self.method, stage) if stage.several_updates else None
        sums: dict[str, Tensor] = {}
        num_summed = num_targets = 0
        if stage.validates_start and self.step == 0:
            self._validate(stage)
        since, cpu_since, slow = time.monotonic(), time.process_time(), SlowSteps()
        with self.reporter.bar(f"train {stage.name}", "steps", self.step) as progress:
            while self.step < stage.num_steps and not (stage.patience and self.stale >= stage.patience):
                self._check_signals()
                factor = learning_rate_factor(self.step, stage.num_steps, self.config.warmup_steps,
                                              self.config.min_learning_rate)
                for optimizer in stage.optimizers.values():
                    for group in optimizer.param_groups:
                        group["lr"] = group["initial_lr"] * factor
                rows = order.batch(self.step)
                batch = self.data.batch(rows, self.ranks)
                self._seed_step()
                if before:
                    before.copy()
                try:
                    terms = stage.step(self.step, batch, self.update)
                except NotFinite as error:
                    if before:
                        before.restore()
                    self._skip(stage, error)
                else:
                    self.bad_in_a_row = 0
                    num_targets += batch.num_targets
                    num_summed += 1
                    sums = {key: sums[key] + value if key in sums else value for key, value in terms.items()}
                self.step += 1
                self.examples += len(rows)
                tokens_per_sec = num_targets / max(time.monotonic() - since, 1e-9)
                progress(self.step, stage.num_steps, f"{tokens_per_sec:,.0f} tokens/s" if stage.like_length else "")
                if self.stage_index == 0 and self.step == TIMED_STEPS < stage.num_steps and not self.reporter.estimated:
                    self._estimate(time.monotonic() - since)
                if sums and (self.step % self.config.log_every == 0 or self.step == stage.num_steps):
                    seconds = time.monotonic() - since
                    self._log_terms(stage, sums, num_summed, num_targets, seconds, time.process_time() - cpu_since)
                    if warning := slow(num_targets if stage.like_length else num_summed, seconds):
                        self.reporter.warning(warning)
                    sums, num_summed, num_targets, since, cpu_since = {}, 0, 0, time.monotonic(), time.process_time()
                if self.step % stage.validate_every == 0 or self.step == stage.num_steps:
                    begun, cpu_begun = time.monotonic(), time.process_time()
                    self._validate(stage)
                    since, cpu_since = since + time.monotonic() - begun, cpu_since + time.process_time() - cpu_begun
                if self.step % self.config.checkpoint_every == 0:
                    self._save()
        if self.best:  # `best` is empty if no validation had a finite criterion.
            load_modules(stage.modules, self.best, "best")

    def _skip(self, stage: Stage, error: NotFinite) -> None:
        """Count a failed step. Raises NotFinite if too many consecutive steps have failed."""
        self.bad_steps += 1
        self.bad_in_a_row += 1
        where = f"stage {stage.name}, step {self.step}"
        if self.bad_in_a_row >= MAX_BAD_STEPS:
            raise NotFinite(f"{where}: {error}, in {MAX_BAD_STEPS} consecutive steps. The last good checkpoint is kept. "
                            "Lower the learning rate.") from error
        self.reporter.line(f"{where}: {error}; step skipped")

    def _seed_step(self) -> None:
        torch.manual_seed(block_seed(block_seed(self.config.seed, self.stage_index), self.step))

    def _log_terms(self, stage: Stage, sums: dict[str, Tensor], num_summed: int, num_targets: int, seconds: float,
                   cpu_seconds: float) -> None:
        """Log the mean of each term since the last log line. Terms are summed over ranks, like the losses."""
        stacked = torch.stack([value.float().to(self.data.device) for value in sums.values()]) / num_summed
        self.ranks.sum_([stacked])
        values = dict(zip(sums, stacked.tolist(), strict=True))
        for key in values:
            if key.startswith("norm/"):  # Every rank has the norm of the whole gradient, so divide the sum.
                values[key] /= self.ranks.world
        values |= {f"learning_rate/{name}": float(optimizer.param_groups[0]["lr"])
                   for name, optimizer in stage.optimizers.items()}
        if self.bad_steps:
            values["train/bad_steps"] = self.bad_steps
        speed, done = ("tokens", num_targets) if stage.like_length else ("steps", num_summed)
        values |= {f"speed/{speed}_per_sec": done / max(seconds, 1e-9), "speed/cpu_sec_per_step": cpu_seconds / num_summed}
        self.log.scalars(values, stage.name, self.step, self.examples)

    def _validate(self, stage: Stage) -> None:
        """Validate on the first rank, and keep a copy of the weights if they are the best so far."""
        criterion = 0.0
        if self.ranks.first:
            model = self.method.model.eval()
            found = stage.validate()
            criterion = found.criterion
            self.log.scalars({**found.figures, **found.levels}, stage.name, self.step, self.examples)
            for key, distribution in found.histograms.items():
                self.log.writer.add_histogram(key, distribution.cpu(), self.examples)
            for key, picture in found.pictures.items():
                self.log.writer.add_figure(key, picture, self.examples)
            shown = ", ".join(f"{key} {value:.3f}" for key, value in found.figures.items()
                              if f"{key}_per_token" not in found.figures)
            self.reporter.line(f"{stage.name} step {self.step:,}: {shown}")
            self._log_samples(found.vectors)
            model.train()
        criterion = self.ranks.agree(criterion)
        self.stale += 1
        if criterion < self.best_criterion:
            self.best_criterion, self.stale = criterion, 0
            self.best = {name: tensor.detach().clone() for name, tensor in module_tensors(stage.modules, "best").items()}

    def _log_samples(self, vectors: Tensor | None) -> None:
        """Log samples. When the run has lasted SHOWN_AFTER seconds, also print some of them.

        vectors: [N, D], the same at every validation; None: draw vectors with the same noise at every validation.
        """
        model, sampling = self.method.model, SamplingConfig(TEMPERATURE, max_len=40)
        if not model.sources:
            return
        if vectors is None:
            ids, _ = next(model.generate(EVALUATION_SAMPLES, 0, sampling))
        else:
            ids = model.decode(vectors, 0, sampling)
        sentences = self.data.tokenizer.lines(ids)
        self.log.writer.add_text("samples", "\n".join(f"- {sentence}" for sentence in sentences), self.examples)
        if time.monotonic() - self.reporter.started > SHOWN_AFTER:
            for sentence in sentences[:NUM_SHOWN]:
                self.reporter.line(f"  {sentence}")

    def _estimate(self, seconds: float) -> None:
        """Print an estimate of the run's duration. seconds: duration of the first TIMED_STEPS steps of the first stage."""
        tokens = float(self.data.corpus.tokens["train"].lengths.mean())
        costs = [stage.num_steps * stage.batch_size * (tokens if stage.like_length else stage.passes)
                 * sum(weights.numel() for module in stage.modules.values() for weights in module.parameters())
                 for stage in self.method.stages]
        first = seconds / TIMED_STEPS * self.method.stages[0].num_steps
        # Unless a second process trains it, the report needs a language model, which takes about as long as the decoder.
        minutes = first * (sum(costs) / costs[0] + (not self.reporter.beside)) / 60
        self.reporter.estimated = True  # This loop also trains judge and LM baseline: no new estimate.
        self.reporter.line(f"about {max(minutes, 1):.0f} min until training and report are finished")

    def _save(self) -> None:
        """Write a checkpoint, unless this position already has one. Raises NotFinite if a value in it is not finite."""
        position = (self.stage_index, self.step, self.begun)
        if self.ranks.first and position != self.saved:
            self._write_checkpoint()
        self.saved = position
        self.ranks.barrier()

    def _write_checkpoint(self) -> None:
        tensors = module_tensors(self.method.modules, "module") | self.best
        optimizers: dict[str, Any] = {}
        for name, optimizer in self.method.optimizers.items():
            state, optimizers[name] = checkpoint.flatten_optimizer(optimizer.state_dict(), f"optimizer.{name}")
            tensors |= state
        for name, tensor in tensors.items():
            if not bool(tensor.isfinite().all()):
                raise NotFinite(f"stage {self.stage_index + 1}, step {self.step}: {name} is no longer finite. The last good "
                                "checkpoint is kept. Lower the learning rate.")
        path = checkpoint_path(self.directory, self.stage_index, self.step)
        try:
            meta = {"stage": self.stage_index, **{name: getattr(self, name) for name in COUNTERS}, "optimizers": optimizers,
                    "best_criterion": None if math.isinf(self.best_criterion) else self.best_criterion,
                    "log_offset": self.log.flush(), "versions": VERSIONS, "machine": machine(self.data.device, self.ranks)}
            checkpoint.write_state(path, tensors, meta)
            prune(self.directory, NUM_KEPT, path)
        except OSError as error:
            raise OutlinesError(f"{path}: cannot save: {error.strerror or error}. Earlier checkpoints are intact. "
                                f"Free some disk space, then continue with --resume {quoted(self.directory)}") from error

    def _restore(self) -> int:
        """Load the newest intact checkpoint, if any, and return the size of metrics.jsonl at that time, in bytes."""
        found = newest_checkpoint(self.directory)
        if found is None:
            return 0
        tensors, meta, damaged = found
        for problem in damaged:
            self.reporter.warning(f"checkpoint skipped: {problem}")
        then, now = meta["versions"] | meta["machine"], VERSIONS | machine(self.data.device, self.ranks)
        changes = [f"{name} {then.get(name)} → {value}" for name, value in now.items() if then.get(name) != value]
        if changes:
            self.reporter.warning(f"versions or hardware have changed, so the last bits may differ: {', '.join(changes)}")
        load_modules(self.method.modules, tensors, "module")
        for name, optimizer in self.method.optimizers.items():
            optimizer.load_state_dict(checkpoint.unflatten_optimizer(tensors, meta["optimizers"][name], f"optimizer.{name}"))
        self.stage_index = meta["stage"]
        for name in COUNTERS:
            setattr(self, name, meta[name])
        self.saved = (self.stage_index, self.step, self.begun)
        self.best_criterion = math.inf if meta["best_criterion"] is None else meta["best_criterion"]
        self.best = {name: tensor.to(self.data.device) for name, tensor in tensors.items() if name.startswith("best.")}
        self.reporter.line(f"resuming at stage {self.stage_index + 1}, step {self.step:,}")
        return int(meta["log_offset"])
