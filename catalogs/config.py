"""distdata.toml: what a person writes, checked as a whole before anything runs."""

from __future__ import annotations

import math
import tomllib
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from .errors import DistdataError, nearest

CONFIG_NAME = "distdata.toml"
Layer = Literal["core", "failure_mode", "long_tail"]
Policy = Literal["gate", "uniform", "fleet", "neyman"]
Engine = Literal["auto", "inprocess", "ray"]
NAME_PATTERN = r"^[A-Za-z0-9_-]+$"
Name = Annotated[str, Field(pattern=NAME_PATTERN, max_length=64)]
Band = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, allow_inf_nan=False)]
When = dict[str, str | list[str]]
MAX_COUNT = 10**12

AXIS_COLUMNS_TAKEN = frozenset([
    "adaptive", "attempt", "axes", "axis", "band", "band_source", "budget", "bytes", "case_id", "ceiling", "cell",
    "cell_id", "chosen", "control_axis", "control_value", "corpus_pi", "counted", "created", "credit", "credited",
    "decision_point", "deficit", "drop_reason", "dropped", "duration_s", "effective_n", "event", "example",
    "expected_yield", "failed", "failure", "feasible", "file", "first_row", "fleet_share", "fleet_weight", "floor",
    "fresh", "generated", "gpu_h", "gpu_s", "group", "grp", "import_id", "in_doubt_usd", "ingest_id", "ingest_no",
    "k", "k_counted", "k_seed", "kept", "kind", "known_usd", "layer", "manifest", "mark", "n_before", "n_bytes",
    "n_credit", "n_draws", "n_failed", "n_frame", "n_k", "n_ok", "n_refused", "n_rows", "n_seeds", "n_taken", "note",
    "number", "offset", "opened", "origin", "outcome", "params", "part", "pi", "pi_round", "plan_id", "plan_no",
    "planned", "policy", "position", "priority", "prn", "purpose", "reason", "rng_seed", "row", "sample_id",
    "scenario", "seed_id", "seeds", "sha256", "shard", "shard_bytes", "shard_digest", "shard_offset", "share", "size",
    "slice", "source", "split", "stage", "state", "student_id", "superseded_by", "target", "teacher", "teacher_hash",
    "teacher_version", "tries", "unit", "usd", "value", "value_position", "wall_s", "weight", "weight_sq_sum",
    "weight_sum",
])  # fmt: skip
"""Column names of the catalog's tables and views, of seed files and of a sample's meta.json: no axis may have one."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Project(_Strict):
    """`[project]`: the catalog's name, the salt of all its hashes, and where shards go."""

    name: Name
    salt: str = Field(min_length=1)
    storage: str = Field(default="data", min_length=1)


class Axis(_Strict):
    """`[axes.NAME]`: the values of a condition axis and, optionally, the fleet's share of each."""

    values: list[Name] = Field(min_length=1)
    fleet: list[Share] | None = None

    @model_validator(mode="after")
    def _check(self) -> Axis:
        if len(set(self.values)) != len(self.values):
            raise ValueError("values holds a value twice")
        if self.fleet is not None:
            if len(self.fleet) != len(self.values):
                raise ValueError(f"fleet has {len(self.fleet)} shares for {len(self.values)} values")
            if not math.isclose(sum(self.fleet), 1.0, abs_tol=1e-6):
                raise ValueError(f"fleet sums to {sum(self.fleet):.6g}; the shares of an axis must sum to 1")
        return self


class Scenario(_Strict):
    """`[scenarios.NAME]`: a scenario type, the corpus layer it belongs to and its weight in the fleet."""

    layer: Layer
    fleet: Share | None = None
    k: int | None = Field(default=None, ge=1, le=255)


class Infeasible(_Strict):
    """`[[infeasible]]`: cells that can't occur; every key of `when` must match."""

    when: When = Field(min_length=1)
    reason: str = Field(min_length=1)


