import json
from collections import Counter
from importlib.resources import files

import polars as pl
import pyarrow as pa
import pytest

from distdata.catalogs.cells import build_cells
from distdata.catalogs.config import parse_config
from distdata.catalogs.errors import DistdataError
from distdata.catalogs.protocol import Request
from distdata.catalogs.seeds import check_seeds, from_arrow
from distdata.generate.teachers.highway import read_conditions
from distdata.generate.teachers.highway_seeds import FLEET, feasible_cells, fleet_share, is_decision_point, seeds
from distdata.generate.teachers.highway_tables import AXES, SCENARIOS

CELL = [*AXES, "scenario"]


def preset():
    path = files("distdata.generate") / "presets" / "highway.toml"
    return parse_config(path.read_text(encoding="utf-8"), "highway.toml")


def cells_of(config, tmp_path):
    return build_cells(config, {}, {}, tmp_path)


def test_seeds_are_a_function_of_their_number_and_the_salt():
    """The same call gives the same table; another salt or number gives no id and no group in common."""
    table = seeds(600, "a")
    assert table.equals(seeds(600, "a"))
    for other in (seeds(600, "b"), seeds(601, "a")):
        for column in ("seed_id", "group"):
            assert not set(table[column].to_pylist()) & set(other[column].to_pylist())


def test_exactly_the_asked_number_over_every_feasible_cell():
    """2 x 2 x 3 x 4 slices x 6 scenario types = 288 cells, less 12 (one lane at the intersection) and 6 (the
    bend taken too fast) = 270; each has seeds from n = 270 on, and no other cell has any."""
    assert len(feasible_cells()) == 288 - 12 - 6
    for n in (270, 1000, 3001):
        rows = seeds(n, "a").select(CELL).to_pylist()
        assert len(rows) == n
        assert {tuple(r.values()) for r in rows} == {tuple(c[a] for a in CELL) for c in feasible_cells()}


def test_too_few_seeds_are_refused_with_the_number_needed():
    """Fewer seeds than feasible cells would leave cells empty."""
    with pytest.raises(DistdataError, match="269 seeds can't fill 270 feasible cells"):
        seeds(269, "a")


def test_beyond_the_floor_seeds_follow_the_fleet():
    """n = 20,000: every cell has the floor of 20, and the other 14,600 are split by share to within one seed."""
    counts = Counter(tuple(r.values()) for r in seeds(20_000, "a").select(CELL).to_pylist())
    total = sum(fleet_share(c) for c in feasible_cells())
    for cell in feasible_cells():
        exact = 20 + (20_000 - 270 * 20) * fleet_share(cell) / total
        assert abs(counts[tuple(cell[a] for a in CELL)] - exact) < 1


def test_every_slice_has_45_groups_from_2430_seeds_on():
    """9 seeds in each of the at least 5 feasible cells of a slice are 45 seeds, each in a group of its own."""
    for n in (2430, 8000):
        rows = seeds(n, "a").select([*AXES, "group"]).to_pylist()
        groups = Counter()
        for slice_, _ in {(tuple(r[a] for a in AXES), r["group"]) for r in rows}:
            groups[slice_] += 1
        assert len(groups) == 48
        assert min(groups.values()) >= 45


def test_drives_span_scenario_types_of_one_slice():
    """A group belongs to one slice, and some groups hold several scenario types, as a logged drive does."""
    rows = seeds(8000, "a").select([*CELL, "group"]).to_pylist()
    slices, scenarios = {}, {}
    for r in rows:
        slices.setdefault(r["group"], set()).add(tuple(r[a] for a in AXES))
        scenarios.setdefault(r["group"], set()).add(r["scenario"])
    assert all(len(s) == 1 for s in slices.values())
    assert any(len(s) > 1 for s in scenarios.values())


def test_the_columns_say_what_the_teacher_is_told():
    """Control value = signed speed step, decision points follow their rule, and the teacher accepts each seed."""
    table = seeds(540, "a")
    assert table.schema.field("decision_point").type == pa.bool_()
    assert table.schema.field("control_value").type == pa.float64()
    for r in table.to_pylist():
        params = json.loads(r["params"])
        sign = {"faster": 1, "slower": -1}.get(r["ego"], 0)
        assert r["control_value"] == sign * params["speed_step_mps"]
        v0 = SCENARIOS[r["scenario"]].ego_mps[r["speed"]]
        assert 0.149 * v0 < params["speed_step_mps"] < 0.301 * v0
        assert r["decision_point"] == is_decision_point({a: r[a] for a in CELL})
        request = Request(
            seed_id=r["seed_id"], k=0, rng_seed=0, axes={a: r[a] for a in AXES}, scenario=r["scenario"], params=params
        )
        assert read_conditions(request).state_seed == params["state_seed"]


def test_the_preset_and_the_generator_describe_the_same_world(tmp_path):
    """highway.toml parses; its axes, fleet shares and infeasible cells are those of the tables in code."""
    config = preset()
    assert {name: tuple(axis.values) for name, axis in config.axes.items()} == dict(AXES)
    for name, axis in config.axes.items():
        assert dict(zip(axis.values, axis.fleet, strict=True)) == FLEET[name]
    assert {name: s.fleet for name, s in config.scenarios.items()} == FLEET["scenario"]
    cells = cells_of(config, tmp_path)
    feasible = {tuple(r.values()) for r in cells.filter("feasible").select(CELL).to_dicts()}
    assert feasible == {tuple(c[a] for a in CELL) for c in feasible_cells()}
    reasons = cells.filter(~pl.col("feasible")).select("reason").to_series()
    assert reasons.null_count() == 0
    # the generator's weights and the catalog's shares agree up to normalisation
    share = {tuple(r[a] for a in CELL): r["fleet_share"] for r in cells.to_dicts()}
    total = sum(fleet_share(c) for c in feasible_cells())
    for cell in feasible_cells():
        assert share[tuple(cell[a] for a in CELL)] == pytest.approx(fleet_share(cell) / total, rel=1e-9)


def test_generated_seeds_pass_the_catalogs_checks(tmp_path):
    """What the generator makes can be imported under the preset as it stands."""
    config = preset()
    checked = check_seeds(
        from_arrow(seeds(1000, "a")), cells_of(config, tmp_path), list(config.axes), pl.Series([], dtype=pl.String), "t"
    )
    assert len(checked) == 1000
    assert checked["cell_id"].n_unique() == 270
