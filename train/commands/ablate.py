"""`python -m train ablate RUN`: train several generators for the decoder of one run, and compare them in a table.

Each generator is an ordinary run with RUN's decoder. The table has all rows of the directory, so a later command adds rows.
"""

import dataclasses
import itertools
import re
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from outlines.checkpoint import MANIFEST, sha256_file
from outlines.encoders import load_encoder
from outlines.errors import OutlinesError, quoted
from outlines.inference.rejection import MAX_MEAN_DRAWS
from outlines.metrics.gan_verdict import GanVerdict
from outlines.models.base import CannotReject, TextModel
from outlines.models.outlines import OutlineModel
from train.commands.judges import quick_judges
from train.commands.parsing import Parser, add_session, numbers
from train.config import RunConfig, coerce, known_fields, unknown_name
from train.data import Dataset
from train.evaluation.figures import diagnose_gan
from train.evaluation.judges import Judges
from train.evaluation.sampling import REAL_OUTLINES, Row, Variant, draw, draw_outlines
from train.evaluation.tables import TABLES, Column, over_seeds, table, write_report
from train.evaluation.yardstick import Yardstick
from train.method import NotFinite
from train.methods.outlines import OutlineOptions
from train.runtime.run_directory import locked, read_json, read_lines, write_json
from train.runtime.signals import StopSignals
from train.session import Session, begin_run, check_out, finished_run, run_config, train_run

FAMILY = OutlineModel.family
TEMPERATURES = (0.7, 1.0)
NUM_TIMED = 1024  # number of outlines in the batch whose sampling time is measured
CONTROLS = (REAL_OUTLINES, "mixture", "gaussian")
GRID = ("generator=flow,flow-gan", "start=gaussian,mixture")
DESCRIPTION = """\
Train several generators with different options for the decoder of a finished run, and compare them in one table.

  python -m train ablate runs/001-outlines-small --vary generator=flow,flow-gan start=gaussian,mixture --outlines-only
"""


def parser() -> Parser:
    parser = Parser("python -m train ablate", DESCRIPTION)
    add = parser.add_argument
    add("run", metavar="RUN", type=Path, help="finished run of the family outlines; all rows use its decoder and options")
    add("--vary", nargs="+", metavar="NAME=VALUE,…", default=list(GRID), help="options and their values; the table has "
        f"one row for each combination (default: {' '.join(GRID)})")
    add("--rejection", default="1", metavar="LIST", help="comma-separated average numbers of draws per accepted "
        "outline, one row each; 1: no rejection (default: 1)")
    add("--outlines-only", action="store_true", help="measure only the outlines: decode no sentences, train no judge, print "
        "no verdict")
    add("--out", type=Path, metavar="DIR", help="directory of runs and table (default: RUN-ablation)")
    add_session(parser)
    return parser


