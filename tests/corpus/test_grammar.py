"""The built-in corpus: hand-computed values of tiny grammars, exact identities, and correct English in the scenes."""

import functools
import math
import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import pytest

from outlines.corpus.grammar import Grammar, _render, scenes, sentences
from outlines.corpus.scenes import SCENES, indefinite, inflect, pluralize, scene_rules
from outlines.errors import OutlinesError

TINY = {
    "S": "3: a ADJ? dog VERB . | TWO dogs bark/sleep .",
    "ADJ": "big | small",
    "VERB": "barks | 3: sleeps in the sun",
    "TWO": "two | a_few",
}
AMBIGUOUS = {"S": "3: old MEN sleep . | ADJ men sleep .", "MEN": "men | women", "ADJ": "old | young"}


TYPES = tuple(SCENES)


def fold(grammar: Grammar, of_word: Callable[[str], Any],
         of_rule: Callable[[tuple[float, ...], list[list[Any]]], Any]) -> Any:
    """Return the value of the start rule from the value of a word, and of a rule from the values of its expansions."""
    @functools.cache
    def value(symbol: str) -> Any:
        if symbol not in grammar._rules:
            return of_word(symbol)
        probs, _, expansions = grammar._rules[symbol]
        return of_rule(probs, [list(map(value, expansion)) for expansion in expansions])

    return value(grammar._start)


def expected_words(grammar: Grammar) -> float:
    """Return the exact expected number of words in a sentence, without punctuation."""
    return float(fold(grammar, lambda word: float(word not in ",."),
                      lambda probs, parts: sum(p * sum(lengths) for p, lengths in zip(probs, parts, strict=True))))


def num_derivations(grammar: Grammar) -> int:
    return int(fold(grammar, lambda word: 1, lambda probs, parts: sum(map(math.prod, parts))))


def num_sentences(grammar: Grammar) -> int:
    """Return the number of distinct sentences, counted on the determinised automaton."""
    first, arcs = grammar._automaton

    @functools.cache
    def count(states: frozenset[int]) -> int:
        targets: dict[str, set[int]] = defaultdict(set)
        for state in states:
            for word, _, target in arcs[state]:
                targets[word].add(target)
        return sum(1 if word == "" else count(frozenset(after)) for word, after in targets.items())

    return count(frozenset([first]))


def contains(grammar: Grammar, sentence: str) -> bool:
    return grammar.log_prob(sentence) > -math.inf


def is_unambiguous(grammar: Grammar) -> bool:
    """Return whether every sentence has one derivation: each has at least one, so equal counts decide it."""
    return num_derivations(grammar) == num_sentences(grammar)


def enumerate_sentences(grammar: Grammar) -> Iterator[tuple[str, float]]:
    """Yield every sentence of a small grammar once, with its probability, by walking the automaton."""
    stack: list[tuple[list[str], dict[int, float]]] = [([], {grammar._automaton[0]: 1.0})]
    while stack:
        words, weights = stack.pop()
        for word in dict.fromkeys(word for state in weights for word, _, _ in grammar._automaton[1][state]):
            after = grammar._step(weights, word)
            if word == "":
                yield _render(words), after[0]
            else:
                stack.append(([*words, word], after))


@pytest.fixture(scope="module")
def samples() -> list[str]:
    return list(sentences(30_000, seed=1))


def test_tiny_grammar_against_hand_computed_values() -> None:
    grammar = Grammar(TINY)
    # a [big|small|nothing] dog [barks|sleeps in the sun]; [two|a few] dogs [bark|sleep]
    assert num_sentences(grammar) == 3 * 2 + 2 * 2
    assert grammar.log_prob("A small dog sleeps in the sun.") == pytest.approx(math.log(3 / 4 * 1 / 4 * 3 / 4))
    assert grammar.log_prob("A few dogs bark.") == pytest.approx(math.log(1 / 4 * 1 / 2 * 1 / 2))
    first = math.log(2) / 2 + math.log(2) / 2  # ADJ? is 1/2, 1/4, 1/4: 1.5 bits
    first += math.log(2) / 2 + (math.log(4) - 3 / 4 * math.log(3))
    choice = math.log(4) - 3 / 4 * math.log(3)
    assert grammar.entropy() == pytest.approx(choice + 3 / 4 * first + 1 / 4 * math.log(4))
    words = 3 / 4 * (2 + 1 / 2 + (1 / 4 * 1 + 3 / 4 * 4)) + 1 / 4 * (3 / 2 + 2)
    assert expected_words(grammar) == pytest.approx(words)


