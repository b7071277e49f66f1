"""Twenty processes log at once and are killed at random: what was acknowledged is ingested, once, and nothing torn."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from distdata.catalogs.codec import decode_member
from distdata.catalogs.project import Project
from distdata.catalogs.samples import read_stored
from distdata.catalogs.store import read
from distdata.generate.ingest.byproducts import ingest_byproduct
from distdata.generate.ingest.read_log import TornEnd, log_files, read_log

N_PROCESSES = 20
N_CALLS = 400
WORKER = Path(__file__).with_name("log_worker.py")


def test_every_call_that_returned_is_ingested_once(world: Any, project: Project, tmp_path: Path) -> None:
    """Of 20 processes, half killed at random: acknowledged answers are there exactly once, refused ones say why."""
    folder, rng = tmp_path / "log", random.Random(7)
    workers = [
        subprocess.Popen([sys.executable, str(WORKER), str(folder), str(i), str(N_CALLS)], stdout=subprocess.PIPE)
        for i in range(N_PROCESSES)
    ]
    while not folder.is_dir() or len(log_files(folder)) < N_PROCESSES // 2:
        time.sleep(0.01)
    doomed = rng.sample(range(N_PROCESSES), N_PROCESSES // 2)
    for i in doomed[: len(doomed) // 2]:
        time.sleep(rng.random() * 0.02)
        workers[i].kill()
    during = ingest_byproduct(project, [folder], kind="audit")  # while the others still write
    for i in doomed[len(doomed) // 2 :]:
        time.sleep(rng.random() * 0.02)
        workers[i].kill()
    acknowledged = {tuple(map(int, line.split())) for w in workers for line in w.communicate()[0].decode().splitlines()}
    after = ingest_byproduct(project, [folder], kind="audit")
    stored = Counter(_stored(project))

    assert len(acknowledged) > N_CALLS, "the processes got to log something"
    good = {(w, i) for w, i in acknowledged if i % 10 != 9}
    assert not good - stored.keys(), "every call that returned is there"
    assert set(stored.values()) == {1}, "exactly once"
    assert all(w < N_PROCESSES and i < N_CALLS and i % 10 != 9 for w, i in stored), "and nothing that nobody logged"
    assert len(stored) - len(good) <= N_PROCESSES, "at most one call a process was under way when it ended"
    assert during.n_taken + after.n_taken == len(stored)
    # what was refused is read again each time, in case it was put right: the second count is that of all
    wrong = {(w, i) for w, i in acknowledged if i % 10 == 9}
    assert set(after.refusals.groups) == {"another teacher"}
    assert len(wrong) <= after.refusals.n_rows <= len(wrong) + N_PROCESSES
    world.assert_rebuilds(project)


def _stored(project: Project) -> list[tuple[int, int]]:
    with read(project.catalog_path) as con:
        rows = con.execute('SELECT shard, "offset", n_bytes FROM samples_wide').fetchall()
    arrays = [decode_member("x.npy", read_stored(project.storage, *row)["x.npy"]) for row in rows]
    return [(int(x[0]), int(x[1])) for x in arrays if isinstance(x, np.ndarray)]


def test_a_torn_end_is_left_and_said(world: Any, project: Project, tmp_path: Path) -> None:
    """A record cut off anywhere is not taken, those before it are, and the ingest names the file and the byte."""
    folder = tmp_path / "log"
    subprocess.run([sys.executable, str(WORKER), str(folder), "3", "3"], check=True, stdout=subprocess.PIPE)
    (path,) = log_files(folder)
    data = path.read_bytes()
    starts = [r.start for r in read_log(path, 0, len(data)) if not isinstance(r, TornEnd)]
    path.write_bytes(data[: starts[2] + 100])
    done = ingest_byproduct(project, [folder], kind="audit")
    assert (done.n_rows, done.n_taken) == (2, 2)
    assert f"{path.name} at byte {starts[2]:,} (100 bytes)" in done.notes[0]
    path.write_bytes(data)  # the process was not dead: it went on writing
    again = ingest_byproduct(project, [folder], kind="audit")
    assert (again.n_rows, again.n_taken, again.notes) == (1, 1, [])
