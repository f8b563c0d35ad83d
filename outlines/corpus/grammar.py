"""The embedded corpus: a probabilistic grammar of everyday scenes that knows its own exact entropy.

First on the way from text to text. It needs no download, and as its log-probabilities and its entropy are exact, a
language model trained on it can be held against the best that any model could do.

A `Grammar` is a finite table of rules without recursion. Two views of it answer every question:

- the rules themselves: sampling, and the entropy, length and number of derivations, by recursion (the entropy of a
  rule is that of its choice plus the expected entropy of its parts: Grenander, Syntax-Controlled Probabilities, 1967);
- an acyclic automaton over words compiled from them: log-probabilities, membership and enumeration, by summing over
  every path that spells a sentence, so that they are exact for ambiguous grammars too.

The entropy of derivations is that of sentences if no sentence has two derivations. That is decided, not assumed: the
rules count derivations, the determinised automaton counts distinct sentences, both as integers; as every sentence
has at least one derivation, each has exactly one if and only if the counts are equal.
"""

import functools
import math
import random
import re
from bisect import bisect
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import NamedTuple

from outlines.corpus.scenes import SCENES, scene_rules
from outlines.errors import OutlinesError

SCENE_TYPES: tuple[str, ...] = tuple(SCENES)

_PUNCTUATION = frozenset(",.")
_WORD = re.compile(r"[a-z][a-z'-]*|[,.]")
_END = ""  # the label of the automaton's last step, which no word can equal
_ACCEPT = 0  # the state after it


class _Rule(NamedTuple):
    probs: tuple[float, ...]
    cumulative: tuple[float, ...]
    expansions: tuple[tuple[str, ...], ...]


_Arc = tuple[str, float, int]  # word, probability, next state


