"""Chaos under Ray: drivers and workers killed at random; what comes out is what would have come without it."""

from __future__ import annotations

import contextlib
import os
import random
import re
import secrets
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

MARK = "DISTDATA_CHAOS_TEST"
BATCH = 4
WORKERS = 2
FORMS = [
    pytest.param(3, 400, id="quick"),
    pytest.param(40, 4000, id="40-kills", marks=pytest.mark.prove),
]


class Process(NamedTuple):
    """A process, told from a later one with the same id by when it started."""

    pid: int
    started: int


class Session:
    """The processes of one test: those with its mark in their environment, and all that these have started.

    (Ray's workers overwrite their own environment when they change their title.)
    """

    def __init__(self) -> None:
        self.mark = secrets.token_hex(8)
        self.env = {**os.environ, MARK: self.mark}
        self._seen: set[Process] = set()

    def processes(self) -> dict[int, str]:
        """Return the living processes of this test: id -> command line."""
        lines: dict[Process, str] = {}
        parents: dict[Process, int] = {}
        for folder in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                process = Process(int(folder.name), int(fields[19]))
                if fields[0] == "Z":
                    continue
                parents[process] = int(fields[1])
                lines[process] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                if f"{MARK}={self.mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                    self._seen.add(process)
        while more := {p for p, parent in parents.items() if parent in {s.pid for s in self._seen}} - self._seen:
            self._seen |= more
        self._seen &= set(lines)
        return {p.pid: lines[p] for p in self._seen}

    def workers(self) -> list[int]:
        """Return the ids of Ray's workers that make units (Ray renames its processes by what they run)."""
        return sorted(pid for pid, line in self.processes().items() if re.match(r"ray::(MapWorker|ask)", line))

    def end(self) -> None:
        """Kill what is left of this test, and nothing else."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def session() -> Iterator[Session]:
    """Hand out the means to find this test's processes; none of them outlives it."""
    here = Session()
    yield here
    here.end()


@pytest.mark.parametrize(("n_kills", "n_draws"), FORMS)
def test_random_kills(n_kills: int, n_draws: int, session: Session, tiny: Any, tmp_path: Path) -> None:
    """After random SIGKILLs of driver, worker or both, resuming ends in the uninterrupted run's corpus."""
    options = {"n_draws": n_draws, "batch": BATCH, "unit_draws": 16, "joint": True, "sleep_s": 0.02}
    project = tiny.build(tmp_path / "p", **options)
    whole = tiny.build(tmp_path / "whole", **{**options, "sleep_s": 0.0})
    tiny.run(whole)
    shards = tiny.shards(whole)

    chance = random.Random(n_kills)
    targets = [("worker", "driver", "both")[i % 3] for i in range(n_kills)]
    line = tiny.command_line(project, "generate", "--engine", "ray", "--workers", str(WORKERS))
    driver: subprocess.Popen[bytes] | None = None
    n_in_flight = 0
    with open(tmp_path / "driver.log", "ab") as log:
        for target in targets:
            if driver is None or driver.poll() is not None:
                driver = subprocess.Popen(line, env=session.env, stdout=log, stderr=log)
            _wait_for_answers(tiny, project, driver, tmp_path / "driver.log")
            time.sleep(chance.uniform(0.0, 1.0))
            workers = _wait_for_workers(session)
            assert driver.poll() is None, "the plan ended before its kill"
            # a killed driver takes its workers along, each with a micro-batch in flight
            n_in_flight += BATCH * (1 if target == "worker" else WORKERS)
            if target in ("worker", "both"):
                os.kill(chance.choice(workers), signal.SIGKILL)
            if target in ("driver", "both"):
                driver.kill()
                driver.wait()
                _wait_until_gone(session)
        if driver is not None:
            driver.wait(timeout=600)
    for _ in range(3):  # a worker that was killed twice over one unit leaves it to the next run
        done = subprocess.run(line, env=session.env, capture_output=True, text=True, check=False, timeout=600)
        if done.returncode == 0:
            break
    assert done.returncode == 0, done.stderr
    _wait_until_gone(session)
    tiny.run(project)  # cleans up after the last run's own dead workers, and has nothing to make
    tiny.assert_whole(project, shards, 1, n_in_flight)
    n_asked = len(tiny.calls(project))
    assert n_draws <= n_asked <= n_draws + n_in_flight, "only what was in flight is asked for again"


def _wait_for_answers(tiny: Any, project: Any, driver: subprocess.Popen[bytes], log: Path) -> None:
    n_before = len(tiny.calls(project))
    deadline = time.monotonic() + 120
    while len(tiny.calls(project)) < n_before + BATCH:
        assert driver.poll() is None, f"the driver ended by itself: {log.read_text()}"
        assert time.monotonic() < deadline, f"no answer within 120 s: {log.read_text()}"
        time.sleep(0.05)


def _wait_for_workers(session: Session) -> list[int]:
    """Return the living workers; between the probe and the first units there are none for a moment."""
    deadline = time.monotonic() + 60
    while not (workers := session.workers()):
        assert time.monotonic() < deadline, f"no worker within 60 s among {session.processes()}"
        time.sleep(0.02)
    return workers


def _wait_until_gone(session: Session) -> None:
    """Wait for Ray to notice its driver's death: nothing is left running but its agents, which take a minute more."""
    deadline = time.monotonic() + 60
    while left := [line for line in session.processes().values() if not re.match(r"ray::\w+Agent", line)]:
        assert time.monotonic() < deadline, f"still there 60 s after their driver: {left}"
        time.sleep(0.1)
