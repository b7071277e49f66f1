"""Registration of what came from outside: ingested samples, verifiers' verdicts and divergence cases.

- An ``ingest`` event (JSON) is the header of samples that nobody bought here: a pseudo plan (`plan`), what was read and
  refused (`ingest`, `refusals`), and the digest of ``plans/ID/seeds.parquet`` where seeds came with them.
- A ``verdict`` event (Parquet) lists rejected samples, and the units that the verifier has seen.
- A ``case`` event (Parquet, `CASE_SCHEMA`) opens divergence cases, with the seed that each brings along, or moves them
  on.

Verdicts and cases speak of samples, so they are applied after the manifests.
"""

from __future__ import annotations

from typing import Any

import polars as pl
import pyarrow as pa

from . import store
from .errors import DistdataError
from .events import Event, read_json, read_table
from .files import check_digests
from .project import Project

SEED_COLUMNS = (
    "seed_id", "cell_id", "grp", "split", "prn", "decision_point", "k", "control_axis", "control_value", "params",
    "size", "origin",
)  # fmt: skip
SEEDS_FILE = "seeds.parquet"
INGEST_PREFIX = "in-"
"""How the ids of pseudo plans begin."""

VERDICT_SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),  # a rejected sample ...
        ("stage", pa.string()),
        ("reason", pa.string()),
        ("plan_id", pa.string()),  # ... or a unit that was looked at
        ("unit", pa.int32()),
        ("attempt", pa.int32()),
    ]
)
CASE_SCHEMA = pa.schema(
    [
        ("change", pa.string()),  # open | update | state | drop
        ("case_id", pa.string()),
        ("kind", pa.string()),
        ("seed_id", pa.string()),
        ("cell_id", pa.int32()),
        ("priority", pa.float64()),
        ("state", pa.string()),
        ("note", pa.string()),
        ("sample_id", pa.string()),
        ("teacher_hash", pa.string()),
        ("opened", pa.string()),
        ("plan_id", pa.string()),
        ("student", pa.string()),
        ("new_seed_id", pa.string()),  # the seed that the case brings; the columns below are its own
        ("grp", pa.string()),
        ("split", pa.string()),
        ("prn", pa.float64()),
        ("decision_point", pa.bool_()),
        ("k", pa.int32()),
        ("control_axis", pa.string()),
        ("control_value", pa.float64()),
        ("params", pa.string()),
    ]
)
CASE_STAGE = "divergence"
"""The stage under which a teacher's known wrong outputs are dropped."""


def apply_ingest(con: Any, project: Project, event: Event) -> None:
    """Register an ingest: its pseudo plan, its seeds, and what it read. Its samples come with its manifests."""
    header = read_json(event)
    try:
        plan = {"plan_no": event.number, "plan_id": header["plan_id"], **header["plan"], "superseded_by": None}
        ingest, refusals, digests = header["ingest"], header["refusals"], header["sha256"]
    except KeyError as e:
        raise DistdataError(f"{event.path}: damaged (it has no {e}). Restore this file from a backup.") from None
    store.insert(con, "plans", pa.Table.from_pylist([plan]))
    if SEEDS_FILE in digests:
        path = project.plans_dir / header["plan_id"] / SEEDS_FILE
        try:
            check_digests(path.parent, digests, SEEDS_FILE)
            seeds = pl.read_parquet(path)
        except (OSError, ValueError, pl.exceptions.PolarsError) as e:
            raise DistdataError(f"{path}: damaged ({e}). Restore this file from a backup.") from None
        _insert_seeds(con, event, seeds.select(SEED_COLUMNS), ingest["source"])
    _insert_ingest(con, event, ingest, refusals)


def apply_verdict(con: Any, _project: Project, event: Event) -> None:
    """Register what a verifier rejected, and the units that it has seen."""
    table, meta = read_table(event)
    con.register("verdicts", table)
    con.execute(
        """INSERT INTO drops SELECT sample_id, stage, reason, ? FROM verdicts v
        WHERE sample_id IS NOT NULL
            AND NOT EXISTS (FROM drops d WHERE d.sample_id = v.sample_id AND d.stage = v.stage)""",
        [event.number],
    )
    con.execute(
        """INSERT INTO verified_units SELECT p.plan_no, v.unit, v.attempt, v.stage, ?
        FROM verdicts v JOIN plans p USING (plan_id) WHERE v.sample_id IS NULL""",
        [event.number],
    )
    con.unregister("verdicts")
    _insert_ingest(con, event, meta["ingest"], meta["refusals"])


def apply_case(con: Any, _project: Project, event: Event) -> None:
    """Register divergence cases: new ones with their seeds and the samples they drop, and changes of state."""
    table, meta = read_table(event)
    rows = pl.DataFrame(table)
    opened = rows.filter(pl.col("change") == "open")
    seeds = opened.filter(pl.col("new_seed_id").is_not_null()).with_columns(
        seed_id="new_seed_id", size=pl.lit(None, pl.Float64), origin=pl.lit("divergence")
    )
    if len(seeds):
        _insert_seeds(con, event, seeds.select(SEED_COLUMNS), meta["source"])
    columns = [f for f in CASE_SCHEMA.names[1:] if f != "student" and f not in CASE_SCHEMA.names[13:]]
    if len(opened):
        cases = opened.select(columns).with_columns(event=pl.lit(event.number, pl.Int32))
        store.insert(con, "cases", cases.to_arrow())
    drops = rows.filter(pl.col("change") == "drop").select("sample_id", reason="note")
    con.register("dropped", drops.unique(maintain_order=True).to_arrow())
    con.execute(
        """INSERT INTO drops SELECT sample_id, $1, reason, $2 FROM dropped n
        WHERE NOT EXISTS (FROM drops d WHERE d.sample_id = n.sample_id AND d.stage = $1)""",
        [CASE_STAGE, event.number],
    )
    con.unregister("dropped")
    con.register("moved", rows.filter(pl.col("change").is_in(["state", "update"])).to_arrow())
    con.execute(
        """UPDATE cases SET state = coalesce(m.state, cases.state), note = coalesce(m.note, cases.note),
            priority = coalesce(m.priority, cases.priority), plan_id = coalesce(m.plan_id, cases.plan_id), event = ?
        FROM moved m WHERE cases.case_id = m.case_id""",
        [event.number],
    )
    con.unregister("moved")
    if "ingest" in meta:
        _insert_ingest(con, event, meta["ingest"], meta["refusals"])


def _insert_seeds(con: Any, event: Event, seeds: pl.DataFrame, source: str) -> None:
    # an import of its own, by which derived files notice that seeds were added; no seed file has this digest
    con.execute("INSERT INTO imports VALUES (?, ?, ?, ?)", [event.number, source, f"event {event.number}", len(seeds)])
    store.insert(con, "seeds", seeds.with_columns(import_id=pl.lit(event.number, pl.Int32)).to_arrow())


def _insert_ingest(con: Any, event: Event, ingest: dict[str, Any], refusals: list[dict[str, Any]]) -> None:
    store.insert(con, "ingests", pa.Table.from_pylist([{"ingest_no": event.number, **ingest}]))
    if refusals:
        store.insert(con, "refusals", pa.Table.from_pylist([{"ingest_no": event.number, **r} for r in refusals]))
