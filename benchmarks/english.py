"""Make the model of everyday English that ships in outlines/pretrained/english, and measure it.

    python -m benchmarks.english corpus DATA FILE [SCENES]   write the training sentences
    python -m benchmarks.english widen RUN NEW WIDTH         copy a run, with a hidden layer (mix_dim) that has no effect yet
    python -m benchmarks.english ship RUN TRAINING           copy a run's model, in float16, its tokenizer and a filter of
                                                             the training sentences into the package
    python -m benchmarks.english sample RUN TRAINING         measure new sentences

DATA: directory with the files that EVERYDAY and BOOKS name. FILE, TRAINING: file of the training sentences. RUN: a finished
run; for sample, also english. SCENES: number of added sentences of the built-in corpus. Like captions, they say who does
what, where, in which clothes. The model card, outlines/pretrained/english/README.md, has the commands.
"""

import argparse
import gzip
import random
import re
import shutil
from collections import Counter
from pathlib import Path

import outlines
from benchmarks.judge_of_scenes import half_tensors
from outlines.checkpoint import MANIFEST, atomic_write, sha256_file, write_state
from outlines.corpus import grammar
from outlines.inference.copies import FILTER, BloomFilter
from outlines.metrics.text import copied_rate, distinct_n, words
from outlines.models.registry import load_model, save_model
from outlines.pretrained import ENGLISH, SHIPPED, run_path
from train.evaluation.pretrained import PretrainedLM
from train.runtime.run_directory import read_run, write_json
from train.session import check_out

EVERYDAY = {"tatoeba": "english/tatoeba.train.txt.gz", "dialogue": "english/dialogue.train.txt.gz",
            "wordnet": "english/wordnet_examples.train.txt.gz", "captions": "coco/train.txt.gz"}
BOOKS = "english/classic_books.train.txt.gz"
MIN_COUNT = 5  # sentences with a word that is rarer than this in the everyday sources are left out
NUM_BOOKS = 50_000
BEST_OF = (1, 8)  # sentences of which the likeliest is kept
NAMES = re.compile(r"\b(Tom|Mary)\b")  # in a fifth of Tatoeba; about a third of these sentences is used
WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")


def corpus(data: Path, file: Path, num_scenes: int = 0) -> None:
    """Write the training sentences in random order, and print the number of sentences of each source."""
    def read(name: str) -> list[str]:
        with gzip.open(data / name, "rt", encoding="utf-8") as text:
            return list(dict.fromkeys(line.strip() for line in text))

    def known(sentences: list[str]) -> list[str]:
        return [text for text in sentences if all(counts[word] >= MIN_COUNT for word in WORD.findall(text.lower()))]

    rng = random.Random(1)
    everyday = {name: read(path) for name, path in EVERYDAY.items()}
    counts = Counter(word for text in everyday.values() for line in text for word in WORD.findall(line.lower()))
    chosen = {name: known(text) for name, text in everyday.items()}
    chosen["tatoeba"] = [text for row, text in enumerate(chosen["tatoeba"]) if row % 3 == 0 or not NAMES.search(text)]
    # Each caption twice: unchanged (lower case, no full stop), and with a capital letter and a full stop.
    chosen["captions"] += [text[0].upper() + text[1:].rstrip(" .") + "." for text in chosen["captions"]]
    chosen["books"] = rng.sample(known(read(BOOKS)), NUM_BOOKS)
    chosen["scenes"] = list(grammar.sentences(num_scenes, seed=1))
    lines = [text for sentences in chosen.values() for text in dict.fromkeys(sentences)]
    rng.shuffle(lines)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(*(f"{name}: {len(set(sentences)):,}" for name, sentences in chosen.items()), f"all: {len(lines):,}", sep="\n")


