"""The quick report at the end of training: report.json, report.md, TensorBoard, and a short form for the terminal."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from outlines.decoding.sample import SamplingConfig
from outlines.errors import quoted
from outlines.inference.pipeline import Pipeline
from outlines.models.base import TextModel
from outlines.pretrained import TEMPERATURE
from train.config import SIZES, RunConfig
from train.data import Dataset
from train.evaluation import sampling, tables
from train.evaluation.figures import DRAW_SEED, collapse_figures, diagnose_gan, diagnose_vector, held_out
from train.evaluation.judges import Judges
from train.evaluation.sampling import REAL_OUTLINES, REAL_TEXT
from train.evaluation.yardstick import Yardstick
from train.method import find_method
from train.runtime.log import RunLog, write_hparams
from train.runtime.progress import Reporter
from train.runtime.run_directory import read_json, read_run, write_json
from train.start_from import pretraining_notes

TEMPERATURES = (TEMPERATURE, 1.0)
NUM_PROJECTED = 200  # number of vectors of each kind in TensorBoard's projector


def measure_run(directory: Path, config: RunConfig, model: TextModel, data: Dataset, judges: Judges, lm: TextModel | None,
                reporter: Reporter) -> None:
    """Evaluate a finished run; write report.json, report.md and TensorBoard's events. lm: the LM baseline, or None."""
    num = config.training.num_evaluation
    rebuilt = sampling.reconstruction(model, data, num, sampling.QUICK_DRAWS)
    if (diagnosis := diagnose_vector(model, data, num, directory, quick=True)) is not None:
        write_json(directory / "collapse.json", dataclasses.asdict(diagnosis))
        rebuilt |= collapse_figures(diagnosis)
    rows = list(_rows(Yardstick(config, data, judges), model, lm, reporter)) if model.sources else []
    variant = " ".join(name for name in read_run(directory)["preset"].split() if name not in SIZES)
    figures: dict[str, Any] = {"family": model.family, "label": variant or model.family, "reconstruction": rebuilt,
                               "rows": rows, "notes": [*data.notes, *pretraining_notes(config, data.hashes()["corpus"])]}
    if rows and (found := diagnose_gan(model, data, num, getattr(config.model, "start", ""), rows)) is not None:
        figures["generator"] = found.to_json()
    if own := find_method(model.family).own_rows(config, model, data, reporter):
        figures["own"] = own
    _log(directory, config, figures, model, data)
    tables.write_report(directory, _render([figures]), figures)


def _rows(yardstick: Yardstick, model: TextModel, lm: TextModel | None, reporter: Reporter) -> Iterator[sampling.Row]:
    data = yardstick.data
    yield {"source": REAL_TEXT, **yardstick.measure(yardstick.real_text())}
    owners = {source: model for source in sampling.sources_of(model, data)} | ({sampling.LM: lm} if lm else {})
    # The baselines only need the default temperature, at which the verdict compares them with the generator.
    cases = [(source, temperature) for source in owners for temperature in TEMPERATURES
             if temperature == TEMPERATURE or source not in model.sources[1:]]
    for number, (source, temperature) in enumerate(cases, start=1):
        owner = owners[source]
        reporter.step(f"evaluate {source} at T = {temperature:g}", number, len(cases))
        # Use only held-out real outlines: one for each sentence of real text.
        num = len(yardstick.others) if source == REAL_OUTLINES else yardstick.num_samples
        sentences = sampling.draw(owner, data, sampling.Variant(source), temperature, num)
        yield {"source": source, "temperature": temperature, **yardstick.measure(sentences)}


def _log(directory: Path, config: RunConfig, figures: dict[str, Any], model: TextModel, data: Dataset) -> None:
    """Log the report: metrics (of baselines only the forward NLL) with 100 · T as the step, options and vectors."""
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
    write_hparams(log.writer, tables.flat_options(config.to_json()))
    kinds = list(_projected(model, data))
    if kinds:
        labels = [[kind, " ".join(sentence.split())] for kind, _, sentences in kinds for sentence in sentences]
        log.vectors(torch.cat([vectors.cpu() for _, vectors, _ in kinds]), labels, ["set", "sentence"])
    log.writer.add_text("report", _render([figures]), 0)
    log.close()


def _finite(row: dict[str, Any]) -> dict[str, float]:
    return {key: float(value) for key, value in row.items()
            if isinstance(value, (int, float)) and key != "temperature" and math.isfinite(value)}


def _projected(model: TextModel, data: Dataset) -> Iterator[tuple[str, Tensor, list[str]]]:
    """Yield (name, vectors [N, D], sentences) of real sentences and of every source, for TensorBoard's projector."""
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


def closing_report(directory: Path, config: RunConfig, model: TextModel, data: Dataset) -> str:
    """Return the report for the terminal of a run with report.json: the main metrics, ten samples, the next commands."""
    text = _render([read_json(directory / "report.json")], tables.WIDTH)
    following = [f"  python -m train outlines --encoder {quoted(f'recurrent:{directory}/encoder')}"]
    if model.sources:
        finished = Pipeline(directory, read_run(directory), model, data.tokenizer)
        samples = "\n".join(f"  {line}" for line in finished.sample(10, config.training.seed))
        text += f"\n\nten samples at T = {TEMPERATURE}:\n{samples}"
        following = [f"  python -m generate {quoted(directory)}", f"  tensorboard --logdir {quoted(directory.parent)}",
                     f"  python -m train evaluate {quoted(directory)}"]
    return "\n".join([text, "", f"full report: {directory / 'report.md'}", "next:", *following])


def report_seeds(directory: Path, runs: Sequence[Path]) -> str:
    """Write one report for the runs of several seeds; return its short form for the terminal."""
    figures = [read_json(run / "report.json") for run in runs]
    tables.write_group(directory, _render(figures), runs, *_labelled(figures))
    return (f"{_render(figures, tables.WIDTH)}\n\nfull report: {directory / 'report.md'}\nnext:\n"
            f"  python -m train evaluate {quoted(directory)}")


def _labelled(figures: Sequence[dict[str, Any]]) -> tuple[list[tuple[str, Any]], list[tuple[str, Any]]]:
    return ([(row["source"], row) for own in figures for row in own["rows"]],
            [(own.get("label", own["family"]), own["reconstruction"]) for own in figures])


def _render(figures: Sequence[dict[str, Any]], width: int | None = None) -> str:
    """Return the quick report of one or several seeds. width: shorten it for a terminal of this width."""
    rows, rebuilt = _labelled(figures)
    parts = [tables.rows_section(rows, rebuilt, width)]
    if found := [own["generator"] for own in figures if "generator" in own]:
        one = len(found) == 1
        words = found[0]["words"] if one else f"generator: {tables.counted([own['verdict'] for own in found])}"
        parts += [] if width else ["Is the generator better than its fitted baselines? (docs/outline-gan.md)"]
        parts.append(tables.wrap(words, width))
        parts += [f"Critic memorisation: {found[0]['memorised']:.0%}"] if one and not width else []
    if own := [(row["source"], row) for member in figures for row in member.get("own", [])]:
        method = find_method(figures[0]["family"])
        parts += [tables.wrap(method.own_title, width), tables.table(tables.over_seeds(own), method.family, width)]
    notes = dict.fromkeys(note for member in figures for note in member.get("notes", []))
    samples = [tables.samples_section(tables.over_seeds(rows))] if rows and width is None else []
    return "\n\n".join([*parts, tables.reconstruction_section(rebuilt, width), *notes, *samples])
