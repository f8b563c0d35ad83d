"""Reconstruction of held-out sentences, for several numbers of drafts and rounds: BLEU, cosine of the outlines, seconds.

The first line has the NLL and the latent gap of these sentences.

    python -m benchmarks.correction RUN SENTENCES.txt [--num 500] [--drafts 1 4 16 64] [--rounds 0 1 2] [--temperature 0.5]

SENTENCES.txt: held-out sentences, one per line. --num of them are chosen at random with seed 0. Sentences that are too long
are left out. --temperature: temperature of the sampled drafts; the first draft of each round is greedy.
"""

import argparse
import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import outlines
from outlines.decoding.scoring import nll_of_rows
from outlines.inference import correction
from outlines.metrics.bleu import reconstruction_bleu
from outlines.metrics.collapse import latent_gap


class Timed:
    """An encoder that adds up the time of its calls, in seconds."""

    def __init__(self, encoder: Any):
        self._encoder, self.seconds = encoder, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def encode(self, sentences: list[str]) -> np.ndarray:
        begun = time.perf_counter()
        try:
            return self._encoder.encode(sentences)
        finally:
            self.seconds += time.perf_counter() - begun


def main(run: str, sentences: str, num: int, drafts: Sequence[int], rounds: Sequence[int], temperature: float) -> None:
    correction.TEMPERATURE = temperature
    pipeline = outlines.load(run, "cpu")
    lines = Path(sentences).read_text().splitlines()
    drawn = [lines[row] for row in np.random.default_rng(0).permutation(len(lines))[:num]]
    text = [line for line in drawn if len(pipeline.tokenizer.encode([line])[0]) <= pipeline.max_len]
    wanted = pipeline.encode(text)
    encoder = Timed(pipeline.encoder)
    pipeline.encoder = encoder
    rows, decoder = pipeline.rows(text), pipeline.model.decoder
    nll, gap = nll_of_rows(decoder, rows, wanted)[0].mean(), latent_gap(decoder, rows, wanted, wanted.roll(1, dims=0))
    print(f"NLL given the outline: {nll:.2f} nats per sentence; gap with another outline: {gap.per_token:.2f} per token")
    print(f"{len(text)} sentences; {torch.get_num_threads()} threads; seconds for all sentences\n")
    print("| drafts | rounds | BLEU | exact | cosine | seconds | of these encoding |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for num_drafts, num_rounds in tqdm(list(itertools.product(drafts, rounds)), leave=False):
        begun, encoder.seconds = time.perf_counter(), 0.0
        rebuilt = pipeline.decode(wanted, drafts=num_drafts, rounds=num_rounds)
        seconds, encoding = time.perf_counter() - begun, encoder.seconds
        cosines = torch.cosine_similarity(torch.from_numpy(encoder.encode(rebuilt)), pipeline.model.to_encoder(wanted))
        exact = np.mean([made == given for made, given in zip(rebuilt, text, strict=True)])
        figures = f"{reconstruction_bleu(rebuilt, text):.2f} | {exact:.3f} | {float(cosines.mean()):.3f}"
        print(f"| {num_drafts} | {num_rounds} | {figures} | {seconds:.0f} | {encoding:.0f} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("sentences")
    parser.add_argument("--num", type=int, default=500)
    parser.add_argument("--drafts", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--rounds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--temperature", type=float, default=correction.TEMPERATURE)
    main(**vars(parser.parse_args()))
