"""Verbs and options of `python -m generate`. This file does not import torch, so wrong arguments are reported at once."""

import argparse
import contextlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from outlines.errors import OutlinesError, quoted
from outlines.options import DEVICES, PRECISIONS, misplaced, unknown_name
from outlines.pretrained import ENGLISH, SHIPPED, run_path, temperature_of

SAMPLE = "sample"


class Option(NamedTuple):
    """One option. low, high: bounds of a number, both included. max_served: upper bound in a request to the server."""

    help: str
    type: type = str
    default: Any = None
    low: float = 0
    high: float = math.inf
    max_served: float = math.inf
    choices: tuple[str, ...] | None = None
    metavar: str | None = None

    def is_valid(self, value: Any) -> bool:
        """Return whether a value is a number of the right type within the bounds."""
        return (isinstance(value, (int, float)) and not isinstance(value, bool) and self.low <= value <= self.high
                and value < math.inf and (self.type is float or value == int(value)))

    def bounds(self) -> str:
        """Return the bounds in words, such as "a whole number of at least 1"."""
        kind = "a whole number" if self.type is int else "a number"
        return f"{kind} of at least {self.low}" if self.high == math.inf else f"{kind} from {self.low} to {self.high}"

    def parse(self, text: str) -> Any:
        """Return an argument of the command line as a number. Raises ArgumentTypeError if it is not valid."""
        with contextlib.suppress(ValueError):
            if self.is_valid(value := self.type(text)):
                return value
        raise argparse.ArgumentTypeError(f"must be {self.bounds()}, not {text}")

    def add_to(self, parser: argparse._ActionsContainer, name: str) -> None:
        """Add the option to a parser with default None: `parse` checks which options were given, then sets the defaults."""
        flag, default = f"--{name.replace('_', '-')}", "" if self.default is None else f" (default: {self.default})"
        if self.type is bool:
            parser.add_argument(flag, action="store_true", default=None, help=self.help)
        else:
            metavar = self.metavar or {int: "N", float: "X", Path: "FILE"}.get(self.type)
            convert = self.parse if self.type in (int, float) else self.type
            parser.add_argument(flag, type=convert, choices=self.choices, metavar=metavar, help=self.help + default)


# Options that differ between verbs have one entry per variant: the flag is the part before the slash.
OPTIONS: dict[str, dict[str, Option]] = {
    "options": {
        "num": Option("number of sentences", int, 10, 1, 10**12, max_served=100),
        "num/walk": Option("number of steps, both ends included; gradient: the first step is 1 / (N - 1) of the distance",
                           int, 21, 2, 10_000, max_served=101),
        "num/nearest": Option("number of neighbours per sentence", int, 5, 1, 10_000, max_served=50),
        "temperature": Option("sampling temperature; lower: likelier and less varied sentences (default: 0.3 for english, "
                              "otherwise 0.5)", float, max_served=10),
        "top_p": Option("nucleus sampling: sample only from the smallest set of tokens with this total probability", float,
                        1.0, high=1),
        "seed": Option("random seed", int, 1, max_served=2**53),
        "source": Option("source of the outlines or latent vectors, depending on the family: generator, mixture, gaussian, "
                         "linear, prior or lm (default: the first of these that the family has)", metavar="NAME"),
        "walk": Option("linear: line between the outlines; spherical: arc between them; noise: arc between their inputs "
                       "to the generator; gradient: gradient ascent on p(B | outline)",
                       default="spherical", choices=("linear", "spherical", "noise", "gradient", "all")),
        "radius": Option("distance from the sentence's outline (between unrelated outlines: 1.4)", float, 0.4, high=1000),
        "like": Option("use the outline of this sentence (default: sampled outlines)", metavar="SENTENCE"),
        "file": Option("read the sentences from this file, one per line", Path),
        "unique": Option("skip duplicate sentences", bool),
        "with_score": Option("also print the NLL of each sentence given its outline (nats) and, if the run has a critic, "
                             "the critic's score of the outline", bool),
        "smoothness": Option("also print the mean and the largest distance between consecutive sentences, and the NLL of "
                             "the sentences between A and B", bool),
        "lm": Option("language model (family lm) for the NLL of --smoothness (default: the decoder)", Path, metavar="RUN"),
        "host": Option("address to listen on; 0.0.0.0: all machines can connect", str, "127.0.0.1", metavar="ADDRESS"),
        "port": Option("port to listen on; 0 chooses a free one", int, 8000, high=65535),
        "format": Option("plain text, or one JSON object per line", default="txt", choices=("txt", "jsonl")),
        "out": Option("write to this file (default: standard output)", Path),
        "device": Option("device; auto: cuda, else mps, else cpu", str, "auto", choices=DEVICES),
    },
    "choice of tokens": {
        "greedy": Option("always choose the likeliest token", bool),
        "beam": Option("beam search of this width (default: no beam search)", int, low=1),
        "top_k": Option("sample only from the N likeliest tokens; 0: from all", int, 0, max_served=2**20),
        "guidance": Option("influence of the outline on each token; 0: none; 1: normal; below 1: likelier sentences; "
                           "values other than 1 need a run trained with --outline-dropout", float, 1.0, max_served=10),
        "strength": Option("how much the decoder trusts the outline, from the run's --min-strength to 1; lower: likelier, "
                           "less faithful sentences (default: the model's own value, usually 0.3, for new sentences and "
                           "the verbs 'vary' and 'complete'; otherwise 1)", float, high=1),
        "max_len": Option("maximum length of a sentence in tokens (default: as in training)", int, low=1),
        "precision": Option("precision of matrix products when sampling; auto: bfloat16 if it is faster; greedy decoding, "
                            "beam search and scores use float32", str, "auto", choices=PRECISIONS),
    },
    "correction (only for models with a frozen encoder)": {
        "drafts": Option("write N sentences per outline, encode them again, and keep the one nearest to the outline", int, 1,
                         1, 1024),
        "rounds": Option("write N more rounds of drafts, each time with half of the remaining error added to the outline",
                         int, 0, 0, 100),
    },
    "choice of outlines": {
        "condition": Option('for conditional runs: file with one condition per line (-: standard input), or .jsonl with the '
                            'fields "condition" and "label" (default: conditions of the training split). With --condition, '
                            '--num is the number of sentences per condition (default: 1)', Path),
        "noise_scale": Option("factor on the noise; below 1: more typical, less varied outlines", float, 1.0, max_served=10),
        "best_of": Option("write N sentences for each result, each from a new outline, and keep the most probable; higher: "
                          "fewer mistakes, less variety (default: 8 for new sentences of english, otherwise 1)", int,
                          low=1, high=1024, max_served=8),
        "rejection": Option("rejection sampling with the critic: average number of outlines drawn per accepted outline; "
                            "1: accept all", float, 1.0, 1, 100),
    },
    "speed": {"batch_size": Option("sentences per batch; on a CPU, it does not change the sentences (default: automatic)",
                                   int, low=1, high=65_536)},
}
BY_NAME = {name: option for group in OPTIONS.values() for name, option in group.items()}
ARGUMENTS = {"sentences": ("[SENTENCE ...]", "sentences (default: the lines of --file or of standard input)"),
             "sentence": ("SENTENCE", "the sentence"), "a": ("A", "first sentence"), "b": ("B", "second sentence"),
             "c": ("C", "third sentence"), "beginning": ("BEGINNING", "the first words of every sentence"),
             "lines": ("FILE", "file with one sentence per line; - reads standard input")}
