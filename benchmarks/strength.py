"""What the strength of the outline does: fidelity of reconstructions, and quality of new sentences.

    python -m benchmarks.strength RUN [--strengths 0 0.2 0.35 0.5 0.65 0.8 1] [--temperature 0.5] [--num 1000]

RUN: a run of the family outlines with --min-strength 0. Uses the validation split, so the default strength can be chosen
from this table. BLEU: of greedy reconstructions. The other columns: of sentences sampled from validation outlines (real) and
from generated outlines. Cosine: between an outline and the encoded outline of the sentence that is sampled from it.
"""

import argparse
from pathlib import Path

import torch
from tqdm import tqdm

from outlines.decoding.sample import SamplingConfig
from outlines.encoders import load_encoder
from outlines.metrics.bleu import reconstruction_bleu
from outlines.metrics.text import words
from train.commands.judges import quick_judges
from train.evaluation.yardstick import Yardstick, in_grammar, non_words
from train.runtime.signals import StopSignals
from train.session import Session, finished_run, run_config


@torch.no_grad()
def main(run: Path, strengths: list[float], temperature: float, num: int) -> None:
    config, session = run_config(run), Session.of_run(run, False, StopSignals(), "cpu")
    model, data = finished_run(run, session)
    encoder = load_encoder(model.encoder["name"], "cpu", run)
    judges = quick_judges(config, data, session)
    yardstick = Yardstick(config, data, judges)
    rows, max_len = data.sample_rows("valid", num), data.corpus.meta["max_len"]
    real, text = data.outlines("valid", rows), data.text("valid", rows)
    sources = {"real": real, "generated": model.vectors(num, torch.Generator().manual_seed(1), model.sources[0])}
    measured = ["forward NLL/token", "cosine", "non-words", *(["in grammar"] if data.embedded else [])]
    titles = [f"{name}, {source}" for source in sources for name in measured]
    print("\n".join([f"| strength | BLEU | {' | '.join(titles)} |", "|---|" + "---|" * (1 + len(titles))]), flush=True)
    for strength in tqdm(strengths, leave=False):
        def written(vectors: torch.Tensor, at: float, strength: float = strength) -> list[str]:
            sampling = SamplingConfig(temperature=at, max_len=max_len, strength=strength)
            return data.tokenizer.decode(model.decode(vectors, 1, sampling))

        figures = [f"{reconstruction_bleu(written(real, 0), text):.2f}"]
        for vectors in sources.values():
            made = written(vectors, temperature)
            split = [words(sentence) for sentence in made]
            cosine = torch.cosine_similarity(torch.from_numpy(encoder.encode(made)), model.to_encoder(vectors))
            figures += [f"{judges.forward['forward'](made).per_token:.3f}", f"{float(cosine.mean()):.3f}",
                        f"{non_words(yardstick, made, split)['non_words']:.3f}"]
            figures += [f"{in_grammar(yardstick, made, split)['in_language']:.3f}"] if data.embedded else []
        tqdm.write(f"| {strength:g} | {' | '.join(figures)} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--strengths", type=float, nargs="+", default=[0, 0.2, 0.35, 0.5, 0.65, 0.8, 1])
    parser.add_argument("--temperature", type=float, default=0.5)
    parser.add_argument("--num", type=int, default=1000)
    main(**vars(parser.parse_args()))
