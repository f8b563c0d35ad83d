"""Models that ship with the package, as directories with checksums (docs/reliability.md).

english/: a run that writes everyday English; its README.md is the model card. benchmarks/english.py writes it.
scenes/: the tokenizer of the built-in corpus, and the language model that scores samples of models trained on it.
benchmarks/judge_of_scenes.py writes both.
"""

from pathlib import Path

SCENES_MODEL = Path(__file__).parent / "scenes"
ENGLISH = "english"
SHIPPED = {ENGLISH: Path(__file__).parent / ENGLISH}
"""Runs that ship with the package: name → directory. The name can be used in place of the directory."""
TEMPERATURE = 0.5  # default; chosen by measurements on the built-in corpus: docs/results.md, "The default run"
ENGLISH_TEMPERATURE, ENGLISH_BEST_OF = 0.3, 8  # defaults for new sentences of english; its model card says why


def is_shipped(run: Path) -> bool:
    """Return whether this directory is a run that ships with the package."""
    return run.resolve() in {directory.resolve() for directory in SHIPPED.values()}


def temperature_of(run: Path) -> float:
    """Return the default sampling temperature of a run."""
    return ENGLISH_TEMPERATURE if is_shipped(run) else TEMPERATURE


def run_path(run: str | Path) -> Path:
    """Return the directory of a run. run: a directory, or the name of a run that ships with the package."""
    shipped = SHIPPED.get(str(run))
    return shipped if shipped and not (Path(run) / "run.json").exists() else Path(run)
