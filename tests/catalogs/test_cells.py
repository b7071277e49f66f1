"""Cells: every combination once, ids that stay, bands by the most specific rule, shares that sum to 1."""

from __future__ import annotations

import itertools
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distdata.catalogs.cells import build_cells, extend_cells, rule_columns, slice_name
from distdata.catalogs.config import Config
from distdata.catalogs.errors import DistdataError

AXES = {"weather": ["clear", "rain", "snow"], "light": ["day", "night"]}
SCENARIOS = ["cross", "cut_in"]
quick = settings(deadline=None, derandomize=True, max_examples=60)


def _config(**more: object) -> Config:
    data: dict[str, object] = {
        "project": {"name": "p", "salt": "s"},
        "axes": {name: {"values": values} for name, values in AXES.items()},
        "scenarios": {name: {"layer": "core"} for name in SCENARIOS},
        "bands": {"default": 0.1},
        "teacher": {"kind": "crossing"},
    }
    return Config.model_validate({**data, **more})


def _rows(config: Config, known: dict[str, int] | None = None, seeds: dict[str, int] | None = None) -> dict[str, dict]:
    cells = build_cells(config, known or {}, seeds or {}, Path())
    return {row["cell"]: row for row in cells.iter_rows(named=True)}


PLACES = [{"weather": w, "light": li, "scenario": s} for w, li, s in itertools.product(*AXES.values(), SCENARIOS)]
_KEYS = {**AXES, "scenario": SCENARIOS}
whens = st.dictionaries(st.sampled_from(list(_KEYS)), st.none(), min_size=1).flatmap(
    lambda keys: st.fixed_dictionaries(
        {k: st.sampled_from(_KEYS[k]) | st.lists(st.sampled_from(_KEYS[k]), min_size=1, unique=True) for k in keys}
    )
)


def _fits(when: dict[str, object], place: dict[str, str]) -> bool:
    return all(place[k] == v or (isinstance(v, list) and place[k] in v) for k, v in when.items())


def test_every_combination_once() -> None:
    """3 x 2 slices times 2 scenario types are 12 cells, in axis order, with the axes as columns."""
    rows = _rows(_config())
    assert list(rows)[:3] == ["clear,day/cross", "clear,day/cut_in", "clear,night/cross"]
    assert len(rows) == 12
    row = rows["snow,night/cut_in"]
    assert (row["cell_id"], row["slice"], row["weather"], row["light"], row["k"]) == (
        11,
        "snow,night",
        "snow",
        "night",
        8,
    )
    assert slice_name({"light": "day", "weather": "rain"}, ["weather", "light"]) == "rain,day"


def test_shares_are_the_product_of_the_marginals() -> None:
    """Share = 0.7 * 0.25 * 0.8 for a cell; declared infeasible cells give theirs up in proportion."""
    axes = {
        "weather": {"values": ["clear", "rain", "snow"], "fleet": [0.7, 0.2, 0.1]},
        "light": {"values": ["day", "night"], "fleet": [0.75, 0.25]},
    }
    scenarios = {"cross": {"layer": "core", "fleet": 0.8}, "cut_in": {"layer": "core", "fleet": 0.2}}
    rows = _rows(_config(axes=axes, scenarios=scenarios))
    assert rows["clear,night/cross"]["fleet_share"] == pytest.approx(0.7 * 0.25 * 0.8)
    never = [{"when": {"weather": "snow", "light": "night"}, "reason": "no"}]
    rows = _rows(_config(axes=axes, scenarios=scenarios, infeasible=never))
    # snow,night has 0.1 * 0.25 = 0.025 of the fleet over both scenario types; 0.975 is left
    assert rows["clear,night/cross"]["fleet_share"] == pytest.approx(0.7 * 0.25 * 0.8 / 0.975)
    assert (rows["snow,night/cross"]["fleet_share"], rows["snow,night/cross"]["reason"]) == (0, "no")


