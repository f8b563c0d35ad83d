"""Expand scenes.toml, the lexicon of the built-in corpus, into rules for `Grammar`, with agreement and inflection."""

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Cast(NamedTuple):
    """Subjects that share the same frames (explained in scenes.toml): nouns, grouped by pronoun (he, she, they or it)."""

    frames: str
    adjectives: str
    he: str = ""
    she: str = ""
    they: str = ""
    it: str = ""
    pairs: str = ""  # plural subjects such as "a man and a woman"
    weight: float = 1.0  # relative to the scene's other casts
    looks: str = ""  # clothes and carried things, instead of the looks of the scene
    plural: bool = True  # whether a plural subject is allowed


class Scene(NamedTuple):
    at: str  # places
    times: str
    looks: str  # clothes and carried things
    casts: tuple[Cast, ...]
    asides: tuple[Cast, ...]  # subjects and frames for clauses after "while" and "as"
    along: str = ""  # where a movement goes, such as "across the street"


LEXICON: dict[str, Any] = tomllib.loads(Path(__file__).with_name("scenes.toml").read_text(encoding="utf-8"))
SCENES = {name: Scene(**{**tables, **{kind: tuple(Cast(**cast) for cast in tables[kind]) for kind in ("casts", "asides")}})
          for name, tables in LEXICON["scenes"].items()}
_any = " | ".join
_POSSESSIVES = {"he": "his", "she": "her", "they": "their", "it": "its", "all": "their"}


def scene_rules(types: Sequence[str]) -> dict[str, str]:
    """Return the grammar rules of these types of scene. All types are equally likely. The start rule is "S"."""
    rules = {"S": _any(f"S.{name}" for name in types), **LEXICON["shared"], **_thing_rules()}
    for name in types:
        scene = SCENES[name]
        for rule, text in (("AT", scene.at), ("ALONG", scene.along), ("TIME", scene.times)):
            rules[f"{rule}.{name}"] = _expand(text, name, "they", "all")
        for i, cast in enumerate(scene.casts):
            looks = "" if cast.it else cast.looks or scene.looks
            rules |= _cast_rules(cast, name, f"{name}.{i}", looks, "sentence", ("S",))
        for i, cast in enumerate(scene.asides):
            rules |= _cast_rules(cast, name, f"{name}.aside.{i}", "", "aside", ("NOW", "PAST"))
        rules[f"S.{name}"] = _any(f"{cast.weight}: S.{name}.{i}" for i, cast in enumerate(scene.casts))
        for tense in ("NOW", "PAST"):
            rules[f"ASIDE.{tense}.{name}"] = _any(f"{tense}.{name}.aside.{i}" for i in range(len(scene.asides)))
            rules[f"AND.{tense}.{name}"] = f"6: | 2: TIME.{name} | 2: while/as ASIDE.{tense}.{name}"
    return rules


def inflect(verb: str, form: str) -> str:
    """Return a form of a verb: "ing", "past", "one" (she throws) or "all" (they throw)."""
    doubled = verb + verb[-1] if re.fullmatch(r"[^aeiou]*[aeiou][^aeiouwxy]", verb) else verb  # sit: sitting
    if form == "ing":
        return re.sub(r"(?<=[^eoy])e$", "", re.sub(r"ie$", "y", doubled)) + "ing"
    if form == "past":
        return LEXICON["past"].get(verb) or re.sub(r"(?<![aeiou])y$", "i", re.sub(r"e$", "", doubled)) + "ed"
    return _with_s(verb) if form == "one" else verb


def pluralize(noun: str) -> str:
    """Return the plural of a noun. In "crate_of_oranges", only the word before "of" changes."""
    head, of, rest = noun.partition("_of_")
    *before, last = re.split(r"(?<=[_-])", head)
    plural = LEXICON["plural"].get(last) or (last[:-3] + "men" if last.endswith("man") else _with_s(last))
    return "".join(before) + plural + of + rest


def indefinite(phrase: str) -> str:
    """Return a phrase with "a" or "an", chosen by the sound of its first word."""
    vowel = re.match(r"[aeiou]|hour", phrase) and not re.match(r"uni|uku|use|eu|one", phrase)
    return f"{'an' if vowel else 'a'}_{phrase}"


def _with_s(word: str) -> str:
    return word + "es" if re.search(r"(s|sh|ch|x|z)$", word) else re.sub(r"(?<![aeiou])y$", "ie", word) + "s"


def _expand(frame: str, scene: str, who: str, form: str) -> str:
    """Return a frame in the notation of Grammar: verbs in `form`, things that agree with the subject (`who`)."""
    owner, (each, own) = _POSSESSIVES[who], ("S", "S") if who == "all" else ("A", "N")
    determiners = {"n": "N", "a": "A", "s": "S", "some": "COUNT S", "each": each, "own": f"{owner} {own}"}

    def expand(token: str) -> str:
        determiner, colon, thing = token.partition(":")
        if token.startswith("*"):
            verbs = token[1:].split("/")
            if who == "all" and form == "past":  # "they cut" looks like present tense
                verbs = [verb for verb in verbs if inflect(verb, "past") != verb] or verbs
            return "/".join(inflect(verb, form) for verb in verbs)
        if colon and thing:
            return f"{determiners[determiner]}.{thing}"
        return f"{token}.{scene}" if token in ("AT", "ALONG") else owner if token == "POSS" else token

    return " ".join(map(expand, frame.split()))


