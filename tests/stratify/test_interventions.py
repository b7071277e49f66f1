"""The training sets of a diagnosis: what is thinned keeps its weight, what is weighted up keeps its samples."""

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distdata.catalogs.errors import DistdataError
from distdata.stratify.interventions import thinned, up_factors, weighted_up


def _frame(seeds_per_cell: dict[str, list[int]], k: int = 2) -> pl.DataFrame:
    rows, cell = [], 0
    for name, cells in seeds_per_cell.items():
        for n in cells:
            rows += [(name, cell, f"{name}{cell}-{i}", j, 1.0) for i in range(n) for j in range(k)]
            cell += 1
    schema = {"slice": pl.String, "cell_id": pl.Int32, "seed_id": pl.String, "k": pl.Int16, "weight": pl.Float64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def _totals(frame: pl.DataFrame, by: str) -> dict[object, float]:
    return dict(frame.group_by(by).agg(pl.col("weight").sum()).iter_rows())


def test_half_of_a_slice_keeps_its_weight_and_the_others() -> None:
    """Cells of 8 and 3 seeds keep 4 and ceil(1.5) = 2; their weights stay 16 and 6, and other slices stay as they are.

    Weights: 16 / (4 seeds x 2 draws) = 2 each, 6 / (2 x 2) = 1.5 each.
    """
    frame = _frame({"night": [8, 3], "day": [5]})
    half = thinned(frame, ["night"], 0.5, salt="a")
    assert half.group_by("cell_id").agg(pl.col("seed_id").n_unique()).sort("cell_id").rows() == [(0, 4), (1, 2), (2, 5)]
    assert _totals(half, "cell_id") == pytest.approx({0: 16.0, 1: 6.0, 2: 10.0})
    assert half.filter(pl.col("cell_id") < 2)["weight"].unique().sort().to_list() == pytest.approx([1.5, 2.0])
    assert half.filter(pl.col("slice") == "day").equals(frame.filter(pl.col("slice") == "day"))


@settings(max_examples=40, deadline=None)
@given(
    cells=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    shares=st.tuples(st.floats(0.05, 1), st.floats(0.05, 1)).map(sorted),
    salt=st.text(max_size=3),
)
def test_thinning_is_nested_whole_and_weighs_the_same(cells: list[int], shares: list[float], salt: str) -> None:
    """A smaller share lies within a larger one; seeds stay whole; every cell keeps its weight and at least a seed."""
    frame = _frame({"night": cells, "day": [3]})
    few, many = (thinned(frame, ["night"], share, salt=salt) for share in shares)
    assert set(few["seed_id"]) <= set(many["seed_id"])
    assert set(few.group_by("seed_id").len()["len"]) == {2}
    for part in (few, many):
        assert _totals(part, "cell_id") == pytest.approx(_totals(frame, "cell_id"))


def test_how_far_to_weight_up() -> None:
    """Totals 2, 8, 20, mean 10: night x5 to reach it, dusk x4; nothing where all are red and weigh alike."""
    frame = _frame({"night": [1], "dusk": [4], "day": [10]})
    assert up_factors(frame, ["night", "dusk"]) == pytest.approx({"night": 5.0, "dusk": 4.0})
    assert up_factors(frame, ["night", "dusk", "day"]) == pytest.approx({"night": 5.0, "dusk": 4.0, "day": 4.0})
    alike = _frame({"night": [3], "day": [3]})
    assert up_factors(alike, ["night", "day"]) == {}
    assert up_factors(alike, ["night"]) == {"night": 4.0}
    decimal = alike.with_columns(weight=pl.lit(1).cast(pl.Decimal(2, 1)))
    assert up_factors(decimal, ["night"]) == {"night": 4.0}
    # 3 seeds x 2 draws, 2 seeds stay: 6 / 4 = 1.5 each, whatever the type of the weight can hold
    assert thinned(decimal, ["night"], 0.5)["weight"].max() == 1.5
    with pytest.raises(DistdataError, match="slice night weigh nothing"):
        up_factors(
            frame.with_columns(weight=pl.when(pl.col("slice") == "night").then(0.0).otherwise("weight")), ["night"]
        )


def test_weighting_up_by_hand() -> None:
    """Totals 2, 8 and 20, mean 10: night gets max(4 x 2, 10) = 10, dusk max(4 x 8, 10) = 32, day stays at 20."""
    frame = _frame({"night": [1], "dusk": [4], "day": [10]})
    up = weighted_up(frame, ["night", "dusk"])
    assert _totals(up, "slice") == pytest.approx({"night": 10.0, "dusk": 32.0, "day": 20.0})
    assert up.drop("weight").equals(frame.drop("weight"))


def test_what_cant_be_done_is_refused() -> None:
    """A slice without samples, a share of 0 and a factor below 1 each say what is wrong."""
    frame = _frame({"night": [2]})
    with pytest.raises(DistdataError, match="no sample of slice rain"):
        thinned(frame, ["rain"], 0.5)
    with pytest.raises(DistdataError, match="share of 0 of the data"):
        thinned(frame, ["night"], 0.0)
    with pytest.raises(DistdataError, match=r"factor of 0\.5"):
        weighted_up(frame, ["night"], factor=0.5)
