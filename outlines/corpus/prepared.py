"""A prepared corpus: one verified directory from which everything later reads by memory-map.

`prepare_corpus` streams (split, sentence) pairs to disk, trains the tokenizer on the training split and
encodes every split; the whole directory appears under its name at once or not at all. It holds

    meta.json                  what it was made from and how, and its counts
    tokenizer.model
    {split}.txt                the sentences, one a line
    {split}.offsets.npy        int64 [N + 1], where each line starts in it
    {split}.ids.npy            uint16 or int32 [sum of tokens], the rows' token ids end to end
    {split}.token_offsets.npy  int64 [N + 1], where each row starts in those
    manifest.json              SHA-256 of all these

Sentences and token rows (and later outlines) share their numbers: row i is sentence i, always.
"""

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from outlines.checkpoint import MANIFEST, CheckpointError, atomic_directory, sha256_file, verify
from outlines.corpus.reading import SPLITS, CorpusError
from outlines.corpus.tokenizer import Tokenizer, train_tokenizer

MAX_LEN = 64
CHUNK_SENTENCES = 4096
CHUNK_BYTES = 1 << 20


class _GrowingArray:
    """A one-dimensional .npy file to append to; the end writes its header again, with the true length."""

    def __init__(self, path: Path, dtype: str) -> None:
        self._dtype, self._len = np.dtype(dtype), 0
        self._file = open(path, "wb")  # noqa: SIM115 - closed by __exit__

    def __enter__(self) -> "_GrowingArray":
        self._write_header()
        return self

    def extend(self, values: Sequence[int] | np.ndarray) -> None:
        self._file.write(np.asarray(values, dtype=self._dtype).tobytes())
        self._len += len(values)

    def _write_header(self) -> None:
        # NumPy pads the header so that its length does not depend on the shape, for this very use.
        np.lib.format.write_array_header_1_0(
            self._file, {"descr": self._dtype.str, "fortran_order": False, "shape": (self._len,)})

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        with self._file:
            if kind is None:
                self._file.seek(0)
                self._write_header()


def _mapped(path: Path, kinds: tuple[str, ...] = ("<i8",)) -> np.ndarray:
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise CheckpointError(f"{path}: not a .npy file of numbers: {str(error).splitlines()[0]}") from error
    if not isinstance(mapped, np.ndarray) or mapped.ndim != 1 or mapped.dtype.str not in kinds:
        raise CheckpointError(f"{path}: not a row of numbers of the kind {' or '.join(kinds)}")
    # asarray, because slices of numpy.memmap itself are slow to make.
    return np.asarray(mapped)


def _offsets(path: Path, num_values: int) -> np.ndarray:
    """Where each of N rows starts among `num_values` values, and where the last one ends: int64 [N + 1]."""
    offsets = _mapped(path)
    if not len(offsets) or offsets[0] != 0 or offsets[-1] != num_values or (np.diff(offsets) < 0).any():
        raise CheckpointError(f"{path}: its rows are not those of what it divides")
    return offsets


def write_sentences(directory: Path, pairs: Iterable[tuple[str, str]]) -> dict[str, int]:
    """Stream (split, sentence) pairs into `directory` and return the number of sentences of each split.

    Raises CorpusError if a split stays empty: each of the three has its use, and none can stand in for
    another.
    """
    counts = Counter(dict.fromkeys(SPLITS, 0))
    with contextlib.ExitStack() as stack:
        texts = {split: stack.enter_context(open(directory / f"{split}.txt", "wb")) for split in SPLITS}
        for split, sentence in pairs:
            if "\n" in sentence:
                raise ValueError(f"a sentence holds a newline: {sentence[:80]!r}")
            texts[split].write(sentence.encode() + b"\n")
            counts[split] += 1
    for split in SPLITS:
        if not counts[split]:
            found = ", ".join(f"{name} {count:,}" for name, count in counts.items())
            advice = "" if split == "train" else f", raise {split}_fraction or give {split} files"
            raise CorpusError(f"the {split} split is empty ({found}): give more sentences{advice}")
        with (open(directory / f"{split}.txt", "rb") as text,
              _GrowingArray(directory / f"{split}.offsets.npy", "<i8") as offsets):
            offsets.extend([0])
            position = 0
            while chunk := text.read(CHUNK_BYTES):
                line_ends = np.flatnonzero(np.frombuffer(chunk, dtype=np.uint8) == ord("\n"))
                offsets.extend(position + line_ends + 1)
                position += len(chunk)
    return dict(counts)


