"""The yardstick held against sentences whose faults are known."""

import dataclasses
import hashlib
import random
import shutil
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from outlines.corpus import grammar
from outlines.corpus.scenes import SCENES, scene_rules
from outlines.decoding.scoring import nll_of_rows
from outlines.errors import CheckpointError, OutlinesError
from outlines.metrics.text import words
from outlines.models.registry import load_model
from outlines.networks.embedding_init import start_words
from outlines.pretrained import SCENES_MODEL
from train.commands import judges as evaluators
from train.commands.evaluate import Run, label_runs
from train.commands.judges import baseline, full_judges, judge_lm, judge_of_scenes
from train.config import RunConfig, presets_of, resolve
from train.data import Dataset, open_dataset
from train.evaluation import yardstick as evaluation
from train.evaluation.judges import Judges, Nll, tokens_of
from train.evaluation.sampling import REAL_OUTLINES, Row, Sentences, Variant, draw
from train.evaluation.yardstick import Yardstick, mauve_figures, outline_figures
from train.method import find_method
from train.runtime.progress import Reporter
from train.runtime.ranks import Ranks
from train.runtime.run_directory import begin_group
from train.runtime.signals import StopSignals
from train.session import Session, run_config, train_run

NUM = 500


SCENE_TYPES = tuple(SCENES)


def sentences_about(types: Sequence[str], num: int, seed: int) -> list[str]:
    """Sentences about some types of scenes."""
    language, rng = grammar.Grammar(scene_rules(tuple(types))), random.Random(seed)
    return [language.sample(rng) for _ in range(num)]


class SceneEncoder:
    """A stand-in for a sentence encoder that distinguishes scenes: the sum of each word's evidence for the scene's type.

    A sentence encoder of random weights would not do: it hardly moves where half of the scenes are missing.
    """

    name, dim, normalized = "scenes", len(SCENE_TYPES), True
    fingerprint = hashlib.sha256(b"scenes").hexdigest()

    def __init__(self) -> None:
        counts: dict[str, np.ndarray] = {}
        for column, name in enumerate(SCENE_TYPES):
            for sentence in sentences_about([name], 150, seed=3):
                for word in words(sentence):
                    counts.setdefault(word, np.zeros(self.dim))[column] += 1
        self.vectors = {word: count / count.sum() - 1 / self.dim for word, count in counts.items()}

    def encode(self, sentences: list[str]) -> np.ndarray:
        none = np.zeros(self.dim)
        sums = np.array([sum((self.vectors.get(word, none) for word in words(sentence)), none)
                         for sentence in sentences])
        return (sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-6)).astype(np.float32)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with StopSignals() as signals:
        yield Session(tmp_path_factory.mktemp("cache"), Ranks(), Reporter(quiet=True), signals)
    torch.set_num_threads(threads)


def scene_config(session: Session) -> RunConfig:
    method = find_method("lm")
    return resolve("lm", method.config_class, method.presets, "tiny", None, {
        "corpus": (str(session.cache / "scenes.txt"),), "valid_fraction": 0.15, "test_fraction": 0.15, "vocab_size": 500,
        "embed_dim": 32, "hidden_dim": 64, "dropout": 0.0, "decoder_learning_rate": 0.01, "decoder_batch_size": 32,
        "evaluator_steps": 220, "num_evaluation": NUM})


@pytest.fixture(scope="module")
def yardstick(session: Session) -> Iterator[Yardstick]:
    """The full form on 4,000 sentences of the embedded grammar in a file, with small evaluators."""
    config = scene_config(session)
    Path(config.corpus.corpus[0]).write_text("\n".join(grammar.sentences(4000, seed=51)) + "\n")
    data = open_dataset(config.corpus, None, session.cache, torch.device("cpu"), Ranks(), session.reporter)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluators, "REVERSE_BATCH_SIZE", 32)
        yield Yardstick(config, data, full_judges(config, data, session, reverse_steps=90), NUM, SceneEncoder())


@pytest.fixture(scope="module")
def config(yardstick: Yardstick, session: Session) -> RunConfig:
    """The configuration of the yardstick's corpus."""
    return scene_config(session)


