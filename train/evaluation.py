"""What a finished run reached: the quick evaluation at the end of every training, on the test split.

The scorer of samples is a language model of another seed, trained on the same training sentences; it is kept in the
cache under the hash of what it was trained on and how, and never trained twice.
"""

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from outlines.baselines.lm import LanguageModel
from outlines.corpus import grammar
from outlines.metrics.bleu import reconstruction_bleu, self_bleu_scores
from outlines.metrics.outline import knn_precision_recall
from outlines.metrics.text import copied_rate, distinct_n, unique_rate, words
from outlines.sampling import SamplingConfig, sample
from outlines.scoring import nll_of_rows
from outlines.text_model import TextModel, block_seed
from train.config import RunConfig, TrainingConfig
from train.data import Dataset
from train.distributed import Ranks
from train.log import RunLog
from train.method import find_method
from train.run_directory import write_json
from train.runs import Session, begin_run, locked_run, run_config, train_run

EVALUATOR_SEED = 1001
TEMPERATURES = (0.7, 1.0)
EVALUATION_SEED = 11


def evaluator(config: RunConfig, data: Dataset, session: Session) -> TextModel:
    """The language model that scores samples of this corpus: trained now, or found in the cache."""
    method = find_method(LanguageModel.family)
    model = method.config_class(**{field.name: getattr(config.model, field.name)
                                   for field in dataclasses.fields(method.config_class)})
    steps = config.training.evaluator_steps
    model = dataclasses.replace(model, decoder_steps=steps, decoder_validate_every=steps)
    # One scorer for runs of every seed, and never of a run's own: else it would favour the samples of its twin.
    seed = EVALUATOR_SEED + (config.training.seed == EVALUATOR_SEED)
    training = dataclasses.replace(TrainingConfig(), seed=seed, device=config.training.device,
                                   precision=config.training.precision, warmup_steps=config.training.warmup_steps)
    scorer = RunConfig(LanguageModel.family, config.corpus, training, model)
    key = json.dumps([scorer.to_json(), data.corpus.fingerprint], sort_keys=True)
    directory = session.cache / f"evaluator-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    alone = dataclasses.replace(session, ranks=Ranks())
    directory.mkdir(parents=True, exist_ok=True)
    with locked_run(directory, alone):
        if not (directory / "run.json").exists():
            begin_run(scorer, directory, alone, {"preset": "evaluator", "command": "trained as a scorer of samples"})
        session.reporter.line("the language model that scores the samples:")
        return train_run(directory, alone)[0]


def decode(model: TextModel, vectors: Tensor, seed: int, sampling: SamplingConfig) -> Iterator[list[list[int]]]:
    """Token ids for each of the vectors [N, D], in blocks."""
    for start in range(0, len(vectors), 256):
        rng = torch.Generator().manual_seed(block_seed(seed, start))
        block = vectors[start:start + 256]
        yield sample(model.decoder, block, torch.rand(len(block), sampling.max_len, generator=rng).to(block.device),
                     sampling)


def score(scorer: TextModel, sentences: list[str], data: Dataset) -> float:
    """Forward nll per token, nats: the scorer's view of sentences, tokenised anew from their text."""
    limit = data.corpus.meta["max_len"]
    rows = [torch.tensor(ids[:limit]).numpy() for ids in data.tokenizer.encode(sentences)]
    nll, num_targets = nll_of_rows(scorer.decoder, rows)
    return float(nll.sum() / num_targets.sum())


def evaluate(config: RunConfig, model: TextModel, data: Dataset, session: Session) -> dict[str, Any]:
    """Figures of a run by name; each table row is one source of sentences."""
    reporter = session.reporter
    model.eval()
    rows = data.sample_rows("test", config.training.num_evaluation, seed=1)
    references = data.text("test", rows)
    tokens = data.corpus.tokens["test"].rows(rows)
    real = data.outlines("test", rows) if data.stores else None
    own = model.vectors_of(tokens, real)
    nll, num_targets = nll_of_rows(model.decoder, tokens, own)
    figures: dict[str, Any] = {"samples": len(rows), "test/nll_per_token": float(nll.sum() / num_targets.sum()),
                               "test/nll": float(nll.mean())}
    if own is not None:
        reporter.line("reconstruct held-out sentences")
        other, _ = nll_of_rows(model.decoder, tokens, own.roll(1, dims=0))
        greedy = SamplingConfig(temperature=0, max_len=data.corpus.meta["max_len"])
        rebuilt = [text for ids in decode(model, own, 0, greedy) for text in data.tokenizer.decode(ids)]
        figures |= {"test/latent_gap_per_token": float(other.sum() / num_targets.sum()) - figures["test/nll_per_token"],
                    "test/reconstruction_bleu": reconstruction_bleu(rebuilt, references)}
    if not model.sources:
        return figures
    scorer = evaluator(config, data, session)
    table: list[dict[str, Any]] = [{"source": "real text", "forward_nll_per_token": score(scorer, references, data),
                                    **text_figures(references, data)}]
    sources = (["real outlines"] if real is not None else []) + list(model.sources)
    for source in sources:
        for temperature in TEMPERATURES:
            reporter.line(f"sample from {source} at T = {temperature}")
            sampling = SamplingConfig(temperature=temperature, max_len=data.corpus.meta["max_len"])
            row: dict[str, Any] = {"source": source, "temperature": temperature}
            if source == "real outlines":
                assert real is not None
                ids = [row for block in decode(model, real, EVALUATION_SEED, sampling) for row in block]
                vectors: Tensor | None = real
            else:
                blocks = list(model.generate(len(rows), EVALUATION_SEED, sampling, source))
                ids = [row for block, _ in blocks for row in block]
                vectors = torch.cat([part for _, part in blocks if part is not None]) if real is not None else None
            if real is not None and vectors is not None:
                # Real outlines stand against other held-out ones: against themselves they would be perfect.
                against = real
                if source == "real outlines":
                    against = data.outlines("valid", data.sample_rows("valid", len(rows), seed=1))
                size = min(len(against), len(vectors))
                row["precision"], row["recall"] = knn_precision_recall(against[:size], vectors[:size])
            sentences = data.tokenizer.decode(ids)
            table.append({**row, "forward_nll_per_token": score(scorer, sentences, data), **text_figures(sentences, data)})
    figures["table"] = table
    return figures