def small_grammars() -> list[Grammar]:
    """Return TINY, and parts of the scenes that are small enough to enumerate."""
    rules = scene_rules(TYPES)
    starts = ("SUBJECT.park.0.he", "HERE.kitchen.2.it", "PAST.farm.aside.1", "TIME.snow", "NEW.beach.2.all")
    return [Grammar(TINY), *(Grammar(rules, start) for start in starts)]


@pytest.mark.parametrize("grammar", small_grammars(), ids=lambda grammar: grammar._start)
def test_enumeration_agrees_with_every_exact_figure(grammar: Grammar) -> None:
    table = dict(enumerate_sentences(grammar))
    assert len(table) == num_sentences(grammar)
    assert math.fsum(table.values()) == pytest.approx(1.0, abs=1e-12)
    assert grammar.entropy() == pytest.approx(-math.fsum(p * math.log(p) for p in table.values()), rel=1e-12)
    mean = math.fsum(p * len(text.split()) for text, p in table.items())
    assert expected_words(grammar) == pytest.approx(mean, rel=1e-12)
    for text, p in islice(table.items(), 2000):
        assert grammar.log_prob(text) == pytest.approx(math.log(p), abs=1e-12)


def test_samples_have_the_stated_probabilities() -> None:
    grammar, rng, num = Grammar(TINY), random.Random(0), 40_000
    table = dict(enumerate_sentences(grammar))
    counts = dict.fromkeys(table, 0)
    for _ in range(num):
        counts[grammar.sample(rng)] += 1
    chi_square = sum((counts[text] - num * p) ** 2 / (num * p) for text, p in table.items())
    assert chi_square < 27.88  # 9 degrees of freedom, p = 0.001


def test_an_ambiguous_grammar_is_detected_and_its_derivations_are_summed() -> None:
    grammar = Grammar(AMBIGUOUS)
    assert (num_derivations(grammar), num_sentences(grammar)) == (4, 3)
    assert not is_unambiguous(grammar)
    assert grammar.log_prob("Old men sleep.") == pytest.approx(math.log(3 / 8 + 1 / 8))
    assert dict(enumerate_sentences(grammar)) == pytest.approx(
        {"Old men sleep.": 1 / 2, "Old women sleep.": 3 / 8, "Young men sleep.": 1 / 8}
    )


@pytest.mark.parametrize(
    "rules",
    [
        {"S": "a word | a word ."},  # prefixes are not sentences
        {"S": "X X?", "X": "a | b"},
        {"S": "a B? c", "B": "b"},
    ],
)
def test_unambiguous(rules: dict[str, str]) -> None:
    assert is_unambiguous(Grammar(rules))


@pytest.mark.parametrize(
    "rules",
    [
        {"S": "word | word"},
        {"S": "X? X?", "X": "a"},
        {"S": "A B", "A": "a | a b", "B": "b c | c"},
        {"S": "ice_cream | ICE cream", "ICE": "ice | cold"},
    ],
)
def test_ambiguous(rules: dict[str, str]) -> None:
    assert not is_unambiguous(Grammar(rules))


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"S": "0: a | b"}, "Weights must be positive"),
        ({"S": "-1: a | b"}, "Weights must be positive"),
        ({"S": "nan: a | b"}, "Weights must be positive"),
        ({"S": "a.b"}, "neither a word"),
        ({"S": "two__words"}, "neither a word"),
    ],
)
def test_a_wrong_rule_is_named(rules: dict[str, str], message: str) -> None:
    with pytest.raises(OutlinesError, match=message):
        Grammar(rules)