@quick
@given(
    st.lists(st.fixed_dictionaries({"when": whens, "band": st.sampled_from([0.01, 0.02, 0.05, 0.2])}), max_size=6),
    st.lists(st.fixed_dictionaries({"when": whens, "reason": st.just("no")}), max_size=3),
)
def test_bands_and_feasibility_follow_the_rules(rules: list[dict], infeasible: list[dict]) -> None:
    """A cell's band is the tightest of the matching rules with the most keys; infeasible ones have no share."""
    config = _config(bands={"default": 0.1, "rules": rules}, infeasible=infeasible)
    hit = [any(_fits(r["when"], p) for r in infeasible) for p in PLACES]
    if all(hit):
        with pytest.raises(DistdataError, match=r"leave no feasible cell"):
            _rows(config)
        return
    rows = _rows(config)
    for place, banned in zip(PLACES, hit, strict=True):
        row = rows[f"{place['weather']},{place['light']}/{place['scenario']}"]
        fitting = [r for r in rules if _fits(r["when"], place)]
        most = max((len(r["when"]) for r in fitting), default=0)
        want = min((r["band"] for r in fitting if len(r["when"]) == most), default=0.1)
        assert (row["band"], row["feasible"], row["reason"]) == (want, not banned, "no" if banned else None)
        assert (row["fleet_share"] == 0) == banned
        assert row["band_source"] == "default" or row["band_source"].startswith("rule ")
    assert sum(r["fleet_share"] for r in rows.values()) == pytest.approx(1)


@quick
@given(
    st.dictionaries(
        st.sampled_from([f"{p['weather']},{p['light']}/{p['scenario']}" for p in PLACES]), st.integers(1, 9)
    )
)
def test_shares_from_seeds(counts: dict[str, int]) -> None:
    """With source = seeds a cell's share is its part of the seeds; without any seed all cells share alike."""
    rows = _rows(_config(fleet={"source": "seeds"}), seeds=counts)
    total = sum(counts.values())
    for name, row in rows.items():
        assert row["fleet_share"] == pytest.approx(counts.get(name, 0) / total if total else 1 / 12)


@quick
@given(st.permutations([f"{p['weather']},{p['light']}/{p['scenario']}" for p in PLACES]), st.integers(0, 12))
def test_known_cells_keep_their_ids(order: list[str], n_known: int) -> None:
    """Whatever ids exist stay, and new cells get new ones behind them: no id names two cells."""
    known = {name: 3 * i + 1 for i, name in enumerate(order[:n_known])}
    ids = {name: row["cell_id"] for name, row in _rows(_config(), known).items()}
    assert {name: ids[name] for name in known} == known
    assert len(set(ids.values())) == 12
    assert all(i > max(known.values(), default=-1) for name, i in ids.items() if name not in known)


def test_fleet_table(tmp_path: Path) -> None:
    """Shares from a CSV are normalised over feasible cells; rows of the same cell add up, missing ones are 0."""
    (tmp_path / "f.csv").write_text(
        "weather,light,scenario,share\nclear,day,cross,3\nclear,day,cross,1\nrain,night,cut_in,4\n"
    )
    cells = build_cells(_config(fleet={"source": "table", "table": "f.csv"}), {}, {}, tmp_path)
    shares = dict(cells.select("cell", "fleet_share").iter_rows())
    assert (shares["clear,day/cross"], shares["rain,night/cut_in"], shares["snow,day/cross"]) == (0.5, 0.5, 0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("weather,light,scenario,shares\n", "f.csv: column 'share' is missing. Did you mean 'shares'?"),
        (
            "weather,light,scenario,share\nclear,day,crozz,1\n",
            "f.csv: row 1: no cell 'clear,day/crozz': no scenario 'crozz'. Did you mean 'cross'?",
        ),
        (
            "weather,light,scenario,share\nclear,day,cross,1\nclear,day,cut_in,-1\n",
            "row 2: share = '-1' must be a number of at least 0",
        ),
        ("weather,light,scenario,share\nclear,day,cross,nan\n", "row 1: share = 'nan' must be a number of at least 0"),
        ("weather,light,scenario,share\nclear,day,cross,\n", "row 1: share = None must be a number of at least 0"),
        ("weather,light,scenario,share\n,day,cross,1\n", "row 1: no cell ',day/cross'"),
        ("", "fleet.table = 'f.csv': can't be read"),
    ],
)
def test_bad_fleet_tables_are_explained(tmp_path: Path, text: str, said: str) -> None:
    """A fleet table that doesn't fit is refused with its row, its value and the nearest known one."""
    (tmp_path / "f.csv").write_text(text)
    with pytest.raises(DistdataError) as caught:
        build_cells(_config(fleet={"source": "table", "table": "f.csv"}), {}, {}, tmp_path)
    assert said in str(caught.value)