def widen(run: str, new: Path, width: int) -> None:
    """Copy a run, with a hidden layer of this width in its decoder. Its output weights are 0: nothing changes yet."""
    model, description = load_model(run_path(run) / "model"), read_run(run_path(run))
    shape = model.shape()
    wide = type(model).from_shape(shape | {"decoder": shape["decoder"] | {"mix_dim": width}})
    state = wide.state_dict()
    for name, tensor in model.state_dict().items():
        state[name].flatten()[:tensor.numel()] = tensor.flatten()  # the new outputs of a layer are its last rows
    state["decoder.mix.weight"].zero_()
    wide.load_state_dict(state)
    check_out(new)
    new.mkdir(parents=True, exist_ok=True)
    save_model(new / "model", wide)
    shutil.copy(run_path(run) / "tokenizer.model", new)
    description["model"]["mix_dim"] = width
    write_json(new / "run.json", description)


def ship(run: Path, training: Path) -> None:
    """Write a run's model, tokenizer, run.json (without paths) and filter of training sentences to the package."""
    target, model = SHIPPED[ENGLISH], load_model(run / "model")
    write_state(target / "model", half_tensors(model), {"family": model.family, "shape": model.shape()})
    shutil.copy(run / "tokenizer.model", target)
    description = {name: value for name, value in read_run(run).items() if name not in ("cache", "command", "machine")}
    description["corpus"] |= {"corpus": [Path(name).name for name in description["corpus"]["corpus"]], "tokenizer": ""}
    description["model"] |= {name: Path(description["model"][name]).name for name in ("init_from", "decoder_from")}
    write_json(target / "run.json", description)
    lines = training.read_text(encoding="utf-8").splitlines()
    atomic_write(target / FILTER, BloomFilter.of(lines, num_bytes=len(lines)).bits.tobytes())
    write_json(target / MANIFEST, {name: sha256_file(target / name) for name in ("run.json", "tokenizer.model", FILTER)})
    print(f"{sum(file.stat().st_size for file in target.rglob('*') if file.is_file()):,} bytes")


def sample(run: str, training: Path, num: int = 1000) -> None:
    """Print metrics of `num` training sentences, and of `num` new sentences for each value of best_of."""
    pipeline, judge = outlines.load(run, "cpu"), PretrainedLM("smollm2")
    lines = training.read_text(encoding="utf-8").splitlines()
    split = list(map(words, lines))
    vocabulary = {word for sentence in split for word in sentence}

    def show(title: str, text: list[str]) -> None:
        own, nll = list(map(words, text)), judge.score(text)
        unknown = sum(not vocabulary.issuperset(sentence) for sentence in own) / len(text)
        print(f"| {title} | {nll.nll / nll.num_words:.3f} | {unknown:.3f} | {copied_rate(own, split):.3f} | "
              f"{distinct_n(own, 2):.3f} | {sum(map(len, own)) / len(own):.1f} |", flush=True)

    print("| sentences | SmolLM2, nats/word | with an unknown word | copied | distinct-2 | words |")
    print("|---|---|---|---|---|---|", flush=True)
    show("training text", random.Random(1).sample(lines, num))
    for best_of in BEST_OF:
        show(f"new, best of {best_of}", pipeline.sample(num, best_of=best_of))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    verb = verbs.add_parser("corpus")
    verb.add_argument("data", type=Path)
    verb.add_argument("file", type=Path)
    verb.add_argument("scenes", type=int, nargs="?", default=0)
    verb.set_defaults(run_verb=lambda options: corpus(options.data, options.file, options.scenes))
    verb = verbs.add_parser("widen")
    verb.add_argument("run")
    verb.add_argument("new", type=Path)
    verb.add_argument("width", type=int)
    verb.set_defaults(run_verb=lambda options: widen(options.run, options.new, options.width))
    verb = verbs.add_parser("ship")
    verb.add_argument("run", type=Path)
    verb.add_argument("training", type=Path)
    verb.set_defaults(run_verb=lambda options: ship(options.run, options.training))
    verb = verbs.add_parser("sample")
    verb.add_argument("run")
    verb.add_argument("training", type=Path)
    verb.set_defaults(run_verb=lambda options: sample(options.run, options.training))
    options = parser.parse_args()
    options.run_verb(options)