class Sentences:
    """The sentences of one split: by number from a memory-map, or in order, streamed."""

    def __init__(self, directory: Path, split: str) -> None:
        self.split = split
        self._path = directory / f"{split}.txt"
        try:
            self._text = np.asarray(np.memmap(self._path, dtype=np.uint8, mode="r"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self._path}: cannot be read: {error}") from error
        self._offsets = _offsets(directory / f"{split}.offsets.npy", len(self._text))

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> str:
        index = range(len(self))[index]  # counts negative numbers from the end and refuses those outside
        return self._text[self._offsets[index]:self._offsets[index + 1] - 1].tobytes().decode()

    def __iter__(self) -> Iterator[str]:
        # Read and not mapped: pages of a map would count as this process's memory.
        with open(self._path, "rb") as file:
            for line in file:
                yield line[:-1].decode()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the sentences, one a line."""
        return sha256_file(self._path)


def write_tokens(sentences: Sentences, tokenizer: Tokenizer, directory: Path, max_len: int = MAX_LEN,
                 progress: Callable[[int, int], None] | None = None) -> int:
    """Encode a split into `directory`, row by row, and return how many rows were cut.

    max_len: a sentence of more tokens keeps its first max_len. It is cut and not left out, so that row i of
    the tokens is sentence i, and row i of the outlines.
    progress: called with (sentences done, sentences in all).
    """
    if max_len < 1:
        raise CorpusError(f"max_len is {max_len}: it must be at least 1")
    done = num_cut = position = 0
    stream = iter(sentences)
    dtype = "<u2" if tokenizer.vocab_size <= 1 << 16 else "<i4"
    with (_GrowingArray(directory / f"{sentences.split}.ids.npy", dtype) as ids,
          _GrowingArray(directory / f"{sentences.split}.token_offsets.npy", "<i8") as offsets):
        offsets.extend([0])
        while chunk := list(islice(stream, CHUNK_SENTENCES)):
            rows = tokenizer.encode(chunk)
            num_cut += sum(len(row) > max_len for row in rows)
            rows = [row[:max_len] for row in rows]
            ids.extend([token for row in rows for token in row])
            ends = position + np.cumsum([len(row) for row in rows])
            offsets.extend(ends)
            position = int(ends[-1])
            done += len(chunk)
            if progress is not None:
                progress(done, len(sentences))
    return num_cut


class Tokens:
    """The token rows of one split, memory-mapped."""

    def __init__(self, directory: Path, split: str) -> None:
        self._ids = _mapped(directory / f"{split}.ids.npy", ("<u2", "<i4"))
        self._offsets = _offsets(directory / f"{split}.token_offsets.npy", len(self._ids))

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @property
    def num_tokens(self) -> int:
        """Tokens of all rows, without BOS and EOS."""
        return len(self._ids)

    @property
    def largest(self) -> int:
        """The largest token id."""
        return int(self._ids.max(initial=0))

    @cached_property
    def lengths(self) -> np.ndarray:
        """int64 [N]: tokens of each row, without BOS and EOS."""
        return np.diff(self._offsets)

    def rows(self, indices: Iterable[int]) -> list[np.ndarray]:
        """Token ids of each numbered row, [its length], without BOS and EOS: read-only views of the map."""
        return [self._ids[self._offsets[index]:self._offsets[index + 1]] for index in indices]


def _read_meta(file: Path) -> dict[str, Any]:
    try:
        meta = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: damaged: {error}") from error
    if not isinstance(meta, dict) or not isinstance(meta.get("source"), str) or type(meta.get("max_len")) is not int:
        raise CheckpointError(f"{file}: not what a prepared corpus is described by")
    return meta


class PreparedCorpus:
    """A directory that `prepare_corpus` made, verified byte by byte as it is opened.

    sentences, tokens: by split. tokenizer: the one that the tokens are of. meta: see prepare_corpus.
    """

    def __init__(self, directory: Path) -> None:
        """Open `directory`. Raises CheckpointError if it is missing, unfinished or damaged."""
        parts = ("txt", "offsets.npy", "ids.npy", "token_offsets.npy")
        verify(directory, ["meta.json", "tokenizer.model", *(f"{split}.{part}" for split in SPLITS for part in parts)])
        self.directory = directory
        self.meta = _read_meta(directory / "meta.json")
        self.tokenizer = Tokenizer.load(directory / "tokenizer.model")
        self.sentences = {split: Sentences(directory, split) for split in SPLITS}
        self.tokens = {split: Tokens(directory, split) for split in SPLITS}
        for split in SPLITS:
            if len(self.tokens[split]) != len(self.sentences[split]):
                raise CheckpointError(f"{directory}: sentences and tokens of the {split} split differ in number")
            if self.tokens[split].largest >= self.tokenizer.vocab_size:
                raise CheckpointError(f"{directory}: the {split} split holds tokens that its tokenizer does not have")

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the manifest, and so of everything in the directory."""
        return sha256_file(self.directory / MANIFEST)


def prepare_corpus(pairs: Iterable[tuple[str, str]], directory: Path, *, source: str,
                   vocab_size: int | None = None, lowercase: bool = False, max_len: int = MAX_LEN,
                   tokenizer: Tokenizer | None = None,
                   progress: Callable[[int, int], None] | None = None) -> PreparedCorpus:
    """Write (split, sentence) pairs, a tokenizer and the tokens to `directory`, whole or not at all, and open
    it.

    source: what the pairs are, for meta.json: such as `fingerprint(files)` or a grammar's size and seed.
    vocab_size, lowercase: see train_tokenizer. tokenizer: one to use instead of training one.
    progress: called with (sentences tokenised, sentences in all); reading and training have no total to
    report.

    meta.json names source, max_len, vocab_size (of the tokenizer), lowercase (None with a tokenizer given)
    and, under splits, each split's sentences, tokens, cut rows and the fingerprint of its sentences. A
    prepared corpus at `directory` is replaced; anything else there is an error. Memory does not grow with the
    corpus, but for the sample that the tokenizer is trained on.
    """
    if tokenizer is not None and (vocab_size is not None or lowercase):
        raise CorpusError("a given tokenizer has its vocab_size and case already: leave these options out")
    if directory.exists() and not (directory / "tokenizer.model").is_file() and (
            not directory.is_dir() or any(directory.iterdir())):
        raise CorpusError(f"{directory}: exists and is no prepared corpus: choose another directory")
    try:
        with atomic_directory(directory) as staging:
            counts = write_sentences(staging, pairs)
            sentences = {split: Sentences(staging, split) for split in SPLITS}
            model = staging / "tokenizer.model"
            if tokenizer is None:
                tokenizer = train_tokenizer(sentences["train"], model, vocab_size=vocab_size,
                                            lowercase=lowercase)
                folded: bool | None = lowercase
            else:
                tokenizer.save(model)
                folded = None
            total, done, splits = sum(counts.values()), 0, {}
            for split in SPLITS:
                cut = write_tokens(sentences[split], tokenizer, staging, max_len,
                                   _shifted(progress, done, total))
                splits[split] = {"sentences": counts[split], "cut": cut,
                                 "tokens": Tokens(staging, split).num_tokens,
                                 "fingerprint": sentences[split].fingerprint}
                done += counts[split]
            meta = {"source": source, "max_len": max_len, "vocab_size": tokenizer.vocab_size,
                    "lowercase": folded, "splits": splits}
            (staging / "meta.json").write_text(json.dumps(meta, indent=1))
    except OSError as error:
        raise CorpusError(f"{directory}: cannot be written: {error.strerror or error}") from error
    return PreparedCorpus(directory)


def _shifted(progress: Callable[[int, int], None] | None, start: int,
             total: int) -> Callable[[int, int], None] | None:
    return None if progress is None else lambda done, _: progress(start + done, total)
