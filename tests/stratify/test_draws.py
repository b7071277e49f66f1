"""Which draws are taken: holes first, the next k after a rejection, seeds that others chose last."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distdata.catalogs.frames import candidates_of
from distdata.stratify.draws import Taken, find_credits, take_fresh
from distdata.stratify.frame import Frame, build_frame, sum_by_cell


def make_frame(k: list[int], cell: list[int] | None = None) -> Frame:
    """Make seeds s0, s1, ... in candidate order with these K's; in one cell unless said."""
    n = len(k)
    cell = [0] * n if cell is None else cell
    seeds = pl.DataFrame(
        {
            "seed_id": [f"s{i}" for i in range(n)],
            "cell_id": pl.Series(cell, dtype=pl.Int32),
            "split": ["train"] * n,
            "prn": [(i + 1) / (n + 1) for i in range(n)],
            "decision_point": [True] * n,
            "k": pl.Series(k, dtype=pl.Int32),
        }
    )
    ids = np.arange(max(cell) + 1, dtype=np.int32)
    return build_frame(
        candidates_of(seeds, "train"),
        ids,
        np.ones(len(ids), dtype=np.bool_),
        np.ones(len(ids), dtype=np.int64),
        cell_decision=np.zeros(len(ids), dtype=np.bool_),
        blocked=pl.Series([f"s{i}" for i in range(n) if k[i] == 0], dtype=pl.String),
    )


def _owned(*draws: tuple[str, int, str], planned: bool = True) -> pl.DataFrame:
    schema = {"seed_id": pl.String, "k": pl.Int32, "state": pl.String}
    return pl.DataFrame(draws, schema=schema, orient="row").with_columns(planned=pl.lit(planned))


def _take(frame: Frame, owned: pl.DataFrame, *n_fresh: int) -> list[tuple[str, int]]:
    return _named(frame, take_fresh(frame, find_credits(frame, owned), np.array(n_fresh)))


def _named(frame: Frame, taken: Taken) -> list[tuple[str, int]]:
    return list(zip(frame.ids(taken.position).to_list(), taken.k.tolist(), strict=True))


def test_states_are_counted_by_seed() -> None:
    """Kept and unverified draws fill a seed's offer up to K, rejected ones don't; other seeds' draws count nothing."""
    frame = make_frame([2, 4])
    owned = _owned(
        ("s0", 0, "kept"), ("s0", 1, "unverified"), ("s0", 2, "kept"), ("s1", 0, "rejected"), ("s1", 5, "kept"),
        ("elsewhere", 0, "kept"),
    )  # fmt: skip
    credits = find_credits(frame, owned)
    assert credits.per_seed.tolist() == [3, 2]
    assert credits.worth.tolist() == [2, 1]
    assert (credits.n_kept.tolist(), credits.n_rejected.tolist()) == ([2, 1], [0, 1])
    assert credits.n_unverified.tolist() == [1, 0]
    assert credits.k.tolist() == [0, 1, 2, 0, 5]
    assert credits.rejected.tolist() == [False, False, False, True, False]
    assert credits.walk.all()


def test_a_repeated_draw_counts_once() -> None:
    """Of two rows about one draw the rejection wins, and one byproduct row makes the seed certain."""
    frame = make_frame([4, 4])
    twice = pl.concat([_owned(("s0", 0, "kept")), _owned(("s0", 0, "rejected"), planned=False)])
    credits = find_credits(frame, twice)
    assert (credits.per_seed.tolist(), credits.n_rejected.tolist()) == ([1, 0], [1, 0])
    assert credits.certain.tolist() == [True, False]


def test_the_next_k_follows_a_rejection() -> None:
    """With k 0 to 3 made and 1 and 2 rejected, K 4 offers two more: 4 and 5, never 1 or 2 again."""
    owned = _owned(("s0", 0, "kept"), ("s0", 1, "rejected"), ("s0", 2, "rejected"), ("s0", 3, "unverified"))
    assert _take(make_frame([4, 4]), owned, 3) == [("s0", 4), ("s0", 5), ("s1", 0)]