def _thing_rules() -> dict[str, str]:
    rules = {}
    for line in filter(None, LEXICON["things"].replace("COLORS", LEXICON["colors"]).splitlines()):
        (name, *adjectives), nouns = map(str.split, line.split(":"))
        rules[f"ADJ.{name}"], rules[f"A.ADJ.{name}"] = _any(adjectives), _any(map(indefinite, adjectives))
        rules[f"ONE.{name}"], rules[f"A.ONE.{name}"] = _any(nouns), _any(map(indefinite, nouns))
        rules[f"ALL.{name}"] = _any(map(pluralize, nouns))
        rules[f"N.{name}"] = f"2: ADJ.{name} ONE.{name} | ONE.{name}"
        rules[f"S.{name}"] = f"2: ADJ.{name} ALL.{name} | ALL.{name}"
        rules[f"A.{name}"] = f"2: A.ADJ.{name} ONE.{name} | A.ONE.{name}"
    return rules


def _subjects(cast: Cast) -> dict[str, list[str]]:
    """Return the cast's nouns by `who`: a pronoun, or "all" for the plurals of all nouns."""
    nouns = {who: getattr(cast, who).split() for who in ("he", "she", "they", "it")}
    if cast.plural:
        nouns["all"] = [pluralize(noun) for group in nouns.values() for noun in group]
    return {who: group for who, group in nouns.items() if group}


def _clause_rules(cast: Cast, scene: str, name: str, who: str, looks: str) -> dict[str, str]:
    """Return the rules of a clause. scenes.toml explains their names; HERE is ING without the place at its end."""
    frames, nouns, adjectives = cast.frames.split("|"), _subjects(cast)[who], cast.adjectives.split()
    now = "all" if who == "all" else "one"
    do, ing, ed = ([_expand(frame, scene, who, form) for frame in frames] for form in (now, "ing", "past"))
    here = [frame.removesuffix(f" AT.{scene}") for frame in ing if frame.endswith(f" AT.{scene}")]
    rules = {f"NOUN.{name}": _any(nouns), f"ADJ.{name}": _any(adjectives)}
    rules |= {f"A.NOUN.{name}": _any(map(indefinite, nouns)), f"A.ADJ.{name}": _any(map(indefinite, adjectives))}
    one = f"A.NOUN.{name} | 2: A.ADJ.{name} NOUN.{name}"
    rules[f"ANY.{name}"] = f"COUNT ADJ.{name}? NOUN.{name}" if who == "all" else one
    look = [_expand(item, scene, who, "") for item in looks.split("|") if item]
    # "wearing" only before a finite verb: "a man wearing a hat riding a bike" is hard to read.
    worn = [re.sub(r"^in ", "in/wearing ", item) for item in look]
    rules[f"LOOK.{name}"] = _any(["2:", *look] if look else [""])
    rules[f"WORN.{name}"] = _any(["2:", *worn] if look else [""])
    rules[f"NEW.{name}"] = f"ANY.{name} LOOK.{name}"
    pairs = f" | {cast.pairs}" if who == "all" and cast.pairs else ""
    rules[f"SUBJECT.{name}"] = f"12: ANY.{name} WORN.{name} | 2: the ADJ.{name}? NOUN.{name}{pairs}"
    # "They read" can be present or past, so the past omits forms that equal the present.
    rules |= {f"DO.{name}": _any(do), f"ING.{name}": _any(ing), f"ED.{name}": _any(x for x in ed if x not in do)}
    return rules | ({f"HERE.{name}": _any(here)} if here else {})


def _cast_rules(cast: Cast, scene: str, name: str, looks: str, kind: str, heads: tuple[str, ...]) -> dict[str, str]:
    """Return the rules `heads` for the subjects of a cast, and the rules that `heads` use. kind: section of scenes.toml."""
    rules: dict[str, str] = {}
    for who in _subjects(cast):
        sub = f"{name}.{who}"
        rules |= _clause_rules(cast, scene, sub, who, looks)
        be, was = ("are", "were") if who == "all" else ("is", "was")
        here = f" | AT.{scene} , SUBJECT.{sub} {be} HERE.{sub} ." if f"HERE.{sub}" in rules else ""
        rules |= {f"{rule}.{sub}": text.format(sub=sub, scene=scene, be=be, was=was, here=here)
                  for rule, text in LEXICON[kind].items()}
    # Weights are numbers of nouns. So half of the subjects are plural, if the cast can be plural.
    return rules | {f"{rule}.{name}": _any(f"{len(nouns)}: {rule}.{name}.{who}" for who, nouns in _subjects(cast).items())
                    for rule in heads}
