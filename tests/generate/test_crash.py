"""Exactly once, proved by enumeration: a SIGKILL at every effect of a run, and at pairs of them."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest

BATCH = 3
KINDS = {
    # a batch computed as one, paid: its answers are spooled together
    "joint": {"joint": True, "price": 1.0},
    # requests paid one by one: every answer is spooled by itself
    "independent": {"joint": False, "price": 1.0},
    # costs nothing, so nothing but the probe is spooled
    "free": {"joint": True, "price": 0.0},
}
N_PAIRS_QUICK = 5
FORMS = [
    pytest.param(False, id="quick"),
    pytest.param(True, id="all-pairs", marks=pytest.mark.prove),
]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Any:
    """Each kind of teacher in turn."""
    return request.param


@pytest.fixture
def planned(kind: str, tiny: Any, tmp_path: Path) -> Any:
    """A project with a saved plan of two units of two batches."""
    return tiny.build(tmp_path / "planned", n_draws=8, unit_draws=4, batch=BATCH, **KINDS[kind])


def test_effects_are_those_we_think(planned: Any, tiny: Any, crashes: Any) -> None:
    """An uninterrupted run passes every kind of effect that run_unit, commit and registration have."""
    seen = crashes.finish(planned)
    wanted = {
        "spool.ask", "spool.got", "units.freeze.write", "units.freeze.fsync", "units.freeze.rename", "shard.write",
        "shard.fsync", "shard.rename", "manifest.write", "manifest.fsync", "manifest.rename", "spool.remove",
        "register.units", "catalog.before-commit", "catalog.commit", "register.done",
    }  # fmt: skip
    assert set(seen) == wanted
    n_units = seen.count("manifest.rename")
    assert n_units == 2
    assert seen.count("register.done") == n_units
    tiny.assert_whole(planned, None, 0, BATCH)
    assert sorted(tiny.calls(planned)) == sorted(tiny.draws(planned)), "each draw is asked for once"


@pytest.mark.parametrize("all_pairs", FORMS)
def test_killed_at_any_effect(
    all_pairs: bool, kind: str, planned: Any, tiny: Any, crashes: Any, tmp_path: Path
) -> None:
    """Killed at any one effect, and at pairs in sequence, a run resumes to what it would have been."""
    whole = tiny.copy(planned, tmp_path / "whole")
    effects = crashes.finish(whole)
    shards, n_effects = tiny.shards(whole), len(effects)
    # the second unit has no effect that the first one lacks: the quick form goes there for one kind only
    n_first = n_effects if all_pairs or kind == "joint" else effects.index("register.done") + 1
    pairs = random.Random(5)
    second: dict[int, list[int]] = {i: [] for i in range(1, n_first + 1)}
    for i in pairs.choices(range(1, n_first), k=0 if all_pairs else N_PAIRS_QUICK):
        second[i].append(pairs.randint(1, n_effects - i))
    n_done = 0
    for i in second:
        once = tiny.copy(planned, tmp_path / "once")
        stopped = crashes.run(once, i)
        assert stopped["killed"], f"no kill at effect {i}: {stopped}"
        where = stopped["effects"][-1]
        stops = range(1, n_effects + 1) if all_pairs else second[i]
        for j in stops:
            twice = tiny.copy(once, tmp_path / "twice")
            again = crashes.run(twice, j)
            if not again["killed"]:  # the rest of the run has fewer effects than j
                assert again["code"] == 0, f"{i} ({where}), {j}: {again}"
                shutil.rmtree(twice.root)
                break
            crashes.finish(twice)
            _check(tiny, twice, shards, 2, light=not all_pairs and n_done % 5 > 0)
            n_done += 1
            shutil.rmtree(twice.root)
        crashes.finish(once)
        _check(tiny, once, shards, 1, light=not all_pairs and n_done % 5 > 0)
        n_done += 1
        shutil.rmtree(once.root)
    assert n_done > n_first, "kills did land, some of them in pairs"


def _check(tiny: Any, project: Any, shards: dict[str, str], n_crashes: int, *, light: bool) -> None:
    tiny.assert_whole(project, shards, n_crashes, BATCH, light=light)
    n_asked, n_planned = len(tiny.calls(project)), len(tiny.draws(project))
    if tiny.spend(project)[0] > 0:
        # what was answered before a kill is not asked again: only what was in flight can be
        assert n_planned <= n_asked <= n_planned + BATCH * n_crashes
