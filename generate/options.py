"""The arguments of every verb; nothing here imports torch, so a mistyped one is answered at once."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from outlines.errors import OutlinesError
from outlines.options import unknown_name

SAMPLE = "sample"
EPILOG = """other verbs, each with a --help of its own:
  reconstruct RUN [SENTENCE ...]  sentence → outline → sentence, with BLEU and nll
  interpolate RUN A B             from one sentence to another, by four walks
  vary RUN SENTENCE               sentences near one outline
  analogy RUN A B C               A is to B as C is to …
  mean RUN FILE                   the sentence in the middle of many
  nearest RUN [SENTENCE ...]      the training sentences nearest to each
  complete RUN BEGINNING          sentences with a given beginning
  serve RUN                       a page for the browser, and the same as JSON

The same run, seed and device give the same sentences; sentence i is the same however many are asked for."""


class Parser(argparse.ArgumentParser):
    """Errors as this project says them: one line, status 2."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        options, surplus = self.parse_known_args(args, namespace)
        for word in surplus:
            if word.startswith("--"):
                raise unknown_name("option", word.partition("=")[0], self._option_string_actions)
        if surplus:
            self.error(f"unrecognized arguments: {' '.join(surplus)}")
        return options

    def error(self, message: str) -> Any:
        raise OutlinesError(f"{message} (see `{self.prog} --help`)")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of `[VERB] RUN …`, `verb` among them; raises OutlinesError."""
    verb = arguments[0] if arguments and arguments[0] in VERBS else SAMPLE
    rest = arguments[1:] if arguments and arguments[0] in VERBS else arguments
    description, add = VERBS[verb]
    parser = Parser(prog=f"python -m generate{'' if verb == SAMPLE else ' ' + verb}", description=description,
                    allow_abbrev=False)
    if verb == SAMPLE:
        parser.epilog, parser.formatter_class = EPILOG, argparse.RawDescriptionHelpFormatter
    parser.add_argument("run", metavar="RUN", type=Path, help="a run's directory, such as runs/001-outlines-default")
    add(parser)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto",
                        help="auto takes cuda, then mps, then cpu (default: auto)")
    options = parser.parse_args(rest)
    options.verb = verb
    if verb == SAMPLE and options.num is None:
        options.num = 1 if options.condition else 10
    _refuse_what_has_no_effect(options)
    return options


def _refuse_what_has_no_effect(options: argparse.Namespace) -> None:
    given = {name for name, value in vars(options).items() if value is not None and value is not False}
    for flag, useless in {"greedy": ("temperature", "top_k", "top_p", "precision", "beam"),
                          "beam": ("temperature", "top_k", "top_p", "precision"),
                          "like": ("source", "noise_scale", "rejection"), "file": ("sentences",),
                          "condition": ("unique", "rejection")}.items():
        for name in useless:
            if flag in given and name in given and getattr(options, name) != []:
                shown = "a sentence" if name == "sentences" else f"--{name.replace('_', '-')}"
                raise OutlinesError(f"{shown} has no effect with --{flag}: leave one of them out")
    if "lm" in given and "smoothness" not in given:
        raise OutlinesError("--lm has no effect without --smoothness: add it, or leave --lm out")
    for name in ("num", "batch_size"):
        if name in given and getattr(options, name) < 1:
            raise OutlinesError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(options, name)}")


def _writing(parser: Parser, of_a_line: str) -> None:
    parser.add_argument("--format", choices=("txt", "jsonl"), default="txt",
                        help=f"txt, or jsonl: an object {of_a_line} a line (default: txt)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write here instead of to the terminal")


def _drawing(parser: Parser) -> None:
    parser.add_argument("--num", type=int, default=10, help="sentences to write (default: 10)")
    parser.add_argument("--temperature", type=float, help="divides the decoder's logits; lower is safer (default: 0.7)")
    parser.add_argument("--top-k", type=int, help="choose among the k likeliest tokens (default: 0, among all)")
    parser.add_argument("--top-p", type=float, help="choose among the likeliest tokens that hold this probability "
                                                    "(default: 1, among all)")
    parser.add_argument("--greedy", action="store_true", help="always the likeliest token")
    parser.add_argument("--guidance", type=float, metavar="W",
                        help="weight of the outline where a token is chosen: 0 leaves it out, as a language model does; "
                             "below 1 sentences are likelier, above 1 closer to their outlines; of a run trained with "
                             "--outline-dropout (default: 1)")
    parser.add_argument("--seed", type=int, default=1, help="decides the noise (default: 1)")
    _precision(parser)
    parser.add_argument("--with-score", action="store_true",
                        help="before each sentence -log p(sentence | its outline), nats, by the decoder at temperature 1, "
                             "and the critic's score of the outline, where the family has a critic: without a unit, higher "
                             "is more like a real one, to be compared within a run alone")
    _decoding(parser, "the likeliest sentence that a search through this many prefixes at a time finds (default: sample)")


def _precision(parser: Parser) -> None:
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"),
                        help="of the matrix products by which tokens are drawn; auto takes bfloat16 where the processor is "
                             "faster with it; what is greedy, a beam's or a score is computed in float32 (default: auto)")


def _decoding(parser: Parser, beam: str = "beam search of this width (default: the likeliest token each time)") -> None:
    parser.add_argument("--beam", type=int, help=beam)
    parser.add_argument("--max-len", type=int, default=64, help="tokens after which a sentence is cut (default: 64)")


def _source(parser: Parser) -> None:
    parser.add_argument("--source", help="where outlines come from: generator, or a control: mixture, gaussian; of "
                                         "conditional: linear (default: the family's own)")
    parser.add_argument("--noise-scale", type=float, help="factor on the noise that outlines are made from; below 1 they "
                                                          "are likelier and less varied (default: 1)")
    parser.add_argument("--rejection", type=float, metavar="DRAWS",
                        help="outlines drawn, on average, for each that the critic keeps as like a real one, 1 to 100 "
                             "(default: 1, which keeps all)")


def _inputs(parser: Parser) -> None:
    parser.add_argument("sentences", nargs="*", metavar="SENTENCE", help="sentences; with none, one a line from --file, or "
                                                                         "from standard input; blank lines are passed over")
    parser.add_argument("--file", type=Path, help="sentences, one a line")


def _sample(parser: Parser) -> None:
    _drawing(parser)
    parser.add_argument("--unique", action="store_true", help="pass over a sentence that was written before; remembers a "
                                                              "digest of each")
    _source(parser)
    parser.set_defaults(num=None)
    parser.add_argument("--condition", type=Path, metavar="FILE",
                        help="with a run of the family conditional: write --num sentences (default: 1) for each line; of "
                             ".jsonl the fields condition and, if the run has labels, label; - reads standard input "
                             "(default: conditions of the training split)")
    parser.add_argument("--batch-size", type=int,
                        help="sentences decoded together; changes the speed alone (default: what suits the device)")
    _writing(parser, '{"text": …}, with --condition {"condition": …, "text": …}')


def _reconstruct(parser: Parser) -> None:
    _inputs(parser)
    _decoding(parser)
    _writing(parser, '{"text": …, "reconstruction": …, "bleu": …, "nll": …}')


def _interpolate(parser: Parser) -> None:
    parser.add_argument("start", metavar="A", help="the sentence to start from")
    parser.add_argument("end", metavar="B", help="the sentence to go to")
    parser.add_argument("--walk", choices=("linear", "spherical", "noise", "gradient", "all"), default="spherical",
                        help="linear or spherical between the outlines; spherical in the generator's noise; up the gradient "
                             "of log p(B | outline); or all that the run's family can make (default: spherical)")
    parser.add_argument("--num", type=int, default=21, help="outlines on the way, both ends included; a gradient walk's "
                                                            "first step is 1 / (num - 1) of the distance (default: 21)")
    parser.add_argument("--smoothness", action="store_true", help="after each walk the distances between its neighbours, "
                                                                  "encoded again, and the nll of its middle sentences")
    parser.add_argument("--lm", type=Path, metavar="RUN", help="a run of the family lm to judge the middle sentences "
                                                               "(default: the decoder, each under its own outline)")
    _decoding(parser)
    _writing(parser, '{"walk": …, "step": …, "nll_a": [one a step], "nll_b": […], "text": …}')


def _vary(parser: Parser) -> None:
    parser.add_argument("sentence", metavar="SENTENCE")
    parser.add_argument("--radius", type=float, default=0.4, help="how far from the sentence's outline, in the encoder's "
                        "units: of outlines of unit norm two unrelated ones are 1.4 apart (default: 0.4)")
    _drawing(parser)
    _writing(parser, '{"text": …}')


def _analogy(parser: Parser) -> None:
    for name, help in (("a", "A is to B"), ("b", "as"), ("c", "C is to what is written")):
        parser.add_argument(name, metavar=name.upper(), help=help)
    _decoding(parser)
    _writing(parser, '{"text": …}')


def _mean(parser: Parser) -> None:
    parser.add_argument("file", metavar="FILE", type=Path, help="sentences, one a line; - reads standard input")
    _decoding(parser)
    _writing(parser, '{"text": …}')


def _nearest(parser: Parser) -> None:
    _inputs(parser)
    parser.add_argument("--num", type=int, default=5, help="training sentences for each (default: 5)")
    _writing(parser, '{"text": …, "neighbours": [{"row": …, "cosine": …, "text": …}]}')


def _complete(parser: Parser) -> None:
    parser.add_argument("prefix", metavar="BEGINNING", help="how every sentence begins")
    parser.add_argument("--like", metavar="SENTENCE", help="under this sentence's outline (default: under sampled ones)")
    _drawing(parser)
    _source(parser)
    _writing(parser, '{"text": …}')


def _serve(parser: Parser) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; any but 127.0.0.1 lets others in "
                                                            "(default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen at; 0 takes a free one (default: 8000)")
    _precision(parser)


VERBS: dict[str, tuple[str, Callable[[Parser], None]]] = {
    SAMPLE: ("Write new sentences from a finished run.", _sample),
    "reconstruct": ("Sentence → outline → sentence. Each line: BLEU (0 to 100), nll of the sentence given its outline "
                    "(nats), what was made of it.", _reconstruct),
    "interpolate": ("From one sentence to another. Each line: walk, steps, nll of A, nll of B (nats; at the "
                    "first and the last of the steps), sentence. Steps that give one sentence are one line.", _interpolate),
    "vary": ("Write sentences near one sentence's outline.", _vary),
    "analogy": ("A is to B as C is to …: the sentence at C + B - A.", _analogy),
    "mean": ("Write the sentence at the mean of many sentences' outlines.", _mean),
    "nearest": ("The training sentences nearest to each sentence. Each line: cosine of the outlines, number of the training "
                "sentence counted from 0, sentence.", _nearest),
    "complete": ("Write sentences that begin as told.", _complete),
    "serve": ("Serve a page to sample, interpolate and look up neighbours in a browser, and the same as JSON.", _serve),
}