def test_missing_fleet_table(tmp_path: Path) -> None:
    """A fleet table that is not there is named."""
    with pytest.raises(DistdataError, match=r"fleet.table = 'no.csv': can't be read"):
        build_cells(_config(fleet={"source": "table", "table": "no.csv"}), {}, {}, tmp_path)


def test_too_many_cells() -> None:
    """A million cells is the limit, and the message says how many there would be."""
    axes = {f"a{i}": {"values": [str(v) for v in range(10)]} for i in range(6)}
    with pytest.raises(
        DistdataError, match=r"the axes make 2,000,000 cells; at most 1,000,000 are supported. Let \[cover\]"
    ):
        _rows(_config(axes=axes))


def test_k_is_the_scenarios_or_the_plans() -> None:
    """A scenario type's K goes before the plan's; with k = "auto" the cell leaves it open."""
    scenarios = {"cross": {"layer": "core", "k": 3}, "cut_in": {"layer": "core"}}
    for k, want in ((5, 5), ("auto", None)):
        rows = _rows(_config(scenarios=scenarios, plan={"k": k}))
        assert (rows["clear,day/cross"]["k"], rows["clear,day/cut_in"]["k"]) == (3, want)


# [cover]: 12 axes of 4 values and 2 scenario types are 33,554,432 cells
MANY = {f"a{i}": {"values": list("wxyz"), "fleet": [0.4, 0.3, 0.2, 0.1]} for i in range(12)}


def _pairs(cells: pl.DataFrame, names: list[str]) -> set[tuple[tuple[str, str], ...]]:
    rows = cells.select(names).iter_rows(named=True)
    return {tuple((n, row[n]) for n in pair) for row in rows for pair in itertools.combinations(names, 2)}


def test_cover_holds_every_possible_pair_without_the_product() -> None:
    """33 million combinations become under 100 cells with every pair that the rules allow, and no other cell."""
    never = [{"when": {"a0": "w", "a1": ["x", "y"]}, "reason": "no"}]
    config = _config(axes=MANY, infeasible=never, cover={"strength": 2})
    cells = build_cells(config, {}, {}, Path())
    names = [*MANY, "scenario"]
    # C(12, 2) x 16 pairs of axes and 12 x 4 x 2 with the scenario type, less the two that the rule forbids
    assert len(_pairs(cells, names)) == 66 * 16 + 12 * 8 - 2
    assert cells["feasible"].all()
    assert len(cells) < 100
    assert cells["cell_id"].to_list() == list(range(len(cells)))
    assert cells["fleet_share"].sum() == pytest.approx(1)
    # shares stay in the ratio of the product: the first cell is that of every axis's most frequent value
    first, second = cells.row(0, named=True), cells.row(1, named=True)
    want = [0.4, 0.3, 0.2, 0.1]
    ratio = 1.0
    for name in MANY:
        ratio *= want["wxyz".index(second[name])] / want["wxyz".index(first[name])]
    assert second["fleet_share"] / first["fleet_share"] == pytest.approx(ratio)