def run(arguments: Sequence[str], signals: StopSignals) -> None:
    """Train and measure the rows; print the table of all rows in the directory. Raises OutlinesError."""
    options = parser().parse_args(arguments)
    base, run = run_config(options.run), options.run
    if base.family != FAMILY:
        raise OutlinesError(f"{run}: this is a run of {base.family!r}. Use a run of {FAMILY!r}.")
    rejections = numbers("--rejection", options.rejection, 1, MAX_MEAN_DRAWS)
    variations = varied(run, base, options.vary)
    out = options.out or Path(f"{run.absolute()}-ablation")
    check_out(out)
    session = Session.of_run(run, options.quiet, signals, options.device)
    model, data = finished_run(run, session)
    fitted = {base.training.seed: run}  # by seed, the run from which the next runs copy the fitted baselines
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        file, identity = out / "rows.json", sha256_file(run / "model" / MANIFEST)
        begun = {"model": identity, "outlines_only": options.outlines_only}
        kept: dict[str, Any] = read_json(file) if file.exists() else {**begun, "rows": {}}
        if kept["model"] != identity:
            raise OutlinesError(f"{out} contains the ablation of another run. Choose another --out.")
        if kept.get("outlines_only", False) != options.outlines_only:
            raise OutlinesError(f"{out} contains rows {'without' if options.outlines_only else 'with'} --outlines-only. "
                                "Choose another --out.")
        yardstick = _yardstick(run, base, data, session, options.outlines_only)
        rows: dict[str, Row] = kept["rows"]
        for source in CONTROLS:
            if source not in rows:
                session.reporter.line(f"evaluate {source}")
                rows[source] = {"label": source, **measured(model, data, yardstick, source)}
                write_json(file, kept)
        for (settings, config), rejection in itertools.product(variations, rejections):
            varying = {name: value for name, value in settings.items() if name != "seed"}
            name = ", ".join(f"{option.replace('_', '-')} {value}" for option, value in varying.items()) or "as the run"
            directory = out / re.sub(r"[^\w.-]+", "_", f"{name}, seed {config.training.seed}")
            label = name if rejection == 1 else f"{name}, rejection {rejection:g}"
            key = f"{label}, seed {config.training.seed}"
            if key not in rows:
                session.reporter.line(f"train and evaluate {key}")
                command = _command(run, settings, rejection, options.outlines_only, options.out)
                source = str(fitted.get(config.training.seed, run).absolute())
                config = dataclasses.replace(config, model=dataclasses.replace(config.model, decoder_from=source))
                try:
                    row = _row(directory, config, rejection, yardstick, session, rows, command)
                except CannotReject as error:
                    session.reporter.line(f"{key} is left out: {error}")
                    continue
                except NotFinite as error:
                    row = {"verdict": str(GanVerdict.DIVERGED), "words": str(error)}
                rows[key] = {"label": label, "command": command, **row}
                write_json(file, kept)
            if (directory / "model").is_dir():
                fitted.setdefault(config.training.seed, directory)
    commands = "\n".join(row["command"] for row in rows.values() if "command" in row)
    lines = over_seeds((row["label"], row) for row in rows.values())
    columns = [*TABLES["ablation"], Column("verdict", "verdict", 0)]
    judged = "" if options.outlines_only else "NLL in nats per token, by a language model trained on real text. "
    text = (f"Test split, {len(yardstick.references)} outlines of each source. {judged}See docs/outline-gan.md.\n\n"
            f"{table(lines, columns)}\n\n"
            f"One command per row:\n\n```bash\n{commands}\n```")
    write_report(out, text, {"rows": rows})
    print(f"{text}\n\nwritten to {out}: report.md, report.json\nnext:\n  tensorboard --logdir {quoted(out)}")


def _yardstick(run: Path, base: RunConfig, data: Dataset, session: Session, outlines_only: bool) -> Yardstick:
    if outlines_only:
        return Yardstick(base, data, Judges())
    encoder = load_encoder(str(base.model.encoder_name()), data.device.type, run)
    return Yardstick(base, data, quick_judges(base, data, session), encoder=encoder)


def varied(run: Path, base: RunConfig, vary: Sequence[str]) -> list[tuple[dict[str, Any], RunConfig]]:
    """Return each combination of the settings in `vary`, and the configuration of its run with the decoder of `run`.

    Raises OutlinesError.
    """
    assert isinstance(base.model, OutlineOptions)
    fields = known_fields(OutlineOptions)
    axes: dict[str, list[Any]] = {}
    for given in vary:
        name, equals, values = given.partition("=")
        name = name.replace("-", "_")
        if not equals or name in axes:
            raise OutlinesError(f"--vary {given!r} is not valid. Write each option once, as in start=noise,mixture.")
        own = base.training if name == "seed" else base.model
        if name not in vars(own) or name == "decoder_from":
            raise unknown_name("option to vary:", name, vars(base.model))
        if name in base.model.decides_decoder():
            raise OutlinesError(f"--vary {name} has no effect, because all generators use RUN's decoder. Vary an option of "
                                "the generator.")
        axes[name] = [coerce(fields[name], _value(fields[name].type, text), "--vary") for text in values.split(",")]
    found = []
    for combination in itertools.product(*axes.values()):
        settings = dict(zip(axes, combination, strict=True))
        changes: dict[str, Any] = {"decoder_from": str(run.absolute()), **settings}
        training = dataclasses.replace(base.training, seed=changes.pop("seed", base.training.seed))
        model = dataclasses.replace(base.model, **changes)
        found.append((settings, dataclasses.replace(base, training=training, model=model)))
    unused = [config.model.without_effect() for _, config in found]
    for name in axes:
        if all(name in reasons for reasons in unused):
            raise OutlinesError(f"--vary {name} has no effect ({unused[0][name]}). Vary other options.")
    return found


