"""Models that ship with the package, as directories with checksums (docs/reliability.md).

scenes/: the tokenizer of the embedded corpus, and the language model that judges samples of it.
benchmarks/judge_of_scenes.py writes these files.
"""

from pathlib import Path

SCENES_MODEL = Path(__file__).parent / "scenes"
