"""Which cells a budget reaches under [cover]: against a greedy choice by sets, and what rules and samples do to it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from distdata.catalogs.config import Config
from distdata.catalogs.cover_plan import reachable_cells

AXES = {"a": [0.5, 0.3, 0.2], "b": [0.6, 0.4], "c": [0.4, 0.3, 0.2, 0.1], "d": [0.7, 0.3]}


def _config(strength: int = 2, salt: str = "s", **plan: object) -> Config:
    axes = {n: {"values": [f"{n}{i}" for i in range(len(f))], "fleet": f} for n, f in AXES.items()}
    return Config.model_validate(
        {
            "project": {"name": "p", "salt": salt},
            "axes": axes,
            "scenarios": {"s": {"layer": "core"}, "t": {"layer": "long_tail"}},
            "bands": {"default": 0.1},
            "cover": {"strength": strength},
            "plan": plan,
            "teacher": {"kind": "crossing"},
        }
    )


def _names() -> list[str]:
    values = [[f"{n}{i}" for i in range(len(f))] for n, f in AXES.items()]
    return [",".join(v) + f"/{s}" for v in itertools.product(*values) for s in "st"]


def _cells(names: list[str], **more: object) -> pl.DataFrame:
    columns: dict[str, object] = {
        "cell_id": list(range(len(names))),
        "cell": names,
        "layer": ["core" if n.endswith("s") else "long_tail" for n in names],
        "feasible": True,
        "fleet_share": 1 / len(names),
    }
    return pl.DataFrame(columns | more)


def _reach(
    config: Config, cells: pl.DataFrame, budget: float | Mapping[str, float] | None, **more: object
) -> tuple[pl.DataFrame, str]:
    n = cells.height
    given: dict[str, object] = {
        "floor": np.full(n, 2),
        "cost": np.full(n, 2),
        "stocked": np.ones(n, bool),
        "held": np.zeros(n, bool),
        "keep": np.zeros(n, bool),
    }
    return reachable_cells(config, Path(), cells, budget=budget, **(given | more))  # type: ignore[arg-type]


def _chosen(cells: pl.DataFrame) -> set[str]:
    return set(cells.filter(pl.col("cap").is_null())["cell"])


def _share_covered(names: set[str], strength: int) -> float:
    """Sum the fleet shares of the combinations that cells hold, by enumeration; every set of axes adds up to 1."""
    shares = {f"{n}{i}": p for n, f in AXES.items() for i, p in enumerate(f)} | {"s": 0.5, "t": 0.5}
    held = {c for n in names for c in itertools.combinations(n.replace("/", ",").split(","), strength)}
    return sum(float(np.prod([shares[v] for v in c])) for c in held)


@pytest.mark.parametrize("strength", [2, 3])
def test_the_cells_cover_what_greedy_by_sets_covers(strength: int) -> None:
    """Of 40 random cells with prices of 1 to 3, the bought ones cover exactly as much as a greedy choice by sets."""
    random = np.random.default_rng(5)
    names = [_names()[i] for i in random.permutation(96)[:40]]
    cost = random.integers(1, 4, 40)
    left, reference = 14, set[str]()
    while True:
        fitting = [i for i in range(40) if names[i] not in reference and cost[i] <= left]
        now = _share_covered(reference, strength)
        gain = {i: (_share_covered(reference | {names[i]}, strength) - now) / cost[i] for i in fitting}
        if not gain:
            break
        best = max(gain, key=gain.__getitem__)
        reference.add(names[best])
        left -= int(cost[best])
    out, note = _reach(_config(strength), _cells(names), 14, floor=cost, cost=cost)
    assert _share_covered(_chosen(out), strength) == pytest.approx(_share_covered(reference, strength), rel=1e-6)
    assert f"pays the floors (2 seeds each) of {len(_chosen(out))} of 40 cells" in note


def test_ties_go_by_a_hash_of_the_name() -> None:
    """The order of the cells changes nothing, another salt does; and the first cells are not simply taken."""
    names = _names()
    there, _ = _reach(_config(), _cells(names), 40)
    back, _ = _reach(_config(), _cells(names[::-1]), 40)
    salted, _ = _reach(_config(salt="other"), _cells(names), 40)
    assert _chosen(there) == _chosen(back) != _chosen(salted)
    assert len(_chosen(there)) == 20
    assert {n.split(",")[0] for n in _chosen(there)} == {"a0", "a1", "a2"}


def test_a_larger_budget_adds_cells() -> None:
    """Cells of one price: what a budget reaches is reached by every larger one, also beyond full coverage."""
    reached = [_chosen(_reach(_config(), _cells(_names()), budget)[0]) for budget in (10, 20, 60, 120, 192)]
    assert [len(r) for r in reached] == [5, 10, 30, 60, 96]
    assert all(few <= many for few, many in itertools.pairwise(reached))


def test_what_samples_hold_is_covered_already() -> None:
    """The cell with samples comes first, though nobody would choose it; the next one covers what it doesn't."""
    names = _names()
    held = np.array([n == "a2,b1,c3,d1/t" for n in names])
    out, _ = _reach(_config(), _cells(names), 4, held=held)
    # a0,b0,c0,d0 in both scenario types is the most frequent; neither shares a pair with the held cell's axes
    assert len(_chosen(out)) == 2
    assert "a2,b1,c3,d1/t" in _chosen(out)
    assert (_chosen(out) - {"a2,b1,c3,d1/t"}) <= {"a0,b0,c0,d0/s", "a0,b0,c0,d0/t"}
    # with a0,b0,c0,d0/s held, its twin adds four pairs only: another cell is better
    first = np.array([n == "a0,b0,c0,d0/s" for n in names])
    out, _ = _reach(_config(), _cells(names), 4, held=first)
    assert "a0,b0,c0,d0/t" not in _chosen(out)