def text_figures(sentences: list[str], data: Dataset) -> dict[str, float]:
    """Diversity and originality of sentences; on the embedded corpus also how much of it is in the language."""
    split = [words(sentence, lowercase=True) for sentence in sentences]
    training = (words(sentence, lowercase=True) for sentence in data.corpus.sentences["train"])
    figures = {"distinct_2": distinct_n(split, 2), "self_bleu_4": self_bleu_scores(split, max_n=4)[4],
               "unique": unique_rate(split), "copied": copied_rate(split, training)}
    if data.embedded:
        language = grammar.scenes()
        figures["in_language"] = sum(" ".join(text.split()) in language for text in sentences) / len(sentences)
    return figures


def render(figures: dict[str, Any]) -> str:
    """The figures as a Markdown table that also reads well in a terminal."""
    named = {"test/nll_per_token": "decoder nll per token", "test/latent_gap_per_token":
             "... more, given another sentence's outline", "test/reconstruction_bleu": "greedy reconstruction, BLEU"}
    tail = [f"{title}: {figures[key]:.2f}" for key, title in named.items() if key in figures]
    if "table" not in figures:
        return "\n".join([f"test split, {figures['samples']} sentences; nll in nats:", "", *tail])
    columns = {"source": "source", "temperature": "T", "precision": "precision", "recall": "recall",
               "forward_nll_per_token": "forward nll/token", "distinct_2": "distinct-2", "self_bleu_4": "self-BLEU-4",
               "unique": "unique", "copied": "copied", "in_language": "in language"}
    used = {key: title for key, title in columns.items() if any(key in row for row in figures["table"])}
    cells = [list(used.values())]
    for row in figures["table"]:
        cells.append([_cell(row.get(key), 1 if key == "temperature" else 3) for key in used])
    widths = [max(len(row[index]) for row in cells) for index in range(len(used))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    head = [f"test split, {figures['samples']} sentences, T = temperature; nll in nats, forward nll by a language model "
            "of another seed:", ""]
    return "\n".join([*head, *lines, "", *tail])


def _cell(value: str | float | None, decimals: int) -> str:
    return value if isinstance(value, str) else "" if value is None else f"{value:.{decimals}f}"


def report_run(directory: Path, model: TextModel, data: Dataset, session: Session) -> str:
    """Evaluate a finished run, write report.json and report.md, and return what the terminal shows."""
    started = time.monotonic()
    file = directory / "report.json"
    config = run_config(directory)
    figures = json.loads(file.read_text()) if file.exists() else evaluate(config, model, data, session)
    table = render(figures)
    if not file.exists():
        write_json(file, figures)
        (directory / "report.md").write_text(table + "\n")
        log = RunLog(directory, offset=(directory / "metrics.jsonl").stat().st_size, examples=10**9)
        log.scalars({key: value for key, value in figures.items() if isinstance(value, float) and math.isfinite(value)},
                    "report", 0, 0)
        log.text("report", [*table.splitlines()], 0)
        log.close()
    session.reporter.line(f"evaluated in {time.monotonic() - started:.0f} s")
    if not model.sources:
        return "\n".join([table, "", "next:", f"  python -m train outlines --encoder recurrent:{directory / 'encoder'}"])
    ids, _ = next(model.generate(10, config.training.seed, SamplingConfig(temperature=0.7)))
    samples = [" ".join(text.split()) for text in data.tokenizer.decode(ids)]
    return "\n".join([table, "", "ten samples at T = 0.7:", *(f"  {text}" for text in samples), "", "next:",
                      f"  python -m generate {directory}", f"  tensorboard --logdir {directory.parent}"])


