"""Which groups are held out: by hand, by invariants, and where it can't be done."""

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distdata.catalogs.errors import DistdataError
from distdata.catalogs.hashing import unit_interval
from distdata.stratify.splits import (
    ShortSlice,
    assign_splits,
    check_splits,
    count_groups,
    groups_needed,
    refuse_short_slices,
)

NONE_USED = pl.DataFrame(schema={"grp": pl.String, "split": pl.String})


def _seeds(pairs: list[tuple[str, str]]) -> pl.DataFrame:
    rows = [(f"seed{i}", slice_name, grp) for i, (slice_name, grp) in enumerate(pairs)]
    return pl.DataFrame(rows, schema={"seed_id": pl.String, "slice": pl.String, "grp": pl.String}, orient="row")


def _split_of(frame: pl.DataFrame) -> dict[str, str]:
    return dict(frame.iter_rows())


def _assign(pairs: list[tuple[str, str]], used: pl.DataFrame = NONE_USED, **changes: object) -> dict[str, str]:
    rules: dict[str, object] = {"gate": 0.1, "confirm": 0.1, "min_groups": 2, "salt": "s"}
    return _split_of(assign_splits(_seeds(pairs), used, **(rules | changes)))  # type: ignore[arg-type]


def test_the_hash_decides_where_no_slice_is_short() -> None:
    """A group goes to gate below the gate share of its hash, to confirm in the next share, else to train."""
    pairs = [("a", f"g{i}") for i in range(300)]
    splits = _assign(pairs)  # 300 groups: 30 expected in each, far above 2
    for i in range(300):
        u = unit_interval("split", "s", f"g{i}")
        assert splits[f"g{i}"] == ("gate" if u < 0.1 else "confirm" if u < 0.2 else "train")


def test_a_short_slice_is_topped_up_in_hash_order() -> None:
    """Missing gate groups are the train groups with the smallest hash, and confirm takes the next ones."""
    names = [f"g{i}" for i in range(30)]
    # shares so small that no hash falls below them: all thirty start in train
    splits = _assign([("a", name) for name in names], gate=1e-9, confirm=1e-9, min_groups=5)
    by_hash = sorted(names, key=lambda name: unit_interval("split", "s", name))
    assert [splits[name] for name in by_hash] == ["gate"] * 5 + ["confirm"] * 5 + ["train"] * 20


@pytest.mark.parametrize(
    ("n_groups", "expected"),
    [
        (4, {"train": 4}),  # 5 for gate can't be had
        (6, {"train": 6}),  # 1 would remain, 2 are the reserve
        (7, {"gate": 5, "train": 2}),  # gate filled, 2 remain; confirm can't be had
        (12, {"gate": 5, "train": 7}),  # 2 would remain after confirm, the reserve is 12/5 -> 3
        (13, {"gate": 5, "confirm": 5, "train": 3}),  # 3 remain = 13/5 rounded up
    ],
)
def test_training_keeps_a_fifth_of_a_slice(n_groups: int, expected: dict[str, int]) -> None:
    """A slice is topped up only where the split fills up and training keeps a fifth and at least two groups."""
    splits = _assign([("a", f"g{i}") for i in range(n_groups)], gate=1e-9, confirm=1e-9, min_groups=5)
    found = {name: list(splits.values()).count(name) for name in ("train", "gate", "confirm")}
    assert found == {"train": 0, "gate": 0, "confirm": 0} | expected


def test_used_groups_keep_their_split() -> None:
    """Groups assigned before never move, not even to fill a slice that is short."""
    used = pl.DataFrame({"grp": [f"g{i}" for i in range(20)], "split": ["train"] * 19 + ["confirm"]})
    splits = _assign([("a", f"g{i}") for i in range(24)], used, gate=1e-9, confirm=1e-9, min_groups=3)
    assert [splits[f"g{i}"] for i in range(20)] == ["train"] * 19 + ["confirm"]
    new = [splits[f"g{i}"] for i in range(20, 24)]
    # gate takes 3 of the 4 new ones; confirm has 1 of 3 and only 1 new group is left: nothing moves
    assert sorted(new) == ["gate", "gate", "gate", "train"]


def test_a_group_that_spans_slices_serves_both() -> None:
    """One gate group in two slices counts in both: the second slice takes only what is still missing."""
    shared = [(slice_name, f"g{i}") for slice_name in ("a", "b") for i in range(20)]
    splits = _assign(shared, gate=1e-9, confirm=0.0, min_groups=6)
    assert list(splits.values()).count("gate") == 6


