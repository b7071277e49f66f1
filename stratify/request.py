"""What a plan is asked for, and what it turns out to be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal, get_args

import polars as pl

from ..catalogs.config import Policy
from ..catalogs.errors import DistdataError, nearest
from ..catalogs.hashing import bytes_hash, content_hash
from .budget import Budget

Purpose = Literal["train", "gate", "confirm", "pilot"]
FRAME_SPLIT: dict[Purpose, str] = {"train": "train", "gate": "gate", "confirm": "confirm", "pilot": "train"}
"""The split whose seeds a purpose buys."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What one draw costs, in dollars and in seconds of accelerator time; measured or given."""

    usd: float
    gpu_s: float

    def __post_init__(self) -> None:
        for name, value in (("usd", self.usd), ("gpu_s", self.gpu_s)):
            if not math.isfinite(value) or value < 0:
                raise DistdataError(f"rates: {name} = {value} per draw; a price must be a number of at least 0.")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """Everything a person decides about a plan.

    - `budget`: samples are the corpus aimed at, in which draws that exist count; money is for new draws only.
    - `gamma`, `fleet_blend`: shape of the ``gate`` policy's weights, in [0, 4] and [0, 1].
    - `k`: draws of a decision point that neither its seed nor its scenario type settles.
    - `floor_seeds`: seeds that every feasible cell gets in full.
    - `expected_yield`: share of draws that will be kept, in (0, 1]; target / yield draws are bought.
    - `held_out`, `min_groups`: the splits in use, and the groups of each that every slice must have.
    - `boosts`: factors above 0 by cell or slice name; a cell's own wins over its slice's.
    - `allow_undecidable`: plan around cells without seeds, slices short of gate groups and floors that don't fit,
      and mark the cells, instead of refusing.
    """

    purpose: Purpose
    budget: Budget
    policy: Policy = "gate"
    gamma: float = 2.0
    fleet_blend: float = 0.0
    k: int = 8
    floor_seeds: int = 2
    expected_yield: float = 1.0
    held_out: tuple[str, ...] = ("gate", "confirm")
    min_groups: int = 20
    boosts: Mapping[str, float] = field(default_factory=dict)
    allow_undecidable: bool = False

    def __post_init__(self) -> None:
        for kind, word, known in (
            ("purpose", self.purpose, get_args(Purpose)),
            ("policy", self.policy, get_args(Policy)),
        ):
            if word not in known:
                raise DistdataError(f"plan: no {kind} {word!r}.{nearest(word, known)}")
        limits: tuple[tuple[str, float, bool, str], ...] = (
            ("gamma", self.gamma, 0 <= self.gamma <= 4, "lie in 0 to 4"),
            ("fleet_blend", self.fleet_blend, 0 <= self.fleet_blend <= 1, "lie in 0 to 1"),
            ("k", self.k, 1 <= self.k <= 255, "lie in 1 to 255"),
            ("floor_seeds", self.floor_seeds, self.floor_seeds >= 0, "be at least 0"),
            ("expected_yield", self.expected_yield, 0 < self.expected_yield <= 1, "lie above 0 and at most at 1"),
        )
        for name, value, fine, wanted in limits:
            if not fine:
                raise DistdataError(f"plan: {name} = {value:g} must {wanted}.")
        for name, factor in self.boosts.items():
            if not (math.isfinite(factor) and factor > 0):
                raise DistdataError(f"plan: boost of {name} = {factor:g} must be a number above 0.")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plan:
    """An immutable purchase list with the chain of reasons that led to it.

    - `cells`: one row per cell of the catalog, by cell_id: cell_id, cell, slice, scenario, layer, feasible,
      fleet_share, band, base, tightness, boost, weight (the three's product; only ratios matter), floor, ceiling,
      credit, yield, target (kept samples aimed at), fresh (draws to buy), n_seeds_frame, n_seeds_taken,
      usd, gpu_s (both of `fresh`), mark (empty, or why the cell is undecidable).
    - `draws`: one row per draw to buy, in generation order: seed_id, cell_id, k, k_total (draws of that seed in the
      corpus, old ones included), pi (inclusion probability of the seed), weight (of this draw in the fleet),
      decision_point, prn.
    - `seeds`: one row per seed of the corpus, those without new draws included: seed_id, cell_id, k_total, fresh, pi,
      weight. With it the draws of earlier plans get the weight they have in the grown corpus.
    - `shortfall`: what the budget could not place because every cell stands at its ceiling, in the budget's unit.
    - `band_ref`: the widest band, to which `tightness` compares.
    """

    request: PlanRequest
    cells: pl.DataFrame
    draws: pl.DataFrame
    seeds: pl.DataFrame
    shortfall: float
    band_ref: float

    @property
    def n_target(self) -> int:
        """Kept samples aimed at, old ones included."""
        return int(self.cells["target"].sum())

    @property
    def n_fresh(self) -> int:
        """Draws to buy."""
        return self.draws.height

    @property
    def n_credit(self) -> int:
        """Draws that exist already and count."""
        return int(self.cells["credit"].sum())

    @property
    def usd(self) -> float:
        """Price of the draws to buy."""
        return float(self.cells["usd"].to_numpy().sum())

    @property
    def gpu_s(self) -> float:
        """Accelerator seconds of the draws to buy."""
        return float(self.cells["gpu_s"].to_numpy().sum())

    @property
    def n_marked(self) -> int:
        """Cells marked as undecidable."""
        return int((self.cells["mark"] != "").sum())


def plan_id(plan: Plan, context: str) -> str:
    """Return 12 hex digits over request, cells and draws, and `context` (teacher hash, salt).

    The same request on the same catalog state gives the same id, on any machine.
    """
    frames = [frame_hash(plan.cells), frame_hash(plan.draws)]
    return content_hash([asdict(plan.request), context, *frames])[:12]


def frame_hash(frame: pl.DataFrame) -> str:
    """Return 16 hex digits over a frame's column names, types and values, column by column as raw buffers.

    Strings are hashed as their lengths and their bytes, so that chunks, slices and views don't matter. No nulls.
    """

    def chunks() -> list[bytes]:
        parts = [f"{frame.height}".encode()]
        for column in frame.iter_columns():
            parts.append(f"{column.name}:{column.dtype}".encode())
            if column.dtype == pl.String:
                parts.append(column.str.len_bytes().to_numpy().tobytes())
                parts.append(_text_bytes(column))
            else:
                parts.append(column.to_numpy().tobytes())
        return parts

    return bytes_hash(chunks())


def _text_bytes(column: pl.Series) -> bytes:
    """Return the bytes of all strings one after another."""
    return str(column.str.join("").item()).encode() if len(column) else b""
