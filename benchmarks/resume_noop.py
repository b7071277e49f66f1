"""What it costs to run a finished plan again: no teacher call, a few seconds, little memory.

The rival is the same command over a plan of a thousandth of the size: the difference is what the size of the
corpus costs. Each run is a process of its own, as a user starts it.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from distdata.catalogs.project import Project
from distdata.catalogs.protocol import Draw, MemberSpec, Request, TeacherInfo
from distdata.cycle.purchases import plan_purchase, save_purchase
from distdata.generate.run import generate
from distdata.projects import import_seed_file, init_project

from .report import emit, small, versions

BAR_S = 3.0
BAR_BYTES = 500e6
REPEATS = 5
PAYLOAD = np.arange(4, dtype=np.float32)
CONFIG = """
[project]
name = "noop"
salt = "noop"
[axes.part]
values = ["a", "b", "c", "d"]
[scenarios.one]
layer = "core"
[bands]
default = 0.1
[splits]
gate = 0
confirm = 0
[teacher]
kind = "python"
batch = 1024
gpu_s_per_draw = 1e-6
usd_per_gpuh = 1.0
[teacher.options]
class = "distdata.benchmarks.resume_noop:Counting"
calls = {calls}
[generate]
unit_draws = {unit_draws}
"""

RERUN = """
import atexit, re, sys
def say_peak():
    print(int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024, file=sys.stderr)
atexit.register(say_peak)
from distdata.cli import main
main()
"""


class Counting:
    """Answers with the same small array, and writes down every call."""

    def __init__(self, calls: str) -> None:
        self._calls = calls

    def describe(self) -> TeacherInfo:
        spec = MemberSpec(dtype="float32", shape=(4,))
        return TeacherInfo(id="counting", version="1", content_hash="0" * 16, kind="array", members={"x.npy": spec})

    def sample(self, requests: Sequence[Request]) -> Iterable[Draw]:
        with open(self._calls, "a") as f:
            f.write("call\n")
        return [Draw(seed_id=r.seed_id, k=r.k, members={"x.npy": PAYLOAD}, outcome="ok") for r in requests]


class Silent:
    """Shows no progress."""

    def begin(self, **_: Any) -> None: ...

    def advance(self, n_draws: int, n_failed: int, usd: float) -> None: ...

    def note(self, text: str) -> None: ...

    def end(self) -> None: ...


class Rerun(NamedTuple):
    """Seconds and peak memory of one more `distdata generate`."""

    wall_s: float
    peak_bytes: int


def main() -> None:
    n = 100_000 if small() else 1_000_000
    with tempfile.TemporaryDirectory() as folder:
        big, tiny = (_finished(Path(folder, f"p{size}"), size) for size in (n, n // 1000))
        before = _n_calls(big)
        runs = [(_rerun(big), _rerun(tiny)) for _ in range(REPEATS)]
        n_calls = _n_calls(big) - before
    ours = statistics.median(b.wall_s for b, _ in runs)
    rival = statistics.median(t.wall_s for _, t in runs)
    peak = max(b.peak_bytes for b, _ in runs)
    emit(
        "resume_noop",
        figure=ours,
        unit="s",
        rival=f"the same command over a finished plan of {n // 1000} draws",
        rival_figure=rival,
        ratio=statistics.median(b.wall_s / t.wall_s for b, t in runs),
        bar=f"at most {BAR_S:g} s, under {BAR_BYTES / 1e6:g} MB, no teacher call",
        met=ours <= BAR_S and peak < BAR_BYTES and n_calls == 0,
        sizes={
            "n_draws": n,
            "peak_bytes": peak,
            "n_teacher_calls": n_calls,
            "slowest_s": max(b.wall_s for b, _ in runs),
        },
        versions=versions("duckdb", "pyarrow", "polars"),
    )


def _finished(root: Path, n: int) -> Path:
    root.mkdir()
    preset = root / "preset.toml"
    preset.write_text(CONFIG.format(calls=json.dumps(str(root / "calls.log")), unit_draws=max(n // 100, 10)))
    init_project(root, str(preset))
    with open(root / "seeds.jsonl", "w") as f:
        for i in range(n):
            f.write(json.dumps({"seed_id": f"s{i:07d}", "part": "abcd"[i % 4], "scenario": "one"}) + "\n")
    project = Project.open(root)
    import_seed_file(project, root / "seeds.jsonl")
    save_purchase(project, plan_purchase(project, budget=f"{n}samples"))
    done = generate(project, Silent(), engine="inprocess")
    assert done.generated == n, f"{done.generated} of {n} draws"
    return root


def _n_calls(root: Path) -> int:
    return len((root / "calls.log").read_text().splitlines())


def _rerun(root: Path) -> Rerun:
    """Run the command line once more; the process tells its own peak, as wait4 would count its parent's too."""
    line = [sys.executable, "-c", RERUN, "generate", "--project", str(root), "--json"]
    start = time.perf_counter()
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    wall_s = time.perf_counter() - start
    said = json.loads(done.stdout)
    assert said["asked"] == 0, f"asked for {said['asked']} draws"
    assert said["generated"] == said["total"], f"{said['generated']} of {said['total']} draws"
    return Rerun(wall_s, int(done.stderr.splitlines()[-1]))


if __name__ == "__main__":
    main()
