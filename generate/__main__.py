"""The command line of generation: `python -m generate RUN [options]`."""

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from outlines.errors import OutlinesError

EPILOG = "The same run, seed and device give the same sentences; sentence i is the same however many are asked for."


class Parser(argparse.ArgumentParser):
    """Errors as this project says them: one line, status 2."""

    def error(self, message: str) -> Any:
        raise OutlinesError(f"{message} (see `{self.prog} --help`)")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(prog="python -m generate", description="Write new sentences from a finished run.", epilog=EPILOG,
                    allow_abbrev=False)
    parser.add_argument("run", metavar="RUN", type=Path, help="a run's directory, such as runs/001-outlines-default")
    parser.add_argument("--num", type=int, default=10, help="sentences to write (default: 10)")
    parser.add_argument("--temperature", type=float, help="divides the decoder's logits; lower is safer (default: 0.7)")
    parser.add_argument("--top-k", type=int, help="choose among the k likeliest tokens (default: 0, among all)")
    parser.add_argument("--top-p", type=float, help="choose among the likeliest tokens that hold this probability "
                                                    "(default: 1, among all)")
    parser.add_argument("--greedy", action="store_true", help="always the likeliest token")
    parser.add_argument("--seed", type=int, default=1, help="decides the noise (default: 1)")
    parser.add_argument("--max-len", type=int, default=64, help="tokens after which a sentence is cut (default: 64)")
    parser.add_argument("--source", help="where outlines come from: generator, or a control: mixture, gaussian "
                                         "(default: the family's own)")
    parser.add_argument("--format", choices=("txt", "jsonl"), default="txt", help="a sentence a line, or an object "
                                                                                  "{\"text\": …} a line (default: txt)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write here instead of to the terminal")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto",
                        help="auto takes cuda, then mps, then cpu (default: auto)")
    options = parser.parse_args(arguments)
    if options.num < 1:
        raise OutlinesError(f"--num must be at least 1, not {options.num}")
    if options.greedy:
        for name in ("temperature", "top_k", "top_p"):
            if getattr(options, name) is not None:
                raise OutlinesError(f"--{name.replace('_', '-')} has no effect with --greedy: leave one of them out")
    return options


@contextlib.contextmanager
def output(path: Path | None) -> Iterator[IO[str]]:
    """Standard output, or a file that appears under its name only when it is whole."""
    if path is None:
        # Line by line, so that what a broken pipe or Ctrl-C leaves is whole lines.
        sys.stdout.reconfigure(line_buffering=True, encoding="utf-8")  # type: ignore[union-attr]
        yield sys.stdout
        return
    staging = path.with_name(path.name + ".part")
    try:
        with open(staging, "w", encoding="utf-8", newline="\n") as file:
            yield file
        os.replace(staging, path)
    except OSError as error:
        raise OutlinesError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        staging.unlink(missing_ok=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write sentences, and return the exit status."""
    try:
        options = parse(sys.argv[1:] if arguments is None else arguments)
        # Imported after the arguments are known to be good: a mistyped flag is answered at once.
        from generate.pipeline import load_pipeline, write_sentences
        from outlines.devices import choose_device
        from outlines.sampling import SamplingConfig
        temperature = 0.0 if options.greedy else 0.7 if options.temperature is None else options.temperature
        sampling = SamplingConfig(temperature, options.top_k or 0, 1.0 if options.top_p is None else options.top_p,
                                  options.max_len)
        pipeline = load_pipeline(options.run, choose_device(options.device))
        with output(options.out) as file:
            write_sentences(pipeline.sentences(options.num, options.seed, sampling, options.source), file,
                            options.format == "jsonl")
    except OutlinesError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader has gone; what it read is whole lines. Python must not try to flush the rest at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
