"""`python -m train ablate RUN`: generators trained with other options over one run's decoder, in one table.

Every combination of the options' values is a run like any other, in the ablation's directory, whose decoder is RUN's
(--decoder-from) and whose other options are RUN's. The table is of all rows that the directory holds, so a later command
adds to it, and one that was stopped goes on where it was.
"""

import argparse
import dataclasses
import itertools
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from outlines.checkpoint import MANIFEST, sha256_file
from outlines.errors import OutlinesError
from outlines.inference.rejection import MAX_MEAN_DRAWS
from outlines.metrics.verdicts import GanVerdict
from outlines.models.base import CannotReject, TextModel
from outlines.models.outlines import OutlineModel
from train.commands.parsing import Parser, numbers
from train.config import RunConfig, coerce, known_fields, unknown_name
from train.data import Dataset
from train.evaluation import report
from train.evaluation.figures import diagnose_gan
from train.evaluation.judges import score
from train.evaluation.yardstick import QUICK_TEMPERATURES, REAL_OUTLINES, Row, Variant, Yardstick, draw
from train.method import NotFinite, find_method
from train.runtime.run_directory import GROUP, locked, read_json, read_lines, write_json
from train.runtime.signals import StopSignals
from train.session import Session, begin_run, run_config, train_run

FAMILY = OutlineModel.family
ROWS = "rows.json"
CONTROLS = (REAL_OUTLINES, "mixture", "gaussian")
GRID = ("objective=r3,wgan-gp", "start=noise,gaussian,mixture")
"""What is varied where nothing else is asked for."""

DESCRIPTION = """\
Train the generator of outlines again with other options, the decoder of a finished run taken as it is, and measure all.

  python -m train ablate runs/001-outlines-small --vary start=noise,gaussian,mixture gan-steps=500 --rejection 1,4
"""
COLUMNS = {"outline_precision": ("precision", 3), "outline_recall": ("recall", 3), "outline_frechet": ("Fréchet", 2),
           "outline_two_sample": ("two-sample", 3),
           **{f"forward_nll_{temperature:g}": (f"nll/token, T = {temperature:g}", 3) for temperature in QUICK_TEMPERATURES},
           "memorised": ("memorised", 2), "steps": ("steps", 0), "seconds": ("GAN seconds", 0), "verdict": ("verdict", 0)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", type=Path, help="a finished run of outlines: its decoder and "
                                                              "its options are those of all rows")
    parser.add_argument("--vary", nargs="+", metavar="NAME=VALUE,…", default=list(GRID),
                        help="options of outlines and their values, every combination a row; with one value, an option of "
                             f"all rows (default: {' '.join(GRID)})")
    parser.add_argument("--rejection", default="1", metavar="LIST", help="rows of each generator with so many outlines "
                        "drawn for each that the critic keeps; 1 keeps all (default: 1)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the runs and the table go (default: RUN-ablation)")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def parser() -> Parser:
    """Return the parser of this command."""
    parser = Parser("python -m train ablate", DESCRIPTION)
    add_arguments(parser)
    return parser


def run(arguments: Sequence[str], signals: StopSignals) -> None:
    """Run the ablation that the arguments ask for and print its table. Raises OutlinesError."""
    print(ablate(parser().parse_args(arguments), signals))


def ablate(options: argparse.Namespace, signals: StopSignals) -> str:
    """Train and measure the rows; return the table of all rows in the directory. Raises OutlinesError."""
    base, run = run_config(options.run), options.run
    if base.family != FAMILY:
        raise OutlinesError(f"{run}: a run of the family {base.family}; the generator that is varied is of {FAMILY}")
    rejections = numbers("--rejection", options.rejection, 1, MAX_MEAN_DRAWS)
    variations = list(varied(run, base, options.vary))
    out = options.out or run.with_name(f"{run.name}-ablation")
    if not (run / "model").is_dir():
        raise OutlinesError(f"{run}: training has not finished: go on with `python -m train --resume {run}`")
    if (out / "run.json").exists() or (out / GROUP).exists():
        raise OutlinesError(f"--out {out}: a run is here: choose another directory")
    session = Session.of_run(run, options.quiet, signals)
    model, data = train_run(run, session)
    yardstick = Yardstick(base, data, session)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        table = Table(out / ROWS, sha256_file(run / "model" / MANIFEST))
        rows = table.rows
        for source in CONTROLS:
            if source not in rows:
                session.reporter.line(source)
                table.add(source, {"label": source, **measured(model.eval(), data, yardstick, source)})
        for settings, config in variations:
            varying = {name: value for name, value in settings.items() if name != "seed"}
            name = ", ".join(f"{option.replace('_', '-')} {value}" for option, value in varying.items()) or "as the run"
            directory = out / re.sub(r"[^\w.-]+", "_", f"{name}, seed {config.training.seed}")
            for rejection in rejections:
                label = name if rejection == 1 else f"{name}, rejection {rejection:g}"
                key = f"{label}, seed {config.training.seed}"
                if key not in rows:
                    session.reporter.line(key)
                    command = _command(run, settings, rejection, options.out)
                    try:
                        row = _row(directory, config, rejection, yardstick, session, rows, command)
                    except CannotReject as error:
                        session.reporter.line(f"{key}: left out: {error}")
                        continue
                    except NotFinite as error:
                        row = {"verdict": str(GanVerdict.DIVERGED), "words": str(error)}
                    table.add(key, {"label": label, "command": command, **row})
    text = render(rows, len(yardstick.references))
    report.write_report(out, text, {"rows": rows})
    return f"{text}\n\nwritten to {out}: report.md, report.json; tensorboard --logdir {out}"


