"""The four walks over many pairs of sentences, and the generator backwards.

    python -m benchmarks.walks RUN SENTENCES.txt [LM_RUN]

SENTENCES.txt: held-out sentences, one a line; pairs are drawn from it with seed 0. LM_RUN: a run of the family lm that
judges the sentences between the ends.
"""

import sys
from pathlib import Path

import numpy as np
import torch

import outlines
from outlines.decoding.scoring import nll_of_rows
from outlines.inference.inversion import invert
from outlines.models.outlines import OutlineModel

NUM_PAIRS = NUM_INVERTED = 100


def main(run: str, sentences: str, judge: str | None = None) -> None:
    pipeline = outlines.load(run, "cpu")
    language_model = outlines.load(judge, "cpu") if judge else None
    lines = Path(sentences).read_text().splitlines()
    drawn = np.random.default_rng(0).permutation(len(lines))[:2 * NUM_PAIRS]
    pairs = [(lines[start], lines[end]) for start, end in drawn.reshape(-1, 2)]
    own = [nll_of_rows(pipeline.model.decoder, pipeline.rows([end]), pipeline.encode([end]))[0][0] for _, end in pairs]
    print(f"{NUM_PAIRS} pairs; mean over pairs, steps in the encoder's units, nll in nats\n")
    print("| walk | sentences | mean step | largest step | nll of the middle per token | ends within 5 % of B's own nll |")
    print("|---|---|---|---|---|---|")
    for kind in pipeline.walks:
        walks = [pipeline.interpolate(start, end, kind) for start, end in pairs]
        figures = np.array([pipeline.smoothness(walk, language_model) for walk in walks])
        arrived = np.mean([walk.points[-1].nll_end[-1] <= 1.05 * nll for walk, nll in zip(walks, own, strict=True)])
        count, mean_step, largest_step, nll = np.nanmean(figures, axis=0)
        print(f"| {kind} | {count:.1f} | {mean_step:.3f} | {largest_step:.3f} | {nll:.3f} | {arrived:.2f} |", flush=True)
    if isinstance(pipeline.model, OutlineModel):
        model = pipeline.model
        noise = model.generator.draw(NUM_INVERTED, torch.Generator().manual_seed(0))
        found = invert(model, model.normalise(model.generator(noise)))
        cosine = torch.cosine_similarity(found.normal, noise.normal, dim=1)
        print(f"\ninversion of the generator's own outlines: cosine with the noise at least {float(cosine.min()):.3f}, "
              f"mean {float(cosine.mean()):.3f}, 0.95 or more in {int((cosine >= 0.95).sum())} of {NUM_INVERTED}")


if __name__ == "__main__":
    main(*sys.argv[1:])