@pytest.fixture(scope="module")
def quick(config: RunConfig, yardstick: Yardstick) -> Yardstick:
    """The quick form on the same corpus, with the same judge."""
    judge = yardstick.judges.forward["forward"]
    return Yardstick(config, yardstick.data, Judges({"forward": judge}))


def training_text(data: Dataset) -> list[str]:
    return list(data.corpus.sentences["train"])


@pytest.fixture(scope="module")
def real(yardstick: Yardstick) -> Row:
    """Real text as if a family had written it: new sentences of the grammar that none of the splits holds."""
    return yardstick.measure(Sentences(list(grammar.sentences(NUM, seed=901))))


@pytest.fixture(scope="module")
def repeats(yardstick: Yardstick) -> Row:
    """A generator that repeats 100 training sentences."""
    return yardstick.measure(Sentences((training_text(yardstick.data)[:100] * 6)[:NUM]))


@pytest.fixture(scope="module")
def half(yardstick: Yardstick) -> Row:
    """A generator that has dropped every other type of scene."""
    return yardstick.measure(Sentences(sentences_about(SCENE_TYPES[::2], NUM, seed=902)))


@pytest.fixture(scope="module")
def shuffled(yardstick: Yardstick) -> Row:
    """The sentences of `real` with the words of each in a random order."""
    rng, text = random.Random(2), [sentence.split() for sentence in grammar.sentences(NUM, seed=901)]
    return yardstick.measure(Sentences([" ".join(rng.sample(sentence, len(sentence))) for sentence in text]))


def misspelt(sentence: str, rng: random.Random) -> str:
    """Return a sentence in which two neighbouring letters of its longest word have changed places."""
    word = max(sentence.split(), key=len)
    at = rng.randrange(len(word) - 1)
    return sentence.replace(word, word[:at] + word[at + 1] + word[at] + word[at + 2:])


def test_real_text_comes_out_at_the_floor(yardstick: Yardstick, real: Row) -> None:
    assert real["text_two_sample_low"] <= 0.5 <= real["text_two_sample_high"]
    assert min(real["text_precision"], real["text_recall"], real["text_mauve"]) > 0.8
    # A language model of the same number of real training sentences; the two only differ in their sentences.
    learnt = yardstick.data.text("train", yardstick.data.sample_rows("train", NUM, seed=2))
    floor = yardstick.reverse(learnt)
    assert floor["num_reverse"] == real["num_reverse"] == NUM
    assert real["reverse_nll_per_token"] == pytest.approx(floor["reverse_nll_per_token"], abs=0.06)
    assert real["reverse_ngram_nll_per_token"] == pytest.approx(floor["reverse_ngram_nll_per_token"], abs=0.08)
    held_out = yardstick.measure(yardstick.real_text(), learnt)
    for key in ("forward_nll_per_token", "forward_ngram_nll_per_token"):
        assert real[key] == pytest.approx(held_out[key], abs=0.06)
    assert held_out["reverse_nll_per_token"] == floor["reverse_nll_per_token"]
    for key in ("non_words", "diversity", "memorised_4grams", "self_bleu_4", "bleu_4"):
        assert real[key] == pytest.approx(held_out[key], abs=0.03), key
    assert real["copied"] == real["near_copies"] == 0 and real["unique"] == 1
    assert real["in_language"] == 1.0 if yardstick.data.embedded else "in_language" not in real


def test_the_copied_rate_is_as_counted_by_hand(yardstick: Yardstick, quick: Yardstick) -> None:
    """140 training sentences, one of them twice and ten in capitals, among 420 new ones."""
    training = training_text(yardstick.data)
    copied = [*training[:129], training[0], *(sentence.upper() for sentence in training[200:210])]
    text = [*copied, *grammar.sentences(NUM - len(copied), seed=903)]
    known = {sentence.lower() for sentence in training}
    by_hand = sum(sentence.lower() in known for sentence in text) / NUM
    assert by_hand == 140 / NUM
    row = quick.measure(Sentences(text))
    assert row["num_compared"] == NUM and row["copied"] == pytest.approx(by_hand)


