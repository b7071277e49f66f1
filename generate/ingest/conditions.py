"""Whose condition a row is: a seed of the catalog, or a new one outside the frame; or why it can't be taken."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ...catalogs import store
from ...catalogs.cases import K_AUTO, blocked_seeds
from ...catalogs.config import NAME_PATTERN
from ...catalogs.errors import nearest
from ...catalogs.hashing import content_hash, hash64, unit_interval
from ...catalogs.project import Project
from ...catalogs.seeds import MAX_ID_CHARS
from .rows import RowFacts, RowRefusedError

HELD_OUT = ("gate", "confirm")
READ_ROWS = 10_000
FIRST_K = 1000
"""Draws that nobody bought here have numbers from here on: their noise is not ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedFacts:
    """The seed of a row. `axes` is JSON, `k_seed` how many draws of it count, `is_new` that this row brings it."""

    seed_id: str
    cell: str
    cell_id: int
    scenario: str
    axes: str
    group: str
    split: str
    decision_point: bool | None
    k: int | None
    k_seed: int
    control_axis: str | None
    control_value: float | None
    params: str
    prn: float
    origin: str
    is_new: bool = False

    @property
    def in_frame(self) -> bool:
        """Tell whether plans draw from it."""
        return self.origin == "frame"

    def as_row(self) -> dict[str, Any]:
        """Return the seed as the catalog's table has it."""
        return {
            "seed_id": self.seed_id, "cell_id": self.cell_id, "grp": self.group, "split": self.split, "prn": self.prn,
            "decision_point": self.decision_point, "k": self.k, "control_axis": self.control_axis,
            "control_value": self.control_value, "params": self.params, "size": None, "origin": self.origin,
        }  # fmt: skip


class _Cell(NamedTuple):
    cell_id: int
    cell: str
    scenario: str
    axes: str
    feasible: bool
    reason: str | None
    k: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LookUp:
    """What the catalog knows of some rows: seeds by id and by (cell, canonical params), and the splits of groups."""

    seeds: dict[str, SeedFacts]
    by_condition: dict[tuple[int, str], str]
    splits: dict[str, str]


def canonical_params(text: str | None) -> str:
    """Write params so that equal ones are equal texts: keys sorted, no spaces, whole numbers without a point."""
    return json.dumps(_canonical(json.loads(text or "{}")), sort_keys=True, separators=(",", ":"))


def _canonical(value: Any) -> Any:
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    if isinstance(value, dict):
        return {key: _canonical(part) for key, part in value.items()}
    return [_canonical(part) for part in value] if isinstance(value, list) else value


class _CellConditions(NamedTuple):
    """The seeds of a cell by what they are: hashes of their canonical params, uint64 [N], and their ids."""

    hashes: NDArray[np.uint64]
    ids: pa.ChunkedArray


def _read_cell(con: Any, cell_id: int) -> _CellConditions:
    """Read the conditions of a cell, once per ingest: some 30 bytes of memory per seed."""
    hashes, ids = [np.zeros(0, np.uint64)], []
    reader = con.execute("SELECT seed_id, params FROM seeds WHERE cell_id = ?", [cell_id])
    while rows := reader.fetchmany(READ_ROWS):
        hashes.append(np.array([hash64("params", canonical_params(p)) for _, p in rows], np.uint64))
        ids.append(pa.array([s for s, _ in rows], pa.string()))
    return _CellConditions(np.concatenate(hashes), pa.chunked_array(ids, pa.string()))


