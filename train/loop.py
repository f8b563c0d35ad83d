"""The one training loop. It knows Method and nothing of families.

What a step does is decided by (seed, stage, step) and the weights alone: batches come from BatchOrder, and torch's
generator is seeded anew before each step. So there is no hidden state to lose: a checkpoint is weights, optimisers and
a position, and a resumed run on the same CPU and number of threads goes on bit for bit.
"""

import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from outlines.checkpoint import (
    flatten_optimizer,
    load_modules,
    module_tensors,
    unflatten_optimizer,
    write_state,
)
from outlines.sampling import SamplingConfig
from outlines.text_model import block_seed
from train.config import TrainingConfig
from train.data import Dataset
from train.distributed import Ranks
from train.log import RunLog
from train.method import Method, NotFinite, Stage, Update
from train.progress import Reporter
from train.run_directory import checkpoint_path, newest_checkpoint, prune
from train.signals import Stopped, StopSignals

EVALUATION_SAMPLES = 8


def learning_rate_factor(step: int, num_steps: int, warmup_steps: int, smallest: float) -> float:
    """Share of the peak learning rate at a step: linear warm-up from 0, then a cosine to `smallest` at the end."""
    warm = min(1.0, (step + 1) / max(1, min(warmup_steps, num_steps // 4)))
    return warm * (smallest + (1 - smallest) * (1 + math.cos(math.pi * step / max(1, num_steps))) / 2)


class Loop:
    """Runs a method's stages to their end, from the start or from the newest checkpoint."""

    def __init__(self, method: Method, data: Dataset, config: TrainingConfig, directory: Path, ranks: Ranks,
                 reporter: Reporter, signals: StopSignals):
        self.method, self.data, self.config, self.directory = method, data, config, directory
        self.ranks, self.reporter, self.signals = ranks, reporter, signals
        self.update = Update(ranks, config.clip_norm)
        self.stage_index = self.step = self.examples = 0
        self.stale = 0  # validations since the best one
        self.best_criterion = math.inf
        self.best: dict[str, Tensor] = {}
        log_offset = self._restore()
        self.log = RunLog(directory if ranks.first else None, log_offset, self.examples)
        self.log.layout(method.layout)

    def run(self) -> None:
        """Train to the end. Raises Stopped after a signal, having saved, and NotFinite."""
        self.signals.deferred = True
        try:
            while self.stage_index < len(self.method.stages):
                stage = self.method.stages[self.stage_index]
                if self.step == 0:
                    self.best_criterion, self.best, self.stale = math.inf, {}, 0
                    self._seed_step()
                    self.method.begin(stage)
                self._run_stage(stage)
                self.stage_index, self.step = self.stage_index + 1, 0
                self._save()
        finally:
            self.signals.deferred = False
            self.log.close()

    def _run_stage(self, stage: Stage) -> None:
        order = self.data.order(stage.batch_size, stage.like_length, self.config.seed)
        sums: dict[str, Tensor] = {}
        num_summed = num_targets = 0
        since = time.monotonic()
        # A stage that begins is worth a checkpoint: fitting a generator's start can take minutes.
        if self.step == 0:
            self._save()
        with self.reporter.bar(f"train {stage.name}", "steps") as progress:
            while self.step < stage.num_steps and not (stage.patience and self.stale >= stage.patience):
                if signal_number := self.ranks.largest(self.signals.received):
                    self._save()
                    raise Stopped(signal_number)
                factor = learning_rate_factor(self.step, stage.num_steps, self.config.warmup_steps,
                                              self.config.min_learning_rate)
                for name in stage.optimizers:
                    for group in self.method.optimizers[name].param_groups:
                        group["lr"] = group["initial_lr"] * factor
                rows = order.batch(self.step)
                batch = self.data.batch(rows, self.ranks)
                self._seed_step()
                try:
                    terms = self.method.step(stage, batch, self.update)
                except NotFinite as error:
                    raise NotFinite(f"stage {stage.name}, step {self.step}: {error}; the last good "
                                    "checkpoint is kept: try a lower learning rate") from error
                self.step += 1
                self.examples += len(rows)
                num_targets += batch.num_targets
                num_summed += 1
                tokens_per_sec = num_targets / max(time.monotonic() - since, 1e-9)
                sums = {key: sums[key] + value if key in sums else value for key, value in terms.items()}
                progress(self.step, stage.num_steps, f"{tokens_per_sec:,.0f} tokens/s" if stage.like_length else "")
                if self.step % self.config.log_every == 0 or self.step == stage.num_steps:
                    self._log_terms(stage, sums, num_summed, num_targets, time.monotonic() - since)
                    sums, num_summed, num_targets, since = {}, 0, 0, time.monotonic()
                if self.step % stage.validate_every == 0 or self.step == stage.num_steps:
                    self._validate(stage)
                    since = time.monotonic()
                if self.step % self.config.checkpoint_every == 0:
                    self._save()
        if self.best:  # Empty where no validation gave a number.
            load_modules({name: self.method.modules[name] for name in stage.modules}, self.best, "best")

    def _seed_step(self) -> None:
        torch.manual_seed(block_seed(block_seed(self.config.seed, self.stage_index), self.step))

    def _log_terms(self, stage: Stage, sums: dict[str, Tensor], num_summed: int, num_targets: int,
                   seconds: float) -> None:
        """Means since the last line. Norms and scores of several ranks are summed shares, as the losses are."""
        stacked = torch.stack([value.float() for value in sums.values()]) / num_summed
        self.ranks.sum_([stacked])
        values = dict(zip(sums, stacked.tolist(), strict=True))
        for key in values:
            if key.startswith("norm/"):  # Every rank has the whole norm already.
                values[key] /= self.ranks.world
        speed = "speed/tokens_per_sec" if stage.like_length else "speed/steps_per_sec"
        values |= {f"learning_rate/{name}": float(self.method.optimizers[name].param_groups[0]["lr"])
                   for name in stage.optimizers}
        values |= {speed: (num_targets if stage.like_length else num_summed) / max(seconds, 1e-9)}
        self.log.scalars(values, stage.name, self.step, self.examples)

    def _validate(self, stage: Stage) -> None:
        """Rank 0 validates; the weights of the best validation so far are kept, and put back as the stage ends."""
        values: dict[str, float] = {}
        if self.ranks.first:
            self.method.model.eval()
            values, views = self.method.validate(stage), self.method.views(stage)
            self.method.model.train()
            self.log.scalars({**values, **views.levels}, stage.name, self.step, self.examples)
            for key, distribution in views.histograms.items():
                self.log.histogram(key, distribution, self.examples)
            for key, picture in views.pictures.items():
                self.log.picture(key, picture, self.examples)
            shown = ", ".join(f"{key} {value:.3f}" for key, value in values.items() if f"{key}_per_token" not in values)
            self.reporter.line(f"{stage.name} step {self.step:,}: {shown}")
            self._log_samples()
        criterion = self.ranks.agree(values)[stage.criterion]
        self.stale += 1
        if criterion < self.best_criterion:
            self.best_criterion, self.stale = criterion, 0
            kept = module_tensors({name: self.method.modules[name] for name in stage.modules}, "best")
            self.best = {name: tensor.detach().clone() for name, tensor in kept.items()}

    def _log_samples(self) -> None:
        """The same noise at every validation, so that samples can be compared."""
        if not self.method.model.sources:
            return
        model = self.method.model.eval()
        ids, _ = next(model.generate(EVALUATION_SAMPLES, 0, SamplingConfig(max_len=40)))
        model.train()
        sentences = self.data.tokenizer.decode(ids)
        self.log.text("samples", "\n".join(f"- {sentence}" for sentence in sentences), self.examples)

    def _save(self) -> None:
        if not self.ranks.first:
            self.ranks.barrier()
            return
        tensors = module_tensors(self.method.modules, "module") | self.best
        optimizers: dict[str, Any] = {}
        for name, optimizer in self.method.optimizers.items():
            state, optimizers[name] = flatten_optimizer(optimizer.state_dict(), f"optimizer.{name}")
            tensors |= state
        meta = {"stage": self.stage_index, "step": self.step, "examples": self.examples, "stale": self.stale,
                "optimizers": optimizers,
                "best_criterion": None if math.isinf(self.best_criterion) else self.best_criterion,
                "log_offset": self.log.flush(), "threads": torch.get_num_threads(), "torch": torch.__version__}
        write_state(checkpoint_path(self.directory, self.stage_index, self.step), tensors, meta)
        prune(self.directory, self.config.keep_checkpoints)
        self.ranks.barrier()

    def _restore(self) -> int:
        """Take up the newest whole checkpoint, if there is one; returns the length of its log in bytes."""
        found = newest_checkpoint(self.directory)
        if found is None:
            return 0
        tensors, meta, damaged = found
        for problem in damaged:
            self.reporter.line(f"passed over: {problem}")
        if (meta["threads"], meta["torch"]) != (torch.get_num_threads(), torch.__version__):
            self.reporter.line(f"note: saved with {meta['threads']} threads and torch {meta['torch']}, going on with "
                               f"{torch.get_num_threads()} and {torch.__version__}: not bit for bit the same run")
        load_modules(self.method.modules, tensors, "module")
        for name, optimizer in self.method.optimizers.items():
            optimizer.load_state_dict(unflatten_optimizer(tensors, meta["optimizers"][name], f"optimizer.{name}"))
        self.stage_index, self.step = meta["stage"], meta["step"]
        self.examples, self.stale = meta["examples"], meta["stale"]
        self.best_criterion = math.inf if meta["best_criterion"] is None else meta["best_criterion"]
        self.best = {name: tensor.to(self.data.device) for name, tensor in tensors.items() if name.startswith("best.")}
        self.reporter.line(f"going on from stage {self.stage_index + 1}, step {self.step:,}")
        return int(meta["log_offset"])
