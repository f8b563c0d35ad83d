"""Make the tokenizer and the language model of the built-in corpus, which ship in outlines/pretrained/scenes.

  python -m benchmarks.judge_of_scenes tokenizer FILE       train the tokenizer
  python -m benchmarks.judge_of_scenes ship RUN             copy a run's language model and its tokenizer into the package

The README of this folder has the command that trains the run. Weights are stored in float16.
"""

import argparse
import collections
import math
import shutil
from pathlib import Path

from sentencepiece import sentencepiece_model_pb2
from torch import Tensor

from outlines.checkpoint import atomic_directory, module_tensors, write_state
from outlines.corpus import grammar
from outlines.corpus.tokenizer import NUM_SPECIALS, SentencePieceTokenizer, train_tokenizer
from outlines.models.base import TextModel
from outlines.models.registry import load_model
from outlines.pretrained import SCENES_MODEL
from train.data import EMBEDDED_SEED, embedded_source

NUM_SENTENCES = 100_000
NUM_CANDIDATES = 5000  # number of BPE pieces; about half of them are only parts of longer pieces and are removed
UNIGRAM, NORMAL = 1, 1  # SentencePiece's codes of a model type, and of pieces that are neither special nor bytes


def make_tokenizer(path: Path) -> None:
    """Train BPE, and write a unigram model with the pieces that the sentences use. Nearly every word is then one piece.

    Without this, the output layer would also compute the probabilities of pieces that never occur.
    """
    sentences = list(grammar.sentences(NUM_SENTENCES, EMBEDDED_SEED))
    trained = train_tokenizer(sentences, path, vocab_size=NUM_CANDIDATES, max_sentences=NUM_SENTENCES)
    counts = collections.Counter(id for row in trained.encode(sentences) for id in row)
    model = sentencepiece_model_pb2.ModelProto.FromString(path.read_bytes())
    for id, piece in enumerate(model.pieces):
        if piece.type == NORMAL:
            piece.score = math.log((counts[id] + 0.5) / counts.total())
    pieces = [type(piece).FromString(piece.SerializeToString()) for id, piece in enumerate(model.pieces)
              if id < NUM_SPECIALS or counts[id] or len(piece.piece) == 1]
    del model.pieces[:]
    model.pieces.extend(pieces)
    model.trainer_spec.model_type, model.trainer_spec.vocab_size = UNIGRAM, len(pieces)
    SentencePieceTokenizer(model.SerializeToString()).save(path)


def half_tensors(model: TextModel) -> dict[str, Tensor]:
    """Return the named tensors of a model. Floating-point tensors are converted to float16."""
    return {name: tensor.half() if tensor.is_floating_point() else tensor
            for name, tensor in module_tensors({"model": model}, "model").items()}


def ship(run: Path) -> None:
    """Write a run's model and tokenizer to the package, with a text that identifies the version of the corpus."""
    model = load_model(run / "model")
    with atomic_directory(SCENES_MODEL) as staging:
        meta = {"family": model.family, "shape": model.shape(), "source": embedded_source()}
        write_state(staging / "model", half_tensors(model), meta)
        for file in (staging / "model").iterdir():
            file.rename(staging / file.name)
        (staging / "model").rmdir()
        shutil.copy(run / "tokenizer.model", staging)
    for file in SCENES_MODEL.iterdir():
        print(f"{file.name}: {file.stat().st_size:,} bytes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("tokenizer", "ship"))
    parser.add_argument("path", type=Path)
    options = parser.parse_args()
    (make_tokenizer if options.verb == "tokenizer" else ship)(options.path)