class BandRule(_Strict):
    """`[[bands.rules]]`: the band of the cells that match; the most specific rule wins, then the tightest."""

    when: When = Field(min_length=1)
    band: Band


class Bands(_Strict):
    """`[bands]`: acceptance bands, a default and the rules that tighten or widen it."""

    default: Band
    rules: list[BandRule] = []


class Fleet(_Strict):
    """`[fleet]`: how the fleet's share of each cell is known.

    ``axes``: the product of the axes' and scenario types' shares over the feasible cells; ``seeds``: the
    share of imported seeds; or `table`, a CSV or Parquet with the axis columns, `scenario` and `share`.
    """

    source: Literal["axes", "seeds", "table"] = "axes"
    table: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Fleet:
        if (self.source == "table") != (self.table is not None):
            raise ValueError("table goes with source = 'table', and only with it")
        return self


class Splits(_Strict):
    """`[splits]`: how much of the seed groups is held out, and the least every slice needs."""

    gate: float = Field(default=0.1, ge=0, le=0.45)
    confirm: float = Field(default=0.1, ge=0, le=0.45)
    min_groups: int = Field(default=20, ge=2)


def _k_or_auto(value: object) -> object:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 255):
        return value
    raise PydanticCustomError("k", "input should be a whole number from 1 to 255, or 'auto'")


