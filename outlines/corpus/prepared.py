"""A prepared corpus: a directory that is written atomically, verified when it is opened, and memory-mapped.

Each split has its sentences (.txt), their token ids (.ids.npy), and the start of each sentence in these two files
(.offsets.npy and .token_offsets.npy). Token row i belongs to sentence i.
"""

import contextlib
import json
import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from outlines.checkpoint import MANIFEST, atomic_directory, sha256_file, verify
from outlines.corpus.formats import CorpusError
from outlines.corpus.lm_tokenizer import load_tokenizer
from outlines.corpus.reading import SPLITS, ReadingReport
from outlines.corpus.tokenizer import Tokenizer, normalizer, train_tokenizer
from outlines.errors import CheckpointError, OutlinesError, one_line
from outlines.hardening import PREPARE_AGAIN, map_numbers, map_offsets, read_json

MAX_LEN, CHUNK_SENTENCES = 64, 4096


def _write_header(file: BinaryIO, dtype: str, length: int) -> None:
    """Write the header of a .npy file. NumPy pads the header, so its size is the same for every `length`."""
    file.seek(0)
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": (length,)})


def write_sentences(directory: Path, pairs: Iterable[tuple[str, str]]) -> dict[str, int]:
    """Write (split, sentence) pairs to `directory`; return the number of sentences by split. Raises CorpusError."""
    offsets = {split: array("q", [0]) for split in SPLITS}
    with contextlib.ExitStack() as stack:
        texts = {split: stack.enter_context(open(directory / f"{split}.txt", "wb")) for split in SPLITS}
        for split, sentence in pairs:
            offsets[split].append(offsets[split][-1] + texts[split].write(sentence.encode() + b"\n"))
    for split in SPLITS:
        if len(offsets[split]) == 1:
            raise CorpusError(f"The {split} split is empty. Add sentences.")
        np.save(directory / f"{split}.offsets.npy", np.array(offsets[split]))
    return {split: len(offsets[split]) - 1 for split in SPLITS}


def _normalized(pairs: Iterable[tuple[str, str]], tokenizer: Tokenizer | None,
                lowercase: bool) -> Iterator[tuple[str, str]]:
    """Yield (split, sentence) pairs with sentences as the tokenizer decodes them; None: as `normalizer` returns them."""
    rest, own = iter(pairs), normalizer(lowercase)
    while chunk := list(islice(rest, CHUNK_SENTENCES)):  # one call per sentence is about ten times slower
        texts = [text for _, text in chunk]
        written = tokenizer.lines(tokenizer.encode(texts)) if tokenizer else list(map(own, texts))
        yield from ((split, text) for (split, _), text in zip(chunk, written, strict=True))


