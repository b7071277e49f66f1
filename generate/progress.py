"""Show a run to a person: a live bar on a terminal, a plain line every few seconds elsewhere; all on stderr."""

from __future__ import annotations

import os
import sys
import time
from typing import Any, TextIO

from ..catalogs.tables import count, duration, usd

PLAIN_EVERY_S = 5.0


class ShowProgress:
    """Tell stderr how a run goes: draws, draws per second, spend, failures and the time left."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._out = stream or _own_stderr()
        self._live: Any = None
        self._start = self._last = time.monotonic()
        self._total = self._done = self._fresh = self._failed = 0
        self._usd = self._usd_expected = 0.0

    def begin(self, *, plan_id: str, total: int, done: int, engine: str, workers: int, usd_expected: float) -> None:
        """Say what is about to happen."""
        self._start = self._last = time.monotonic()
        self._total, self._done, self._usd_expected = total, done, usd_expected
        self._fresh = self._failed = 0  # one reporter may hear of several runs
        self._usd = 0.0
        where = "in this process" if engine == "inprocess" else f"on Ray, {workers} workers"
        kept = f", {count(done)} already there" if done else ""
        self.note(f"plan {plan_id}: {count(total - done)} draws to make{kept}, {where}, about {usd(usd_expected)}")
        if self._out.isatty():
            self._live = _bar(self._out, total, done)

    def advance(self, n_draws: int, n_failed: int, usd: float) -> None:
        """Move on by `n_draws`."""
        self._done += n_draws
        self._fresh += n_draws
        self._failed += n_failed
        self._usd += usd
        if self._live is not None:
            self._live.update(0, completed=self._done, said=self._said())
        elif time.monotonic() - self._last >= PLAIN_EVERY_S:
            self._last = time.monotonic()
            self.note(f"  {count(self._done)} of {count(self._total)} draws  {self._said()}")

    def _said(self) -> str:
        elapsed = max(time.monotonic() - self._start, 1e-9)
        rate = self._fresh / elapsed
        left = duration((self._total - self._done) / rate) if rate > 0 else "?"
        failed = f"  {count(self._failed)} failed" if self._failed else ""
        return f"{rate:,.0f} draws/s  {usd(self._usd)} spent  {left} left{failed}"

    def note(self, text: str) -> None:
        """Print a line."""
        print(text, file=self._out, flush=True)

    def end(self) -> None:
        """Take the bar down and leave the last figures."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        elapsed = time.monotonic() - self._start
        failed = f", {count(self._failed)} failed" if self._failed else ""
        rate = f" ({self._fresh / elapsed:,.0f}/s)" if elapsed > 0 else ""
        self.note(f"made {count(self._fresh)} draws in {duration(elapsed)}{rate}, {usd(self._usd)} spent{failed}")


def _own_stderr() -> TextIO:
    """Return stderr under a descriptor of its own, which stays while the Ray engine turns descriptor 2 away."""
    try:
        if sys.stderr.fileno() == 2:
            return open(os.dup(2), "w", encoding="utf-8", errors="replace", buffering=1)
    except (OSError, ValueError):
        pass  # no real stderr (under a test's capture): what stands in for it will do
    return sys.stderr


def _bar(out: TextIO, total: int, done: int) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn

    live = Progress(
        TextColumn("draws"), BarColumn(), MofNCompleteColumn(), TaskProgressColumn(), TextColumn("{task.fields[said]}"),
        console=Console(file=out), transient=True,
    )  # fmt: skip
    live.start()
    live.add_task("draws", total=total, completed=done, said="")
    return live
