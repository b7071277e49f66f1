"""Choose the samples to export and read them unit by unit, each checked against its digest.

The choice is the list of units as the catalog holds it at one moment. Rows and bytes follow later, a few
units at a time, in constant memory; a unit that has changed by then stops the export.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa

from ..catalogs import store
from ..catalogs.check import manifest_entries
from ..catalogs.errors import DistdataError, nearest
from ..catalogs.plans import PURPOSES
from ..catalogs.project import Project
from ..catalogs.ustar import parse_sample
from ..catalogs.views import SERVED_BY

HELD_OUT = ("gate", "confirm")
ROWS_AT_ONCE = 20_000
FACTS = (
    ("scenario", pa.string()), ("layer", pa.string()), ("outcome", pa.string()), ("seed_id", pa.string()),
    ("k", pa.int32()), ("n_k", pa.int32()), ("decision_point", pa.bool_()), ("weight", pa.float64()),
    ("pi", pa.float64()), ("source", pa.string()), ("teacher", pa.string()), ("teacher_version", pa.string()),
    ("teacher_hash", pa.string()), ("plan_id", pa.string()),
)  # fmt: skip
"""What is known of a sample without opening it; sample_id, cell, slice and the axes come before these."""


class ExportUnit(NamedTuple):
    """The samples of one record kind that one attempt of a unit delivered, and the shard they lie in now."""

    kind: str
    plan_no: int
    unit: int
    attempt: int
    manifest: str
    shard: str
    shard_offset: int
    shard_bytes: int
    n_samples: int
    n_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What an export holds: its units in a fixed order (kind, plan, unit, attempt), for one purpose.

    `n_held_out` samples were bought for the purpose but belong to seeds held out for gates: they stay out.
    """

    purpose: str
    axes: tuple[str, ...]
    units: tuple[ExportUnit, ...]
    n_held_out: int

    @property
    def n_samples(self) -> int:
        """How many samples were chosen."""
        return sum(u.n_samples for u in self.units)

    @property
    def kinds(self) -> dict[str, int]:
        """The record kinds and how many samples each has."""
        counts: dict[str, int] = {}
        for u in self.units:
            counts[u.kind] = counts.get(u.kind, 0) + u.n_samples
        return counts

    def of_kind(self, kind: str) -> list[ExportUnit]:
        """Return the units of one record kind."""
        return [u for u in self.units if u.kind == kind]

    @property
    def fact_fields(self) -> list[pa.Field]:
        """The flat columns every export has: identity, the axes, `FACTS`."""
        names = ["sample_id", "cell", "slice", *self.axes]
        return [*(pa.field(name, pa.string()) for name in names), *(pa.field(n, t) for n, t in FACTS)]


class ReadSample(NamedTuple):
    """One sample: its facts by column, and its encoded members in their order."""

    facts: dict[str, Any]
    members: dict[str, bytes]


def choose(project: Project, purpose: str) -> Choice:
    """Choose every sample that was bought for `purpose`, is in the catalog now and was not rejected.

    Seeds held out for gates are left out of the purposes train and pilot, whatever plan drew them.

    Raises:
        DistdataError: an unknown purpose, or no such sample.
    """
    if purpose not in PURPOSES:
        raise DistdataError(f"export: unknown purpose {purpose!r}.{nearest(purpose, PURPOSES)}")
    hidden = () if purpose in HELD_OUT else HELD_OUT
    with store.read(project.catalog_path) as con:
        axes = con.execute("SELECT axis FROM axes GROUP BY axis ORDER BY min(position)").fetchall()
        rows = con.execute(
            """SELECT s.kind, plan_no, s.unit, s.attempt, u.manifest, u.shard, u.shard_offset, u.shard_bytes,
                count(*), sum(s.n_bytes)::BIGINT
            FROM samples s JOIN units u USING (plan_no, unit, attempt) JOIN plans p USING (plan_no)
            ANTI JOIN drops d ON d.sample_id = s.sample_id
            WHERE p.purpose IN (SELECT unnest(?)) AND coalesce(s.split, '') NOT IN (SELECT unnest(?))
            GROUP BY ALL ORDER BY ALL""",
            [list(SERVED_BY[purpose]), list(hidden)],
        ).fetchall()
        held_out = store.first(
            con.execute(
                "SELECT count(*) FROM samples JOIN plans USING (plan_no) "
                "WHERE purpose IN (SELECT unnest(?)) AND split IN (SELECT unnest(?))",
                [list(SERVED_BY[purpose]), list(hidden)],
            )
        )
    if not rows:
        raise DistdataError(
            f"export: the catalog has no sample bought for {purpose}. Run `distdata plan` and `distdata generate` "
            "first."
        )
    return Choice(
        purpose=purpose,
        axes=tuple(a for (a,) in axes),
        units=tuple(ExportUnit(*r) for r in rows),
        n_held_out=int(held_out[0]) if held_out else 0,
    )


