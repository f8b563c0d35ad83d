"""`python -m train [VERB]`: choose the command, and turn errors and signals into an exit status."""

import sys
from collections.abc import Sequence
from pathlib import Path

from outlines.errors import OutlinesError, memory_advice
from outlines.terminal import closed_pipe, prepare_stdout
from train.commands import ablate, evaluate, train
from train.runtime.ranks import leave
from train.runtime.signals import Stopped, StopSignals

VERBS = {"evaluate": evaluate.run, "ablate": ablate.run}
"""command by first argument; any other first argument is a family, a preset, `compare` or an option of training"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    verb = arguments[0] if arguments and arguments[0] in VERBS else ""
    prepare_stdout()
    with StopSignals() as signals:
        try:
            for word in arguments:
                if any("\udc80" <= character <= "\udcff" for character in word) and not Path(word).is_file():
                    raise OutlinesError(f"{word!r} is not UTF-8, which TensorBoard needs. Choose another name.")
            lower = {"": " (with --resume, too), or lower --num-evaluation", "evaluate": ", or lower --num-samples"}
            with memory_advice(f"Free memory, use --device cpu{lower.get(verb, '')}."):
                VERBS.get(verb, train.run)(arguments[1:] if verb else arguments, signals)
        except OutlinesError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except Stopped as stopped:
            advice = "repeat the command to continue" if verb else stopped.advice
            print(f"{stopped}: {advice}", file=sys.stderr)
            return stopped.exit_status
        except BrokenPipeError:
            return closed_pipe()  # the report is already on disk
        except OSError as error:  # For example a full disk. Checkpoints and reports are written atomically.
            print(f"error: {f'{error.filename}: ' if error.filename else ''}{error.strerror or error}", file=sys.stderr)
            return 2
        finally:
            leave()
    return 0


if __name__ == "__main__":
    sys.exit(main())