def test_cover_keeps_what_exists_and_stops_at_max_cells() -> None:
    """Cells that exist or hold seeds stay with their ids, feasible or not; a value that is no more takes them out."""
    never = [{"when": {"a0": "w", "a1": "x"}, "reason": "no"}]
    config = _config(axes=MANY, infeasible=never, cover={"strength": 2, "max_cells": 7})
    fresh = build_cells(config, {}, {}, Path())
    assert len(fresh) == 7
    known = {",".join("z" * 12) + "/cut_in": 41, ",".join("wx" * 6) + "/cross": 42, ",".join("q" * 12) + "/cross": 43}
    seeded = ",".join("y" * 12) + "/cross"
    cells = build_cells(config, known, {seeded: 5}, Path())
    ids = dict(cells.select("cell", "cell_id").iter_rows())
    assert set(ids) == {*fresh["cell"], *list(known)[:2], seeded}
    assert (ids[",".join("z" * 12) + "/cut_in"], ids[",".join("wx" * 6) + "/cross"]) == (41, 42)
    assert sorted(ids.values()) == [41, 42, *range(44, 52)]
    assert cells.filter(pl.col("cell_id") == 42).select("feasible", "reason", "fleet_share").row(0) == (False, "no", 0)
    # with seeds as the source the chosen cells are the same, and shares count seeds
    counted = build_cells(_config(**_again(config), fleet={"source": "seeds"}), {}, {seeded: 5}, Path())
    assert set(counted["cell"]) == {*fresh["cell"], seeded}
    assert dict(counted.select("cell", "fleet_share").iter_rows())[seeded] == 1


def _again(config: Config) -> dict[str, object]:
    return {key: config.model_dump()[key] for key in ("axes", "infeasible", "cover")}


def test_a_fleet_table_weighs_the_cover(tmp_path: Path) -> None:
    """The covering rows follow the table's shares of single values; rows of other cells are no error."""
    text = [
        ",".join([*MANY, "scenario", "share"]),
        ",".join(["z"] * 12 + ["cut_in", "9"]),
        ",".join(["y"] * 12 + ["cross", "1"]),
    ]
    (tmp_path / "f.csv").write_text("\n".join(text))
    config = _config(axes=MANY, cover={"strength": 2, "max_cells": 3}, fleet={"source": "table", "table": "f.csv"})
    cells = build_cells(config, {}, {}, tmp_path)
    first = cells.row(0, named=True)
    assert (first["cell"], first["fleet_share"]) == (",".join("z" * 12) + "/cut_in", 1)
    assert len(cells) == 3


def test_seeds_extend_a_cover() -> None:
    """New combinations become cells behind the others, once each; forbidden ones are refused later by their reason."""
    never = [{"when": {"a0": "w", "a1": "x"}, "reason": "no"}]
    config = _config(axes=MANY, infeasible=never, cover={"strength": 2, "max_cells": 7})
    cells = build_cells(config, {}, {}, Path())
    rows = ["z" * 12, "wx" * 6, "q" + "z" * 11, "z" * 12]
    combos = pl.DataFrame([[*row, "cut_in"] for row in rows], schema=[*MANY, "scenario"], orient="row")
    combos = pl.concat([combos, cells.select(combos.columns)])
    longer = extend_cells(config, cells, combos, Path())
    assert longer["cell"].to_list() == [*cells["cell"], ",".join("wx" * 6) + "/cut_in", ",".join("z" * 12) + "/cut_in"]
    assert longer["cell_id"].to_list() == list(range(9))
    assert longer["feasible"].to_list() == [True] * 7 + [False, True]
    assert longer["fleet_share"].sum() == pytest.approx(1)
    assert longer.schema == cells.schema
    # as if it had been in the table from the start
    known = dict(longer.select("cell", "cell_id").iter_rows())
    assert build_cells(config, known, {}, Path()).equals(longer)
    assert extend_cells(config, cells, cells.select(combos.columns), Path()) is cells
    full = build_cells(_config(), {}, {}, Path())
    assert extend_cells(_config(), full, full.select("weather", "light", "scenario"), Path()) is full


