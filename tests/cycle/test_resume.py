"""A cycle that is stopped anywhere and started again comes to what it would have come to: gates, causes, purchases."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from distdata.catalogs.project import Project
from distdata.cycle import diagnosis, loop
from distdata.cycle.loop import run_cycle

STAGES = {
    loop: ("plan_purchase", "save_purchase", "generate", "curate", "train_student", "gate_student", "diagnose",
           "refresh", "promote"),
    diagnosis: ("train_like", "gate_student"),
}  # fmt: skip
BUDGETS = {"easy": "800samples", "starved": "384samples"}
N_KILLS = 20


def outcome(project: Project, tiny: Any) -> dict[str, list[Any]]:
    """Return all that must not depend on where a cycle was stopped: ids, verdicts, causes, purchases, routes."""
    queries = {
        "gates": "SELECT gate_id, student_id, split, role, candidate, alpha, verdict FROM gates ORDER BY gate_id",
        "rows": """SELECT gate_id, slice, metric, contrast, estimate, low, high, r.verdict FROM gate_rows r
            JOIN gates g USING (gate_no) ORDER BY 1, 2, 3, 4""",
        "causes": "SELECT gate_id, slice, cause, evidence FROM causes ORDER BY 1, 2",
        "plans": "SELECT plan_id, purpose, n_draws FROM plans ORDER BY 1",
        "spend": "SELECT purpose, sum(generated), round(sum(known_usd), 6) FROM spend_by_cell GROUP BY 1 ORDER BY 1",
        "students": "SELECT student_id, role, seed FROM students ORDER BY 1",
        "promotions": "SELECT student_id, stage FROM promotions ORDER BY event",
        "routing": "SELECT slice, student_id, share, fallback, reason FROM routing ORDER BY 1",
    }
    return {name: tiny.sql(project, query) for name, query in queries.items()}


class Stops:
    """Wraps the stages and raises KeyboardInterrupt before or after a call, at each boundary that `wanted` picks.

    A boundary is (place, stage, which call of it, before or after); the calls are counted from the start of a run.
    """

    def __init__(self, wanted: Callable[[tuple[Any, ...]], bool]) -> None:
        self._wanted, self._calls = wanted, {}  # type: ignore[var-annotated]
        self.seen: list[tuple[Any, ...]] = []

    @contextmanager
    def there(self) -> Iterator[None]:
        self._calls = {}
        with pytest.MonkeyPatch.context() as patch:
            for module, names in STAGES.items():
                for name in names:
                    patch.setattr(
                        module, name, self._wrap(module.__name__.rpartition(".")[2], name, getattr(module, name))
                    )
            yield

    def _wrap(self, place: str, name: str, stage: Callable[..., Any]) -> Callable[..., Any]:
        def stopping(*args: Any, **how: Any) -> Any:
            n = self._calls[place, name] = self._calls.get((place, name), 0) + 1
            self._pass((place, name, n, "before"))
            answer = stage(*args, **how)
            self._pass((place, name, n, "after"))
            return answer

        return stopping

    def _pass(self, boundary: tuple[Any, ...]) -> None:
        self.seen.append(boundary)
        if self._wanted(boundary):
            raise KeyboardInterrupt(str(boundary))


def cycle(project: Project, heard: Any, world: str) -> None:
    run_cycle(project, heard, heard, heard, budget=BUDGETS[world])


def stop(project: Project, heard: Any, world: str, boundary: tuple[Any, ...]) -> None:
    """Run a cycle and stop it at this boundary."""
    stops = Stops(lambda b: b == boundary)
    with stops.there(), pytest.raises(KeyboardInterrupt):
        cycle(project, heard, world)


def test_three_stops_and_a_kill_change_nothing(worlds: Any, tiny: Any, heard: Any, tmp_path: Path) -> None:
    """Stopped after its first plan, killed while it trains, stopped after its gate and amid promotions: the same end.

    The reference is an uninterrupted run in another folder, so nothing depends on where a project lies either.
    """
    project = worlds.raw(tmp_path / "p", **worlds.WORLDS["easy"])
    stop(project, heard, "easy", ("loop", "save_purchase", 1, "after"))
    assert kill_once_there(tiny, project, "easy", lambda: any(project.students_dir.rglob("*")), 0.0)
    stop(project, heard, "easy", ("loop", "gate_student", 1, "after"))
    stop(project, heard, "easy", ("loop", "promote", 2, "before"))
    cycle(project, heard, "easy")
    assert outcome(project, tiny) == outcome(worlds.easy(tmp_path / "whole"), tiny)
    assert tiny.rebuilt_tables(project) == tiny.tables(project)
    tiny.assert_tidy(project)


AMID = [
    ("loop", "gate_student", 1, "after"),
    pytest.param(("loop", "save_purchase", 1, "after"), marks=pytest.mark.prove),
    pytest.param(("loop", "save_purchase", 2, "before"), marks=pytest.mark.prove),
    pytest.param(("loop", "train_student", 1, "before"), marks=pytest.mark.prove),
    pytest.param(("loop", "train_student", 1, "after"), marks=pytest.mark.prove),
    pytest.param(("loop", "gate_student", 2, "before"), marks=pytest.mark.prove),
    pytest.param(("loop", "gate_student", 2, "after"), marks=pytest.mark.prove),
    pytest.param(("loop", "promote", 1, "after"), marks=pytest.mark.prove),
]


@pytest.mark.parametrize("boundary", AMID, ids=lambda b: "-".join(map(str, b[1:])))
def test_a_release_amid_a_cycle_meets_no_old_student(
    boundary: tuple[Any, ...], worlds: Any, heard: Any, tiny: Any, tmp_path: Path
) -> None:
    """A teacher version that comes out while a cycle is stopped gets draws, a student and gates, all of its own.

    No gate ever compares one version's student with another's draws, and what the old version's gates said promotes
    nothing once the new one is there.
    """
    project = worlds.raw(tmp_path / "p", **worlds.WORLDS["easy"])
    stop(project, heard, "easy", boundary)
    promoted = tiny.sql(project, "SELECT student_id, stage FROM promotions ORDER BY event")
    new = worlds.new_teacher(project, released="2026-01-05")
    done = run_cycle(new, heard, heard, heard, budget=BUDGETS["easy"])
    assert done.ended == "promoted", done.reason
    foreign = "SELECT gate_id FROM gates g JOIN students s USING (student_id) WHERE g.teacher_hash <> s.teacher_hash"
    assert tiny.sql(new, foreign) == []
    (info,) = tiny.sql(new, f"SELECT teacher_hash FROM students WHERE student_id = '{done.student_id}'")
    mine = tiny.sql(new, f"SELECT split, candidate FROM gates WHERE teacher_hash = '{info[0]}' ORDER BY gate_no")
    assert mine == [("gate", 1), ("confirm", 1)]
    later = tiny.sql(new, "SELECT student_id, stage FROM promotions ORDER BY event")[len(promoted) :]
    assert {student for student, _ in later} == {done.student_id}


def test_other_terms_amid_a_cycle_get_another_candidate(worlds: Any, heard: Any, tiny: Any, tmp_path: Path) -> None:
    """A student that was judged on other metrics has no look left: the cycle trains another and goes on by itself."""
    project = worlds.raw(tmp_path / "p", **worlds.WORLDS["easy"])
    stop(project, heard, "easy", ("loop", "gate_student", 1, "after"))
    changed = worlds.edit(project, 'metrics = ["outcome", "distance"]', 'metrics = ["outcome"]')
    done = run_cycle(changed, heard, heard, heard, budget=BUDGETS["easy"])
    assert done.ended == "promoted", done.reason
    turns = tiny.sql(changed, "SELECT split, candidate FROM gates WHERE role = 'candidate' ORDER BY gate_no")
    assert turns == [("gate", 1), ("gate", 2), ("confirm", 1)]


def test_draws_that_a_student_never_answers_call_a_person(worlds: Any, heard: Any, tiny: Any, tmp_path: Path) -> None:
    """One gate draw that the student fails twice: nothing is explained, bought or promoted, and the reason says why."""
    project = worlds.raw(tmp_path / "p", **worlds.WORLDS["easy"])
    stop(project, heard, "easy", ("loop", "train_student", 1, "after"))
    ((seed,),) = tiny.sql(project, "SELECT min(seed_id) FROM samples WHERE split = 'gate'")
    path = project.root / "two_modes.py"
    whole, empty = path.read_text(), "REFUSED: frozenset[tuple[str, int]] = frozenset()"
    assert empty in whole
    path.write_text(whole.replace(empty, f"REFUSED = {{({seed!r}, 3)}}"))
    sys.modules.pop("two_modes", None)
    done = run_cycle(project, heard, heard, heard, budget=BUDGETS["easy"])
    sys.modules.pop("two_modes", None)
    assert (done.ended, done.turns) == ("paged", 1)
    assert "left 1 of the gate's draws unanswered, twice" in done.reason
    assert tiny.sql(project, "SELECT count(*) FROM promotions") == [(0,)]
    assert tiny.sql(project, "SELECT count(*) FROM students WHERE role = 'probe'") == [(0,)]


@pytest.mark.prove
def test_every_boundary_alone(worlds: Any, tiny: Any, heard: Any, tmp_path: Path) -> None:
    """Stopped at one boundary of the easy cycle, for each there is, it comes to the same end."""
    whole = outcome(worlds.easy(tmp_path / "whole"), tiny)
    boundaries = record(worlds, heard, tmp_path / "recorded", "easy")
    assert len(boundaries) > 25
    for i, boundary in enumerate(boundaries):
        project = worlds.raw(tmp_path / f"p{i}", **worlds.WORLDS["easy"])
        stop(project, heard, "easy", boundary)
        cycle(project, heard, "easy")
        assert outcome(project, tiny) == whole, boundary


@pytest.mark.prove
def test_every_boundary_of_a_refresh(worlds: Any, tiny: Any, heard: Any, tmp_path: Path) -> None:
    """One project is stopped at every boundary that a cycle with diagnosis and refresh passes, one after the other.

    Each start goes on until the first boundary at which none before it was stopped, named by how far the catalog is.
    """
    reference = worlds.raw(tmp_path / "whole", **worlds.WORLDS["starved"])
    cycle(reference, heard, "starved")
    whole = outcome(reference, tiny)
    assert whole["causes"]
    assert len([p for p in whole["plans"] if p[1] == "train"]) > 1
    boundaries = record(worlds, heard, tmp_path / "recorded", "starved")
    project = worlds.raw(tmp_path / "p", **worlds.WORLDS["starved"])
    done: set[tuple[Any, ...]] = set()

    def fresh(boundary: tuple[Any, ...]) -> bool:
        n_events = len(list(project.events_dir.glob("0*")))
        key = (*boundary[:2], boundary[3], n_events)
        if key in done:
            return False
        done.add(key)
        return True

    for n_stops in range(10 * len(boundaries)):  # noqa: B007  # told below
        stops = Stops(fresh)
        try:
            with stops.there():
                cycle(project, heard, "starved")
        except KeyboardInterrupt:
            continue
        break
    assert n_stops > len(boundaries) / 2
    assert {b[:2] for b in boundaries} == {d[:2] for d in done}
    assert outcome(project, tiny) == whole


@pytest.mark.prove
def test_twenty_kills_at_random_moments(worlds: Any, tiny: Any, heard: Any, tmp_path: Path) -> None:
    """Killed at twenty random moments of cycles with a refresh, a few to a project, each comes to the same end."""
    reference = worlds.raw(tmp_path / "whole", **worlds.WORLDS["starved"])
    cycle(reference, heard, "starved")
    whole = outcome(reference, tiny)
    n_events = len(list(reference.events_dir.glob("0*")))
    rng = random.Random(20)
    n_kills = n_projects = 0
    while n_kills < N_KILLS:
        project = worlds.raw(tmp_path / f"p{n_projects}", **worlds.WORLDS["starved"])
        n_projects += 1
        for target in sorted(rng.randrange(3, n_events) for _ in range(5)):
            n_kills += kill_once_there(tiny, project, "starved", has_events(project, target), rng.uniform(0, 1.5))
        finish(tiny, project, "starved")
        assert outcome(project, tiny) == whole, n_projects
        tiny.assert_tidy(project)


@pytest.mark.prove
def test_the_tenth_cycle_is_the_same_command(worlds: Any, tiny: Any, heard: Any, tmp_path: Path) -> None:
    """Ten teacher versions, one command each: every one ends with a student of its own and nothing of the others'."""
    project = worlds.easy(tmp_path / "p")
    served = {outcome(project, tiny)["routing"][0][1]}
    path = project.root / "distdata.toml"
    plain = path.read_text().rstrip()
    for version in range(2, 11):
        path.write_text(f'{plain}\nversion = "{version}"\n')
        done = run_cycle(Project.open(project.root), heard, heard, heard)
        assert done.ended in ("promoted", "paged")
        if done.ended == "promoted":
            assert done.student_id not in served
            served.add(done.student_id)
    assert len(served) > 5
    assert tiny.rebuilt_tables(project) == tiny.tables(project)