@pytest.mark.parametrize(("gate", "confirm", "found"), [(0, 0, {"train"}), (0, 0.2, {"train", "confirm"})])
def test_a_share_of_zero_switches_its_split_off(gate: float, confirm: float, found: set[str]) -> None:
    """No group goes to a split whose share is 0, whatever min_groups asks for."""
    splits = _assign([("a", f"g{i}") for i in range(100)], gate=gate, confirm=confirm, min_groups=10)
    assert set(splits.values()) == found


@given(
    pairs=st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 40).map("g{}".format)), max_size=120),
    n_used=st.integers(0, 20),
    seed=st.randoms(use_true_random=False),
)
@settings(max_examples=60, deadline=None)
def test_the_order_of_rows_does_not_matter(pairs: list[tuple[str, str]], n_used: int, seed: object) -> None:
    """Any permutation of seeds gives the same splits; every group gets exactly one; used ones keep theirs."""
    used = pl.DataFrame(
        {
            "grp": [f"g{i}" for i in range(n_used)],
            "split": [("train", "gate", "confirm")[i % 3] for i in range(n_used)],
        },
        schema=NONE_USED.schema,
    )
    shuffled = list(pairs)
    seed.shuffle(shuffled)  # type: ignore[attr-defined]
    first = _assign(pairs, used, min_groups=4, gate=0.15, confirm=0.15)
    assert _assign(shuffled, used.reverse(), min_groups=4, gate=0.15, confirm=0.15) == first
    assert set(first) == {grp for _, grp in pairs} | set(used["grp"])
    assert all(first[grp] == split for grp, split in used.iter_rows())


def test_later_imports_change_no_earlier_split() -> None:
    """Importing more groups, with the earlier result as used, leaves the earlier groups where they were."""
    early = [("a", f"g{i}") for i in range(30)]
    first = assign_splits(_seeds(early), NONE_USED, gate=0.1, confirm=0.1, min_groups=5, salt="s")
    more = early + [("a", f"h{i}") for i in range(30)] + [("b", f"g{i}") for i in range(30)]
    second = _split_of(assign_splits(_seeds(more), first, gate=0.1, confirm=0.1, min_groups=20, salt="s"))
    assert {grp: second[grp] for _, grp in early} == _split_of(first)


def test_short_slices_are_found_with_their_numbers() -> None:
    """A slice below min_groups is listed per split with have, need and its groups; one without seeds has 0."""
    frame = pl.DataFrame(
        {
            "slice": ["a", "a", "a", "b", "b", "b", "b"],
            "grp": ["g1", "g1", "g2", "g3", "g4", "g5", "g6"],  # g1 twice counts once
            "split": ["gate", "gate", "train", "gate", "gate", "confirm", "confirm"],
        }
    )
    groups = count_groups(frame.lazy())
    short = check_splits(groups, ["a", "b", "c"], held_out=["gate", "confirm"], min_groups=2)
    assert short == [
        ShortSlice(slice="a", split="gate", have=1, need=2, n_groups=2),
        ShortSlice(slice="a", split="confirm", have=0, need=2, n_groups=2),
        ShortSlice(slice="c", split="gate", have=0, need=2, n_groups=0),
        ShortSlice(slice="c", split="confirm", have=0, need=2, n_groups=0),
    ]
    assert check_splits(groups, ["b"], held_out=["gate", "confirm"], min_groups=2) == []
    assert check_splits(groups, ["a"], held_out=[], min_groups=2) == []


def test_the_refusal_names_slices_and_ways_out() -> None:
    """The error names the first five, counts the rest, and says how many groups would do."""
    short = [ShortSlice(slice=f"s{i}", split="gate", have=i, need=20, n_groups=30) for i in range(7)]
    with pytest.raises(DistdataError) as caught:
        refuse_short_slices(short)
    text = str(caught.value)
    assert "7 slices have too few gate groups: s0 has 0 of 20 gate groups (30 in all); s1 has 1 of 20" in text
    assert "s4" in text
    assert "s5" not in text
    assert "and 2 more" in text
    for way in ("Import more groups", "a new slice of 25", "min_groups from 20", "to 0", "--allow-undecidable"):
        assert way in text
    refuse_short_slices([])


@pytest.mark.parametrize(("min_groups", "n_held_out", "needed"), [(20, 2, 50), (20, 1, 25), (2, 2, 6), (5, 2, 13)])
def test_groups_needed_by_hand(min_groups: int, n_held_out: int, needed: int) -> None:
    """The fewest groups n with n - held out >= max(2, n/5 rounded up): 50 - 40 = 10 = 50/5, and so on."""
    assert groups_needed(min_groups, n_held_out) == needed
