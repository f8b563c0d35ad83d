"""The command line: `python -m generate [VERB] RUN [options]`. Without a verb, it samples new sentences."""

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import outlines
from generate.options import SAMPLE, VERBS, parse
from outlines.errors import OutlinesError, memory_advice
from outlines.terminal import closed_pipe, prepare_stdout


@contextlib.contextmanager
def output(path: Path | None) -> Iterator[IO[str]]:
    """Yield standard output, or a temporary file that is renamed to `path` when the block ends without an error."""
    if path is None:
        yield sys.stdout
        return
    staging = Path(f"{path}.part")
    try:
        with open(staging, "w", encoding="utf-8", newline="\n") as file:
            yield file
        os.replace(staging, path)
    except OSError as error:
        raise OutlinesError(f"{path}: cannot be written ({error.strerror}). Choose another --out.") from error
    finally:
        staging.unlink(missing_ok=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb and return the exit status."""
    prepare_stdout()
    try:
        options = parse(sys.argv[1:] if arguments is None else arguments)
        # Imported after parsing, because the import of torch takes a second and wrong arguments are reported at once.
        from tqdm import tqdm

        from generate import verbs
        verbs.sampling_of(options)  # reports wrong values before the run is loaded
        lower = "".join(f" or lower --{name.replace('_', '-')}" for name in ("batch_size", "num", "beam") if name in options)
        with memory_advice(f"Use --device cpu{lower}."), output(getattr(options, "out", None)) as file:
            pipeline = outlines.load(options.run, options.device, getattr(options, "precision", "float32"))
            if "max_len" in options:
                options.max_len = options.max_len or pipeline.max_len
            # No progress bar in the same terminal as the sentences.
            few = options.verb not in (SAMPLE, "reconstruct", "vary")
            quiet = few or not sys.stderr.isatty() or (file is sys.stdout and sys.stdout.isatty())
            total = None if getattr(options, "condition", None) else getattr(options, "num", None)
            lines = getattr(verbs, options.verb)(pipeline, options)
            as_json = getattr(options, "format", "txt") == "jsonl"
            header = "" if as_json else VERBS[options.verb].header
            for number, (text, data) in enumerate(tqdm(lines, total=total, unit=" sentences", disable=quiet)):
                if header and not number:
                    print(header, file=sys.stderr)  # stdout has only the results
                file.write((json.dumps(data, ensure_ascii=False) if as_json else text) + "\n")
        if pipeline.num_unread:
            print(f"Sentences that the encoder cannot read to their end: {pipeline.num_unread:,}. Do not trust the result.",
                  file=sys.stderr)
        if pipeline.num_cut:
            print(f"Sentences cut at {options.max_len} tokens: {pipeline.num_cut:,}. Raise --max-len.", file=sys.stderr)
    except OutlinesError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return closed_pipe()
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