DECODING = "beam strength max_len format out device"
SAMPLING = f"num temperature top_p seed with_score best_of greedy top_k guidance precision {DECODING}"
SOURCE = "source noise_scale rejection"
CORRECTION = "drafts rounds"


class Verb(NamedTuple):
    """A verb of `python -m generate`: a function in generate/verbs.py.

    arguments, options: names in ARGUMENTS and OPTIONS. output: description of the output for the help.
    """

    summary: str
    arguments: str
    options: str
    output: str = 'Output: one sentence per line. As JSON: {"text"}.'
    header: str = ""  # names of the columns


VERBS = {
    SAMPLE: Verb("Sample new sentences.", "", f"{SAMPLING} {SOURCE} drafts unique condition batch_size"),
    "reconstruct": Verb("Encode each sentence and decode it again.", "sentences", f"file {CORRECTION} {DECODING}",
                        "Columns: BLEU (0 to 100), NLL of the sentence given its own outline (nats), reconstruction.\n"
                        'As JSON: {"text", "reconstruction", "bleu", "nll"}.', "BLEU\tNLL\treconstruction"),
    "interpolate": Verb("Interpolate between two sentences.", "a b", f"walk num/walk smoothness lm {CORRECTION} {DECODING}",
                        "Columns: walk, steps, NLL of A and of B given the step's outline (nats), sentence.\n"
                        "Consecutive steps with the same sentence share a line with their first and last NLLs.\n"
                        "As JSON: "
                        '{"walk", "step", "nll_a": [one per step], "nll_b": [one per step], "text"}.',
                        "walk\tsteps\tNLL of A\tNLL of B\tsentence"),
    "vary": Verb("Write variations of a sentence: decode outlines near its outline.", "sentence",
                 f"radius {CORRECTION} {SAMPLING}"),
    "analogy": Verb("Complete an analogy (A is to B as C is to ...): decode C + B - A.", "a b c",
                    f"{CORRECTION} {DECODING}"),
    "mean": Verb("Decode the mean outline of the sentences in a file.", "lines", f"{CORRECTION} {DECODING}"),
    "nearest": Verb("Find the training sentences with the nearest outlines.", "sentences",
                    "file num/nearest format out device",
                    "Output: each sentence, then its neighbours. Columns: cosine of the outlines, row of the training\n"
                    'sentence (from 0), training sentence. As JSON: {"text", "neighbours": [{"row", "cosine", "text"}]}.',
                    "cosine\trow\tsentence"),
    "complete": Verb("Complete a prefix: write sentences that start with it.", "beginning", f"like {SAMPLING} {SOURCE}"),
    "serve": Verb("Start a web page and a JSON interface.", "", "host port precision device", ""),
}
CONFLICTS = {"greedy": "temperature top_k top_p precision beam", "beam": "temperature top_k top_p precision",
             "like": SOURCE, "file": "sentences", "condition": "unique rejection best_of"}
