"""The command line of generation: `python -m generate [VERB] RUN [options]`; without a verb, new sentences."""

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from generate.options import SAMPLE, parse
from outlines.errors import OutlinesError


@contextlib.contextmanager
def output(path: Path | None) -> Iterator[IO[str]]:
    """Standard output, or a file that appears under its name only when it is whole."""
    if path is None:
        # Line by line, so that what a broken pipe or Ctrl-C leaves is whole lines.
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(line_buffering=True, encoding="utf-8")
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
    """Do what the verb says, and return the exit status."""
    try:
        options = parse(sys.argv[1:] if arguments is None else arguments)
        # Imported after the arguments are known to be good: a mistyped flag is answered at once.
        from generate.verbs import WRITERS, sampling_of
        from outlines.devices import choose_device
        from outlines.inference.pipeline import load_pipeline
        if hasattr(options, "beam"):
            sampling_of(options)  # for its errors, before the run is loaded
        pipeline = load_pipeline(options.run, choose_device(options.device), getattr(options, "precision", None) or "auto")
        if options.verb == "serve":
            from generate.server import serve
            serve(pipeline, options.host, options.port)
            return 0
        from tqdm import tqdm
        with output(options.out) as file:
            # A bar only where it does not run through the sentences themselves.
            quiet = options.verb != SAMPLE or not sys.stderr.isatty() or (file is sys.stdout and sys.stdout.isatty())
            lines = WRITERS[options.verb](pipeline, options)
            total = None if getattr(options, "condition", None) else getattr(options, "num", None)
            for line in tqdm(lines, total=total, unit=" sentences", file=sys.stderr, disable=quiet):
                file.write((json.dumps(line.data, ensure_ascii=False) if options.format == "jsonl" else line.text) + "\n")
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