class Table:
    """The rows measured of one run's ablation, on disk."""

    def __init__(self, file: Path, model: str):
        """model: the hash of the run's model, whose rows alone belong in one table."""
        kept: dict[str, Any] = read_json(file) if file.exists() else {"model": model, "rows": {}}
        if kept["model"] != model:
            raise OutlinesError(f"{file.parent}: holds the ablation of another run: choose another --out")
        self.rows: dict[str, Row] = kept["rows"]
        self._file, self._model = file, model

    def add(self, key: str, row: Row) -> None:
        self.rows[key] = row
        write_json(self._file, {"model": self._model, "rows": self.rows})


def varied(run: Path, base: RunConfig, vary: Sequence[str]) -> Iterator[tuple[dict[str, Any], RunConfig]]:
    """Every combination of the settings, with the configuration of a run over `run`'s decoder; raises OutlinesError."""
    method = find_method(FAMILY)
    fields = known_fields(method.config_class)
    axes: dict[str, list[Any]] = {}
    for given in vary:
        name, equals, values = given.partition("=")
        name = name.replace("-", "_")
        if not equals or name in axes:
            raise OutlinesError(f"--vary {given!r}: expected each option once, as in start=noise,mixture")
        own = base.training if name == "seed" else base.model
        if not hasattr(own, name) or name == "decoder_from":
            raise unknown_name(f"option of {FAMILY} to vary:", name, vars(base.model))
        axes[name] = [coerce(fields[name], _value(fields[name].type, text), "--vary") for text in values.split(",")]
    for combination in itertools.product(*axes.values()):
        settings = dict(zip(axes, combination, strict=True))
        training = dataclasses.replace(base.training, seed=settings.get("seed", base.training.seed))
        model = dataclasses.replace(base.model, decoder_from=str(run),
                                    **{name: value for name, value in settings.items() if name != "seed"})
        yield settings, dataclasses.replace(base, training=training, model=model)


def _value(kind: Any, text: str) -> Any:
    """A word of the command line as the field's type, as far as it can be read as one."""
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    try:
        return kind(text)
    except ValueError:
        return text


def _command(run: Path, settings: Mapping[str, Any], rejection: float, out: Path | None) -> str:
    """The command that makes one row."""
    vary = [f"{name.replace('_', '-')}={value}" for name, value in settings.items()]
    words = ["python", "-m", "train", "ablate", str(run), *(["--vary", *vary] if vary else [])]
    return shlex.join([*words, *(["--rejection", f"{rejection:g}"] if rejection != 1 else []),
                       *(["--out", str(out)] if out else [])])


def measured(model: TextModel, data: Dataset, yardstick: Yardstick, source: str, rejection: float = 1.0) -> Row:
    """All figures of one source's outlines, and how likely the language model finds what is decoded from them."""
    row: Row = {"source": source}
    nll = []
    for temperature in QUICK_TEMPERATURES:
        num = len(yardstick.others) if source == REAL_OUTLINES else yardstick.num_samples
        sentences = draw(model, data, Variant(source, rejection=rejection), temperature, num, further=True)
        nll.append(score(yardstick.scorer, sentences.text, data).per_token)
        row[f"forward_nll_{temperature:g}"] = nll[-1]
        if "outline_precision" not in row:
            row |= yardstick.outline_figures(sentences, full=True)
    return row | {"forward_nll_per_token": sum(nll) / len(nll)}


def _row(directory: Path, config: RunConfig, rejection: float, yardstick: Yardstick, session: Session,
         rows: Mapping[str, Row], command: str) -> Row:
    """Train one combination, or find it trained, and measure it."""
    if not (directory / "run.json").exists():
        begin_run(config, directory, session, {"preset": "", "command": command})
    with locked(directory):
        model, data = train_run(directory, session)
    assert isinstance(model, OutlineModel)
    row = measured(model, data, yardstick, model.sources[0], rejection)
    compared = [*(rows[source] for source in CONTROLS), row]
    found = diagnose_gan(model, data, config.model.num_validation, config.model.start, compared)
    if found is None:
        raise OutlinesError(f"{directory}: its corpus has too few held-out sentences to compare generators on")
    return {**row, **_time(directory), "memorised": found.memorised, "verdict": str(found.verdict),
            "words": found.in_words()}


def _time(directory: Path) -> Row:
    """Generator steps taken, and the seconds that they took, without validations."""
    lines = [line for line in read_lines(directory / "metrics.jsonl") if "speed/steps_per_sec" in line]
    steps = [line["step"] for line in lines]
    seconds = sum((step - before) / line["speed/steps_per_sec"]
                  for before, step, line in zip([0, *steps], steps, lines, strict=False))
    return {"steps": steps[-1], "seconds": seconds}


def render(rows: Mapping[str, Row], num_compared: int) -> str:
    """The table and each row's command, in Markdown."""
    lines = report.over_seeds((row["label"], row) for row in rows.values())
    commands = "\n".join(row["command"] for row in rows.values() if "command" in row)
    return "\n\n".join([
        f"test split, {num_compared} outlines of each; nll in nats per token, of what is decoded at temperature T, by a "
        "language model of another seed; seconds are those of the generator's and the critic's steps alone; memorised: the "
        "share of what the critic tells apart that is training outlines learnt by heart (docs/outline-gan.md):",
        report.table(lines, COLUMNS), f"Each row by one command:\n\n```bash\n{commands}\n```"])
