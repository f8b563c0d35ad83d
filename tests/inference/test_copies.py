"""The Bloom filter of training sentences, and sampling that skips them."""

from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import outlines
from generate.server import Fields, Server
from outlines.corpus import grammar
from outlines.inference.copies import MAX_SKIPPED, BloomFilter
from outlines.pretrained import SHIPPED


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
    assert [next(endless)[0] for _ in range(3)] == [MAX_SKIPPED, MAX_SKIPPED + 1, MAX_SKIPPED + 2]
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


def test_variations_of_a_training_sentence_are_not_skipped() -> None:
    run = outlines.load("english", "cpu")
    assert run.known_text is not None and "Where are you?" in run.known_text
    (same,) = run.sentences(1, 1, run.greedy, run.around(run.encode(["Where are you?"])[0], 0.0))
    assert same.text == "Where are you?"


def test_few_sentences_are_decoded_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    run, decoded = outlines.load("english", "cpu"), list[int]()
    write = run.write

    def counted(vectors: Any, uniforms: Any, sampling: Any, prefix: str) -> Any:
        decoded.append(len(uniforms))
        return write(vectors, uniforms, sampling, prefix)

    monkeypatch.setattr(run, "write", counted)
    assert len(run.sample(10)) == 10 and sum(decoded) < 8 * 25  # Each sentence is the best of eight.
    decoded.clear()
    assert len(list(run.sentences(10, 1, run.greedy, workers=2, batch_size=4096))) == 10 and sum(decoded) < 8 * 25


def test_the_filter_works_by_any_path_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(SHIPPED["english"].parent)
    assert outlines.load("english/../english", "cpu").known_text is not None


def test_the_server_prefers_new_sentences() -> None:
    run = outlines.load("english", "cpu")
    with Server(run, "127.0.0.1", 0) as server:
        fields = {"num": 60, "seed": 1}
        texts = [row["text"] for row in server.sample(Fields(fields))["sentences"]]
    assert texts == run.sample(60)