def test_gaps_are_filled_from_below() -> None:
    """What never came (k 0 and 2 of a crash) is taken before new numbers, around those that exist."""
    owned = _owned(("s0", 1, "rejected"), ("s0", 3, "kept"), ("s0", 1000, "kept"))
    # worth 2 of K 5, so 3 are offered: 0, 2 and, past the existing 3, 4
    assert _take(make_frame([5]), owned, 9) == [("s0", 0), ("s0", 2), ("s0", 4)]


def test_seeds_that_others_chose_come_last() -> None:
    """A byproduct's seed gives the rest of its K only after all other seeds of its cell."""
    owned = _owned(("s0", 1000, "kept"), planned=False)
    frame = make_frame([2, 2, 2])
    assert _take(frame, owned, 4) == [("s1", 0), ("s1", 1), ("s2", 0), ("s2", 1)]
    assert _take(frame, owned, 5) == [("s0", 0), ("s1", 0), ("s1", 1), ("s2", 0), ("s2", 1)]
    assert len(_take(frame, owned, 99)) == 5  # the byproduct fills one of K 2


def test_blocked_seeds_give_nothing() -> None:
    """A seed with K 0 is passed over, whatever is asked for."""
    assert _take(make_frame([2, 0, 1]), _owned(), 9) == [("s0", 0), ("s0", 1), ("s2", 0)]


def test_cells_are_taken_apart() -> None:
    """Each cell gives its own number, in candidate order, its last seed a part; an empty or full cell gives none."""
    frame = make_frame([2, 2, 2, 2], cell=[0, 0, 2, 2])
    assert _take(frame, _owned(), 3, 5, 1) == [("s0", 0), ("s0", 1), ("s1", 0), ("s2", 0)]
    # nothing is wanted of the last cell, and the seeds before it offer nothing
    full = _owned(*[(f"s{i}", k, "kept") for i in (0, 1) for k in (0, 1)])
    assert _take(frame, full, 2, 0, 0) == []


draw_states = st.tuples(st.integers(0, 5), st.sampled_from(["kept", "rejected", "unverified"]))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=6),
    st.lists(st.tuples(st.integers(0, 5), draw_states), max_size=12),
    st.integers(0, 30),
    st.sets(st.integers(0, 5), max_size=2),
)
def test_taken_draws_are_new_and_no_more_than_offered(
    k: list[int], draws: list[tuple[int, tuple[int, str]]], n: int, others: set[int]
) -> None:
    """No draw is taken twice, no seed beyond K kept ones, all that is asked for if it is there; and plans nest."""
    frame = make_frame(k)
    rows = {(f"s{seed}", number): state for seed, (number, state) in draws}
    owned = _owned(*[(seed, number, state) for (seed, number), state in rows.items()]).with_columns(
        planned=~pl.col("seed_id").is_in([f"s{i}" for i in others])
    )
    credits = find_credits(frame, owned)
    taken = take_fresh(frame, credits, np.array([n]))
    mine = _named(frame, taken)
    assert len(set(mine)) == len(mine)
    assert not set(mine) & set(rows)
    offered = np.maximum(frame.k_seed - credits.worth, 0)
    assert np.all(taken.fresh <= offered)
    assert sum_by_cell(frame, taken.fresh).tolist() == [min(n, int(offered.sum()))]
    smaller = _named(frame, take_fresh(frame, credits, np.array([max(n - 1, 0)])))
    assert set(smaller) <= set(mine)
    for seed in {s for s, _ in mine}:  # lowest free numbers, upward
        taken_k = [number for s, number in mine if s == seed]
        free = [number for number in range(40) if (seed, number) not in rows]
        assert taken_k == free[: len(taken_k)]


def test_unknown_states_are_refused() -> None:
    """A state that is none of the three is an error, not a guess."""
    with pytest.raises(ValueError, match="1 draws have a state that is none of unverified, kept, rejected"):
        find_credits(make_frame([1]), _owned(("s0", 0, "perhaps"), ("s0", 1, "kept")))