class CellRule(_Strict):
    """`[[plan.rules]]`: bounds in kept samples for every cell that matches, and a factor on its weight.

    `pin` is exactly so many, `floor` at least, `cap` at most; `boost` multiplies the weight. For each of the four the
    most specific rule wins; two that are equally specific and differ are an error.
    """

    when: When = Field(min_length=1)
    pin: int | None = Field(default=None, ge=0, le=MAX_COUNT)
    floor: int | None = Field(default=None, ge=0, le=MAX_COUNT)
    cap: int | None = Field(default=None, ge=0, le=MAX_COUNT)
    boost: float | None = Field(default=None, gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _check(self) -> CellRule:
        if self.pin is self.floor is self.cap is self.boost is None:
            raise ValueError("says nothing: give pin, floor, cap or boost")
        if self.pin is not None and (self.floor is not None or self.cap is not None):
            raise ValueError("pin is the number itself: floor and cap don't go with it")
        if self.floor is not None and self.cap is not None and self.floor > self.cap:
            raise ValueError(f"floor {self.floor:,} lies above cap {self.cap:,}")
        return self


class PlanRules(_Strict):
    """`[plan]`: defaults of `distdata plan`.

    - `k`: draws of a decision point that neither its seed, a rule nor its scenario type settles; ``auto`` lets the
      pilot's draws decide per cell, between 2 and `k_max`, with `seed_cost` the price of a new seed in draws.
    - `layers`: shares of the plan's target by layer; they hold exactly, to the sample.
    - `case_share`: how much of a plan the open divergence cases may take.
    """

    policy: Policy = "gate"
    gamma: float = Field(default=2.0, ge=0, le=4, allow_inf_nan=False)
    fleet_blend: float = Field(default=0.0, ge=0, le=1)
    k: Annotated[int | Literal["auto"], PlainValidator(_k_or_auto)] = 8
    k_max: int = Field(default=32, ge=2, le=255)
    seed_cost: float = Field(default=4.0, ge=0, allow_inf_nan=False)
    floor_seeds: int = Field(default=2, ge=0)
    expected_yield: float = Field(default=1.0, gt=0, le=1)
    layers: dict[Layer, Share] | None = None
    rules: list[CellRule] = []
    case_share: float = Field(default=0.1, ge=0, le=1)

    @model_validator(mode="after")
    def _check(self) -> PlanRules:
        if self.layers is not None and not math.isclose(sum(self.layers.values()), 1.0, abs_tol=1e-6):
            raise ValueError(f"layers sums to {sum(self.layers.values()):.6g}; the shares of the layers must sum to 1")
        return self


class DecisionRule(_Strict):
    """`[[decision_points]]`: every seed of the cells that match has an open future; `k` draws show it.

    A seed that says `decision_point` itself keeps what it says.
    """

    when: When = Field(min_length=1)
    k: int | None = Field(default=None, ge=1, le=255)


class GateRules(_Strict):
    """`[gates]`: what a gate must be able to tell, per slice.

    - `alpha`: chance of passing a student that stands at its band. `power`: chance of passing one whose true difference
      is `expected_difference` bands; the chance of missing is shared among the slices.
    - `sigma`: standard deviation of the gated statistic within a seed (0.5: a share at its worst); `tau`: over seeds,
      of the seed's own student-teacher difference.
    - `metrics`: what is gated; None for all that the teacher's records allow. `bands`: bands of metrics other than the
      outcome's, which is the slice's own. `tail_multiple`: by how much the slices of the long tail get more draws.
    - `looks`: how often one student may be judged, on more draws each time; they share what it may spend of alpha.
    - `candidates`: the how-manieth student against one teacher version the draws are planned for; later ones may spend
      less of alpha and so need more of them. `k`: draws of each held-out decision point, instead of the plan's own.
    - `seeds`: of each slice at least so many, as far as it has them. A seed of one draw that differs counts whole, and
      more draws of the others don't make up for it.
    """

    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    power: float = Field(default=0.9, gt=0.5, lt=1)
    expected_difference: float = Field(default=0.5, ge=0, lt=1)
    sigma: float = Field(default=0.5, gt=0, allow_inf_nan=False)
    tau: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    metrics: list[str] | None = None
    bands: dict[str, Band] = {}
    tail_multiple: float = Field(default=1.0, ge=1, le=100)
    looks: int = Field(default=1, ge=1, le=20)
    candidates: int = Field(default=2, ge=1, le=100)
    k: int | None = Field(default=None, ge=2, le=255)
    seeds: int = Field(default=20, ge=20, le=1_000_000)


class TrainRules(_Strict):
    """`[train]`: how students are made.

    - `recipe` and `settings`: see `distdata train --recipe` and docs/training.md; `seed`: of the initial weights and of
      the order of samples. `weights`: ``plan`` (every kept sample alike) or ``fleet`` (by its share of the fleet).
    - `ship`: the artefact that is served and therefore gated, ``float32`` or ``int8``.
    - `threads`: of the CPU; a student of a few hundred thousand weights is fastest with one.
    """

    recipe: str = "capacity"
    settings: dict[str, Any] = {}
    seed: int = Field(default=0, ge=0, lt=2**63)
    weights: Literal["plan", "fleet"] = "plan"
    ship: Literal["float32", "int8"] = "float32"
    device: str = "auto"
    threads: int = Field(default=1, ge=1)


class LoopRules(_Strict):
    """`[loop]`: limits of `distdata cycle`, and whom it calls.

    - `max_cycles`: turns of the wheel in one call; `max_usd`: what plans may spend in one call.
    - `promote_to`: how far `distdata cycle` takes a green and confirmed student; a person takes it further with
      `distdata promote`. `canary_share`: the traffic that a canary gets.
    - `on_red`: a command (a list of words) that is run when a person is needed, with the reason as JSON on its stdin.
    """

    max_cycles: int = Field(default=5, ge=1, le=1000)
    max_usd: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    promote_to: Literal["shadow", "canary", "bulk"] = "shadow"
    canary_share: float = Field(default=0.05, gt=0, lt=1)
    on_red: list[str] | None = None


class Cover(_Strict):
    """`[cover]`: cells that together hold every combination of `strength` values, instead of the full product.

    For axes whose product is too large. At most `max_cells` rows are chosen, the most frequent combinations first.
    """

    strength: Literal[2, 3]
    max_cells: int = Field(default=5000, ge=1, le=1_000_000)


class Costs(_Strict):
    """`[costs]`: the programme that `distdata plan --cost` prices; the defaults are the reference programme's.

    Rates give way to measured ones where the catalog has them, the draw's also to those of `[teacher]`, and the table
    says which is which. What the reference programme implies without saying it:
    - `draw_miles`: length of one draw. A mile, because that is the unit the programme prices.
    - `draw_steps`: sampler steps of a full draw. Labels of 30 steps on 1% of 60M frames being 9,000 GPU-h, a step on
      a frame is 0.0005 GPU-h; a frame costs 900,000 / 60M = 0.015 GPU-h, which is 30 of them.
    - `int8_saving`, `int4_saving`: what serving the teacher in 8 or 4 bits saves against 16, as a factor; by the bytes
      of its weights, so the most that a teacher limited by memory saves.
    """

    miles: float = Field(default=50_000, gt=0, allow_inf_nan=False)
    gpuh_per_mile: float = Field(default=18, gt=0, allow_inf_nan=False)
    usd_per_gpuh: float = Field(default=2, gt=0, allow_inf_nan=False)
    frames: float = Field(default=60e6, gt=0, allow_inf_nan=False)
    tokens_per_frame: float = Field(default=12_000, gt=0, allow_inf_nan=False)
    student_params: float = Field(default=3e9, gt=0, allow_inf_nan=False)
    epochs: float = Field(default=2, gt=0, allow_inf_nan=False)
    train_gpus: int = Field(default=512, ge=1)
    pflops_per_gpu: float = Field(default=0.4, gt=0, allow_inf_nan=False)
    draw_miles: float = Field(default=1, gt=0, allow_inf_nan=False)
    draw_steps: float = Field(default=30, gt=0, allow_inf_nan=False)
    int8_saving: float = Field(default=2, gt=0, allow_inf_nan=False)
    int4_saving: float = Field(default=4, gt=0, allow_inf_nan=False)
    k: int = Field(default=1, ge=1, le=255)
    k_share: float = Field(default=0.0, ge=0, le=1)
    label_steps: float = Field(default=0, ge=0, allow_inf_nan=False)
    label_share: float = Field(default=0, ge=0, le=1)
    gate_draws: float = Field(default=0, ge=0, allow_inf_nan=False)
    student_speedup: float = Field(default=50, gt=0, allow_inf_nan=False)
    served_gpuh_per_day: float | None = Field(default=None, gt=0, allow_inf_nan=False)


class TeacherConfig(_Strict):
    """`[teacher]`: which teacher answers, what it costs and how it is called.

    `released`: the day of its release, from which the lag to its student is counted; None for the day it is first seen.
    """

    kind: str
    batch: int = Field(default=16, ge=1, le=4096)
    threads: int = Field(default=1, ge=1)
    gpus: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    timeout_s: float = Field(default=120.0, gt=0, allow_inf_nan=False)
    usd_per_gpuh: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    gpu_s_per_draw: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    released: date | None = None
    capture: list[Name] = []
    options: dict[str, Any] = {}


class GenerateRules(_Strict):
    """`[generate]`: how a plan is run; none of it changes what is in a sample."""

    engine: Engine = "auto"
    workers: int = Field(default=0, ge=0)
    unit_s: float = Field(default=20.0, gt=0, allow_inf_nan=False)
    unit_draws: int | None = Field(default=None, ge=1)
    shard_mb: float = Field(default=256.0, gt=0, allow_inf_nan=False)
    max_attempts: int = Field(default=3, ge=1)
    spool: Literal["auto", "on", "off"] = "auto"


class Config(_Strict):
    """The whole of distdata.toml."""

    project: Project
    axes: dict[Name, Axis] = Field(min_length=1)
    scenarios: dict[Name, Scenario] = Field(min_length=1)
    infeasible: list[Infeasible] = []
    cover: Cover | None = None
    bands: Bands
    fleet: Fleet = Fleet()
    splits: Splits = Splits()
    decision_points: list[DecisionRule] = []
    plan: PlanRules = PlanRules()
    gates: GateRules = GateRules()
    train: TrainRules = TrainRules()
    loop: LoopRules = LoopRules()
    costs: Costs = Costs()
    teacher: TeacherConfig
    generate: GenerateRules = GenerateRules()

    @model_validator(mode="after")
    def _check(self) -> Config:
        seen: dict[str, str] = {}
        for name in self.axes:
            if name.lower() in AXIS_COLUMNS_TAKEN:
                raise ValueError(f"axes.{name}: {name!r} is a column of the catalog; call the axis something else")
            twin = seen.setdefault(name.lower(), name)
            if twin != name:
                raise ValueError(f"axes.{name}: differs from axes.{twin} in case only, and SQL takes them for one")
        for i, infeasible in enumerate(self.infeasible):
            self._check_when(f"infeasible[{i}].when", infeasible.when)
        whens = {
            "bands.rules": [r.when for r in self.bands.rules],
            "plan.rules": [r.when for r in self.plan.rules],
            "decision_points": [r.when for r in self.decision_points],
        }
        for name, rules in whens.items():
            for i, when in enumerate(rules):
                self._check_when(f"{name}[{i}].when", when)
        return self

    def _check_when(self, place: str, when: When) -> None:
        for key, wanted in when.items():
            if key != "scenario" and key not in self.axes:
                raise ValueError(f"{place}: no axis {key!r}.{nearest(key, ['scenario', *self.axes])}")
            known = list(self.scenarios) if key == "scenario" else self.axes[key].values
            for value in [wanted] if isinstance(wanted, str) else wanted:
                if value not in known:
                    raise ValueError(f"{place}.{key}: no value {value!r}.{nearest(value, known)}")


def load_config(path: Path) -> Config:
    """Read and check a distdata.toml.

    Raises:
        DistdataError: the file is missing, is no TOML, or has unknown keys or bad values; every problem is
            named with its key, its value and what is allowed.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DistdataError(
            f"{path}: not found. Run `distdata init --preset driving` here, or name the project with --project DIR."
        ) from None
    except (OSError, UnicodeDecodeError) as e:
        raise DistdataError(f"{path}: can't be read: {e}") from None
    return parse_config(text, str(path))


def parse_config(text: str, where: str) -> Config:
    """Check the text of a distdata.toml that was read from `where` (see `load_config`)."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        raise DistdataError(f"{where}: not valid TOML: {e}") from None
    try:
        return Config.model_validate(data)
    except ValidationError as e:
        problems = [_explain(error) for error in e.errors()]
        raise DistdataError(f"{where}: " + "; ".join(problems)) from None


def _explain(error: Any) -> str:
    loc = [part for part in error["loc"] if part not in ("str", "list[str]", "[key]")]
    key = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in loc).lstrip(".")
    kind, value = error["type"], error.get("input")
    if kind == "extra_forbidden":
        parent = _model_at(loc[:-1])
        known = list(parent.model_fields) if parent else []
        return f"unknown key {key!r}.{nearest(str(loc[-1]), known)}"
    if kind == "missing":
        return f"{key!r} is missing"
    if kind == "value_error":
        text = str(error["ctx"]["error"])
        return f"{key}: {text}" if key else text
    message = error["msg"][0].lower() + error["msg"][1:]
    return f"{key} = {value!r}: {message}"


def _model_at(loc: list[Any]) -> type[BaseModel] | None:
    model: Any = Config
    for part in loc:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part) if isinstance(model, type) and issubclass(model, BaseModel) else None
        if field is None:
            continue  # a name inside a table of tables (axes.weather): the model stays the table's
        args = [field.annotation, *getattr(field.annotation, "__args__", ())]
        found = [a for a in args if isinstance(a, type) and issubclass(a, BaseModel)]
        model = found[0] if found else model
    return model if isinstance(model, type) and issubclass(model, BaseModel) else None
