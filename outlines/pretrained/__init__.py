"""Models that ship with the package, as directories with checksums (docs/reliability.md).

english/: a run that writes general English (its README.md is the model card). benchmarks/ship_english.py writes it.
scenes/: the tokenizer of the embedded corpus, and the language model that judges samples of it.
benchmarks/judge_of_scenes.py writes both.
"""

from pathlib import Path

SCENES_MODEL = Path(__file__).parent / "scenes"
ENGLISH = "english"
SHIPPED = {ENGLISH: Path(__file__).parent / ENGLISH}
"""runs that ship with the package, by the name that can be used in place of a run's directory"""


def run_path(name: str | Path) -> Path:
    """Return the directory of a run: an existing directory, or else the shipped run of this name."""
    path = Path(name)
    return path if path.exists() else SHIPPED.get(str(name), path)
