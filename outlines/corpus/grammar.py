"""The built-in corpus: a probabilistic grammar of everyday scenes with exact log-probabilities and entropy.

The entropy of derivations equals the entropy of sentences if every sentence has only one derivation. A test shows that this
holds for the scenes. Source: Grenander, Syntax-Controlled Probabilities (1967).
"""

import functools
import math
import random
import re
from bisect import bisect
from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import NamedTuple

from outlines.corpus.scenes import SCENES, scene_rules
from outlines.errors import OutlinesError

_WORD = re.compile(r"[a-z][a-z'-]*|[,.]")
_END, _ACCEPT = "", 0  # the label of the automaton's last step, and the state after it


class _Rule(NamedTuple):
    probs: tuple[float, ...]
    cumulative: tuple[float, ...]
    expansions: tuple[tuple[str, ...], ...]


_Arc = tuple[str, float, int]  # word, probability, next state


class Grammar:
    """A probability distribution over finitely many sentences, with capital letters and punctuation as in ordinary text.

    rules: name → alternatives, as in `{"S": "3: a dog barks . | two ADJ? dogs bark ."}`. A token with a capital letter is
        the name of a rule. "3:" is a weight: this alternative is three times as likely as one without a weight. `X?` is X or
        nothing, each with probability 1/2; `big/small` is one of the two, also with 1/2 each; `sun_hat` is two words.
    Rules must not be recursive. Raises OutlinesError if a word is malformed or a weight is not positive.
    """

    def __init__(self, rules: Mapping[str, str], start: str = "S") -> None:
        self._start = start
        self._rules: dict[str, _Rule] = {}
        self._define(start, rules)

    def sample(self, rng: random.Random) -> str:
        """Return one sentence sampled with `rng`."""
        words, stack = list[str](), [self._start]
        while stack:
            symbol = stack.pop()
            if rule := self._rules.get(symbol):
                stack.extend(reversed(rule.expansions[bisect(rule.cumulative, rng.random())]))
            else:
                words.append(symbol)
        return _render(words)

    def log_prob(self, sentence: str) -> float:
        """Return the log-probability of a sentence in nats: the log of the sum over its derivations; -inf without any."""
        words = re.findall(r"[^\s,.]+|[,.]", sentence[:1].lower() + sentence[1:])
        if _render(words) != sentence:
            return -math.inf
        weights = {self._automaton[0]: 1.0}
        for word in [*words, _END]:
            weights = self._step(weights, word)
        return math.log(weights[_ACCEPT]) if weights else -math.inf

    def entropy(self) -> float:
        """Return the exact entropy of the derivations, in nats per sentence."""
        @functools.cache
        def entropy_of(symbol: str) -> float:
            if symbol not in self._rules:
                return 0.0
            probs, _, expansions = self._rules[symbol]
            return sum(p * (sum(map(entropy_of, parts)) - math.log(p)) for p, parts in zip(probs, expansions, strict=True))

        return entropy_of(self._start)

    def _define(self, name: str, rules: Mapping[str, str]) -> None:
        """Parse the rule `name` and all rules that it uses; store them in self._rules."""
        if name in self._rules:
            return
        if name.endswith("?"):
            alternatives = [(1.0, (name[:-1],)), (1.0, ())]
        elif "/" in name:
            alternatives = [(1.0, tuple(choice.split("_"))) for choice in name.split("/")]
        else:
            alternatives = [_alternative(text, name) for text in rules[name].split("|")]
        total = sum(weight for weight, _ in alternatives)
        probs = tuple(weight / total for weight, _ in alternatives)
        cumulative = (*accumulate(probs[:-1]), 1.0)
        for symbol in (symbol for _, expansion in alternatives for symbol in expansion):
            if symbol.endswith("?") or "/" in symbol or symbol != symbol.lower():
                self._define(symbol, rules)
            elif not _WORD.fullmatch(symbol):
                raise OutlinesError(f"Grammar rule {name!r} contains {symbol!r}, which is neither a word nor a rule's name.")
        self._rules[name] = _Rule(probs, cumulative, tuple(expansion for _, expansion in alternatives))

    @functools.cached_property
    def _automaton(self) -> tuple[int, list[tuple[_Arc, ...]]]:
        """Return the automaton's first state, and the arcs of each state. States with equal arcs are one state."""
        states: dict[tuple[_Arc, ...], int] = {(): _ACCEPT}
        arcs: list[tuple[_Arc, ...]] = [()]

        def state_of(key: tuple[_Arc, ...]) -> int:
            if key not in states:
                states[key] = len(arcs)
                arcs.append(key)
            return states[key]

        @functools.cache
        def before(symbol: str, after: int) -> int:
            """Return the state from which `symbol` leads to the state `after`."""
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
        """Return the arcs, as (probability, next state), by word and by state."""
        index: dict[str, dict[int, list[tuple[float, int]]]] = {}
        for state, arcs in enumerate(self._automaton[1]):
            for word, p, target in arcs:
                index.setdefault(word, {}).setdefault(state, []).append((p, target))
        return index

    def _step(self, weights: dict[int, float], word: str) -> dict[int, float]:
        """Return the probability of each state after `word`. weights: the probability of each state before `word`."""
        arcs, after = self._arcs_by_word.get(word, {}), dict[int, float]()
        for state in arcs.keys() & weights.keys():
            for p, target in arcs[state]:
                after[target] = after.get(target, 0.0) + weights[state] * p
        return after


@functools.cache
def scenes() -> Grammar:
    """Return the grammar of everyday scenes; each type of scene is equally likely."""
    return Grammar(scene_rules(tuple(SCENES)))


def sentences(num: int, seed: int) -> Iterator[str]:
    """Yield `num` sentences about scenes. The same seed yields the same sentences on every machine."""
    rng = random.Random(seed)
    return (scenes().sample(rng) for _ in range(num))


def _alternative(text: str, name: str) -> tuple[float, tuple[str, ...]]:
    """Return the weight and the symbols of one alternative of the rule `name`."""
    symbols, weight = text.split(), 1.0
    if symbols and symbols[0].endswith(":"):
        weight = float(symbols.pop(0)[:-1])
        if not 0.0 < weight < math.inf:
            raise OutlinesError(f"Grammar rule {name!r} has weight {weight}. Weights must be positive.")
    # A choice such as cap/sun_hat stays one symbol here, because `_define` splits it at "/" before it splits at "_".
    return weight, tuple(part for s in symbols for part in ([s] if "/" in s else s.split("_")))


def _render(words: list[str]) -> str:
    text = " ".join(words).replace(" ,", ",").replace(" .", ".")
    return text[:1].upper() + text[1:]
