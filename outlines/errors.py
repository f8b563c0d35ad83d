"""Errors meant for people."""


class OutlinesError(Exception):
    """A mistake that a person can mend.

    The message is one line: what is wrong, where, what to do. The command lines print it after `error: `,
    without a traceback, and exit with status 2.
    """