def test_caps_floors_and_texts() -> None:
    """Cells beyond the budget get cap 0, the last one what is left; kept cells stay; rules of the input stay, too."""
    names = _names()
    keep = np.array([n == "a2,b1,c3,d1/t" for n in names])
    cells = _cells(names, rule=["" if k else "boost 2" for k in keep], cap=[7] * 96)
    out, note = _reach(_config(floor_seeds=0), cells, 7, floor=np.full(96, 3), cost=np.full(96, 3), keep=keep)
    # 7 draws: two cells of 3, and one more of 1
    assert sorted(out["cap"].value_counts().rows()) == [(0, 93), (1, 1), (7, 2)]
    assert out.filter(pl.Series(keep))["cap"].to_list() == [7]
    whole = out.filter(pl.col("cap") > 0)
    assert whole["floor"].to_list() == [1, 1, 1]  # no floor_seeds: weights must not pass them over
    assert out.filter(pl.col("cap") == 0)["floor"].null_count() == 93
    assert sorted(out["rule"].unique().drop_nulls()) == [
        "boost 2", "boost 2; cap 0 ([cover]: beyond the budget)", "boost 2; cap 1 ([cover]: the end of the budget)",
    ]  # fmt: skip
    assert "pays the first draws of 3 of 96 cells with seeds" in note


def test_cells_without_seeds_are_left_out_and_named() -> None:
    """They are infeasible for this plan, with or without a budget; cells with seeds stay as they are."""
    names = _names()
    stocked = np.arange(96) >= 5
    for budget in (None, 1000.0):
        out, note = _reach(_config(), _cells(names), budget, stocked=stocked)
        assert out["feasible"].to_list() == stocked.tolist()
        assert out["cap"].null_count() == 96
        assert out["rule"].to_list() == ["left out: no seeds ([cover])"] * 5 + [None] * 91
        assert note == f"[cover]: 5 cells have no seeds and are left out: {', '.join(names[:3])} and 2 more."


def test_layers_share_the_budget() -> None:
    """Each layer's cells are chosen within its part; a part that pays all of its cells cuts none."""
    names = [*_names()[:60:2], *_names()[1:20:2]]  # 30 of core, 10 of long_tail
    out, _ = _reach(_config(), _cells(names), {"core": 20.0, "long_tail": 20.0})
    assert out.filter(pl.col("cap").is_null())["layer"].value_counts(sort=True).rows() == [
        ("core", 10),
        ("long_tail", 10),
    ]


def test_nothing_changes_without_cover_or_seeds() -> None:
    """Without [cover], without any seeds, and under a budget that pays everything, the cells are as they were."""
    cells = _cells(_names())
    plain = _config().model_copy(update={"cover": None})
    assert _reach(plain, cells, 10) == (cells, "")
    assert _reach(_config(), cells, 10, stocked=np.zeros(96, bool)) == (cells, "")
    out, note = _reach(_config(), cells, 192)
    assert note == ""
    assert out.select(cells.columns).equals(cells)
    assert out["cap"].null_count() == out["floor"].null_count() == 96