class Grammar:
    """A probability distribution over finitely many sentences.

    rules: name → alternatives, as in `{"S": "3: a dog barks . | two ADJ? dogs bark ."}`. A token with a capital
        letter is a rule's name, any other a word. "|" separates alternatives, equally likely unless they begin with
        a weight ("3:"). `X?` is X or nothing, each with probability 1/2; `big/small` is one of the two; `sun_hat` is
        two words; an alternative without symbols is the empty one.
    start: the name of the rule that sentences come from.
    Raises OutlinesError for a missing or recursive rule, a malformed word and a weight that is not positive.

    A sentence is written like ordinary text: its first letter upper case, punctuation against the word before it.
    """

    def __init__(self, rules: Mapping[str, str], start: str = "S") -> None:
        self._start = start
        self._rules: dict[str, _Rule] = {}
        self._define(start, rules, ())

    def sample(self, rng: random.Random) -> str:
        """Return one sentence, drawn from the distribution with `rng`."""
        words: list[str] = []
        stack = [self._start]
        while stack:
            symbol = stack.pop()
            rule = self._rules.get(symbol)
            if rule is None:
                words.append(symbol)
            else:
                stack.extend(reversed(rule.expansions[bisect(rule.cumulative, rng.random())]))
        return _render(words)

    def log_prob(self, sentence: str) -> float:
        """Return the log-probability of a sentence in nats, over all its derivations; -inf outside the language."""
        words = _split(sentence)
        if _render(words) != sentence:
            return -math.inf
        weights = {self._automaton[0]: 1.0}
        for word in [*words, _END]:
            weights = self._step(weights, word)
        return math.log(weights[_ACCEPT]) if weights else -math.inf

    def __contains__(self, sentence: object) -> bool:
        return isinstance(sentence, str) and self.log_prob(sentence) > -math.inf

    def enumerate(self) -> Iterator[tuple[str, float]]:
        """Yield every sentence once, with its probability. For small grammars: the scenes have over 10^17."""
        stack: list[tuple[tuple[str, ...], dict[int, float]]] = [((), {self._automaton[0]: 1.0})]
        while stack:
            words, weights = stack.pop()
            for word in dict.fromkeys(word for state in weights for word, _, _ in self._automaton[1][state]):
                after = self._step(weights, word)
                if word == _END:
                    yield _render(words), after[_ACCEPT]
                else:
                    stack.append(((*words, word), after))

    def entropy(self) -> float:
        """Return the exact entropy in nats per sentence. Raises OutlinesError if the grammar is ambiguous."""
        if not self.is_unambiguous():
            raise OutlinesError("the entropy of an ambiguous grammar is unknown: give each sentence one derivation")
        memo: dict[str, float] = {}

        def entropy(symbol: str) -> float:
            if symbol not in self._rules:
                return 0.0
            if symbol not in memo:
                memo[symbol] = sum(
                    p * (sum(map(entropy, expansion)) - math.log(p))
                    for p, expansion in zip(self._rules[symbol].probs, self._rules[symbol].expansions, strict=True)
                )
            return memo[symbol]

        return entropy(self._start)

    def expected_words(self) -> float:
        """Return the exact expected number of words in a sentence; punctuation is not a word."""
        memo: dict[str, float] = {}

        def length(symbol: str) -> float:
            if symbol not in self._rules:
                return float(symbol not in _PUNCTUATION)
            if symbol not in memo:
                probs, _, expansions = self._rules[symbol]
                memo[symbol] = sum(p * sum(map(length, e)) for p, e in zip(probs, expansions, strict=True))
            return memo[symbol]

        return length(self._start)

    def entropy_per_word(self) -> float:
        """Return entropy() / expected_words(), in nats."""
        return self.entropy() / self.expected_words()

    def num_derivations(self) -> int:
        """Return how many ways the rules have of making a sentence."""
        memo: dict[str, int] = {}

        def count(symbol: str) -> int:
            if symbol not in self._rules:
                return 1
            if symbol not in memo:
                memo[symbol] = sum(math.prod(map(count, e)) for e in self._rules[symbol].expansions)
            return memo[symbol]

        return count(self._start)

    def num_sentences(self) -> int:
        """Return how many distinct sentences there are, counted on the determinised automaton."""
        return self._num_sentences

    def is_unambiguous(self) -> bool:
        """Return whether every sentence has exactly one derivation; exact (see the module's docstring)."""
        return self.num_derivations() == self.num_sentences()

    def _define(self, name: str, rules: Mapping[str, str], above: tuple[str, ...]) -> None:
        """Read the rule called `name`, and all below it, into self._rules. `above` are the rules that led here."""
        if name in above:
            raise OutlinesError(f"grammar: rule {name!r} leads back to itself: {' > '.join((*above, name))}")
        if name in self._rules:
            return
        if name.endswith("?"):
            alternatives = [(1.0, (name[:-1],)), (1.0, ())]
        elif "/" in name:
            alternatives = [(1.0, tuple(choice.split("_"))) for choice in name.split("/")]
        elif name in rules:
            alternatives = [_alternative(text, name) for text in rules[name].split("|")]
        else:
            raise OutlinesError(f"grammar: there is no rule {name!r} (reached by {' > '.join(above) or 'start'})")
        total = sum(weight for weight, _ in alternatives)
        probs = tuple(weight / total for weight, _ in alternatives)
        cumulative = (*tuple(accumulate(probs))[:-1], 1.0)
        for symbol in (symbol for _, expansion in alternatives for symbol in expansion):
            if symbol.endswith("?") or "/" in symbol or symbol != symbol.lower():
                self._define(symbol, rules, (*above, name))
            elif not _WORD.fullmatch(symbol):
                raise OutlinesError(f"grammar: rule {name!r} has {symbol!r}, neither a word nor a rule's name")
        self._rules[name] = _Rule(probs, cumulative, tuple(expansion for _, expansion in alternatives))

    @functools.cached_property
    def _automaton(self) -> tuple[int, list[tuple[_Arc, ...]]]:
        """The first state, and the arcs of each. Every state leads to _ACCEPT, and equal states are one."""
        states: dict[tuple[_Arc, ...], int] = {(): _ACCEPT}
        arcs: list[tuple[_Arc, ...]] = [()]

        def state_of(key: tuple[_Arc, ...]) -> int:
            if key not in states:
                states[key] = len(arcs)
                arcs.append(key)
            return states[key]

        @functools.cache
        def before(symbol: str, after: int) -> int:
            """The state from which `symbol` leads to the state `after`."""
            if symbol not in self._rules:
                return state_of(((symbol, 1.0, after),))
            found: list[_Arc] = []
            for p, expansion in zip(self._rules[symbol].probs, self._rules[symbol].expansions, strict=True):
                state = functools.reduce(lambda after, part: before(part, after), reversed(expansion), after)
                found += [(word, p * q, target) for word, q, target in arcs[state]]
            return state_of(tuple(found))

        return before(self._start, state_of(((_END, 1.0, _ACCEPT),))), arcs

    @functools.cached_property
    def _arcs_by_word(self) -> dict[str, dict[int, list[tuple[float, int]]]]:
        """Word → state → (probability, next state) of each arc."""
        index: dict[str, dict[int, list[tuple[float, int]]]] = {}
        for state, arcs in enumerate(self._automaton[1]):
            for word, p, target in arcs:
                index.setdefault(word, {}).setdefault(state, []).append((p, target))
        return index

    def _step(self, weights: dict[int, float], word: str) -> dict[int, float]:
        """Follow `word` from states with these path probabilities."""
        arcs = self._arcs_by_word.get(word, {})
        after: dict[int, float] = {}
        for state in arcs.keys() & weights.keys():
            for p, target in arcs[state]:
                after[target] = after.get(target, 0.0) + weights[state] * p
        return after

    @functools.cached_property
    def _num_sentences(self) -> int:
        first, arcs = self._automaton

        @functools.cache
        def count(states: frozenset[int]) -> int:
            """How many distinct continuations this state of the determinised automaton has."""
            targets: dict[str, set[int]] = defaultdict(set)
            for state in states:
                for word, _, target in arcs[state]:
                    targets[word].add(target)
            return sum(1 if word == _END else count(frozenset(after)) for word, after in targets.items())

        return count(frozenset([first]))


