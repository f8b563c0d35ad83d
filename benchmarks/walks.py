"""Smoothness of the four walks between pairs of sentences, and accuracy of the inversion of generated outlines.

    python -m benchmarks.walks RUN SENTENCES.txt [LM_RUN] [--pairs 20]

SENTENCES.txt: held-out sentences, one per line; the pairs are chosen at random with seed 0. LM_RUN: a run of the family lm
that scores the sentences between the two ends (default: the decoder of RUN). --pairs: also the number of inverted outlines.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import outlines
from outlines.decoding.scoring import nll_of_rows
from outlines.inference.inversion import can_invert, invert


def main(run: str, sentences: str, judge: str | None, num_pairs: int) -> None:
    pipeline = outlines.load(run, "cpu")
    language_model = outlines.load(judge, "cpu") if judge else None
    model, lines = pipeline.model, Path(sentences).read_text().splitlines()
    drawn = np.random.default_rng(0).permutation(len(lines))[:2 * num_pairs]
    pairs = [(lines[start], lines[end]) for start, end in drawn.reshape(-1, 2)]
    own = [nll_of_rows(model.decoder, pipeline.rows([end]), pipeline.encode([end]))[0][0] for _, end in pairs]
    print(f"{num_pairs} pairs; mean over pairs, steps in the encoder's units, NLL in nats\n")
    print("| walk | sentences | mean step | largest step | NLL/token of the middle | ends within 5 % of B's own NLL |")
    print("|---|---|---|---|---|---|", flush=True)
    for kind in pipeline.walks:
        walks = [pipeline.interpolate(start, end, kind) for start, end in tqdm(pairs, kind, leave=False)]
        figures = np.array([pipeline.smoothness(walk, language_model) for walk in walks])
        arrived = np.mean([walk.points[-1].nll_end[-1] <= 1.05 * nll for walk, nll in zip(walks, own, strict=True)])
        count, mean_step, largest_step, nll = np.nanmean(figures, axis=0)
        print(f"| {kind} | {count:.1f} | {mean_step:.3f} | {largest_step:.3f} | {nll:.3f} | {arrived:.2f} |", flush=True)
    if can_invert(model):
        noise = model.generator.draw(num_pairs, torch.Generator().manual_seed(0))
        normal, _ = invert(model, model.normalise(model.generator(noise)))
        cosine = torch.cosine_similarity(normal, noise.normal, dim=1)
        print(f"\ninversion of the generator's own outlines: cosine with the noise at least {float(cosine.min()):.3f}, "
              f"mean {float(cosine.mean()):.3f}, 0.95 or more in {int((cosine >= 0.95).sum())} of {num_pairs}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("sentences")
    parser.add_argument("judge", nargs="?")
    parser.add_argument("--pairs", type=int, default=20, dest="num_pairs")
    main(**vars(parser.parse_args()))
