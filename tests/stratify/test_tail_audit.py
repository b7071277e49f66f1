"""The tail audit: which slices are audited, how many draws that asks for, and that a pass waits for them."""

import polars as pl
import pytest

from distdata.catalogs.errors import DistdataError
from distdata.stratify.tail import tail_requirements
from distdata.stratify.verdict import GateSettings, judge

CELLS = pl.DataFrame(
    {
        "slice": ["a", "a", "b", "c"],
        "layer": ["core", "long_tail", "core", "core"],
        "band": [0.2, 0.2, 0.05, 0.2],
        "feasible": [True, True, True, True],
    }
)
NEEDED = pl.DataFrame({"slice": ["a", "b", "c"], "needed": [100, 301, 80]})


def test_the_long_tail_and_the_tightest_bands_are_audited() -> None:
    """a has a long-tail cell, b the tightest band of three slices (a tenth, at least one); c is left alone."""
    found = tail_requirements(CELLS, NEEDED, multiple=2.5)
    # 2.5 x 301 = 752.5
    assert found.rows() == [("a", "long tail", 100, 250), ("b", "tightest bands, 0.05", 301, 753)]


def test_one_band_for_all_singles_nobody_out() -> None:
    """With one band everywhere only the long tail is audited, and an infeasible cell makes no tail slice."""
    cells = CELLS.with_columns(band=pl.lit(0.1), feasible=pl.col("layer") == "core")
    assert tail_requirements(cells, NEEDED, multiple=2).height == 0


def test_a_multiple_below_one_is_refused() -> None:
    """An audit that asks for less than the minimum is no audit."""
    with pytest.raises(DistdataError, match=r"tail_multiple = 0.5 must be at least 1"):
        tail_requirements(CELLS, NEEDED, multiple=0.5)
    with pytest.raises(DistdataError, match="give them as `minima`"):
        GateSettings(tail_multiple=2.0)


def test_a_pass_waits_for_the_audit() -> None:
    """100 seeds that all agree pass; with 150 draws required the same numbers stay undecided and ask for 150."""
    paired = pl.DataFrame(
        {
            "slice": ["a"] * 100,
            "cell": ["a/x"] * 100,
            "scenario": ["x"] * 100,
            "seed_id": [f"s{i}" for i in range(100)],
            "k": [0] * 100,
            "teacher_outcome": ["go", "stop"] * 50,
            "student_outcome": ["go", "stop"] * 50,
        }
    )
    cells = CELLS.filter(pl.col("slice") == "a")
    outcome = ("outcome",)
    assert judge(paired, cells, GateSettings(metrics=outcome), candidate=1).verdict == "pass"
    minima = pl.DataFrame({"slice": ["a"], "needed": [100]})
    rules = GateSettings(metrics=outcome, tail_multiple=1.5, minima=minima)
    row = judge(paired, cells, rules, candidate=1).rows.row(0, named=True)
    assert (row["verdict"], row["needed_draws"]) == ("undecided", 150)
    assert row["reason"] == "tail audit (long tail): 100 of 150 draws"
    assert row["estimate"] == 0.0
