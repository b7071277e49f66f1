"""Start the command line for its help text, against the bare import of the library that parses it."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from .report import emit, small, versions

BAR_S = 0.3
OURS = [sys.executable, "-c", "import sys; sys.argv = ['distdata', '--help']; from distdata.cli import run; run()"]
RIVAL = [sys.executable, "-c", "import typer"]
BARE = [sys.executable, "-c", "pass"]


def main() -> None:
    repeats = 3 if small() else 7
    for command in (OURS, RIVAL, BARE):
        _seconds(command)  # the first start reads files from the disk and compiles them
    rows = [(_seconds(OURS), _seconds(RIVAL), _seconds(BARE)) for _ in range(repeats)]
    ours, rival, bare = (statistics.median(column) for column in zip(*rows, strict=True))
    emit(
        "cli_start",
        figure=ours,
        unit="s",
        rival="python -c 'import typer'",
        rival_figure=rival,
        ratio=statistics.median(r / o for o, r, _ in rows),
        bar=f"distdata --help in at most {BAR_S} s, median of {repeats}",
        met=ours <= BAR_S,
        sizes={"repeats": repeats},
        versions=versions("typer"),
        bare_python_s=bare,
        slowest_s=max(o for o, *_ in rows),
    )


def _seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start
