"""Errors that a user can act on."""


class OutlinesError(Exception):
    """A user error. Its message is one line. The command lines print it without a traceback and exit with status 2."""


class CheckpointError(OutlinesError):
    """A file that this project wrote is missing, damaged or from another version."""


class TokenizerError(OutlinesError):
    """A tokenizer cannot be trained or loaded."""
