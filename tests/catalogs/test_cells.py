"""Cells: every combination once, ids that stay, bands by the most specific rule, shares that sum to 1."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distdata.catalogs.cells import build_cells, slice_name
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
            "f.csv: row 1: no cell 'clear,day/crozz'. Did you mean 'clear,day/cross'?",
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
    with pytest.raises(DistdataError, match=r"the axes make 2,000,000 cells; at most 1,000,000 are supported"):
        _rows(_config(axes=axes))