def test_only_the_written_form_is_in_the_language() -> None:
    grammar = Grammar({"S": "on monday/sunday , it rains ."})
    assert contains(grammar, "On sunday, it rains.")
    wrong = ["on sunday, it rains.", "On sunday , it rains.", "On sunday, it rains", "On  sunday, it rains.",
             "On sunday, it rains. ", "On sunday, it rains.\n", "On Sunday, it rains.", "On sunday, it rains..",
             "On sunday it rains.", "It rains.", "", " ", "."]
    assert not [text for text in wrong if contains(grammar, text)]


def test_the_scenes_are_unambiguous_and_many() -> None:
    assert is_unambiguous(scenes())
    assert num_sentences(scenes()) > 10**17
    assert len(TYPES) == 12
    # The types share no sentence; otherwise the union would have fewer sentences than the sum.
    assert num_sentences(scenes()) == sum(num_sentences(Grammar(scene_rules((name,)))) for name in TYPES)


def test_entropy_is_the_mean_of_the_negative_log_probability(samples: list[str]) -> None:
    values = [-scenes().log_prob(text) for text in samples[:20_000]]
    mean = math.fsum(values) / len(values)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
    assert abs(mean - scenes().entropy()) < 4 * deviation / math.sqrt(len(values))
    assert 1.8 < scenes().entropy() / expected_words(scenes()) < 2.6
    words = [len(text.split()) for text in samples]
    assert sum(words) / len(words) == pytest.approx(expected_words(scenes()), abs=0.1)


def test_samples_are_members_and_altered_samples_rarely(samples: list[str]) -> None:
    rng, num = random.Random(2), 1000
    vocabulary = sorted({word for text in samples[:2000] for word in text[:-1].lower().split()})
    dropped = swapped = replaced = 0
    for text in samples[:num]:
        assert contains(scenes(), text)
        words = text.split()
        i = rng.randrange(len(words) - 1)
        dropped += contains(scenes(), " ".join(words[:i] + words[i + 1 :]))
        swapped += contains(scenes(), " ".join([*words[:i], words[i + 1], words[i], *words[i + 2 :]]))
        replaced += contains(scenes(), " ".join([*words[:i], rng.choice(vocabulary), *words[i + 1 :]]))
    # Without an adjective, or with another colour, the sentence can still be valid.
    assert dropped < 0.25 * num and swapped < 0.01 * num and replaced < 0.05 * num


def test_every_type_of_scene_is_equally_likely(samples: list[str]) -> None:
    languages = {name: Grammar(scene_rules((name,))) for name in TYPES}
    seen = {name for text in samples[:300] for name, language in languages.items() if contains(language, text)}
    assert seen == set(TYPES)
    for name, language in languages.items():
        rng = random.Random(3)
        for text in (language.sample(rng) for _ in range(20)):
            assert [other for other in TYPES if contains(languages[other], text)] == [name]
            assert scenes().log_prob(text) == pytest.approx(language.log_prob(text) - math.log(len(TYPES)))


def test_agreement(samples: list[str]) -> None:
    wrong = [
        r"\b(a|A) (?!uni|uku)[aeiou]", r"\b(an|An) [^aeiou]",  # a umbrella, an red hat
        r"\b(a|an|A|An|two|three|some) (a|an|the|two|three|some)\b", r"\b(\w+) \1\b",  # a two dogs, hot hot
        r"\b(a|an|A|An) (?!few)(\w+ )?(men|women|children|people|boys|girls|dogs)\b",
        r"\b(Two|Three|Four|Five|Several|Many) (\w+ )?(man|woman|child|boy|girl|dog)\b",
        r"^(A|An|The|a|an|the) (\w+ )?(man|woman|boy|girl|child|dog) (are|were)\b",
        r"\b(men|women|boys|girls|children|dogs) (is|was)\b",
        r"^(A|The) (\w+ )?(man|boy) [^,]*\b(her|its)\b(?! (sister|friend|son|daughter))",
        r"^(A|The) (\w+ )?(woman|girl) [^,]*\b(his|its)\b(?! (brother|friend|son|daughter))",
        r"ss?es(es|ing)\b|gloveses|shoeses|[^e]ieing", r"\s[,.]|,,|\.\.|  ",
    ]  # fmt: skip
    clauses = [part for text in samples for part in re.split(r" (?:while|as) ", text)]
    assert not [(pattern, part) for pattern in wrong for part in clauses if re.search(pattern, part)]
    assert all(re.fullmatch(r"[A-Z][a-z',-]*( [a-z',-]+)+\.", text) for text in samples)


