"""Errors that a user can act on."""


class OutlinesError(Exception):
    """A user error. The message is one line: where, the fact, the remedy.

    The command lines print it after `error: `, without a traceback, and exit with status 2.
    """


class CheckpointError(OutlinesError):
    """A file that this project wrote is missing, damaged or from another version."""


class TokenizerError(OutlinesError):
    """A tokenizer cannot be trained or loaded."""