def test_too_many_existing_cells_for_a_cover(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit counts the table's cells, chosen and existing."""
    monkeypatch.setattr("distdata.catalogs.cells.MAX_CELLS", 7)
    config = _config(axes=MANY, cover={"strength": 2, "max_cells": 7})
    assert len(build_cells(config, {}, {}, Path())) == 7
    with pytest.raises(DistdataError, match=r"those that exist are 8; at most 7 are supported. Lower cover.max_cells"):
        build_cells(config, {",".join("z" * 12) + "/cut_in": 0}, {}, Path())


def _rules(config: Config) -> dict[str, dict]:
    cells = build_cells(config, {}, {}, Path())
    rules = rule_columns(config, cells)
    assert rules["cell_id"].to_list() == cells["cell_id"].to_list()
    return dict(zip(cells["cell"], rules.drop("cell_id").iter_rows(named=True), strict=True))


def test_rules_by_the_most_keys() -> None:
    """Each of pin, floor, cap and boost is settled by the most specific rule that says it, apart from the others."""
    rules = [
        {"when": {"weather": "rain"}, "floor": 10, "boost": 2.0},
        {"when": {"weather": ["rain", "snow"], "light": "night"}, "floor": 20, "cap": 90},
        {"when": {"weather": "rain", "light": "night", "scenario": "cross"}, "boost": 3.0},
        {"when": {"weather": "clear"}, "pin": 7},
    ]
    got = _rules(_config(plan={"rules": rules}))
    numbers = {cell: tuple(row[c] for c in ("pin", "floor", "cap", "rule_boost")) for cell, row in got.items()}
    assert numbers["clear,day/cross"] == (7, None, None, 1.0)
    assert numbers["rain,day/cross"] == (None, 10, None, 2.0)
    assert numbers["rain,night/cut_in"] == (None, 20, 90, 2.0)
    assert numbers["rain,night/cross"] == (None, 20, 90, 3.0)
    assert numbers["snow,night/cross"] == (None, 20, 90, 1.0)
    assert numbers["snow,day/cross"] == (None, None, None, 1.0)
    assert got["snow,day/cross"]["rule"] is None
    assert got["rain,night/cross"]["rule"] == (
        "floor 20 (plan.rules[1]: weather=rain|snow light=night); cap 90 (plan.rules[1]: weather=rain|snow "
        "light=night); boost 3 (plan.rules[2]: weather=rain light=night scenario=cross)"
    )


@quick
@given(
    st.lists(
        st.fixed_dictionaries(
            {"when": whens}, optional={"floor": st.integers(0, 2), "boost": st.sampled_from([0.5, 1.0, 2.0])}
        ).filter(lambda r: len(r) > 1),
        max_size=5,
    )
)
def test_rules_against_looking_at_each_cell(rules: list[dict]) -> None:
    """Equal to a loop over cells and rules; ambiguous rules are refused, and only those."""
    config = _config(plan={"rules": rules})
    want: dict[str, tuple[int | None, float]] = {}
    ambiguous = False
    for place in PLACES:
        found = {}
        for name in ("floor", "boost"):
            fitting = [r for r in rules if name in r and _fits(r["when"], place)]
            most = max((len(r["when"]) for r in fitting), default=0)
            said = {r[name] for r in fitting if len(r["when"]) == most}
            ambiguous |= len(said) > 1
            found[name] = said.pop() if said else None
        boost = 1.0 if found["boost"] is None else found["boost"]
        want[f"{place['weather']},{place['light']}/{place['scenario']}"] = (found["floor"], boost)
    if ambiguous:
        with pytest.raises(DistdataError, match="equally specific"):
            _rules(config)
        return
    assert {cell: (row["floor"], row["rule_boost"]) for cell, row in _rules(config).items()} == want


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        (
            [{"when": {"weather": "rain"}, "floor": 5}, {"when": {"light": "day"}, "floor": 2000}],
            "plan.rules[0] (weather=rain) and plan.rules[1] (light=day) both match 2 cell(s), such as rain,day/cross, "
            "equally specific, and say floor = 5 and 2,000. Give one of them a further key",
        ),
        (
            [{"when": {"weather": "rain"}, "pin": 5}, {"when": {"light": "day"}, "floor": 6}],
            "plan.rules[1] (light=day) says floor = 6 and plan.rules[0] (weather=rain) says pin = 5; they contradict "
            "each other in 2 cell(s), such as rain,day/cross. Lower the floor, raise the pin, or narrow one `when`.",
        ),
        (
            [{"when": {"weather": "rain"}, "pin": 5}, {"when": {"light": ["day", "night"]}, "cap": 4}],
            "plan.rules[0] (weather=rain) says pin = 5 and plan.rules[1] (light=day|night) says cap = 4; they "
            "contradict each other in 4 cell(s)",
        ),
        (
            [{"when": {"weather": "rain", "light": "day"}, "floor": 9}, {"when": {"scenario": "cross"}, "cap": 8}],
            "plan.rules[0] (weather=rain light=day) says floor = 9 and plan.rules[1] (scenario=cross) says cap = 8; "
            "they contradict each other in 1 cell(s), such as rain,day/cross.",
        ),
        (
            [{"when": {"weather": "snow", "light": "night"}, "floor": 1000}],
            "plan.rules[0] (weather=snow light=night) wants floor = 1,000, but none of the 10 feasible cells matches.",
        ),
    ],
)
def test_contradicting_rules_are_refused(rules: list[dict], said: str) -> None:
    """Rules that can't both hold are named with a cell, their numbers and a way out."""
    never = [{"when": {"weather": "snow", "light": "night"}, "reason": "no"}]
    with pytest.raises(DistdataError) as caught:
        _rules(_config(plan={"rules": rules}, infeasible=never))
    assert said in str(caught.value)


