"""distdata.toml: what a person writes, checked as a whole before anything runs."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

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

AXIS_COLUMNS_TAKEN = frozenset([
    "attempt", "axes", "axis", "band", "band_source", "budget", "bytes", "ceiling", "cell", "cell_id",
    "control_axis", "control_value", "created", "credit", "credited", "decision_point", "deficit", "duration_s",
    "effective_n", "failed", "failure", "feasible", "file", "fleet_share", "floor", "fresh", "generated", "gpu_h",
    "gpu_s", "group", "grp", "import_id", "in_doubt_usd", "k", "kept", "kind", "known_usd", "layer", "manifest",
    "mark", "n_bytes", "n_draws", "n_failed", "n_frame", "n_k", "n_ok", "n_seeds", "n_taken", "note", "number",
    "offset", "outcome", "params", "pi", "plan_id", "plan_no", "planned", "policy", "position", "prn", "purpose",
    "reason", "rng_seed", "row", "sample_id", "scenario", "seed_id", "seeds", "sha256", "shard", "shard_bytes",
    "shard_digest", "shard_offset", "share", "size", "slice", "source", "split", "superseded_by", "target",
    "teacher", "teacher_hash", "teacher_version", "tries", "unit", "usd", "value", "value_position", "wall_s",
    "weight", "weight_sq_sum", "weight_sum",
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


class PlanRules(_Strict):
    """`[plan]`: defaults of `distdata plan`."""

    policy: Policy = "gate"
    gamma: float = Field(default=2.0, ge=0, le=4, allow_inf_nan=False)
    fleet_blend: float = Field(default=0.0, ge=0, le=1)
    k: int = Field(default=8, ge=1, le=255)
    floor_seeds: int = Field(default=2, ge=0)
    expected_yield: float = Field(default=1.0, gt=0, le=1)


class TeacherConfig(_Strict):
    """`[teacher]`: which teacher answers, what it costs and how it is called."""

    kind: str
    batch: int = Field(default=16, ge=1, le=4096)
    threads: int = Field(default=1, ge=1)
    gpus: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    timeout_s: float = Field(default=120.0, gt=0, allow_inf_nan=False)
    usd_per_gpuh: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    gpu_s_per_draw: float | None = Field(default=None, gt=0, allow_inf_nan=False)
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
    bands: Bands
    fleet: Fleet = Fleet()
    splits: Splits = Splits()
    plan: PlanRules = PlanRules()
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
        for i, rule in enumerate(self.bands.rules):
            self._check_when(f"bands.rules[{i}].when", rule.when)
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
