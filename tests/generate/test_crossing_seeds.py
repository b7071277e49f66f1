"""Seeds and preset of the crossing world."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from distdata.catalogs.config import NAME_PATTERN, load_config
from distdata.catalogs.errors import DistdataError
from distdata.generate.teachers.crossing.law import check_request
from distdata.generate.teachers.crossing.seeds import cells, seed_counts, seeds
from distdata.generate.teachers.crossing.teacher import CrossingTeacher
from distdata.generate.teachers.crossing.world import AXES, FLEET, SCENARIO_FLEET, WORLD, feasible

PRESET = Path(__file__).parents[2] / "generate" / "presets" / "driving.toml"


@pytest.fixture(scope="module")
def rows():
    return seeds(20_000, "tests").to_pylist()


def cell_of(row):
    return (*(row[a] for a in AXES), row["scenario"])


def test_counts_are_a_floor_and_the_fleet():
    """20,000 seeds: 138 feasible cells, 60 each (20,000 // 276 = 72 > 60), the rest of 11,720 by fleet share."""
    shares = cells()
    assert len(shares) == 18 * 7 + 6 * 2
    assert sum(shares.values()) == pytest.approx(1)
    counts = seed_counts(20_000)
    assert sum(counts.values()) == 20_000
    for cell, share in shares.items():
        assert abs(counts[cell] - (60 + 11_720 * share)) < 1
    # the head of the fleet against its tail
    assert max(shares.values()) / min(shares.values()) > 1000


@pytest.mark.parametrize(("n", "floor"), [(137, 0), (138, 1), (400, 1), (2_760, 10), (16_560, 60), (50_000, 60)])
def test_floor_by_size(n, floor):
    """Every feasible cell gets at least min(60, n // 276), or 1 where n has room for that; n is met exactly."""
    counts = seed_counts(n)
    assert sum(counts.values()) == n
    assert min(counts.values()) >= floor


def test_rows_are_complete_and_valid(rows):
    """20,000 rows with unique, clean ids, in feasible cells, whose params the teacher accepts."""
    assert len({r["seed_id"] for r in rows}) == 20_000
    assert Counter(map(cell_of, rows)) == Counter(seed_counts(20_000))
    for r in rows[::7]:
        axes = {a: r[a] for a in AXES}
        params = json.loads(r["params"])
        assert re.match(NAME_PATTERN, r["seed_id"])
        assert re.match(NAME_PATTERN, r["group"])
        assert feasible(axes, r["scenario"])
        assert check_request(axes, r["scenario"], params) is None
        assert r["control_value"] == params["ego_accel"]
        open_future = len(WORLD.scenarios[r["scenario"]].outcomes) > 1 and params["committed"] is None
        assert r["decision_point"] is open_future


def test_every_slice_has_groups_for_its_gates(rows):
    """Each of the 24 slices has at least 60 drives, none of which crosses a slice, of at most 7 seeds."""
    groups = defaultdict(Counter)
    for r in rows:
        groups[cell_of(r)[:3]][r["group"]] += 1
    assert len(groups) == 24
    assert min(len(g) for g in groups.values()) >= 60
    assert max(max(g.values()) for g in groups.values()) <= 7
    names = [name for g in groups.values() for name in g]
    assert len(names) == len(set(names))


def test_decision_points_are_mixed(rows):
    """Car following never decides; of the other types about a fifth of the seeds is committed (5 se, 6e-7)."""
    following = [r for r in rows if r["scenario"] == "car_following"]
    others = [r for r in rows if r["scenario"] != "car_following"]
    assert not any(r["decision_point"] for r in following)
    share = sum(r["decision_point"] for r in others) / len(others)
    assert abs(share - 0.8) < 5 * (0.8 * 0.2 / len(others)) ** 0.5


def test_seeds_depend_on_the_salt_alone():
    """The same salt gives the same table, another one shares no seed, and more seeds keep each cell's first ones."""
    table = seeds(1_000, "a")
    assert table.equals(seeds(1_000, "a"))
    assert not set(table["seed_id"].to_pylist()) & set(seeds(1_000, "b")["seed_id"].to_pylist())
    more = {r["seed_id"]: r for r in seeds(3_000, "a").to_pylist()}
    assert all(more[r["seed_id"]] == r for r in table.to_pylist())


@pytest.mark.parametrize("n", [0, -5])
def test_no_seeds_is_an_error(n):
    """Asking for no seeds says so."""
    with pytest.raises(DistdataError, match=rf"n is {n}"):
        seeds(n, "a")


def test_preset_is_this_world():
    """The driving preset is a valid project whose axes, scenario types, fleet and infeasible cells are the world's."""
    config = load_config(PRESET)
    assert {a: tuple(axis.values) for a, axis in config.axes.items()} == dict(AXES)
    assert {a: tuple(axis.fleet) for a, axis in config.axes.items()} == dict(FLEET)
    assert {name: s.fleet for name, s in config.scenarios.items()} == dict(SCENARIO_FLEET)
    assert {s.layer for s in config.scenarios.values()} == {"core", "failure_mode", "long_tail"}

    def matches(when, values):
        return all(values[k] == v or (isinstance(v, list) and values[k] in v) for k, v in when.items())

    for w in AXES["weather"]:
        for light in AXES["light"]:
            for d in AXES["district"]:
                for s in config.scenarios:
                    axes = {"weather": w, "light": light, "district": d}
                    ruled_out = any(matches(rule.when, {**axes, "scenario": s}) for rule in config.infeasible)
                    assert ruled_out is not feasible(axes, s)


def test_preset_bands_are_tightest_in_the_tail():
    """Bands fall from core over failure mode to long tail, and the teacher's options are accepted."""
    config = load_config(PRESET)
    tail = min(b.band for b in config.bands.rules if "cyclist_swerve" in b.when.get("scenario", []))
    failure = min(b.band for b in config.bands.rules if "cut_in" in b.when.get("scenario", []))
    core = min(b.band for b in config.bands.rules if "scenario" not in b.when)
    assert tail < failure < core < config.bands.default
    assert config.teacher.kind == "crossing"
    CrossingTeacher(**config.teacher.options)
