"""The Bloom filter of training sentences, and sampling that skips them."""

from itertools import count
from pathlib import Path
from typing import NamedTuple

import pytest

import outlines
from outlines.corpus import grammar
from outlines.inference.copies import MAX_SKIPPED, BloomFilter


class Text(NamedTuple):
    text: str


def test_it_knows_every_sentence_of_the_set_and_few_others(tmp_path: Path) -> None:
    own, others = list(grammar.sentences(4000, seed=1)), list(grammar.sentences(4000, seed=2))
    others = [text for text in others if text not in set(own)]
    made = BloomFilter.of(own, num_bytes=len(own))
    (tmp_path / "filter").write_bytes(made.bits.tobytes())
    read = BloomFilter.read(tmp_path / "filter")
    assert all(text in read and text.upper() in read for text in own)
    assert 0.01 < sum(text in read for text in others) / len(others) < 0.035


def test_new_skips_copies_but_ends() -> None:
    known = BloomFilter.of(["I see."], num_bytes=100)
    drawn = ["A.", "I see.", "B.", "i see.", "I see", "A."]
    assert [drawn[row] for row, _ in known.new(enumerate(map(Text, drawn)))] == ["A.", "B.", "I see", "A."]
    endless = known.new((row, Text("I see.")) for row in count())
    assert [next(endless)[0] for _ in range(3)] == [MAX_SKIPPED, 2 * MAX_SKIPPED + 1, 3 * MAX_SKIPPED + 2]
    assert not list(known.new([(0, Text("I see."))] * MAX_SKIPPED))


def test_english_skips_sentences_of_its_training_text(monkeypatch: pytest.MonkeyPatch) -> None:
    run = outlines.load("english", "cpu")
    monkeypatch.setitem(run.__dict__, "known_text", None)
    everything = run.sample(300)
    known = outlines.load("english", "cpu").known_text
    assert known is not None
    kept = [text for text in everything if text not in known]
    assert 200 < len(kept) < 295
    sampled = outlines.load("english", "cpu").sample(300)
    assert sampled[:len(kept)] == kept and len(sampled) == 300
    (same,) = run.sentences(1, 1, run.greedy, run.around(run.encode(["I don't know."])[0], 0.0))
    assert same.text == "I don't know."
