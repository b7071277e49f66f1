"""What a plan is asked for, and what it turns out to be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import polars as pl

from ..catalogs.config import Layer, Policy
from ..catalogs.errors import DistdataError, nearest
from ..catalogs.hashing import bytes_hash, content_hash
from .budget import Budget
from .minima import GateAims

Purpose = Literal["train", "gate", "confirm", "pilot"]
FRAME_SPLIT: dict[Purpose, str] = {"train": "train", "gate": "gate", "confirm": "confirm", "pilot": "train"}
"""The split whose seeds a purpose buys."""

MAX_PRICE = 1e12
"""The most that a draw may cost, in dollars or accelerator seconds: no budget is larger."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What one draw costs, in dollars and in seconds of accelerator time; measured or given."""

    usd: float
    gpu_s: float

    def __post_init__(self) -> None:
        for name, value in (("usd", self.usd), ("gpu_s", self.gpu_s)):
            if not 0 <= value <= MAX_PRICE:
                raise DistdataError(
                    f"rates: {name} = {value:g} per draw; a price must be a number from 0 to {MAX_PRICE:g}. Check "
                    "[teacher] gpu_s_per_draw (in seconds) and usd_per_gpuh."
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """Everything a person decides about a plan.

    - `budget`: samples are the corpus aimed at, in which draws that exist count; money is for new draws only. None for
      a gate or confirm plan buys the decidable minima, for a pilot the default pilot, for a top-up what is short.
    - `gamma`, `fleet_blend`: shape of the ``gate`` policy's weights, in [0, 4] and [0, 1].
    - `k`: draws of a decision point that neither its seed nor its cell settles; `k_pilot`: of a pilot's seeds, those
      that don't say whether their future is open included.
    - `floor_seeds`: seeds that every feasible cell gets in full, in train plans.
    - `expected_yield`: share of draws that will be kept, in (0, 1]; target / yield draws are bought.
    - `held_out`, `min_groups`: the splits in use, and the groups of each that every slice must have.
    - `boosts`: factors above 0 by pattern (see `patterns.matching`); the one with the most values wins.
    - `layers`: share of the samples by layer, summing to 1; train plans hold them to the sample.
    - `case_share`: the most of a budget that open divergence cases may take, in [0, 1].
    - `aims`: what the gates must be able to tell, for gate and confirm plans.
    - `adaptive`: the plan was made after looking at the data, so it extends no walk (docs/design/0002); None: when it
      has boosts.
    - `top_up`: aim at the targets of the plan in force and buy what is short.
    - `allow_undecidable`: plan around cells without seeds, slices short of gate groups, pins, floors and decidable
      minima that can't be met, and mark the cells, instead of refusing.
    """

    purpose: Purpose
    budget: Budget | None = None
    policy: Policy = "gate"
    gamma: float = 2.0
    fleet_blend: float = 0.0
    k: int = 8
    k_pilot: int = 4
    floor_seeds: int = 2
    expected_yield: float = 1.0
    held_out: tuple[str, ...] = ("gate", "confirm")
    min_groups: int = 20
    boosts: Mapping[str, float] = field(default_factory=dict)
    layers: Mapping[Layer, float] | None = None
    case_share: float = 0.1
    aims: GateAims = field(default_factory=GateAims)
    adaptive: bool | None = None
    top_up: bool = False
    allow_undecidable: bool = False

    @property
    def looked(self) -> bool:
        """Tell whether the plan was made after looking at what was bought."""
        return bool(self.boosts) if self.adaptive is None else self.adaptive

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
            ("k_pilot", self.k_pilot, 2 <= self.k_pilot <= 255, "lie in 2 to 255: one draw shows no spread"),
            ("floor_seeds", self.floor_seeds, self.floor_seeds >= 0, "be at least 0"),
            ("expected_yield", self.expected_yield, 0 < self.expected_yield <= 1, "lie above 0 and at most at 1"),
            ("case_share", self.case_share, 0 <= self.case_share <= 1, "lie in 0 to 1"),
        )
        for name, value, fine, wanted in limits:
            if not fine:
                raise DistdataError(f"plan: {name} = {value:g} must {wanted}.")
        for name, factor in self.boosts.items():
            if not (math.isfinite(factor) and factor > 0):
                raise DistdataError(f"plan: boost of {name} = {factor:g} must be a number above 0.")
        self._check_layers()
        self._check_budget()

    def _check_layers(self) -> None:
        if self.layers is None:
            return
        for name, share in self.layers.items():
            if name not in get_args(Layer):
                raise DistdataError(f"plan: layers: no layer {name!r}.{nearest(name, get_args(Layer))}")
            if not (math.isfinite(share) and 0 <= share <= 1):
                raise DistdataError(f"plan: layers: the share of {name} is {share:g}; it must lie in 0 to 1.")
        total = sum(self.layers.values())
        if not math.isclose(total, 1.0, abs_tol=1e-6):
            raise DistdataError(f"plan: layers: the shares sum to {total:.6g}; they must sum to 1.")

    def _check_budget(self) -> None:
        if self.budget is None and self.purpose == "train" and not self.top_up:
            raise DistdataError("plan train: how much? Give a budget, such as --budget 2000samples or --budget 800usd.")
        if self.top_up and self.budget is not None and self.budget.kind == "samples":
            raise DistdataError(
                f"plan --top-up: {self.budget} is a size of corpus, and a top-up keeps the targets of the plan in "
                "force. Leave out --budget, or limit what is spent: --budget 100usd"
            )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plan:
    """An immutable purchase list with the chain of reasons that led to it.

    - `cells`: one row per cell of the catalog, by cell_id: cell_id, cell, slice, scenario, layer, feasible,
      fleet_share, band, base, tightness, boost (rules' and the request's), weight (the product; only ratios matter),
      floor (floor_ruled: a rule's), cap and pin (kept samples; -1: no such rule), ceiling, credit (existing samples
      that count), n_rejected, yield, yield_measured, worth (kept samples that what exists leads to expect), target
      (kept samples aimed at), fresh (draws to buy), n_cases (those of them that answer divergence cases),
      n_seeds_frame, n_seeds_taken, usd, gpu_s (both of `fresh`), mark (empty, or why the cell is undecidable),
      unfillable (empty, or why no top-up will ever reach the target), rule and k_source (texts that the input had:
      which rules spoke, where K is from).
    - `draws`: one row per draw to buy, in generation order, divergence cases first: seed_id, cell_id, k, k_total (draws
      of that seed in the corpus, old ones included), pi (inclusion probability of the seed), weight (of this draw in
      the fleet; both 0 for a draw without a probability), decision_point, prn.
    - `seeds`: one row per seed of the corpus, those without new draws included: seed_id, cell_id, k_total, fresh, pi,
      share, weight (of each of its counted draws), k_seed, k_counted. With it the draws of earlier plans get the
      weight they have in the grown corpus.
    - `prices`: what a band 10% tighter would cost, by slice (see `prices`).
    - `minima`: the decidable minima of a gate or confirm plan, by slice: slice, band, k, sigma, needed, ceiling,
      target; empty for other purposes.
    - `shortfall`: what the budget could not place because every cell stands at its upper bound, in the budget's unit.
    - `band_ref`: the widest band, to which `tightness` compares.
    - `notes`: what a person should know besides the numbers, in sentences.
    """

    request: PlanRequest
    cells: pl.DataFrame
    draws: pl.DataFrame
    seeds: pl.DataFrame
    prices: pl.DataFrame
    minima: pl.DataFrame
    shortfall: float
    band_ref: float
    notes: tuple[str, ...] = ()

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
    def unfillable(self) -> pl.DataFrame:
        """Cells that no top-up will ever fill: cell, target, worth, why."""
        named = self.cells.filter(pl.col("unfillable") != "")
        return named.select("cell", "target", "worth", why="unfillable")

    @property
    def n_marked(self) -> int:
        """Cells marked as undecidable."""
        return int((self.cells["mark"] != "").sum())


def restored_request(said: Mapping[str, Any]) -> PlanRequest:
    """Build a request again from `dataclasses.asdict` of it as JSON keeps it."""
    budget = said["budget"]
    return PlanRequest(
        **{
            **said,
            "budget": None if budget is None else Budget(**budget),
            "aims": GateAims(**said["aims"]),
            "held_out": tuple(said["held_out"]),
        }
    )


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