def test_non_words_are_words_of_neither_training_nor_test_text(quick: Yardstick) -> None:
    known, held_out = quick.data.text("train", [0, 1]), quick.data.text("test", [0])
    text = [*known, *held_out, f"{known[0]} gamggling", "Tinble-ware.", known[1].upper()]
    assert quick.measure(Sentences(text))["non_words"] == pytest.approx(2 / 6)


def test_a_large_corpus_is_streamed_with_the_same_words(yardstick: Yardstick,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    held = yardstick.training()
    assert held is yardstick.training()
    monkeypatch.setattr(evaluation, "MOST_HELD", yardstick.data.num_rows("train") - 1)
    streamed = yardstick.training()
    assert iter(streamed) is streamed, "nothing is held"
    assert list(held) == [tuple(sentence) for sentence in streamed]


def test_repeats_are_seen_by_copied_rate_reverse_nll_and_recall(real: Row, repeats: Row) -> None:
    assert repeats["copied"] == repeats["near_copies"] == 1.0 and real["copied"] == real["near_copies"] == 0.0
    assert repeats["unique"] == pytest.approx(100 / NUM) and real["unique"] == 1.0
    assert repeats["self_bleu_4"] > 0.99 > 0.5 > real["self_bleu_4"]
    assert repeats["diversity"] < 0.1 * real["diversity"]
    assert repeats["memorised_4grams"] == 1 > real["memorised_4grams"] + 0.3
    assert repeats["reverse_nll_per_token"] > real["reverse_nll_per_token"] + 0.3
    assert repeats["reverse_ngram_nll_per_token"] > real["reverse_ngram_nll_per_token"] + 0.7
    assert repeats["text_recall"] < real["text_recall"] - 0.2
    assert repeats["text_mauve"] < real["text_mauve"] - 0.1
    # Forward nll and precision do not detect them, so recall is needed too.
    assert repeats["forward_nll_per_token"] < real["forward_nll_per_token"] + 0.05
    assert repeats["forward_ngram_nll_per_token"] < real["forward_ngram_nll_per_token"]
    assert repeats["text_precision"] > real["text_precision"] - 0.1


def test_outlines_of_training_sentences_are_seen_by_their_nearest(tiny_run: Path, session: Session) -> None:
    _, data = train_run(tiny_run, session)
    config = run_config(tiny_run)
    yardstick = Yardstick(config, data, full_judges(config, data, session, reverse_steps=2), 30)
    learnt = torch.from_numpy(data.stores["train"].rows(np.arange(30)))
    by_heart = yardstick.measure(Sentences(["A dog."] * 30, learnt))["outline_nearest_cosine"]
    held_out = yardstick.measure(Sentences(["A dog."] * 30, yardstick.real_outlines[:30]))["outline_nearest_cosine"]
    assert by_heart == pytest.approx(1, abs=1e-5) and held_out < 0.999


def test_equal_outlines_have_no_figures() -> None:
    rows = torch.randn(60, 8, generator=torch.Generator().manual_seed(1))
    equal = rows[:1] + 1e-7 * rows
    for same in (equal, equal[:1].repeat(60, 1)):
        assert outline_figures("text", same, rows, full=True) == {}
    assert "text_precision" in outline_figures("text", rows, equal, full=True)


def test_mauve_needs_twenty_sentences(yardstick: Yardstick, quick: Yardstick) -> None:
    rows = yardstick.encoded_references
    assert mauve_figures(rows, rows[:19]) == {}
    assert mauve_figures(rows, rows[:20])["text_mauve"] == pytest.approx(1)
    assert "text_mauve" not in quick.measure(Sentences(["A dog."] * 30))


def test_metrics_and_judges_of_ones_own(config: RunConfig, yardstick: Yardstick, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "METRICS", (lambda yardstick, text, split: {"num_words": sum(map(len, split))},))
    judges = Judges({"mine": lambda sentences: Nll(len(sentences), 1.5)},
                    {"back": lambda samples, real: Nll(len(samples) / len(real), 2.5)})
    own = Yardstick(config, yardstick.data, judges, NUM)
    row = own.measure(Sentences(["A dog."] * 30))
    assert row["num_words"] == 90 and row["mine_nll_per_token"] == 30 and row["mine_ppl_per_word"] == 1.5
    assert row["back_nll_per_token"] == 30 / len(own.references) and "forward_nll_per_token" not in row


def test_unigrams_are_seen_by_forward_nll(yardstick: Yardstick, quick: Yardstick, real: Row) -> None:
    rng = random.Random(1)
    training = [words(sentence) for sentence in training_text(yardstick.data)]
    pool = [word for sentence in training for word in sentence]
    text = [" ".join(rng.choices(pool, k=len(rng.choice(training)))) for _ in range(NUM)]
    row = quick.measure(Sentences(text))
    assert row["forward_nll_per_token"] > real["forward_nll_per_token"] + 1.5
    assert row["forward_ppl_per_word"] > 10 * real["forward_ppl_per_word"]
    # Diversity is all it has.
    assert row["distinct_2"] > real["distinct_2"] and row["unique"] == 1.0


def test_shuffled_words_are_seen_by_the_judges_and_by_bleu(real: Row, shuffled: Row) -> None:
    for key in ("forward_nll_per_token", "forward_ngram_nll_per_token"):
        assert shuffled[key] > real[key] + 1
    assert shuffled["bleu_4"] < real["bleu_4"] - 0.2 and shuffled["memorised_4grams"] < real["memorised_4grams"] - 0.2
    # The words are the same, and there are more different pairs of them.
    assert shuffled["non_words"] == real["non_words"] and shuffled["diversity"] > real["diversity"]
    assert shuffled["text_mauve"] > 0.8, "a bag of words does not see the order"


def test_misspelt_words_are_seen_by_non_words(quick: Yardstick, real: Row) -> None:
    rng, text = random.Random(3), list(grammar.sentences(NUM, seed=901))
    changed = [misspelt(sentence, rng) if number % 4 == 0 else sentence for number, sentence in enumerate(text)]
    row = quick.measure(Sentences(changed))
    # A few changed words are words: two equal letters.
    assert real["non_words"] + 0.2 < row["non_words"] <= real["non_words"] + 0.25
    assert row["copied"] == 0 and row["unique"] == 1


def test_dropped_scenes_are_seen_by_recall_and_reverse_nll(real: Row, half: Row) -> None:
    assert half["text_recall"] < real["text_recall"] - 0.15
    assert half["text_two_sample_low"] > 0.55
    assert half["text_mauve"] < real["text_mauve"] - 0.1
    assert half["reverse_ngram_nll_per_token"] > real["reverse_ngram_nll_per_token"] + 0.2
    assert half["reverse_nll_per_token"] > real["reverse_nll_per_token"] + 0.06
    # Every sentence that is there is a good one, and none is copied.
    assert half["text_precision"] > real["text_precision"] - 0.1
    assert half["forward_nll_per_token"] < real["forward_nll_per_token"] + 0.1
    assert half["copied"] == 0.0 and half["unique"] == 1.0


def test_no_judge_scores_the_grammar_better_than_the_grammar_itself(yardstick: Yardstick) -> None:
    text = list(grammar.sentences(150, seed=904))
    exact = -statistics.fmean(map(grammar.scenes().log_prob, text))
    tokens = [np.array(ids, dtype=np.int64) for ids in yardstick.data.tokenizer.encode(text)]
    for judge in yardstick.judges.forward.values():
        assert judge(text).per_token * statistics.fmean(len(row) + 1 for row in tokens) > exact


@pytest.mark.full
def test_the_scorer_of_the_default_preset_is_within_five_percent_of_the_grammars_entropy(session: Session) -> None:
    method = find_method("lm")
    config = resolve("lm", method.config_class, method.presets, "default", None, {})
    data = open_dataset(config.corpus, None, session.cache, torch.device("cpu"), Ranks(), session.reporter)
    text, language = list(grammar.sentences(20_000, seed=905)), grammar.scenes()
    nll, _ = nll_of_rows(judge_lm(config, data, session).decoder, tokens_of(text, data))
    more = nll.mean() + statistics.fmean(map(language.log_prob, text))  # less noise than in the nll itself
    assert 0 < more < 0.05 * language.entropy()


def test_empty_sentences_can_be_measured(yardstick: Yardstick, quick: Yardstick) -> None:
    """A model that was hardly trained writes empty sentences at T = 0."""
    row = yardstick.measure(Sentences([""] * 40))
    assert row["num_reverse"] == 0 and "reverse_nll_per_token" not in row
    few = yardstick.reverse(["", "A dog runs."] * 3)
    assert few == {"num_reverse": 3}, "too few to train on"
    assert row["empty"] == 1 and row["copied"] == 0.0 and row["unique"] == 1 / 40
    assert not {"distinct_2", "self_bleu_4"} & row.keys()  # 0 would look like much or no diversity
    assert "distinct_2" not in quick.measure(Sentences(["Dog", "Cat"] * 20))  # no bigrams
    same = quick.measure(Sentences(["A dog."] * 39 + [""]))
    assert same["self_bleu_2"] > 0.97 and same["unique"] == 2 / 40 and same["empty"] == 1 / 40


def test_judges_are_trained_once_wherever_the_corpus_is(yardstick: Yardstick, config: RunConfig, session: Session,
                                                            real: Row) -> None:
    data = yardstick.data
    judge_lm(config, data, session)
    before = sorted(path.name for path in session.cache.iterdir())
    elsewhere = dataclasses.replace(config, corpus=dataclasses.replace(config.corpus, corpus=("no/such/file.txt",)))
    other_seed = dataclasses.replace(elsewhere, training=dataclasses.replace(config.training, seed=5))
    for same in (elsewhere, other_seed):
        judge_lm(same, data, session)
    assert sorted(path.name for path in session.cache.iterdir()) == before
    baseline(dataclasses.replace(config, model=dataclasses.replace(config.model, decoder_steps=2)), data, session, "tiny")
    assert len(list(session.cache.iterdir())) == len(before) + 1
    reverse = list(session.cache.glob("reverse-*"))
    assert all({path.name for path in directory.iterdir()} == {"nll.json", "lock"} for directory in reverse)


def test_words_start_at_the_counts_of_the_training_split(yardstick: Yardstick, config: RunConfig, session: Session) -> None:
    data = yardstick.data
    still = dataclasses.replace(config.model, decoder_learning_rate=0.0, decoder_steps=1)
    at_random, at_counts = (baseline(dataclasses.replace(config, model=dataclasses.replace(still, word_start=start)), data,
                                     session, "tiny").decoder for start in ("random", "counts"))
    rows = data.corpus.tokens["train"].rows(range(data.num_rows("train")))
    start_words(at_random, rows, config.training.seed)
    assert torch.equal(at_random.embedding.weight, at_counts.embedding.weight)
    assert torch.equal(at_random.output_bias, at_counts.output_bias)


def test_the_baseline_has_the_dropout_that_the_preset_has_for_language_models(
        yardstick: Yardstick, config: RunConfig, session: Session) -> None:
    presets = {family: presets_of(family)["small"]["dropout"] for family in ("outlines", "lm")}
    assert presets == {"outlines": 0.0, "lm": 0.3}

    def trained(dropout: float, preset: str) -> float:
        model = dataclasses.replace(config.model, decoder_steps=1, dropout=dropout)
        own = dataclasses.replace(config, family="outlines", model=model)
        return baseline(own, yardstick.data, session, preset).decoder.config.dropout

    assert trained(0.0, "small") == 0.3
    assert trained(0.1, "small") == 0.1, "the user's own value"
    assert trained(0.0, "tiny") == 0.0, "a preset without a value of its own for language models"


def of_scenes(session: Session, **flags: object) -> tuple[RunConfig, Dataset]:
    """Return a small configuration on the built-in corpus, and its data."""
    method = find_method("lm")
    config = resolve("lm", method.config_class, method.presets, "tiny", None, {"num_sentences": 500, **flags})
    return config, open_dataset(config.corpus, None, session.cache, torch.device("cpu"), Ranks(), session.reporter)


def test_the_shipped_judge_is_used_only_with_its_own_grammar_and_tokenizer(session: Session) -> None:
    config, data = of_scenes(session, vocab_size=0)
    before = set(session.cache.glob("lm-*"))
    shipped = load_model(SCENES_MODEL).state_dict()
    found = judge_lm(config, data, session).state_dict()
    assert all(torch.equal(value, found[name]) for name, value in shipped.items())
    assert set(session.cache.glob("lm-*")) == before
    data.corpus.meta["source"] = "embedded grammar of another version x 500"
    assert judge_of_scenes(data) is None
    config, data = of_scenes(session, vocab_size=450)
    judge_lm(config, data, session)
    [trained] = set(session.cache.glob("lm-*")) - before
    assert run_config(trained).corpus == config.corpus


def test_the_shipped_judge_is_within_3_percent_of_the_entropy(session: Session) -> None:
    language, sentences = grammar.scenes(), list(grammar.sentences(1000, seed=99))
    _, data = of_scenes(session, vocab_size=0)
    judge = judge_of_scenes(data)
    assert judge is not None
    nll, _ = nll_of_rows(judge.decoder, tokens_of(sentences, data))
    exact = -np.array([language.log_prob(sentence) for sentence in sentences])
    assert 0 < (nll - exact).mean() < 0.03 * language.entropy()


def test_a_flipped_bit_of_the_shipped_judge_is_detected(session: Session, tmp_path: Path,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    _, data = of_scenes(session, vocab_size=0)
    damaged = shutil.copytree(SCENES_MODEL, tmp_path / "scenes")
    content = bytearray((damaged / "tensors.safetensors").read_bytes())
    content[-1] ^= 1
    (damaged / "tensors.safetensors").write_bytes(content)
    monkeypatch.setattr(evaluators, "SCENES_MODEL", damaged)
    with pytest.raises(CheckpointError, match="SHA-256"):
        judge_of_scenes(data)


def test_real_outlines_are_held_out_ones_first_and_never_the_references(tiny_run: Path, session: Session) -> None:
    model, data = train_run(tiny_run, session)
    drawn = draw(model, data, Variant(REAL_OUTLINES), 0.0, 80).outlines
    assert drawn is not None
    expected = np.concatenate([data.stores[split].rows(data.sample_rows(split, 80, seed=1)) for split in ("valid", "train")])
    assert 0 < data.num_rows("valid") < 80 and np.allclose(drawn, expected[:80], atol=1e-5)


def test_references_and_real_text_have_equal_numbers(config: RunConfig, session: Session) -> None:
    """However unequal the splits are, real text and samples are compared in equal numbers."""
    config = dataclasses.replace(config, corpus=dataclasses.replace(config.corpus, valid_fraction=0.02, test_fraction=0.2))
    data = open_dataset(config.corpus, None, session.cache, torch.device("cpu"), Ranks(), session.reporter)
    uneven = Yardstick(config, data, Judges())
    assert data.num_rows("test") > 5 * data.num_rows("valid")
    assert len(uneven.references) == len(uneven.real_text().text) == data.num_rows("valid")
    assert not set(uneven.references) & set(uneven.real_text().text)


def test_runs_of_several_configurations_are_labelled_by_directory(yardstick: Yardstick, config: RunConfig, session: Session,
                                                                tmp_path: Path) -> None:
    model = baseline(config, yardstick.data, session, "tiny")

    def run(directory: Path, seed: int, **changes: int) -> Run:
        own = dataclasses.replace(config, model=dataclasses.replace(config.model, **changes), training=(
            dataclasses.replace(config.training, seed=seed)))
        return Run(directory, own, model, yardstick.data)

    for name in ("small", "wide"):
        (tmp_path / name).mkdir()
        begin_group(tmp_path / name, "seeds", ["seed-1", "seed-2"])
    small = [run(tmp_path / "small" / f"seed-{seed}", seed) for seed in (1, 2)]
    wide = [run(tmp_path / "wide" / f"seed-{seed}", seed, hidden_dim=99) for seed in (1, 2)]
    assert set(label_runs(small).values()) == {"lm"}
    assert list(label_runs(small + wide).values()) == ["small", "small", "wide", "wide"]
    apart = [run(tmp_path / "a" / "run", 1), run(tmp_path / "b" / "run", 1, hidden_dim=99)]
    assert list(label_runs(apart).values()) == [str(tmp_path / "a" / "run"), str(tmp_path / "b" / "run")]
    with pytest.raises(OutlinesError, match="has the same configuration and seed"):
        label_runs([*small, run(tmp_path / "again", 2)])