class Conditions:
    """Finds the seeds of rows; remembers the seeds that earlier rows of the same ingest have brought.

    `teacher_hash` is None for samples that no teacher made. `origin` is that of new seeds; `new` holds those of rows
    that were taken.
    """

    def __init__(self, project: Project, teacher_hash: str | None, origin: str) -> None:
        self._project, self._origin = project, origin
        self._axes = list(project.config.axes)
        self._salt = project.config.project.salt
        self._blocked = set(blocked_seeds(project, teacher_hash)) if teacher_hash is not None else set()
        k = project.config.plan.k
        axis_json = ", ".join(f"'{a}', \"{a}\"" for a in self._axes)
        with store.read(project.catalog_path) as con:
            rows = con.execute(
                f"SELECT cell_id, cell, scenario, json_object({axis_json})::VARCHAR, feasible, reason, coalesce(k, ?) "
                "FROM cells",
                [k if isinstance(k, int) else K_AUTO],
            ).fetchall()
        self._cells = {row[1]: _Cell(*row) for row in rows}
        self._by_id = {c.cell_id: c for c in self._cells.values()}
        self._met: dict[str, SeedFacts] = {}
        self._by_params: dict[int, _CellConditions] = {}
        self.new: dict[str, SeedFacts] = {}

    def look_up(self, rows: Iterable[RowFacts]) -> LookUp:
        """Ask the catalog about the seeds, conditions and groups that these rows name."""
        rows = list(rows)
        ids = [r.seed_id for r in rows if r.seed_id is not None]
        groups = [r.group for r in rows if r.group is not None]
        columns = (
            "seed_id, cell_id, grp, split, decision_point, k, control_axis, control_value, params, prn, "
            "coalesce(origin, 'frame')"
        )
        with store.read(self._project.catalog_path) as con:
            by_id = f"SELECT {columns} FROM seeds WHERE seed_id IN (SELECT unnest(?::VARCHAR[]))"
            found = con.execute(by_id, [ids]).fetchall()
            known = {row[0] for row in found}
            alike = self._same_condition(con, [r for r in rows if r.seed_id not in known])
            found += con.execute(by_id, [[s for s in alike if s not in known]]).fetchall()
            splits = con.execute(
                "SELECT grp, min(split) FROM seeds WHERE grp IN (SELECT unnest(?::VARCHAR[])) GROUP BY ALL", [groups]
            ).fetchall()
        seeds = {row[0]: self._known(row) for row in found}
        # a case's own seed is no place to meet: another row with its condition is another seed's
        places = [s for s in seeds.values() if s.origin != "divergence"]
        places.sort(key=lambda s: (s.split in HELD_OUT, s.seed_id))  # of two seeds that are one, what is held out wins
        return LookUp(
            seeds=seeds,
            by_condition={(s.cell_id, canonical_params(s.params)): s.seed_id for s in places},
            splits=dict(splits),
        )

    def _same_condition(self, con: Any, rows: Sequence[RowFacts]) -> list[str]:
        """Return the ids of seeds whose cell and params are probably those of a row (equal hashes)."""
        wanted: dict[int, set[int]] = {}
        for row in rows:
            cell = self._cell_of(row)
            if cell is not None:
                wanted.setdefault(cell.cell_id, set()).add(hash64("params", canonical_params(row.params)))
        ids: list[str] = []
        for cell_id, numbers in wanted.items():
            there = self._by_params.get(cell_id)
            if there is None:
                there = self._by_params[cell_id] = _read_cell(con, cell_id)
            ids += there.ids.filter(pa.array(np.isin(there.hashes, np.array(sorted(numbers), np.uint64)))).to_pylist()
        return ids

    def find(self, row: RowFacts, known: LookUp) -> SeedFacts:
        """Return the seed of a row whose sample is to be trained on. Raises RowRefusedError where it can't be."""
        seed = self.seed_of(row, known)
        self.check_split(row, seed, known)
        if seed.seed_id in self._blocked:
            raise RowRefusedError(
                "the teacher is known wrong there", f"seed {seed.seed_id} has a teacher_wrong case.",
                "Ingest a correction (distdata ingest clean), or answers of another teacher version.",
            )  # fmt: skip
        return seed

    def seed_of(self, row: RowFacts, known: LookUp) -> SeedFacts:
        """Return the seed of a row, whichever split it is in. Raises RowRefusedError where there is none."""
        return self._catalogued(row, known) or self._fresh(row)

    def check_split(self, row: RowFacts, seed: SeedFacts, known: LookUp) -> None:
        """Raise RowRefusedError when the seed's group, or the row's, is held out for gates, or where these differ."""
        split = known.splits.get(row.group) if row.group is not None else None
        for where, group in ((split, row.group), (seed.split, seed.group)):
            if where in HELD_OUT:
                raise RowRefusedError(
                    "held out", f"group {group} is in the split {where}.",
                    "What gates are judged by must never be trained on; leave these rows out.",
                )  # fmt: skip
        if row.group not in (None, seed.group):
            raise RowRefusedError(
                "another group than the catalog's", f"seed {seed.seed_id} is in group {seed.group}, not {row.group}.",
                "Splits go by groups: correct the row's group or its seed's id, or say no group.",
            )  # fmt: skip

    def keep(self, seed: SeedFacts) -> None:
        """Remember that a taken row brought this seed."""
        if seed.is_new:
            self.new.setdefault(seed.seed_id, seed)

    def _cell_of(self, row: RowFacts) -> _Cell | None:
        if not row.axes or row.scenario is None:
            return None
        return self._cells.get(f"{','.join(row.axes)}/{row.scenario}")

    def _known(self, r: Sequence[Any]) -> SeedFacts:
        cell = self._by_id[r[1]]
        return SeedFacts(
            seed_id=r[0], cell=cell.cell, cell_id=r[1], scenario=cell.scenario, axes=cell.axes, group=r[2], split=r[3],
            decision_point=r[4], k=r[5], k_seed=1 if r[4] is False else r[5] or cell.k, control_axis=r[6],
            control_value=r[7], params=r[8], prn=r[9], origin=r[10],
        )  # fmt: skip

    def _catalogued(self, row: RowFacts, known: LookUp) -> SeedFacts | None:
        """Return the catalog's seed, by id or by its very condition, if it says nothing else than the row."""
        cell = self._checked_cell(row)
        if row.seed_id is None:
            if cell is None:
                raise RowRefusedError(
                    "no condition", "neither seed_id nor axes and scenario.", "Map seed_id, or axes.* and scenario."
                )
            known_id = known.by_condition.get((cell.cell_id, canonical_params(row.params)))
            return known.seeds[known_id] if known_id is not None else None
        seed = known.seeds.get(row.seed_id)
        if seed is None:
            if cell is None or canonical_params(row.params) == "{}":  # where params say nothing, the id is all there is
                return None
            known_id = known.by_condition.get((cell.cell_id, canonical_params(row.params)))
            twin = known.seeds[known_id] if known_id is not None else None
            return twin if twin is not None and twin.split in HELD_OUT else None
        if cell is not None and cell.cell_id != seed.cell_id:
            raise RowRefusedError(
                "another condition than the catalog's", f"seed {seed.seed_id} is {seed.cell}, not {cell.cell}.",
                "The seed's id or the row's axes are wrong.",
            )  # fmt: skip
        if row.params is not None and canonical_params(row.params) != canonical_params(seed.params):
            raise RowRefusedError(
                "another state than the catalog's", f"{seed.seed_id} has {seed.params[:80]}, not {row.params[:80]}.",
                "Give the row a seed id of its own, or none.",
            )  # fmt: skip
        if not self._by_id[seed.cell_id].feasible:
            self._refuse_infeasible(self._by_id[seed.cell_id])
        return seed

    def _checked_cell(self, row: RowFacts) -> _Cell | None:
        if not row.axes or row.scenario is None:
            return None
        cell = self._cell_of(row)
        if cell is None:
            for name, value in (*zip(self._axes, row.axes, strict=True), ("scenario", row.scenario)):
                configured = (
                    list(self._project.config.scenarios) if name == "scenario"
                    else self._project.config.axes[name].values
                )  # fmt: skip
                if value not in configured:
                    raise RowRefusedError(
                        f"unknown {name}", f"{name} = {value!r}.{nearest(value, configured)}",
                        f"Translate it: --map 'values.{name}.{value}=OURS'.",
                    )  # fmt: skip
            raise RowRefusedError(
                "no such cell", f"{','.join(row.axes)}/{row.scenario} is not planned here.", "Leave these rows out."
            )
        if not cell.feasible:
            self._refuse_infeasible(cell)
        return cell

    def _refuse_infeasible(self, cell: _Cell) -> None:
        raise RowRefusedError(
            "a cell declared infeasible",
            f"{cell.cell}: {cell.reason}.",
            "Remove the [[infeasible]] rule, or these rows.",
        )

    def _fresh(self, row: RowFacts) -> SeedFacts:
        """Make the seed of a condition that the catalog doesn't have; its group goes to the training split."""
        cell = self._checked_cell(row)
        if cell is None:
            raise RowRefusedError(
                "unknown seed", f"seed_id {row.seed_id!r} is not in the catalog, and the row says no condition.",
                "Import that seed first (distdata catalog import), or map axes.* and scenario.",
            )  # fmt: skip
        params = row.params or "{}"
        seed_id = row.seed_id or f"by-{content_hash(['condition', cell.cell, canonical_params(params)])}"
        if not re.fullmatch(NAME_PATTERN, seed_id) or len(seed_id) > MAX_ID_CHARS:
            raise RowRefusedError(
                "bad seed id", f"{seed_id!r} is not 1 to {MAX_ID_CHARS} of A-Z a-z 0-9 _ -.", "Map another column."
            )
        earlier = self._met.get(seed_id)
        if earlier is not None:
            if (earlier.cell_id, canonical_params(earlier.params)) != (cell.cell_id, canonical_params(params)):
                raise RowRefusedError(
                    "one seed id for two conditions", f"{seed_id} was {earlier.cell} before, {cell.cell} here.",
                    "Give every condition an id of its own.",
                )  # fmt: skip
            return earlier
        seed = SeedFacts(
            seed_id=seed_id, cell=cell.cell, cell_id=cell.cell_id, scenario=cell.scenario, axes=cell.axes,
            group=row.group or seed_id, split="train", decision_point=row.decision_point, k=None,
            k_seed=1 if row.decision_point is False else cell.k, control_axis=row.control_axis,
            control_value=row.control_value, params=params, prn=unit_interval("prn", self._salt, seed_id),
            origin=self._origin, is_new=True,
        )  # fmt: skip
        self._met[seed_id] = seed
        return seed
