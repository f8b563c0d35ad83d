"""Neural outlines: what a model is, and what is measured of it.

The way from text to text, file by file:

    corpus/reading.py, corpus/grammar.py    sentences in
    corpus/pairs.py                         which of them describe one thing
    corpus/tokenizer.py, corpus/batching.py sentences → tokens → batches
    encoders/, outline_store.py             sentences → outlines, once, on disk
    gan.py                                  noise → outlines
    decoder.py, sampling.py                 outlines → tokens → text
    interpolation.py, inversion.py          walks between two outlines; outline → noise
    neighbours.py                           the training sentences nearest to an outline
    text_model.py, outline_model.py         the whole, as those who sample see it
    pipeline.py                             a finished run, in use: `outlines.load(RUN)`
    baselines/, families.py                 what it is compared with; all of them, and on disk
    losses.py, scoring.py, metrics/         what is minimised, what is measured
    collapse.py                             is the vector used, and if not, why not
    checkpoint.py                           state on disk: atomic, verified, no pickle

Shape legend: B batch, N dataset rows, T tokens, D outline width, Z latent width, V vocabulary, K centres.
`train` and `generate` import this package and never each other; it imports neither.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from outlines.inference.pipeline import Pipeline


def load(run: str | Path, device: str = "auto", precision: str = "auto") -> "Pipeline":
    """A finished run, to sample from, encode, decode and interpolate with; raises OutlinesError.

    device: auto takes cuda, then mps, then cpu. precision: of the matrix products by which tokens are drawn: float32,
    bfloat16, or auto, which takes bfloat16 where the device is faster with it; all else is computed in float32.
    """
    # Imported here, because whoever imports any part of this package comes by this file, and torch takes a second.
    from outlines.devices import choose_device
    from outlines.inference.pipeline import load_pipeline

    return load_pipeline(Path(run), choose_device(device), precision)
