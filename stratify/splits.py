"""Which groups of seeds are bought for training and which are kept for the gates.

A group (drive, log, document, template family) goes to exactly one of train, gate and confirm, by a hash of its
name and never by sample, so that no gate sees a relative of what the student was trained on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ..catalogs.errors import DistdataError
from ..catalogs.hashing import unit_intervals

SPLITS = ("train", "gate", "confirm")
_TRAIN, _GATE, _CONFIRM = range(3)
_TEXT = {"grp": pl.String, "split": pl.String}
MIN_TRAIN_GROUPS = 2
MIN_TRAIN_SHARE = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortSlice:
    """A slice whose held-out split has too few groups: `have` of `need`, out of `n_groups` in the slice."""

    slice: str
    split: str
    have: int
    need: int
    n_groups: int


def assign_splits(
    seeds: pl.DataFrame, used: pl.DataFrame, *, gate: float, confirm: float, min_groups: int, salt: str
) -> pl.DataFrame:
    """Give every group of `seeds` [slice, grp] a split; return [grp, split], sorted by grp.

    Groups in `used` [grp, split] keep theirs, whether or not they are in `seeds`. A new group goes by its hash u:
    gate below `gate`, confirm below `gate + confirm`, else train. Then each slice, in the order of its name, moves
    its new train groups with the smallest u to gate until it has `min_groups` there, and then to confirm. A move
    is made only if it reaches `min_groups` and leaves the slice's training a fifth of its groups and at least 2;
    `check_splits` finds the slices where it did not. A share of 0 switches its split off.

    The result depends on the sets of groups and slices, never on the order of rows.
    """
    pairs = seeds.select("slice", "grp").unique()
    kept = used.select("grp", "split").unique("grp", keep="any")
    groups = pl.concat([pairs.select("grp"), kept.select("grp")]).unique().sort("grp")
    groups = groups.join(kept, on="grp", how="left", maintain_order="left")
    code = groups["split"].replace_strict(list(SPLITS), [0, 1, 2], return_dtype=pl.Int8).fill_null(-1).to_numpy().copy()
    is_new = code < 0
    u = np.ones(groups.height)
    u[is_new] = unit_intervals("split", salt, groups["grp"].filter(pl.Series(is_new)))
    code[is_new] = np.select([u < gate, u < gate + confirm], [_GATE, _CONFIRM], _TRAIN)[is_new]

    shares = {_GATE: gate, _CONFIRM: confirm}
    wanted = [split for split in (_GATE, _CONFIRM) if shares[split] > 0]
    for members in _groups_by_slice(pairs, groups["grp"], u) if wanted else []:
        for split in wanted:
            _top_up(code, members, is_new, split, min_groups)
    names = pl.Series(SPLITS, dtype=pl.String).gather(code)
    return pl.DataFrame({"grp": groups["grp"], "split": names}, schema_overrides=_TEXT)


def _groups_by_slice(pairs: pl.DataFrame, names: pl.Series, u: NDArray[np.float64]) -> list[NDArray[np.int64]]:
    """List each slice's groups as indices into `names`, in the order of u; slices in the order of their names."""
    index = pl.DataFrame({"grp": names, "at": np.arange(len(names)), "u": u})
    joined = pairs.join(index, on="grp").sort("slice", "u", "at")
    at = joined["at"].to_numpy()
    starts = np.flatnonzero((joined["slice"] != joined["slice"].shift()).fill_null(True).to_numpy())
    return list(np.split(at, starts[1:])) if len(at) else []


def _top_up(
    code: NDArray[np.int8], members: NDArray[np.int64], is_new: NDArray[np.bool_], split: int, min_groups: int
) -> None:
    """Move new train groups of one slice to `split` in place, all that are missing or none."""
    missing = min_groups - int((code[members] == split).sum())
    in_train = members[code[members] == _TRAIN]
    movable = in_train[is_new[in_train]]
    if 0 < missing <= len(movable) and len(in_train) - missing >= _reserve(len(members)):
        code[movable[:missing]] = split


def count_groups(seeds: pl.LazyFrame) -> pl.DataFrame:
    """Count the distinct groups of seeds [slice, grp, split] per slice and split: [slice, split, n_groups]."""
    return seeds.group_by("slice", "split").agg(n_groups=pl.col("grp").n_unique().cast(pl.Int64)).collect()


def check_splits(
    groups: pl.DataFrame, slices: Sequence[str], *, held_out: Sequence[str], min_groups: int
) -> list[ShortSlice]:
    """List the slices with fewer than `min_groups` groups in a held-out split, sorted by slice, then split.

    `groups` has [slice, split, n_groups], a group in one split only; `slices` names every slice that should have gates,
    seeds or not.
    """
    have = {(s, split): n for s, split, n in groups.select("slice", "split", "n_groups").iter_rows()}
    total = dict(groups.group_by("slice").agg(pl.col("n_groups").sum()).iter_rows())
    return [
        ShortSlice(slice=name, split=split, have=n, need=min_groups, n_groups=total.get(name, 0))
        for name in sorted(set(slices))
        for split in held_out
        if (n := have.get((name, split), 0)) < min_groups
    ]


def refuse_short_slices(short: Sequence[ShortSlice]) -> None:
    """Raise a DistdataError that names the first five slices of `short` and the ways out; pass if there is none."""
    if not short:
        return
    shown = "; ".join(f"{s.slice} has {s.have} of {s.need} {s.split} groups ({s.n_groups} in all)" for s in short[:5])
    more = f"; and {len(short) - 5} more" if len(short) > 5 else ""
    n_slices = len({s.slice for s in short})
    enough = groups_needed(short[0].need, len({s.split for s in short}))
    raise DistdataError(
        f"plan: {n_slices} slice{'s have' if n_slices > 1 else ' has'} too few gate groups: {shown}{more}. "
        f"Import more groups (a new slice of {enough} has enough), lower [splits] min_groups from {short[0].need}, set "
        "gate and confirm in [splits] to 0 to do without held-out seeds, or pass --allow-undecidable."
    )


def groups_needed(min_groups: int, n_held_out: int) -> int:
    """Return the fewest groups of a slice that fill `n_held_out` splits and leave training its reserve."""
    n = min_groups * n_held_out + MIN_TRAIN_GROUPS
    while n - min_groups * n_held_out < _reserve(n):
        n += 1
    return n


def _reserve(n_groups: int) -> int:
    return max(MIN_TRAIN_GROUPS, math.ceil(MIN_TRAIN_SHARE * n_groups))