def test_rules_that_agree_or_are_overruled_are_fine() -> None:
    """Equal values, a tie that a more specific rule settles, and a pin inside floor and cap contradict nothing."""
    rules = [
        {"when": {"weather": "rain"}, "floor": 5, "boost": 2.0},
        {"when": {"light": "day"}, "floor": 5, "boost": 3.0},
        {"when": {"weather": "rain", "light": "day"}, "boost": 1.5, "cap": 50},
        {"when": {"scenario": "cut_in"}, "pin": 5},
        {"when": {"weather": "snow", "light": "night"}, "floor": 0, "cap": 0},
    ]
    never = [{"when": {"weather": "snow", "light": "night"}, "reason": "no"}]
    got = _rules(_config(plan={"rules": rules}, infeasible=never))
    row = got["rain,day/cut_in"]
    assert (row["pin"], row["floor"], row["cap"], row["rule_boost"]) == (5, 5, 50, 1.5)
    # an infeasible cell gets nothing
    assert set(got["snow,night/cut_in"].values()) == {None, 1.0, False}


def test_decision_points_by_rule() -> None:
    """Every cell that a rule matches is a decision point; its K is the most specific rule's that says one."""
    points = [
        {"when": {"weather": "rain"}},
        {"when": {"scenario": "cross"}, "k": 4},
        {"when": {"weather": ["rain"], "scenario": "cross"}, "k": 12},
    ]
    got = _rules(_config(decision_points=points))
    found = {cell: (row["decision"], row["decision_k"]) for cell, row in got.items()}
    assert found["rain,day/cut_in"] == (True, None)
    assert found["snow,day/cross"] == (True, 4)
    assert found["rain,night/cross"] == (True, 12)
    assert found["clear,day/cut_in"] == (False, None)
    assert got["rain,day/cut_in"]["rule"] == "decision point (decision_points[0]: weather=rain)"
    assert got["snow,day/cross"]["rule"] == "decision point k 4 (decision_points[1]: scenario=cross)"
    clash = [{"when": {"weather": "rain"}, "k": 2}, {"when": {"scenario": "cross"}, "k": 4}]
    with pytest.raises(DistdataError, match=r"decision_points\[0\] .* and decision_points\[1\] .* k = 2 and 4"):
        _rules(_config(decision_points=clash))


def test_a_cell_of_a_vanished_value_matches_no_rule() -> None:
    """Rules look at the values of distdata.toml: a table that still holds an older one is no error."""
    config = _config(plan={"rules": [{"when": {"weather": "snow"}, "floor": 3}]})
    older = build_cells(config, {}, {}, Path()).with_columns(weather=pl.col("weather").replace("rain", "hail"))
    got = dict(zip(older["cell"], rule_columns(config, older)["floor"], strict=True))
    assert (got["snow,day/cross"], got["rain,day/cross"], got["clear,day/cross"]) == (3, None, None)
