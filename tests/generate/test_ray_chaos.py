"""Chaos under Ray: drivers and workers killed at random; what comes out is what would have come without it."""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

MARK = "DISTDATA_CHAOS_TEST"
BATCH = 4
WORKERS = 2
FORMS = [
    pytest.param(3, 400, id="quick"),
    pytest.param(40, 4000, id="40-kills", marks=pytest.mark.prove),
]


class Session:
    """The processes of one test: every one of them inherits a mark in its environment, and so is found again."""

    def __init__(self) -> None:
        self.mark = secrets.token_hex(8)
        self.env = {**os.environ, MARK: self.mark}

    def processes(self) -> dict[int, str]:
        """Return the living processes with the mark: id -> command line."""
        found = {}
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                with contextlib.suppress(OSError):
                    if f"{MARK}={self.mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                        found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        return found

    def workers(self) -> list[int]:
        """Return the ids of the actors that make units (Ray renames its processes)."""
        return sorted(pid for pid, line in self.processes().items() if line.startswith("ray::") and "IDLE" not in line)

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
    targets = [("driver", "worker", "both")[i % 3] for i in range(n_kills)]
    chance.shuffle(targets)
    line = tiny.command_line(project, "generate", "--engine", "ray", "--workers", str(WORKERS))
    driver: subprocess.Popen[bytes] | None = None
    n_in_flight = 0
    with open(tmp_path / "driver.log", "ab") as log:
        for target in targets:
            if driver is None or driver.poll() is not None:
                driver = subprocess.Popen(line, env=session.env, stdout=log, stderr=log)
            _wait_for_answers(tiny, project, driver, tmp_path / "driver.log")
            time.sleep(chance.uniform(0.0, 1.0))
            workers = session.workers()
            assert driver.poll() is None, f"the plan ended before its kill: {(tmp_path / 'driver.log').read_text()}"
            assert workers, f"no worker to kill among {session.processes()}"
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
        done = tiny.command(project, "generate", "--engine", "ray", "--workers", str(WORKERS), env=session.env, timeout=600)
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


def _wait_until_gone(session: Session) -> None:
    """Wait for Ray to notice its driver's death: an instance of its own leaves nothing running."""
    deadline = time.monotonic() + 60
    while left := session.processes():
        assert time.monotonic() < deadline, f"still there 60 s after their driver: {left}"
        time.sleep(0.1)
