"""Named points at which the outside world changes, so that a test can stop the program at each.

Crash safety is proved by enumeration: every write, fsync, rename and commit announces itself here, and
the crash tests kill the process at each announcement and at pairs of them.
"""

from __future__ import annotations

from collections.abc import Callable

_observer: Callable[[str], None] | None = None


def effect(name: str) -> None:
    """Announce that the effect `name` (``shard.fsync``) has just happened. Costs nothing outside tests."""
    if _observer is not None:
        _observer(name)


def observe(observer: Callable[[str], None] | None) -> None:
    """Install (or with None remove) the function that hears every effect of this process."""
    global _observer
    _observer = observer
