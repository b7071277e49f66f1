"""What an ingest file's columns mean: an ``[ingest mapping]`` in TOML, ``--map`` options, or names that match.

    [columns]                      # ours = theirs; what has the same name needs no line
    seed_id = "scenario_uuid"      # or scenario and axes (and params): a condition without a seed
    outcome = "label"
    teacher_version = "model"
    [axes]
    weather = "wx"
    [values.weather]               # theirs -> ours
    "1" = "rain"
    [constants]                    # the same in every row
    scenario = "crossing"
    [members]                      # ours = their column, or member of a WebDataset sample
    "x.npy" = "latent"
    "y.npy" = { from = "lidar", dtype = "float32" }
    [quality]                      # rows that don't pass are refused, with this reason
    min = { score = 0.5 }
    allowed = { status = ["ok", "accepted"] }
    wrong = "known_wrong"          # a column: true means that the answer is known to be wrong

A column inside JSON is written with dots (``meta.score``); in WebDataset the columns are those of the sample's
``meta.json`` or ``json`` member.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ...catalogs.codec import MEMBER_PATTERN
from ...catalogs.errors import DistdataError, nearest
from ...catalogs.hashing import content_hash

COLUMNS = (
    "key", "seed_id", "group", "scenario", "params", "decision_point", "control_axis", "control_value", "outcome",
    "teacher_hash", "teacher_version", "case_id",
)  # fmt: skip
"""What a row may say besides its axes and members. `key` names the row once and for all, in whichever file."""

ALIASES = {"key": ("sample_id",)}
"""Other names under which a column is found without a mapping."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class MemberRule(_Strict):
    """Where a member comes from. `dtype` makes an array of a list; `encoding` says how bytes lie in JSON."""

    source: str = Field(alias="from", min_length=1)
    dtype: str | None = None
    encoding: Literal["base64", "hex"] | None = None


class QualityRules(_Strict):
    """What a row must have to be taken. A row without the column doesn't pass."""

    min: dict[str, float] = {}
    max: dict[str, float] = {}
    allowed: dict[str, list[str | bool | int | float]] = {}
    wrong: str | None = None


class IngestMapping(_Strict):
    """What columns and members mean, and which rows are good enough (see the module's text).

    `kind` names the record kind where it is not the teacher's; the members of another kind are those listed.
    """

    columns: dict[str, str] = {}
    axes: dict[str, str] = {}
    values: dict[str, dict[str, str]] = {}
    constants: dict[str, str | int | float | bool | dict[str, Any]] = {}
    members: dict[str, str | MemberRule] = {}
    quality: QualityRules = QualityRules()
    kind: str | None = Field(default=None, pattern=r"^[a-z][a-z0-9_]*$")

    @model_validator(mode="after")
    def _check(self) -> IngestMapping:
        for name in self.columns:
            if name not in COLUMNS:
                raise ValueError(f"columns.{name}: no such column.{nearest(name, COLUMNS)}")
        for name in self.members:
            if not MEMBER_PATTERN.fullmatch(name):
                raise ValueError(f"members.{name}: not of the form name.ending")
        return self

    @property
    def fingerprint(self) -> str:
        """Name what this mapping says, for telling one ingest of a file from another."""
        return content_hash(self.model_dump(mode="json"))

    def rule(self, member: str) -> MemberRule | None:
        """Return where `member` comes from; None when nothing was said."""
        rule = self.members.get(member)
        return MemberRule.model_validate({"from": rule}) if isinstance(rule, str) else rule

    def check_axes(self, axes: Sequence[str]) -> None:
        """Raise DistdataError for an axis or a constant that this project doesn't have."""
        for table, names, known in (
            ("axes", self.axes, axes), ("values", self.values, [*axes, *COLUMNS]),
            ("constants", self.constants, [*axes, *COLUMNS]),
        ):  # fmt: skip
            for name in names:
                if name not in known:
                    raise DistdataError(f"ingest mapping: {table}.{name}: no such column.{nearest(name, known)}")


def load_mapping(path: Path | None, options: Sequence[str] = ()) -> IngestMapping:
    """Read a mapping file and lay ``--map KEY=VALUE`` options over it.

    An option is a dotted key of the file (``axes.weather=wx``); a bare one means ``columns`` (``outcome=label``), and
    one that looks like a member ``members`` (``x.npy=latent``). Values that are JSON count as such.

    Raises:
        DistdataError: the file is missing or no TOML, or a key or value doesn't fit.
    """
    data: dict[str, Any] = {}
    if path is not None:
        try:
            data = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise DistdataError(f"{path}: not found.") from None
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
            raise DistdataError(f"{path}: not a mapping that can be read: {e}") from None
    for text in options:
        _lay_over(data, text)
    try:
        return IngestMapping.model_validate(data)
    except ValidationError as e:
        raise DistdataError(f"{path or '--map'}: " + "; ".join(_explain(error) for error in e.errors())) from None


def _lay_over(data: dict[str, Any], text: str) -> None:
    key, sign, value = text.partition("=")
    table, dot, name = key.partition(".")
    if not sign or not value:
        raise DistdataError(f"--map {text}: write OURS=THEIRS, for example --map outcome=label")
    if table not in IngestMapping.model_fields:
        table, name = ("members" if dot else "columns"), key
    parsed: Any = value
    if table in ("quality", "constants") or value.startswith("{"):
        try:
            parsed = json.loads(value)
        except ValueError:
            parsed = value
    if table == "kind":
        data["kind"] = value
        return
    place = data.setdefault(table, {})
    if table in ("quality", "values"):
        inner, _, last = name.partition(".")
        if last:
            place, name = place.setdefault(inner, {}), last
    if not isinstance(place, dict) or not name:
        raise DistdataError(f"--map {text}: write TABLE.NAME=THEIRS, for example --map axes.weather=wx")
    place[name] = parsed


def _explain(error: Mapping[str, Any]) -> str:
    loc = ".".join(str(p) for p in error["loc"] if p not in ("str", "MemberRule"))
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    if error["type"] == "extra_forbidden":
        known = IngestMapping.model_fields if len(error["loc"]) == 1 else QualityRules.model_fields
        return f"unknown key {loc!r}.{nearest(str(error['loc'][-1]), known)}"
    return f"{loc} = {error.get('input')!r}: {error['msg'][0].lower()}{error['msg'][1:]}"
