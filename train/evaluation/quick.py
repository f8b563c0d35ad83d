"""What a finished run says of itself at the end of training: the quick report, and that of several seeds together."""

import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from outlines.decoding.sample import SamplingConfig
from outlines.inference.pipeline import TEMPERATURE, Pipeline
from outlines.models.base import TextModel
from train.data import Dataset
from train.evaluation import report
from train.evaluation.figures import DRAW_SEED, collapse_figures, diagnose_gan, diagnose_vector, held_out
from train.evaluation.yardstick import QUICK_DRAWS, REAL_OUTLINES, quick_rows, reconstruction
from train.method import find_method
from train.runtime.log import RunLog
from train.runtime.run_directory import read_json, read_run, write_json
from train.session import Session, run_config

NUM_PROJECTED = 200
"""Vectors of each kind in TensorBoard's projector."""


def report_run(directory: Path, model: TextModel, data: Dataset, session: Session, beside_lm: bool = True) -> str:
    """Evaluate a finished run, write report.json and report.md, and return what the terminal shows.

    beside_lm: with the language model's rows, where the run is not one; it is trained for them.
    """
    started = time.monotonic()
    file = directory / "report.json"
    config = run_config(directory)
    if not file.exists() or "family" not in read_json(file):  # An older version's had none.
        model.eval()
        num = config.training.num_evaluation
        rebuilt = reconstruction(model, data, num, QUICK_DRAWS)
        if (diagnosis := diagnose_vector(model, data, num, directory, quick=True)) is not None:
            write_json(directory / "collapse.json", diagnosis.to_json())
            rebuilt |= collapse_figures(diagnosis)
        rows = list(quick_rows(config, model, data, session, beside_lm)) if model.sources else []
        figures = {"family": model.family, "reconstruction": rebuilt, "rows": rows}
        if rows and (adversary := diagnose_gan(model, data, num, getattr(config.model, "start", ""), rows)) is not None:
            figures["generator"] = {"verdict": str(adversary.verdict), "words": adversary.in_words(),
                                    "memorised": adversary.memorised}
        if own := find_method(model.family).own_rows(config, model, data, session.reporter):
            figures["own"] = own
        _log(directory, figures, model, data)
        report.write_report(directory, _render([figures]), figures)
    text = _render([read_json(file)])
    session.reporter.line(f"evaluated in {time.monotonic() - started:.0f} s")
    if not model.sources:
        return "\n".join([text, "", "next:", f"  python -m train outlines --encoder recurrent:{directory / 'encoder'}"])
    finished = Pipeline(directory, read_run(directory), model, data.tokenizer)
    samples = [f"  {line}" for line in finished.sample(10, config.training.seed)]
    return "\n".join([text, "", f"ten samples at T = {TEMPERATURE}:", *samples, "", "next:",
                      f"  python -m generate {directory}", f"  tensorboard --logdir {directory.parent}",
                      f"  python -m train evaluate {directory}"])


def _log(directory: Path, figures: dict[str, Any], model: TextModel, data: Dataset) -> None:
    """The report for TensorBoard: its figures, those of the run's own source against 100 · T, its options, its vectors."""
    log = RunLog(directory, offset=(directory / "metrics.jsonl").stat().st_size, examples=10**9)
    rebuilt = {key: value for key, value in _finite(figures["reconstruction"]).items() if key.startswith("test/")}
    log.scalars(rebuilt, "report", 0, 0)
    for row in figures["rows"]:
        if row["source"] == model.sources[0]:
            measured = {f"evaluation/{key}": value for key, value in _finite(row).items()}
        elif row["source"] in (*model.sources, REAL_OUTLINES):
            nll = "forward_nll_per_token"
            measured = {f"evaluation/{nll}_{row['source'].replace(' ', '_')}": row[nll]}
        else:
            continue
        log.scalars(measured, "report", 0, round(100 * row["temperature"]))
    log.hparams(report.flat_options(run_config(directory).to_json()))
    kinds = list(_projected(model, data))
    if kinds:
        labels = [[kind, " ".join(sentence.split())] for kind, _, sentences in kinds for sentence in sentences]
        log.vectors(torch.cat([vectors.cpu() for _, vectors, _ in kinds]), labels, ["set", "sentence"])
    log.text("report", _render([figures]), 0)
    log.close()


def _finite(row: dict[str, Any]) -> dict[str, float]:
    return {key: float(value) for key, value in row.items()
            if isinstance(value, (int, float)) and key != "temperature" and math.isfinite(value)}


def _projected(model: TextModel, data: Dataset) -> Iterator[tuple[str, Tensor, list[str]]]:
    """Kinds of vectors [N, D], each with its sentences: those of real sentences, and those of every source."""
    tokens, outlines, text = held_out(data, "test", NUM_PROJECTED, seed=1)
    posterior = model.posterior(tokens, outlines)
    if posterior is None or model.latent_per_step:
        return
    mu, logvar = posterior
    yield ("real" if logvar is None else "real: mu"), mu, text
    if logvar is not None:
        noise = torch.randn(mu.shape, generator=torch.Generator().manual_seed(DRAW_SEED)).to(mu.device)
        yield "real: drawn z", mu + (logvar / 2).exp() * noise, text
    for source in model.sources:
        sampling = SamplingConfig(temperature=0, max_len=data.corpus.meta["max_len"])
        for ids, vectors in model.generate(NUM_PROJECTED, DRAW_SEED, sampling, source):
            if vectors is not None:
                yield source, vectors, data.tokenizer.decode(ids)


def report_seeds(directory: Path, runs: Sequence[Path]) -> str:
    """The quick reports of several seeds as one, written to their directory; returns what the terminal shows."""
    figures = [read_json(run / "report.json") for run in runs]
    text = _render(figures)
    lines = report.over_seeds((row["source"], row) for own in figures for row in own["rows"])
    rebuilt = report.over_seeds((own["family"], own["reconstruction"]) for own in figures)
    report.write_report(directory, text, {"runs": [str(run) for run in runs], "rows": report.to_json(lines),
                                          "reconstruction": report.to_json(rebuilt)})
    return f"{text}\n\nnext:\n  python -m train evaluate {directory}"


def _render(figures: Sequence[dict[str, Any]]) -> str:
    """The quick report of one seed, or of several."""
    lines = report.over_seeds((row["source"], row) for own in figures for row in own["rows"])
    tail = report.generator_section(figures) + report.reconstruction_section(
        [(own["family"], own["reconstruction"]) for own in figures])
    if own := [(row["source"], row) for member in figures for row in member.get("own", [])]:
        method = find_method(figures[0]["family"])
        tail = "\n\n".join([method.own_title, report.table(report.over_seeds(own), method.own_columns), tail])
    head = f"test split, {figures[0]['reconstruction']['num_sentences']} sentences, {report.num_seeds(lines)}; nll in nats"
    if not lines:
        return "\n".join([f"{head}:", "", tail])
    return "\n".join([f"{head}, forward nll by a language model of another seed, T = temperature:", "",
                      report.table(lines, report.QUICK_COLUMNS), "", tail])
