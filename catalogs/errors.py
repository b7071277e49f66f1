"""The one error a user meets, and the "did you mean" that goes with it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DistdataError(Exception):
    """Say what is wrong, where, with which numbers, and what to do about it.

    The command line prints it as one message and exits with 1; no traceback reaches the user.
    """


class BusyError(DistdataError):
    """Another process holds what is needed, for longer than a command may wait."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Name the closest known word: `` Did you mean 'rain'?``, or list what is known when none is close."""
    options = list(known)
    close = difflib.get_close_matches(word, options, n=1, cutoff=0.6)
    if close:
        return f" Did you mean {close[0]!r}?"
    shown = ", ".join(options[:12]) + (", ..." if len(options) > 12 else "")
    return f" Known: {shown}." if options else ""