@functools.cache
def scenes(types: tuple[str, ...] = SCENE_TYPES) -> Grammar:
    """Return the grammar of everyday scenes, or of some types of scene alone, each type equally likely.

    Raises OutlinesError for no type, an unknown type and one named twice.
    """
    unknown = [name for name in types if name not in SCENE_TYPES]
    if unknown:
        raise OutlinesError(f"unknown scene type {unknown[0]!r}: choose from {', '.join(SCENE_TYPES)}")
    if not types or len(set(types)) < len(types):
        raise OutlinesError(f"scene types must be named once each, and at least one: got {types!r}")
    return Grammar(scene_rules(types))


def scene_type(sentence: str) -> str | None:
    """Return the one scene type whose grammar has the sentence, or None. One at most: `scenes()` is unambiguous."""
    return next((name for name in SCENE_TYPES if sentence in scenes((name,))), None)


def sentences(num: int, seed: int, grammar: Grammar | None = None) -> Iterator[str]:
    """Yield `num` sentences of `grammar` (`scenes()` if None), the same on every machine for the same seed."""
    rng = random.Random(seed)
    source = scenes() if grammar is None else grammar
    for _ in range(num):
        yield source.sample(rng)


def _alternative(text: str, name: str) -> tuple[float, tuple[str, ...]]:
    """Read one alternative of rule `name`: its weight, and its symbols."""
    symbols = text.split()
    weight = 1.0
    if symbols and symbols[0].endswith(":"):
        try:
            weight = float(symbols.pop(0)[:-1])
        except ValueError as error:
            raise OutlinesError(f"grammar: rule {name!r} has no number before ':' in {text.strip()!r}") from error
        if not 0.0 < weight < math.inf:
            raise OutlinesError(f"grammar: rule {name!r} has weight {weight}; weights must be positive")
    # A choice keeps its underscores until it has been split, for a word of it may be two.
    return weight, tuple(part for s in symbols for part in ([s] if "/" in s else s.split("_")))


def _render(words: list[str] | tuple[str, ...]) -> str:
    text = " ".join(words).replace(" ,", ",").replace(" .", ".")
    return text[:1].upper() + text[1:]


def _split(sentence: str) -> list[str]:
    return re.findall(r"[^\s,.]+|[,.]", sentence[:1].lower() + sentence[1:])
