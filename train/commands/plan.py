"""From a parsed command line to a plan: which runs with which configurations, and which directories group them."""

import argparse
import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from outlines.errors import OutlinesError
from train.commands.compare import COMPARE, compared
from train.config import RunConfig, coerce, flag_of, known_fields, read_toml, resolve
from train.method import find_method
from train.runtime.run_directory import GROUP, begin_group, read_run, runs_of
from train.session import Session, begin_run, command_line, default_cache

OWN_OPTIONS = ("preset", "config", "remedy", "families", "runs", "out", "seeds")
"""Options other than configuration fields that decide a run."""


@dataclass(frozen=True)
class Plan:
    """What to train: new runs, or none if existing runs are resumed."""

    directory: Path | None
    """of the run or of the group; None: a new one under `root`"""
    root: Path
    cache: Path
    name: str = ""
    """of a new directory"""
    runs: dict[str, tuple[str, RunConfig]] = field(default_factory=dict)
    """preset and configuration of each run, by its path in the directory; "." is the directory itself"""
    groups: dict[str, tuple[str, list[str]]] = field(default_factory=dict)
    """kind and members of each group, the innermost first"""

    def begin(self, directory: Path, session: Session) -> None:
        """Write run.json of every run, then runs.json of every group."""
        for path, (preset, config) in self.runs.items():
            begin_run(config, directory / path, session, {"preset": preset, "command": command_line()})
        if session.ranks.first:
            for path, (kind, members) in self.groups.items():
                begin_group(directory / path, kind, members)
        session.ranks.barrier()


def plan_of(options: argparse.Namespace) -> Plan:
    """Return the plan of the parsed arguments. Raises OutlinesError."""
    flags = {name: value for name, value in vars(options).items()
             if name not in ("family", "resume", "quiet", *OWN_OPTIONS) and value is not None}
    if options.resume:
        given = [*flags, *(name for name in OWN_OPTIONS if getattr(options, name))]
        if given:
            raise OutlinesError(f"{flag_of(given[0])} has no effect with --resume: a run keeps its options")
        resumed = Path(options.resume)
        return Plan(resumed, resumed.parent, Path(str(read_run(runs_of(resumed)[0]).get("cache", ""))))
    if options.seeds is not None and "seed" in flags:
        raise OutlinesError("--seed has no effect with --seeds. Leave it out.")
    preset, root = " ".join(options.preset or ["default"]), Path(options.runs or "runs")
    comparing = options.family == COMPARE
    file = options.config
    if comparing and file:  # Each family uses the options that it has.
        flags, file = {**read_toml(file), **flags}, None
    members = compared(preset, options.remedy, options.families) if comparing else {".": (options.family, preset)}
    runs = {name: (own_preset, _configuration(family, own_preset, file, flags, strict=not comparing))
            for name, (family, own_preset) in members.items()}
    if comparing:
        _check_comparable(runs, flags)
    groups: dict[str, tuple[str, list[str]]] = {}
    if options.seeds is not None:
        seeds = _seeds(options.seeds)
        groups = {name: ("seeds", [f"seed-{seed}" for seed in seeds]) for name in runs}
        runs = {f"{name}/seed-{seed}": (own_preset, dataclasses.replace(config, training=dataclasses.replace(
            config.training, seed=seed))) for name, (own_preset, config) in runs.items() for seed in seeds}
    if comparing:
        groups["."] = (COMPARE, list(members))
    directory = Path(options.out) if options.out else None
    if directory and any((directory / name).exists() for name in ("run.json", GROUP)):
        raise OutlinesError(f"{directory} already contains a run. Continue with --resume {directory}, or choose another "
                            "directory.")
    name = "-".join([options.family, *preset.split()]) + ("-seeds" if options.seeds is not None else "")
    return Plan(directory, root, default_cache(root), name, runs, groups)


def _configuration(family: str, preset: str, file: str | None, flags: dict[str, Any], strict: bool) -> RunConfig:
    """Return one family's configuration. strict: refuse flags that the family does not have."""
    method = find_method(family)
    fields = known_fields(method.config_class)
    own = {name: coerce(fields[name], value, "command line") for name, value in flags.items() if strict or name in fields}
    return resolve(family, method.config_class, method.presets, preset, file, own)


def _check_comparable(runs: dict[str, tuple[str, RunConfig]], flags: dict[str, Any]) -> None:
    """Raise OutlinesError for runs on different corpora and for options that no run has."""
    first, *others = runs
    for name in others:
        if runs[name][1].corpus != runs[first][1].corpus:
            raise OutlinesError(f"{name}: its preset has another corpus or tokenizer than {first}. "
                                "Compare runs on one corpus.")
    known = {field for _, config in runs.values() for field in known_fields(type(config.model))}
    for flag in flags:
        if flag not in known:
            raise OutlinesError(f"{flag_of(flag)} has no effect on {', '.join(runs)}. Leave it out.")


def _seeds(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts) or len({int(part) for part in parts}) < len(parts):
        raise OutlinesError(f"--seeds {text!r}: expected different numbers with commas between, as in 1,2,3")
    return [int(part) for part in parts]