def _value(kind: Any, text: str) -> Any:
    """Return a text converted to a field's type, or the text itself if this is not possible."""
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    try:
        return kind(text)
    except ValueError:
        return text


def _command(run: Path, settings: Mapping[str, Any], rejection: float, outlines_only: bool, out: Path | None) -> str:
    """Return the command that measures a single row."""
    vary = [f"{name.replace('_', '-')}={value}" for name, value in settings.items()]
    words = ["python", "-m", "train", "ablate", str(run), *(["--vary", *vary] if vary else [])]
    return shlex.join([*words, *(["--rejection", f"{rejection:g}"] if rejection != 1 else []),
                       *(["--outlines-only"] if outlines_only else []), *(["--out", str(out)] if out else [])])


def measured(model: TextModel, data: Dataset, yardstick: Yardstick, source: str, rejection: float = 1.0) -> Row:
    """Return the metrics of a source's outlines and, if there are judges, of the sentences decoded from these outlines."""
    nll: Row = {}
    speed: Row = {} if source == REAL_OUTLINES else {"microseconds": _sampling_time(model, source)}
    if not yardstick.judges.forward:
        outlines = draw_outlines(model, data, Variant(source, rejection=rejection), yardstick.num_samples)
        return {"source": source, **yardstick.outline_figures(outlines, full=True), **speed}
    num = len(yardstick.others) if source == REAL_OUTLINES else yardstick.num_samples
    for temperature in TEMPERATURES:
        sentences = draw(model, data, Variant(source, rejection=rejection), temperature, num, further=True)
        nll[f"forward_nll_{temperature:g}"] = yardstick.judges.forward["forward"](sentences.text).per_token
    mauve = yardstick.mauve(sentences.text)  # at the last temperature
    return {"source": source, **nll, **mauve, **yardstick.outline_figures(sentences, full=True),
            **speed, "forward_nll_per_token": sum(nll.values()) / len(nll)}


def _sampling_time(model: TextModel, source: str) -> float:
    """Return the time in which a source draws outlines, in microseconds per outline: the shortest of three measurements."""
    rng = torch.Generator().manual_seed(0)

    def once() -> float:
        started = time.perf_counter()
        model.vectors(NUM_TIMED, rng, source)
        return (time.perf_counter() - started) / NUM_TIMED * 1e6

    return min(once() for _ in range(3))


def _row(directory: Path, config: RunConfig, rejection: float, yardstick: Yardstick, session: Session,
         rows: Mapping[str, Row], command: str) -> Row:
    """Return the row of one combination of settings. Trains its run in `directory`, or loads it."""
    if not (directory / "run.json").exists():
        begin_run(config, directory, session, {"preset": "", "command": command,
                                                   "hashes": yardstick.data.hashes(encoder=False)})
    with locked(directory):
        model, data = train_run(directory, session)
    assert isinstance(config.model, OutlineOptions)
    row = measured(model, data, yardstick, model.sources[0], rejection)
    if not yardstick.judges.forward:
        return {**row, **_time(directory)}
    compared = [*(rows[source] for source in CONTROLS), row]
    found = diagnose_gan(model, data, config.model.num_validation, config.model.start, compared)
    if found is None:
        raise OutlinesError(f"{directory}: too few held-out sentences to compare generators. Use a larger corpus.")
    return {**row, **_time(directory), **found.to_json()}


def _time(directory: Path) -> Row:
    """Return number, seconds and CPU seconds of all steps of the generator's stages, without validations."""
    last: dict[str, int] = {}  # by stage, the step of the last line
    seconds = cpu_seconds = 0.0
    for line in read_lines(directory / "metrics.jsonl"):
        if "speed/steps_per_sec" in line:
            num = line["step"] - last.get(line["stage"], 0)
            seconds += num / line["speed/steps_per_sec"]
            cpu_seconds += num * line.get("speed/cpu_sec_per_step", 0)
            last[line["stage"]] = line["step"]
    return {"steps": sum(last.values()), "seconds": seconds, "cpu_seconds": cpu_seconds}