class Sentences:
    """The sentences of one split. An index reads a memory map; iteration reads the file in order."""

    def __init__(self, directory: Path, split: str) -> None:
        self.split, self._path = split, directory / f"{split}.txt"
        try:
            self._text = np.asarray(np.memmap(self._path, dtype=np.uint8, mode="r"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self._path}: cannot be read ({one_line(error)}). {PREPARE_AGAIN}") from error
        self._offsets = map_offsets(directory / f"{split}.offsets.npy", len(self._text))

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> str:
        index = range(len(self))[index]  # resolves negative numbers and raises IndexError
        return self._text[self._offsets[index]:self._offsets[index + 1] - 1].tobytes().decode()

    def __iter__(self) -> Iterator[str]:
        # Read the file instead of mapping it, because mapped pages would count as memory of this process.
        with open(self._path, "rb") as file:
            yield from (line[:-1].decode() for line in file)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the file that contains the sentences."""
        return sha256_file(self._path)


def write_tokens(sentences: Sentences, tokenizer: Tokenizer, directory: Path, max_len: int = MAX_LEN,
                 progress: Callable[[int], None] = lambda done: None) -> int:
    """Write the token ids of a split, at most max_len per sentence; return the number of truncated sentences.

    progress: called with the number of sentences done.
    """
    num_cut, offsets, stream = 0, array("q", [0]), iter(sentences)
    dtype = "<u2" if tokenizer.vocab_size <= 1 << 16 else "<i4"
    with open(directory / f"{sentences.split}.ids.npy", "wb") as file:
        _write_header(file, dtype, 0)
        while chunk := list(islice(stream, CHUNK_SENTENCES)):
            for row in tokenizer.encode(chunk):
                num_cut += len(row) > max_len
                file.write(np.asarray(row[:max_len], dtype).tobytes())
                offsets.append(offsets[-1] + min(len(row), max_len))
            progress(len(offsets) - 1)
        _write_header(file, dtype, offsets[-1])
    np.save(directory / f"{sentences.split}.token_offsets.npy", np.array(offsets))
    return num_cut


class Tokens:
    """The token rows of one split, memory-mapped."""

    def __init__(self, directory: Path, split: str) -> None:
        self.ids = map_numbers(directory / f"{split}.ids.npy", ("<u2", "<i4"))
        self._offsets = map_offsets(directory / f"{split}.token_offsets.npy", len(self.ids))

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @cached_property
    def lengths(self) -> np.ndarray:
        """int64 [N]: number of tokens of each row, without bos and eos."""
        return np.diff(self._offsets)

    def rows(self, indices: Iterable[int]) -> list[np.ndarray]:
        """Return the token ids of these rows, [length] each, without bos and eos, as read-only views of the memory map."""
        return [self.ids[self._offsets[index]:self._offsets[index + 1]] for index in indices]


class PreparedCorpus:
    """A directory that `prepare_corpus` wrote. `__init__` verifies every file. Raises CheckpointError."""

    def __init__(self, directory: Path) -> None:
        names = [f"{split}.{part}" for split in SPLITS for part in ("txt", "offsets.npy", "ids.npy", "token_offsets.npy")]
        sums = verify(directory, ["meta.json", "tokenizer.model", *names])
        self.directory, self.meta = directory, read_json(directory / "meta.json")
        if not isinstance(self.meta.get("source"), str) or type(self.meta.get("max_len")) is not int:
            raise CheckpointError(f"{directory / 'meta.json'}: not the description of a prepared corpus. {PREPARE_AGAIN}")
        self.tokenizer: Tokenizer = load_tokenizer(directory / "tokenizer.model", sums["tokenizer.model"])
        self.sentences = {split: Sentences(directory, split) for split in SPLITS}
        self.tokens = {split: Tokens(directory, split) for split in SPLITS}
        for split in SPLITS:
            if len(self.tokens[split]) != len(self.sentences[split]):
                raise CheckpointError(f"{directory}: the {split} split has different numbers of sentences and token rows. "
                                      f"{PREPARE_AGAIN}")
            if self.tokens[split].ids.max(initial=0) >= self.tokenizer.vocab_size:
                raise CheckpointError(f"{directory}: the {split} split has tokens that its tokenizer does not have. "
                                      f"{PREPARE_AGAIN}")

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the manifest, which contains the SHA-256 of every file."""
        return sha256_file(self.directory / MANIFEST)

    def notes(self) -> list[str]:
        """Return notes for the report, such as the number of truncated sentences."""
        losses, max_len = self.meta["losses"], self.meta["max_len"]
        sizes = {split: len(sentences) for split, sentences in self.sentences.items()}
        notes = [ReadingReport(rejected=Counter(losses["rejected"])).counts()] if losses["rejected"] else []
        if losses.get("pieces"):
            notes.append(f"The vocabulary has {self.tokenizer.vocab_size:,} pieces, {losses['pieces']} below --vocab-size.")
        if losses["cut"]:
            notes.append(f"{losses['cut']:,} of {sum(sizes.values()):,} sentences are cut to --max-len {max_len}.")
        return notes + [f"{num:,} of {sizes[split]:,} {split} sentences are also in the training split, so the figures are "
                        "too good. Remove them from the training files." for split, num in losses["in_train"].items() if num]


def _in_train(directory: Path) -> dict[str, int]:
    """Return, for each held-out split, the number of its sentences that are also in the training split."""
    held_out = {split: [hash(sentence) for sentence in Sentences(directory, split)] for split in SPLITS[1:]}
    searched = set().union(*held_out.values())
    found = {key for key in map(hash, Sentences(directory, "train")) if key in searched}
    return {split: sum(key in found for key in keys) for split, keys in held_out.items()}


def cache_of(run: Path, description: dict[str, Any]) -> Path:
    """Return the cache directory of a run: the first directory in this list that exists, otherwise the one in run.json.

    1. the directory in run.json; 2. the environment variable OUTLINES_CACHE; 3. `DIR-cache` next to DIR, for each parent
    directory DIR of the run. description: the content of run.json.
    """
    stored = str(description.get("cache", ""))
    beside = [parent.with_name(f"{parent.name}-cache") for parent in run.resolve().parents if parent.name]
    places = [Path(stored), Path(os.environ.get("OUTLINES_CACHE") or stored), *beside]
    return next((place for place in places if place.is_dir()), Path(stored))


def moved(path: str, run: Path) -> str:
    """Return the current location of a path in run.json. The file may have moved with the run. Raises OutlinesError."""
    ends = [Path(*Path(path).parts[start:]) for start in range(1, len(Path(path).parts))]
    for place in (Path(path), *(parent / end for end in ends for parent in run.resolve().parents)):
        if place.exists():
            return str(place)
    raise OutlinesError(f"{path}: missing, but the run {run} needs it. Restore it, or copy it next to the run.")


def find_prepared(cache: Path, fingerprint: str) -> Path | None:
    """Return the directory of the prepared corpus with this fingerprint, or None."""
    return next((manifest.parent for manifest in sorted(cache.glob(f"corpus-*/{MANIFEST}"))
                 if sha256_file(manifest) == fingerprint), None)


def prepare_corpus(pairs: Iterable[tuple[str, str]], directory: Path, *, source: str,
                   vocab_size: int | None = None, lowercase: bool = False, max_len: int = MAX_LEN,
                   tokenizer: Tokenizer | None = None, report: ReadingReport | None = None,
                   progress: Callable[[int, int], None] = lambda done, total: None) -> PreparedCorpus:
    """Write (split, sentence) pairs, a tokenizer and the tokens to `directory`, and return the prepared corpus.

    source: text for meta.json that identifies the pairs. report: its counts of rejected lines are stored. tokenizer: None
    trains a new one. progress: called with (sentences done, total). Replaces an earlier prepared corpus in `directory`.
    Raises CorpusError if `directory` has other content.
    """
    if directory.exists() and not (directory / "tokenizer.model").is_file() and (
            not directory.is_dir() or any(directory.iterdir())):
        raise CorpusError(f"{directory}: exists, but is not a prepared corpus. Choose another directory.")
    try:
        with atomic_directory(directory) as staging:
            # Store each text in the form that the decoder can write. The encoder and every comparison read the stored text.
            counts = write_sentences(staging, _normalized(pairs, tokenizer, lowercase))
            folded = lowercase if tokenizer is None else None
            if tokenizer is None:
                tokenizer = train_tokenizer(Sentences(staging, "train"), staging / "tokenizer.model", vocab_size=vocab_size,
                                            lowercase=lowercase)
            else:
                tokenizer = tokenizer.fitted(Sentences(staging, "train"))
                tokenizer.save(staging / "tokenizer.model")
            before, splits = 0, dict[str, Any]()
            for split in SPLITS:
                def tokenised(done: int, before: int = before) -> None:
                    progress(before + done, sum(counts.values()))
                sentences = Sentences(staging, split)
                cut = write_tokens(sentences, tokenizer, staging, max_len, tokenised)
                splits[split] = {"sentences": counts[split], "cut": cut, "tokens": len(Tokens(staging, split).ids),
                                 "fingerprint": sentences.fingerprint}
                before += counts[split]
            meta = {"source": source, "max_len": max_len, "vocab_size": tokenizer.vocab_size,
                    "lowercase": folded, "splits": splits, "losses": {
                        "rejected": report.rejected if report else {}, "in_train": _in_train(staging),
                        "pieces": max(0, (vocab_size or 0) - tokenizer.vocab_size),
                        "cut": sum(split["cut"] for split in splits.values())}}
            (staging / "meta.json").write_text(json.dumps(meta, indent=1))
    except OSError as error:
        raise CorpusError(f"{directory}: {error.strerror or error}. Free space, or choose another cache.") from error
    return PreparedCorpus(directory)
