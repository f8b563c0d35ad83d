"""Neural outlines: models that generate text, and the metrics that evaluate them.

From text to text, in this order:

    corpus/      sentences → tokens → batches: reading, grammar (built-in corpus), pairs, tokenizer, prepared, batching
    encoders/    sentences → outlines, stored once on disk
    networks/    the modules and losses: the decoder (outline → token probabilities), the generator (noise → outlines)
    decoding/    outline → tokens (sampling, beam search), tokens → NLL
    models/      one file per family: the networks that are trained and sampled together; registry loads and saves them
    inference/   use of a finished run: pipeline (`outlines.load(RUN)`), interpolation, inversion, rejection, neighbours,
                 correction
    metrics/     quality and diversity of text and outlines, posterior collapse, verdicts

Other modules: checkpoint (atomic, verified files), hardening (checks of files that may be hostile), pretrained (models that
ship with the package), causal_lm and hub (pretrained models from packages or the hub), devices, options, errors, terminal.

Shapes: B batch, N rows, T tokens, D outline width, Z latent width, V vocabulary, K centres.
The packages `train` and `generate` import this package, but not each other. This package imports neither of them.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from outlines.inference.pipeline import Pipeline


def load(run: str | Path = "english", device: str = "auto", precision: str = "auto") -> "Pipeline":
    """Return the Pipeline of a finished run. It can sample, encode, decode and interpolate. Raises OutlinesError.

    run: the directory of the run, or english, the model that ships with the package.
    device: cpu, cuda, mps or auto. precision: float32, bfloat16 or auto (the faster one), for matrix products when sampling.
    """
    # Imported here, because every import of the package runs this file, and the import of torch takes a second.
    from outlines.devices import choose_device
    from outlines.inference.pipeline import Pipeline
    from outlines.pretrained import run_path

    return Pipeline.load(run_path(run), choose_device(device), precision)