def read_samples(project: Project, choice: Choice, units: Sequence[ExportUnit], *, check: bool) -> Iterator[ReadSample]:
    """Yield the samples of `units` in order, by where they lie; `check` compares each with its manifest's digest.

    Raises:
        DistdataError: a shard is missing or damaged (it says how to repair), or the catalog has changed.
    """
    for unit, facts in read_facts(project, choice, units):
        digests = _digests(project, unit) if check else {}
        address = project.storage.address(unit.shard)
        try:
            with project.storage.open(unit.shard) as f:
                for row in facts:
                    offset, n_bytes = row.pop("offset"), row.pop("n_bytes")
                    f.seek(offset)
                    data = f.read(n_bytes)
                    if check and digests.get(row["sample_id"]) != (offset, n_bytes, hashlib.sha256(data).hexdigest()):
                        raise _damaged(f"{address}: sample {row['sample_id']} is not what its manifest says")
                    yield ReadSample(row, parse_sample(data, address, offset))
        except FileNotFoundError:
            raise _damaged(f"{address}: the shard is missing") from None


def read_facts(
    project: Project, choice: Choice, units: Sequence[ExportUnit]
) -> Iterator[tuple[ExportUnit, list[dict[str, Any]]]]:
    """Yield each unit with its samples' facts plus `offset` and `n_bytes`, ordered by offset.

    Raises DistdataError when the catalog holds other samples of a unit than at the time of the choice.
    """
    for group in _batches(units):
        found: dict[tuple[int, int, int], list[dict[str, Any]]] = {u[1:4]: [] for u in group}
        for row in _rows(project, choice, group):
            found[row.pop("plan_no"), row.pop("unit"), row.pop("attempt")].append(row)
        for unit in group:
            facts = found[unit[1:4]]
            if len(facts) != unit.n_samples or sum(row["n_bytes"] for row in facts) != unit.n_bytes:
                raise DistdataError(
                    f"export: unit {unit.unit} had {unit.n_samples:,} samples when the export began and has "
                    f"{len(facts):,} now: the catalog was changed meanwhile. Run the export again."
                )
            yield unit, facts


def _batches(units: Sequence[ExportUnit]) -> Iterator[list[ExportUnit]]:
    group: list[ExportUnit] = []
    n_rows = 0
    for unit in units:
        if group and (n_rows + unit.n_samples > ROWS_AT_ONCE or unit.kind != group[0].kind):
            yield group
            group, n_rows = [], 0
        group.append(unit)
        n_rows += unit.n_samples
    if group:
        yield group


def _rows(project: Project, choice: Choice, units: Sequence[ExportUnit]) -> list[dict[str, Any]]:
    axes = "".join(f'c."{axis}", ' for axis in choice.axes)
    wanted = pa.Table.from_pylist([{"plan_no": u.plan_no, "unit": u.unit, "attempt": u.attempt} for u in units])
    hidden = () if choice.purpose in HELD_OUT else HELD_OUT
    with store.read(project.catalog_path) as con:
        con.register("wanted", wanted)
        # a draw's weight is the one it has in the corpus as it is now, not in the plan that bought it
        table = con.sql(
            f"""WITH here AS (
                SELECT s.* FROM samples s SEMI JOIN wanted USING (plan_no, unit, attempt)
                ANTI JOIN drops d ON d.sample_id = s.sample_id
            ), stands AS (
                SELECT split, teacher_hash, seed_id, any_value(c.share) AS share, any_value(c.k_counted) AS k_counted,
                    count(*) FILTER (s.k < c.k_counted) AS n
                FROM (SELECT x.*, p.teacher_hash FROM samples x JOIN plans p USING (plan_no)
                    SEMI JOIN here h ON h.seed_id = x.seed_id ANTI JOIN drops d ON d.sample_id = x.sample_id) s
                JOIN corpus c USING (split, teacher_hash, seed_id) GROUP BY ALL
            ) SELECT plan_no, unit, attempt, s.sample_id, c.cell, c.slice, {axes} c.scenario, c.layer, s.outcome,
                s.seed_id, s.k, s.n_k, s.decision_point,
                CASE WHEN t.n IS NULL THEN s.weight WHEN s.k < t.k_counted THEN c.fleet_share * t.share / t.n
                    ELSE 0 END AS weight,
                s.pi, s.source, p.teacher, p.teacher_version,
                p.teacher_hash, p.plan_id, s."offset" + u.shard_offset AS "offset", s.n_bytes
            FROM here s JOIN units u USING (plan_no, unit, attempt)
            JOIN plans p USING (plan_no) JOIN cells c USING (cell_id)
            LEFT JOIN stands t ON t.split = s.split AND t.teacher_hash = p.teacher_hash AND t.seed_id = s.seed_id
            WHERE s.kind = ? AND coalesce(s.split, '') NOT IN (SELECT unnest(?))
            ORDER BY plan_no, unit, attempt, "offset" """,
            params=[units[0].kind, list(hidden)],
        ).to_arrow_table()
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def _digests(project: Project, unit: ExportUnit) -> Mapping[str, tuple[int, int, str]]:
    entries = manifest_entries(project.storage, unit.manifest, unit.shard_offset)
    return {e.key: (e.offset, e.n_bytes, e.sha256) for e in entries}


def _damaged(what: str) -> DistdataError:
    return DistdataError(
        f"{what}. Nothing was exported. Make what is lost again with `distdata generate --repair`, then export."
    )
