"""What a finished run says of itself at the end of training: the quick report, and that of several seeds together."""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from outlines.sampling import SamplingConfig
from outlines.text_model import TextModel
from train import report
from train.data import Dataset
from train.evaluation import quick_rows, reconstruction
from train.log import RunLog
from train.run_directory import read_json
from train.runs import Session, run_config


def report_run(directory: Path, model: TextModel, data: Dataset, session: Session) -> str:
    """Evaluate a finished run, write report.json and report.md, and return what the terminal shows."""
    started = time.monotonic()
    file = directory / "report.json"
    config = run_config(directory)
    if not file.exists() or "rows" not in read_json(file):  # An older version's had none.
        model.eval()
        rebuilt = reconstruction(model, data, config.training.num_evaluation)
        rows = list(quick_rows(config, model, data, session)) if model.sources else []
        figures = {"reconstruction": rebuilt, "rows": rows}
        report.write_report(directory, _render([figures]), figures)
        log = RunLog(directory, offset=(directory / "metrics.jsonl").stat().st_size, examples=10**9)
        log.scalars({key: value for key, value in rebuilt.items() if isinstance(value, float) and math.isfinite(value)},
                    "report", 0, 0)
        log.text("report", _render([figures]).splitlines(), 0)
        log.close()
    text = _render([read_json(file)])
    session.reporter.line(f"evaluated in {time.monotonic() - started:.0f} s")
    if not model.sources:
        return "\n".join([text, "", "next:", f"  python -m train outlines --encoder recurrent:{directory / 'encoder'}"])
    ids, _ = next(model.generate(10, config.training.seed, SamplingConfig(temperature=0.7)))
    samples = [" ".join(sentence.split()) for sentence in data.tokenizer.decode(ids)]
    return "\n".join([text, "", "ten samples at T = 0.7:", *(f"  {sentence}" for sentence in samples), "", "next:",
                      f"  python -m generate {directory}", f"  tensorboard --logdir {directory.parent}",
                      f"  python -m train evaluate {directory}"])


def report_seeds(directory: Path, runs: Sequence[Path]) -> str:
    """The quick reports of several seeds as one, written to their directory; returns what the terminal shows."""
    figures = [read_json(run / "report.json") for run in runs]
    text = _render(figures)
    lines = report.over_seeds((row["source"], row) for own in figures for row in own["rows"])
    rebuilt = report.over_seeds(("", own["reconstruction"]) for own in figures)
    report.write_report(directory, text, {"runs": [str(run) for run in runs], "rows": report.to_json(lines),
                                          "reconstruction": report.to_json(rebuilt)})
    return f"{text}\n\nnext:\n  python -m train evaluate {directory}"


def _render(figures: Sequence[dict[str, Any]]) -> str:
    """The quick report of one seed, or of several."""
    lines = report.over_seeds((row["source"], row) for own in figures for row in own["rows"])
    rebuilt = report.over_seeds(("", own["reconstruction"]) for own in figures)[0].figures
    named = {"test/nll_per_token": "decoder nll per token", "test/latent_gap_per_token":
             "... more, given another sentence's vector", "test/reconstruction_bleu": "greedy reconstruction, BLEU"}
    tail = [f"{title}: {rebuilt[key]:2}" for key, title in named.items() if key in rebuilt]
    head = f"test split, {figures[0]['reconstruction']['num_sentences']} sentences, {report.num_seeds(lines)}; nll in nats"
    if not lines:
        return "\n".join([f"{head}:", "", *tail])
    return "\n".join([f"{head}, forward nll by a language model of another seed, T = temperature:", "",
                      report.table(lines, report.QUICK_COLUMNS), "", *tail])