def test_samples_are_sentences_of_ordinary_length_and_rarely_repeat(samples: list[str]) -> None:
    lengths = sorted(len(text.split()) for text in samples)
    assert lengths[0] >= 4 and lengths[-1] <= 35
    assert lengths[len(lengths) // 20] >= 6 and lengths[-len(lengths) // 20] <= 23
    assert len(set(samples)) > 0.999 * len(samples)  # measured: 9 repeats in 30,000


def test_sentences_depend_only_on_the_seed(samples: list[str]) -> None:
    assert list(sentences(50, seed=1)) == samples[:50]
    assert list(sentences(50, seed=2)) != samples[:50]
    assert list(sentences(0, seed=1)) == []
    assert next(sentences(10**12, seed=1)) == samples[0]  # lazy


def test_samples_are_the_same_on_every_machine() -> None:
    # random() < 1/4 is the first alternative: Random(0) draws 0.844, 0.758, 0.421, 0.259, 0.511, 0.405.
    grammar = Grammar({"S": "a | 3: b X", "X": "c | d"})
    rng = random.Random(0)
    assert [grammar.sample(rng) for _ in range(3)] == ["B d", "B c", "B c"]


@pytest.mark.parametrize(
    ("verb", "forms"),
    [
        ("ride", "riding rode rides ride"), ("lie", "lying lay lies lie"), ("stop", "stopping stopped stops stop"),
        ("carry", "carrying carried carries carry"), ("play", "playing played plays play"),
        ("watch", "watching watched watches watch"), ("fix", "fixing fixed fixes fix"), ("ski", "skiing skied skis ski"),
        ("open", "opening opened opens open"), ("glue", "gluing glued glues glue"), ("tie", "tying tied ties tie"),
    ],
)  # fmt: skip
def test_inflect(verb: str, forms: str) -> None:
    assert [inflect(verb, form) for form in ("ing", "past", "one", "all")] == forms.split()


@pytest.mark.parametrize(
    ("noun", "plural"),
    [
        ("dog", "dogs"), ("bus", "buses"), ("puppy", "puppies"), ("donkey", "donkeys"), ("knife", "knives"),
        ("bearded_man", "bearded_men"), ("policewoman", "policewomen"), ("rowboat", "rowboats"), ("photo", "photos"),
        ("crate_of_oranges", "crates_of_oranges"), ("box_of_nails", "boxes_of_nails"), ("t-shirt", "t-shirts"),
    ],
)  # fmt: skip
def test_pluralize(noun: str, plural: str) -> None:
    assert pluralize(noun) == plural


def test_indefinite() -> None:
    phrases = "dog old_dog apple uniform ukulele umbrella hour horse"
    expected = "a_dog an_old_dog an_apple a_uniform a_ukulele an_umbrella an_hour a_horse"
    assert list(map(indefinite, phrases.split())) == expected.split()


def test_every_thing_is_used() -> None:
    """A thing that no frame uses would have no effect."""
    rules = scene_rules(TYPES)
    used = {symbol for text in rules.values() for symbol in text.split()}
    things = {rule.split(".")[1] for rule in rules if rule.startswith("ONE.")}
    assert all({f"N.{name}", f"A.{name}", f"S.{name}"} & used for name in things)