"""Option → options that have no effect together with this option."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are OutlinesErrors of one line."""

    def error(self, message: str) -> Any:
        raise OutlinesError(f"{message.removeprefix('argument ')}. See `{self.prog} --help`.")


def _usage(verb: str) -> str:
    start = "[sample] [RUN]" if verb == SAMPLE else f"{verb} RUN"
    return " ".join([start, *(ARGUMENTS[name][0] for name in VERBS[verb].arguments.split())])


def _parser(verb: str) -> Parser:
    summary, arguments, options, output, _ = VERBS[verb]
    prog = "python -m generate"
    parser = Parser(prog=prog if verb == SAMPLE else f"{prog} {verb}", usage=f"{prog} {_usage(verb)} [options]",
                    allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
                    description=f"{summary}\n{output}".strip())
    if verb == SAMPLE:
        listed = "\n".join(f"  {_usage(name):31} {row.summary}" for name, row in VERBS.items())
        parser.usage = f"{prog} [VERB] [RUN] [options]"
        parser.description = ("Use a trained run. Without a verb: sample new sentences.\n\n"
                              f"  {prog} runs/001-outlines-default --num 5 --temperature 0.5\n\n"
                              f"verbs (each has its own --help):\n{listed}\n\nThe options below are for sampling.")
        parser.epilog = ("The same run, seed, options and device produce the same sentences. Without --condition, --num "
                         "only changes their number.")
    help = "a run's directory, such as runs/001-outlines-default; or english, the model that ships with the package"
    if verb == SAMPLE:  # The other verbs have further arguments, so they cannot have a default run.
        parser.add_argument("run", metavar="RUN", type=run_path, nargs="?", default=SHIPPED[ENGLISH],
                            help=f"{help} (default: english)")
    else:
        parser.add_argument("run", metavar="RUN", type=run_path, help=help)
    for name in arguments.split():
        metavar, help = ARGUMENTS[name]
        several = metavar.startswith("[")
        parser.add_argument(name, metavar=metavar.strip("[ .]"), help=help,
                            nargs="*" if several else None, default=[] if several else None)
    for title, group in OPTIONS.items():
        chosen = {name: option for name, option in group.items() if name in options.split()}
        section = parser.add_argument_group(title) if chosen and title != "options" else parser
        for name, option in chosen.items():
            option.add_to(section, name.partition("/")[0])
    return parser


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options in the arguments `[VERB] RUN ...`; the attribute `verb` is the verb. Raises OutlinesError."""
    verb, rest = (arguments[0], arguments[1:]) if arguments and arguments[0] in VERBS else (SAMPLE, arguments)
    if rest is arguments and arguments[1:] and arguments[1] in VERBS and not arguments[0].startswith("-"):
        raise OutlinesError(f"The verb comes first: python -m generate {arguments[1]} {quoted(arguments[0])} ...")
    parser = _parser(verb)
    options, surplus = parser.parse_known_args(rest)
    if unknown := [word.partition("=")[0] for word in surplus if word.startswith("--")]:
        name = unknown[0][2:].replace("-", "_")
        if owners := [other for other, row in VERBS.items()
                      if name in (option.partition("/")[0] for option in row.options.split())]:
            raise misplaced(unknown[0], "verb", "verbs", owners)
        raise unknown_name("option", unknown[0], parser._option_string_actions)
    if surplus and verb == SAMPLE and not options.run.exists():
        raise unknown_name("verb", arguments[0], VERBS)
    if surplus:
        parser.error(f"unexpected arguments: {' '.join(surplus)}")
    given = {name for name, value in vars(options).items() if value is not None and value != []}
    for name, useless in CONFLICTS.items():
        for other in useless.split():
            if {name, other} <= given:
                shown = "A SENTENCE argument" if other == "sentences" else f"--{other.replace('_', '-')}"
                raise OutlinesError(f"{shown} has no effect with --{name}. Remove one of them.")
    if "lm" in given and "smoothness" not in given:
        raise OutlinesError("--lm has no effect without --smoothness. Add --smoothness or remove --lm.")
    if "condition" in given and options.num is None:
        options.num = 1
    for name in VERBS[verb].options.split():
        if getattr(options, key := name.partition("/")[0]) is None:
            setattr(options, key, temperature_of(options.run) if key == "temperature" else BY_NAME[name].default)
    options.verb = verb
    return options
