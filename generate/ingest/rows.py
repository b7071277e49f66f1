"""What one row says, by the mapping: its condition, its teacher, its quality and its members."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...catalogs.protocol import Member, MemberSpec, TeacherInfo
from ...catalogs.seeds import STRICT, parse_json
from .mapping import ALIASES, IngestMapping
from .outcome import Refused
from .sources import SourceRow
from .values import member_value

FIX_SOURCE = "Correct these rows, or map another column."


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFacts:
    """What a row says of itself, in our words; None where it says nothing.

    `axes` is complete or empty. `params` is JSON text with sorted keys.
    """

    key: str | None
    seed_id: str | None
    axes: tuple[str, ...]
    scenario: str | None
    params: str | None
    group: str | None
    decision_point: bool | None
    control_axis: str | None
    control_value: float | None
    outcome: str | None
    case_id: str | None


class RowRefusedError(Exception):
    """Says why a row is not taken; `refused` has the words."""

    def __init__(self, reason: str, example: str, advice: str = FIX_SOURCE) -> None:
        self.refused = Refused(reason, example, advice)
        super().__init__(reason)


class RowReader:
    """Reads rows by a mapping; names that match need none."""

    def __init__(self, mapping: IngestMapping, axes: Sequence[str]) -> None:
        mapping.check_axes(axes)
        self._mapping, self._axes = mapping, tuple(axes)

    def facts(self, row: SourceRow) -> RowFacts:
        """Read what the row says of itself. Raises RowRefusedError for values that can't be meant."""
        axes = [self._text(row, axis, self._axis(row, axis)) for axis in self._axes]
        there = [a for a in axes if a is not None]
        if there and len(there) < len(axes):
            missing = self._axes[axes.index(None)]
            raise RowRefusedError("incomplete condition", f"no value for {missing}.", f"Map axes.{missing}.")
        return RowFacts(
            key=self._text(row, "key"),
            seed_id=self._text(row, "seed_id"),
            axes=tuple(there),
            scenario=self._text(row, "scenario"),
            params=self._params(row),
            group=self._text(row, "group"),
            decision_point=self._flag(row, "decision_point"),
            control_axis=self._text(row, "control_axis"),
            control_value=self._number(row, "control_value"),
            outcome=self._text(row, "outcome") or None,
            case_id=self._text(row, "case_id"),
        )

    def check_quality(self, row: SourceRow) -> None:
        """Raise RowRefusedError where the row does not pass the mapping's quality rules."""
        rules = self._mapping.quality
        advice = "These are the mapping's [quality] rules."
        for name, least in rules.min.items():
            value = row.fact(name)
            if not _is_number(value) or not value >= least:
                raise RowRefusedError(f"{name} below {least:g}", f"{name} = {value!r}.", advice)
        for name, most in rules.max.items():
            value = row.fact(name)
            if not _is_number(value) or not value <= most:
                raise RowRefusedError(f"{name} above {most:g}", f"{name} = {value!r}.", advice)
        for name, known in rules.allowed.items():
            value = row.fact(name)
            if value not in known:
                allowed = ", ".join(map(str, known))
                raise RowRefusedError(f"{name} is not one of {allowed}", f"{name} = {value!r}.", advice)
        if rules.wrong is not None and row.fact(rules.wrong) not in (None, False, 0, "", "false", "False"):
            raise RowRefusedError("known wrong", f"{rules.wrong} = {row.fact(rules.wrong)!r}.", advice)

    def check_teacher(self, row: SourceRow, info: TeacherInfo) -> None:
        """Raise RowRefusedError unless the row's teacher is the project's, by content hash, else by version."""
        content_hash, version = self._text(row, "teacher_hash"), self._text(row, "teacher_version")
        advice = "Only answers of the teacher in distdata.toml are targets; others would be another distribution."
        if content_hash is not None:
            if content_hash != info.content_hash:
                raise RowRefusedError(
                    "another teacher", f"teacher_hash {content_hash}, this project's is {info.content_hash}.", advice
                )
        elif version is None:
            raise RowRefusedError(
                "no teacher named", "neither teacher_hash nor teacher_version.",
                f"Map one of them, or say it for all rows: --map 'constants.teacher_version=\"{info.version}\"'.",
            )  # fmt: skip
        elif version != info.version:
            raise RowRefusedError(
                "another teacher", f"teacher_version {version}, this project's is {info.version}.", advice
            )

    def members(self, row: SourceRow, wanted: Mapping[str, MemberSpec | None]) -> dict[str, Member]:
        """Return the row's members. Raises RowRefusedError for one that is missing or of another type."""
        found: dict[str, Member] = {}
        for name, spec in wanted.items():
            rule = self._mapping.rule(name)
            raw = self._part(row, name) if rule is None else row.parts.get(rule.source, row.fact(rule.source))
            if raw is None:
                where = rule.source if rule is not None else name
                there = ", ".join(sorted(map(str, row.parts))[:12])
                raise RowRefusedError(
                    f"member {name} is missing", f"no {where!r}; there is {there}.",
                    f"Samples of one kind have the same members. Map it: --map {name}=THEIRS",
                )  # fmt: skip
            try:
                found[name] = member_value(name, raw, rule, spec)
            except (ValueError, TypeError) as e:
                raise RowRefusedError(f"member {name} can't be read", f"{e}.") from None
        return found

    def _part(self, row: SourceRow, name: str) -> Any:
        """Find a member by its own name, or by the names that our exports give a column."""
        stem, full = name.rpartition(".")[0].replace(".", "_"), name.replace(".", "_")
        for candidate in (name, stem, full, f"{stem}_", f"{full}_"):
            value = row.parts.get(candidate)
            if value is not None:
                return value
        return None

    def _value(self, row: SourceRow, name: str) -> Any:
        return self._look(row, name, self._mapping.columns.get(name), (name, *ALIASES.get(name, ())))

    def _look(self, row: SourceRow, name: str, theirs: str | None, usual: Sequence[str]) -> Any:
        """Find a value, in our words: in the mapping's column, or else in the usual ones; last, the constant."""
        found = (row.fact(column) for column in ([theirs] if theirs is not None else usual))
        value = next((v for v in found if v is not None), None)
        if value is None:
            return self._mapping.constants.get(name)
        return self._mapping.values.get(name, {}).get(str(value), value)

    def _axis(self, row: SourceRow, axis: str) -> Any:
        # axes.NAME is how our own log has them
        return self._look(row, axis, self._mapping.axes.get(axis), (axis, f"axes.{axis}"))

    def text_of(self, row: SourceRow, name: str) -> str | None:
        """Return a column that no mapping renames as text. Raises RowRefusedError for what is none."""
        return self._text(row, name, row.fact(name))

    def _text(self, row: SourceRow, name: str, value: Any = ...) -> str | None:
        value = self._value(row, name) if value is ... else value
        if value is None:
            return None
        if isinstance(value, str):
            try:
                value.encode()
            except UnicodeEncodeError:
                raise RowRefusedError(f"{name} is no text", f"{name} = {value!r} has half a surrogate pair.") from None
            return value
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise RowRefusedError(f"{name} is no text", f"{name} = {value!r}.")
        return f"{value:g}" if isinstance(value, float) else str(value)

    def _flag(self, row: SourceRow, name: str) -> bool | None:
        value = self._value(row, name)
        if value is None or isinstance(value, bool):
            return value
        if value in (0, 1):
            return bool(value)
        raise RowRefusedError(f"{name} is neither true nor false", f"{name} = {value!r}.")

    def _number(self, row: SourceRow, name: str) -> float | None:
        value = self._value(row, name)
        if value is None:
            return None
        if not _is_number(value):
            raise RowRefusedError(f"{name} is no finite number", f"{name} = {value!r}.")
        return float(value)

    def _params(self, row: SourceRow) -> str | None:
        value = self._value(row, "params")
        if value is None:
            return None
        try:
            read = parse_json(value if isinstance(value, str) else json.dumps(value), STRICT)
            if not isinstance(read, dict):
                raise ValueError(f"{type(read).__name__}, not an object")
            return json.dumps(read, sort_keys=True, allow_nan=False)
        except (ValueError, TypeError, RecursionError) as e:
            raise RowRefusedError("params are no JSON object", f"{e}.") from None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