def record(worlds: Any, heard: Any, root: Path, world: str) -> list[tuple[Any, ...]]:
    """Return the boundaries that an uninterrupted run passes, in order."""
    stops = Stops(lambda _: False)
    with stops.there():
        cycle(worlds.raw(root, **worlds.WORLDS[world]), heard, world)
    return stops.seen


def command(tiny: Any, project: Project, world: str) -> subprocess.Popen[str]:
    line = tiny.command_line(project, "cycle", "--budget", BUDGETS[world])
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)


def kill_once_there(tiny: Any, project: Project, world: str, there: Callable[[], bool], later_s: float) -> int:
    """Start the command and kill it once `there` holds, `later_s` later; return 1, or 0 where it ended before."""
    with command(tiny, project, world) as process:
        while process.poll() is None and not there():
            time.sleep(0.01)
        time.sleep(later_s)
        alive = process.poll() is None
        process.send_signal(signal.SIGKILL)
    return int(alive)


def has_events(project: Project, n: int) -> Callable[[], bool]:
    """Return a function that tells whether a project has written `n` events."""
    return lambda: len(list(project.events_dir.glob("0*"))) >= n


def finish(tiny: Any, project: Project, world: str) -> None:
    """Run the command to its end, promoted or paged."""
    with command(tiny, project, world) as process:
        said = process.communicate()[0]
    assert process.returncode in (0, 3), said
