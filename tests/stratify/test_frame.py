"""The frame of a plan: which seeds are in it, what K each has, and what cells offer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
import pytest

from distdata.catalogs.candidates import candidates_of
from distdata.stratify import frame as frame_module
from distdata.stratify.frame import Frame, build_frame, first_seeds, order_by_prn, sum_by_cell


def _frame(
    seeds: Sequence[tuple[str, int, float, bool | None, int | None]],
    planned: Sequence[bool] = (True, True, True),
    cell_k: Sequence[int] = (8, 8, 8),
    cell_decision: Sequence[bool] = (False, False, False),
    **more: pl.DataFrame | pl.Series,
) -> Frame:
    """Build a frame over cells 10, 20 and 30 from (seed id, cell, prn, decision point, k)."""
    schema = {
        "seed_id": pl.String,
        "cell_id": pl.Int32,
        "prn": pl.Float64,
        "decision_point": pl.Boolean,
        "k": pl.Int32,
    }
    table = pl.DataFrame(list(seeds), schema=schema, orient="row").with_columns(split=pl.lit("train"))
    return build_frame(
        candidates_of(table, "train"), np.array([10, 20, 30], dtype=np.int32), np.array(planned), np.array(cell_k),
        cell_decision=np.array(cell_decision), **more,
    )  # type: ignore[arg-type]  # fmt: skip


@pytest.mark.parametrize(
    ("said", "own", "cell_says", "expected"),
    [
        (True, None, False, 8),  # open by the seed's own word, with the cell's K
        (True, 3, False, 3),  # and with its own
        (False, 3, True, 1),  # not open: one draw shows it, whatever else is said
        (None, None, False, 1),  # nobody says so
        (None, None, True, 8),  # the cell does
        (None, 3, True, 3),
        (None, 3, False, 1),
    ],
)
def test_k_of_a_seed(said: bool | None, own: int | None, cell_says: bool, expected: int) -> None:
    """K is 1 where the future is not open, else the seed's own, else the cell's."""
    frame = _frame([("a", 20, 0.5, said, own)], cell_decision=(False, cell_says, False))
    assert frame.k_seed.tolist() == [expected]
    assert frame.decision.tolist() == [expected > 1]


SEEDS = [
    ("a", 10, 0.4, True, None), ("b", 10, 0.2, None, None), ("c", 10, 0.3, True, 2),
    ("d", 20, 0.1, True, None), ("e", 30, 0.9, True, 5), ("f", 30, 0.8, False, None),
]  # fmt: skip


def test_seeds_by_cell_in_candidate_order() -> None:
    """Seeds come by cell, then by prn: b c a, d, f e; their cells are numbered by the plan's cells."""
    frame = _frame(SEEDS)
    assert frame.ids(np.arange(6)).to_list() == ["b", "c", "a", "d", "f", "e"]
    assert frame.cell.tolist() == [0, 0, 0, 1, 2, 2]
    assert frame.start.tolist() == [0, 3, 4, 6]
    assert frame.n_seeds.tolist() == [3, 1, 2]
    assert frame.k_seed.tolist() == [1, 2, 8, 8, 1, 5]
    assert frame.find(pl.Series(["a", "zz", "f"])).tolist() == [2, -1, 4]


def test_cells_that_are_not_planned_are_left_out() -> None:
    """Without cell 10, and with cell 40 unknown, d f e are left at positions 0 1 2, and a is not found."""
    frame = _frame([*SEEDS, ("g", 40, 0.5, True, None)], planned=(False, True, True))
    assert frame.ids(np.arange(3)).to_list() == ["d", "f", "e"]
    assert frame.prn.tolist() == [0.1, 0.8, 0.9]
    assert frame.cell.tolist() == [1, 2, 2]
    assert frame.start.tolist() == [0, 0, 1, 3]
    assert frame.k_seed.tolist() == [8, 1, 5]
    assert frame.find(pl.Series(["a", "e", "g", "d"])).tolist() == [-1, 2, -1, 0]


def test_nothing_is_left_of_cells_that_are_not_planned() -> None:
    """A frame of no seeds answers as one."""
    frame = _frame(SEEDS, planned=(False, False, False))
    assert frame.n_seeds.tolist() == [0, 0, 0]
    assert frame.find(pl.Series(["a"])).tolist() == [-1]
    assert first_seeds(frame, 2).tolist() == [0, 0, 0]


def test_frozen_k_wins_and_blocked_seeds_offer_nothing() -> None:
    """A seed keeps the K of its first draw even where it isn't open any more; a blocked one has K 0, frozen or not."""
    frozen = pl.DataFrame({"seed_id": ["b", "e", "gone"], "k_seed": [4, 9, 7]})
    frame = _frame(SEEDS, frozen=frozen, blocked=pl.Series(["e", "c", "unknown"]))
    assert dict(zip("bcadfe", frame.k_seed.tolist(), strict=True)) == {"b": 4, "c": 0, "a": 8, "d": 8, "f": 1, "e": 0}


def test_sums_over_cells() -> None:
    """Sums follow the cells, also where a cell has no seed."""
    frame = _frame([s for s in SEEDS if s[1] != 20])
    assert sum_by_cell(frame, np.array([1, 2, 4, 8, 16])).tolist() == [7, 0, 24]


@pytest.mark.parametrize("at_once", [1, 2, 3, 4, 100])
def test_sums_in_parts(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    """However many seeds are summed at once, also fewer than a cell has, sums are those of the cells."""
    monkeypatch.setattr(frame_module, "RUN_SEEDS", at_once)
    values = np.array([100, 100, 56, 3, 4, 5], dtype=np.uint8)  # 256 would be 0 in eight bits
    assert sum_by_cell(_frame(SEEDS), values).tolist() == [256, 3, 9]
    assert sum_by_cell(_frame(SEEDS), values > 4).tolist() == [3, 0, 1]


def test_draws_of_the_first_seeds() -> None:
    """The first two of b c a offer 1 + 2 draws; with c blocked they are b and a, 1 + 8. Small cells offer all."""
    assert first_seeds(_frame(SEEDS), 2).tolist() == [3, 8, 6]
    assert first_seeds(_frame(SEEDS), 0).tolist() == [0, 0, 0]
    assert first_seeds(_frame(SEEDS, blocked=pl.Series(["c"])), 2).tolist() == [9, 8, 6]
    assert first_seeds(_frame(SEEDS, blocked=pl.Series(["c", "a"])), 0).tolist() == [0, 0, 0]
    assert first_seeds(_frame(SEEDS, blocked=pl.Series(["d", "e"])), 9).tolist() == [11, 0, 1]


def test_order_by_prn_breaks_ties_by_id() -> None:
    """Over cells, positions come by prn and then by id: d 0.1, b 0.2, then a c e at 0.5."""
    seeds = [("e", 10, 0.5, True, None), ("a", 30, 0.5, True, None), ("c", 20, 0.5, True, None),
             ("b", 30, 0.2, True, None), ("d", 30, 0.1, True, None)]  # fmt: skip
    frame = _frame(seeds)  # positions: e, c, then d b a
    positions = np.array([0, 1, 2, 3, 4])
    assert frame.ids(positions[order_by_prn(frame, positions)]).to_list() == ["d", "b", "a", "c", "e"]
