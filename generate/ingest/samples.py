"""Take samples in from one source: read, check, copy into units of ours, and last the event that makes them count.

Everything before the event may be cut off: the same call goes on, and until the event exists nothing of the source is
in the catalog. What was taken once is known by its id, which is made of its seed and its content, so that the same row
is never counted twice, from whichever file it comes.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import polars as pl

from ...catalogs import store
from ...catalogs.codec import encode_member
from ...catalogs.effects import effect
from ...catalogs.errors import DistdataError, nearest
from ...catalogs.events import append_json, list_events, read_json
from ...catalogs.files import exclusive_lock, write_atomic
from ...catalogs.hashing import bytes_hash, content_hash
from ...catalogs.macros import ALL_COUNTED
from ...catalogs.project import Project
from ...catalogs.protocol import Draw, MemberSpec, TeacherInfo
from ...catalogs.register import catch_up
from ...catalogs.register_ingest import INGEST_PREFIX, SEED_COLUMNS, SEEDS_FILE
from ..run_unit import META_MEMBER, encode_draw
from .conditions import FIRST_K, Conditions, LookUp
from .mapping import IngestMapping
from .outcome import CREDIT_KINDS, IngestResult, Refused, Say
from .rows import RowFacts, RowReader, RowRefusedError
from .sources import Source, SourceRow
from .write_units import TakenRow, UnitFacts, remove_beyond, write_unit

BATCH_ROWS = 1024
BATCH_BYTES = 64 << 20
LAST_K = ALL_COUNTED - 1  # k < k_counted must hold for every draw
TAIL = 6
"""How many characters at the end of a keyed sample's id say what the answer is; the others say whose it is."""
SAY_EVERY_S = 2.0
INTENT_FILE = "ingest.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Intake:
    """How a source is taken in.

    `source` is what its samples are called (golden, audit, arbitration or clean). `info` describes the teacher; for
    clean samples, one with neither id nor hash. `wanted` are the members that every sample has, None for those that
    the first row has. `cases` are those that can be corrected, with the seeds on which the teacher was wrong.
    """

    source: str
    info: TeacherInfo
    mapping: IngestMapping
    wanted: Mapping[str, MemberSpec | None] | None
    cases: Mapping[str, str] = field(default_factory=dict)

    @property
    def from_teacher(self) -> bool:
        """Tell whether a teacher made these samples."""
        return self.source in CREDIT_KINDS


def take_in(project: Project, source: Source, intake: Intake, *, dry_run: bool, say: Say) -> IngestResult:
    """Take in one source, whole or not at all. Call with the ingest lock held and the catalog caught up.

    Raises:
        DistdataError: the source is torn or damaged, or the project's seeds or cells changed meanwhile.
    """
    n_before, complete = _ingested_before(project, source.sha256, intake)
    result = IngestResult(kind=intake.source, sources=[source.label], dry_run=dry_run)
    if complete is not None:
        result.n_rows = result.n_known = complete["ingest"]["n_rows"]
        result.corrects = complete["corrects"]
        result.notes.append(f"{source.label}: ingested before, byte for byte, under these rules: nothing to do.")
        return result
    identity = content_hash(
        [source.sha256, intake.source, intake.mapping.fingerprint, intake.info.content_hash, n_before]
    )
    plan_id = f"{INGEST_PREFIX}{identity[:12]}"
    return _OneSource(project, source, intake, plan_id, result, dry_run=dry_run, say=say).run(n_before > 0)


def log_progress(project: Project, *, clean: bool) -> dict[str, int]:
    """Return up to which byte log files were taken in full, by file name: as byproducts, or as clean samples."""
    done: dict[str, int] = {}
    for event in list_events(project.events_dir):
        if event.kind == "ingest" and ((header := read_json(event))["ingest"]["kind"] == "clean") == clean:
            for name, stop in header.get("logs", {}).items():
                done[name] = max(stop, done.get(name, 0))
    return done


def _ingested_before(project: Project, sha256: str, intake: Intake) -> tuple[int, dict[str, Any] | None]:
    """Return how often this content came in, and the last time's header if nothing was refused under these rules."""
    with store.read(project.catalog_path) as con:
        rows = con.execute(
            "SELECT ingest_no, ingest_id, n_refused FROM ingests WHERE sha256 = ? AND kind = ? ORDER BY ingest_no",
            [sha256, intake.source],
        ).fetchall()
    same = [(number, n_refused) for number, ingest_id, n_refused in rows if ingest_id.endswith(_rules_of(intake))]
    if not same or same[-1][1]:
        return len(rows), None
    return len(rows), next(read_json(e) for e in list_events(project.events_dir) if e.number == same[-1][0])


def _rules_of(intake: Intake) -> str:
    return content_hash([intake.mapping.fingerprint, intake.info.content_hash])[:8]


@dataclass(slots=True)
class _Counts:
    """What is known of a seed's draws while an ingest runs: those of this teacher, and the next free number."""

    n_draws: int = 0
    next_k: int = FIRST_K


@dataclass(slots=True)
class _Batch:
    rows: list[SourceRow] = field(default_factory=list)
    facts: list[RowFacts] = field(default_factory=list)


class _OneSource:
    """One run over one source."""

    def __init__(
        self, project: Project, source: Source, intake: Intake, plan_id: str, result: IngestResult, *, dry_run: bool,
        say: Say,
    ) -> None:  # fmt: skip
        self._project, self._source, self._intake, self._plan_id = project, source, intake, plan_id
        self._result, self._dry_run, self._say = result, dry_run, say
        self._reader = RowReader(intake.mapping, list(project.config.axes))
        teacher = intake.info.content_hash if intake.from_teacher else None
        self._conditions = Conditions(project, teacher, "byproduct")
        self._wanted = intake.wanted
        self._counts: dict[str, _Counts] = {}
        self._seen: dict[bytes, str] = {}
        self._purpose = "byproduct" if intake.from_teacher else "clean"
        self._n_units = 0
        self._log_stops = {name: start for name, (start, _) in (source.spans or {}).items()}
        self._log_refused: dict[str, int] = {}

    def run(self, is_again: bool) -> IngestResult:
        """Go through the source; then, unless it is a dry run, make what was taken count."""
        newest = max((e.number for e in list_events(self._project.events_dir)), default=0)
        if not self._dry_run:
            self._begin()
        try:
            for batch in self._batches():
                self._take(batch)
        except DistdataError:
            self._discard()
            raise
        self._result.n_new_seeds = len(self._conditions.new)
        self._result.notes += self._source.notes
        if self._dry_run:
            return self._result
        if not self._result.n_rows:
            self._discard()
            if self._source.spans is None:
                raise DistdataError(f"{self._source.path}: holds no row.")
            self._result.notes.append("No record that was not taken before.")
        elif self._result.n_taken or not is_again:
            self._commit(newest)
        else:
            self._discard()
        return self._result

    # --- reading ---

    def _batches(self) -> Iterator[_Batch]:
        """Yield rows that pass by themselves, as many as memory may hold at once."""
        batch, n_bytes, said_s = _Batch(), 0, time.monotonic()
        for row in self._source.rows():
            self._result.n_rows += 1
            try:
                if row.wrong is not None:
                    self._refuse(row, row.wrong)
                    continue
                facts = self._of_case(self._reader.facts(row))
                if self._intake.from_teacher:
                    self._reader.check_teacher(row, self._intake.info)
                self._reader.check_quality(row)
            except RowRefusedError as e:
                self._refuse(row, e.refused)
                continue
            batch.rows.append(row)
            batch.facts.append(facts)
            n_bytes += row.n_bytes
            if len(batch.rows) >= BATCH_ROWS or n_bytes >= BATCH_BYTES:
                yield batch
                batch, n_bytes = _Batch(), 0
            if time.monotonic() - said_s >= SAY_EVERY_S:
                said_s = time.monotonic()
                self._say(f"  {self._source.label}: {self._result.n_rows:,} rows read, {self._result.n_taken:,} taken")
        if batch.rows:
            yield batch

    def _of_case(self, facts: RowFacts) -> RowFacts:
        """Give a correction the seed of its case."""
        if facts.case_id is None:
            return facts
        seed_id = self._intake.cases.get(facts.case_id)
        if seed_id is None:
            raise RowRefusedError(
                "unknown case", f"no teacher_wrong case {facts.case_id!r}.{nearest(facts.case_id, self._intake.cases)}",
                "Only cases in which the teacher was wrong are corrected.",
            )  # fmt: skip
        return facts if facts.seed_id or facts.axes else replace(facts, seed_id=seed_id)

    def _refuse(self, row: SourceRow, refused: Refused) -> None:
        self._result.refusals.add(f"{self._source.label} {row.place}", refused)
        if row.log_span is not None:
            name, start, _ = row.log_span  # read again from here on, in case something was put right
            self._log_refused[name] = min(start, self._log_refused.get(name, start))

    # --- one batch ---

    def _take(self, batch: _Batch) -> None:
        known = self._conditions.look_up(batch.facts)
        candidates: list[tuple[SourceRow, RowFacts, TakenRow]] = []
        for row, facts in zip(batch.rows, batch.facts, strict=True):
            try:
                candidates.append((row, facts, self._encode(row, facts, known)))
            except RowRefusedError as e:
                self._refuse(row, e.refused)
        there = self._already_here(candidates)
        taken: list[TakenRow] = []
        for row, facts, sample in candidates:
            stem, tail = _stem(sample, facts)
            digest = hashlib.blake2b(stem.encode(), digest_size=10).digest()
            before = there.get(stem, self._seen.get(digest))
            if before is not None and before != tail:
                self._refuse(row, _other_answer(sample, facts))
                continue
            if before is not None or facts.key in there:
                self._result.n_known += 1
            else:
                counts = self._counts[sample.seed.seed_id]
                if counts.next_k > LAST_K:
                    advice = "A seed can't hold more; give further answers seeds of their own."
                    words = f"seed {sample.seed.seed_id} has draws up to {LAST_K:,}."
                    self._refuse(row, Refused("too many of one seed", words, advice))
                    continue
                self._seen[digest] = tail
                taken.append(self._number(sample, counts))
            if facts.case_id is not None:
                self._result.corrects.append(facts.case_id)
            self._advance_log(row)
        if taken and not self._dry_run:
            facts_ = UnitFacts(
                plan_id=self._plan_id, source=self._intake.source, purpose=self._purpose,
                kind=self._intake.info.kind, teacher_hash=self._intake.info.content_hash,
            )  # fmt: skip
            write_unit(self._project, facts_, self._n_units, taken)
            self._n_units += 1
        self._result.n_taken += len(taken)

    def _encode(self, row: SourceRow, facts: RowFacts, known: LookUp) -> TakenRow:
        """Check and encode a row's members; its number is given later, to what is new."""
        seed = self._conditions.find(facts, known)
        wanted = self._wanted if self._wanted is not None else _members_of_first(row)
        members = self._reader.members(row, wanted)
        place: dict[str, Any] = {
            "seed_id": seed.seed_id, "k": FIRST_K, "rng_seed": 0, "cell": seed.cell, "scenario": seed.scenario,
            "axes": seed.axes, "sample_id": "",
        }  # fmt: skip
        draw = Draw(seed_id=seed.seed_id, k=FIRST_K, members=members, outcome=facts.outcome)
        specs = {name: spec for name, spec in wanted.items() if spec is not None}
        encoded, why = encode_draw(draw, place, specs, self._intake.info)
        if encoded is None:
            what = (
                "an outcome that this teacher doesn't have" if str(why).startswith("outcome") else "members don't fit"
            )
            raise RowRefusedError(what, f"{why}.")
        self._wanted = wanted
        origin = [self._intake.info.content_hash, self._purpose]
        chunks = [json.dumps([*origin, "", facts.outcome or ""]).encode()]
        for name, data in encoded:
            if name != META_MEMBER:
                chunks += [f"\0{name}\0{len(data)}\0".encode(), data]
        answer = bytes_hash(chunks)
        if facts.key is not None:  # the key says which answer it is; what it says is told apart by the tail
            answer = content_hash([*origin, facts.key])[:-TAIL] + answer[-TAIL:]
        sample_id = f"{seed.seed_id}-b{answer}"
        return TakenRow(sample_id=sample_id, seed=seed, k=FIRST_K, outcome=facts.outcome, members=encoded)

    def _already_here(self, candidates: Sequence[tuple[SourceRow, RowFacts, TakenRow]]) -> dict[str, str]:
        """Return the stems and tails of samples that the catalog has; count the draws of the seeds on the way.

        Ids that keys are come with them, as their own stems.
        """
        keyed = [_stem(s, f)[0] for _, f, s in candidates if f.key is not None]
        keyed_seeds = list({s.seed.seed_id for _, f, s in candidates if f.key is not None})
        ids = [s.sample_id for _, _, s in candidates] + [f.key for _, f, _ in candidates if f.key is not None]
        seeds = list({s.seed.seed_id for _, _, s in candidates} - self._counts.keys())
        with store.read(self._project.catalog_path) as con:
            there = con.execute(
                "SELECT sample_id FROM samples WHERE sample_id IN (SELECT unnest(?::VARCHAR[]))", [ids]
            ).fetchall()
            same_key = con.execute(
                f"""SELECT sample_id FROM samples WHERE seed_id IN (SELECT unnest(?::VARCHAR[]))
                    AND sample_id[:-{TAIL + 1}] IN (SELECT unnest(?::VARCHAR[]))""",
                [keyed_seeds, keyed],
            ).fetchall()
            counts = con.execute(
                """SELECT s.seed_id, count(*) FILTER (p.teacher_hash = ?), max(s.k)
                FROM samples s JOIN plans p USING (plan_no)
                WHERE s.seed_id IN (SELECT unnest(?::VARCHAR[])) GROUP BY ALL""",
                [self._intake.info.content_hash, seeds],
            ).fetchall()
        self._counts |= {s: _Counts() for s in seeds}
        self._counts |= {s: _Counts(n, max(FIRST_K, last + 1)) for s, n, last in counts}
        return {r[0]: "" for r in there} | {r[0][:-TAIL]: r[0][-TAIL:] for r in same_key}

    def _number(self, sample: TakenRow, counts: _Counts) -> TakenRow:
        """Give a new sample its number, and its facts the id and the number."""
        seed = sample.seed
        if counts.n_draws < seed.k_seed and self._intake.from_teacher:
            self._result.n_credit += 1
        counts.n_draws += 1
        k, counts.next_k = counts.next_k, counts.next_k + 1
        self._conditions.keep(seed)
        members = []
        for name, data in sample.members:
            if name == META_MEMBER:
                data = encode_member(name, {**json.loads(data), "sample_id": sample.sample_id, "k": k})
            members.append((name, data))
        return TakenRow(sample_id=sample.sample_id, seed=seed, k=k, outcome=sample.outcome, members=members)

    def _advance_log(self, row: SourceRow) -> None:
        if row.log_span is not None:
            name, _, stop = row.log_span
            if stop <= self._log_refused.get(name, stop):
                self._log_stops[name] = stop

    # --- making it count ---

    def _begin(self) -> None:
        """Tidy up after interrupted ingests, and say on disk that this one is under way."""
        discard_unfinished(self._project, self._plan_id)
        write_atomic(self._project.plans_dir / self._plan_id / INTENT_FILE, b"{}", "ingest.intent")

    def _discard(self) -> None:
        if not self._dry_run:
            discard(self._project, self._plan_id)

    def _commit(self, newest: int) -> None:
        """Write the seeds, then the event, unless what the rows were checked against has changed."""
        project, folder = self._project, self._project.plans_dir / self._plan_id
        remove_beyond(project, self._plan_id, self._n_units)
        effect("ingest.units")
        digests = {}
        if self._conditions.new:
            rows = [seed.as_row() for seed in self._conditions.new.values()]
            data = _parquet(rows)
            write_atomic(folder / SEEDS_FILE, data, "ingest.seeds")
            digests[SEEDS_FILE] = hashlib.sha256(data).hexdigest()
        busy = f"{project.root}: process {{holder}} is importing seeds; wait for it and ingest again."
        with exclusive_lock(project.events_dir / ".import-lock", busy, 10.0):
            if any(e.kind in ("import", "cells") for e in list_events(project.events_dir, newest)):
                raise DistdataError(
                    f"ingest: seeds or cells of {project.root} changed while {self._source.label} was read. Nothing "
                    "was ingested; run the same command again."
                )
            append_json(project.events_dir, "ingest", self._header(digests))
        catch_up(project)

    def _header(self, digests: Mapping[str, str]) -> dict[str, Any]:
        info, result = self._intake.info, self._result
        created = datetime.now(UTC).isoformat(timespec="seconds")
        return {
            "plan_id": self._plan_id,
            "plan": {
                "purpose": self._purpose, "policy": "", "budget": "", "created": created, "teacher": info.id,
                "teacher_version": info.version, "teacher_hash": info.content_hash, "n_draws": result.n_taken,
                "usd": 0.0, "gpu_s": 0.0,
            },
            "ingest": {
                "ingest_id": f"{self._plan_id}-{_rules_of(self._intake)}", "kind": self._intake.source,
                "source": self._source.label, "sha256": self._source.sha256, "n_rows": result.n_rows,
                "n_taken": result.n_taken, "n_credit": result.n_credit, "n_refused": result.n_refused,
                "created": created,
            },
            "refusals": result.refusals.rows(),
            "corrects": sorted(set(result.corrects)),
            "sha256": dict(digests),
            "logs": {name.rpartition("/")[2]: stop for name, stop in self._log_stops.items()},
        }  # fmt: skip


def _stem(sample: TakenRow, facts: RowFacts) -> tuple[str, str]:
    """Split a sample's id into which answer it is and, where a key says that, what the answer is."""
    at = len(sample.sample_id) - (TAIL if facts.key is not None else 0)
    return sample.sample_id[:at], sample.sample_id[at:]


def _other_answer(sample: TakenRow, facts: RowFacts) -> Refused:
    return Refused(
        "another answer under a known key",
        f"key {facts.key!r} of seed {sample.seed.seed_id} has another content here.",
        "A key names one answer once and for all: give this one a key of its own.",
    )  # fmt: skip


def _members_of_first(row: SourceRow) -> dict[str, MemberSpec | None]:
    """Take the members of the first good row as those of all."""
    names = [name for name, part in row.parts.items() if isinstance(part, bytes) and "." in name]
    return {name: None for name in names if name != META_MEMBER}


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    schema = {
        "seed_id": pl.String, "cell_id": pl.Int32, "grp": pl.String, "split": pl.String, "prn": pl.Float64,
        "decision_point": pl.Boolean, "k": pl.Int32, "control_axis": pl.String, "control_value": pl.Float64,
        "params": pl.String, "size": pl.Float64, "origin": pl.String,
    }  # fmt: skip
    buffer = io.BytesIO()
    pl.DataFrame(rows, schema=schema).select(SEED_COLUMNS).write_parquet(buffer)
    return buffer.getvalue()


def discard(project: Project, plan_id: str) -> None:
    """Remove what an ingest without an event has written."""
    storage, folder = project.storage, project.plans_dir / plan_id
    storage.clean_temporaries(plan_id)
    for file in storage.list(plan_id):
        storage.remove(file.name)
    if storage.root is not None and (storage.root / plan_id).is_dir():
        (storage.root / plan_id).rmdir()
    for path in sorted(folder.glob("*")) if folder.is_dir() else []:
        path.unlink(missing_ok=True)
    if folder.is_dir():
        folder.rmdir()


def discard_unfinished(project: Project, keep: str) -> None:
    """Remove what interrupted ingests but `keep` have left. Call with the ingest lock held."""
    finished = {read_json(e)["plan_id"] for e in list_events(project.events_dir) if e.kind == "ingest"}
    for path in project.plans_dir.glob(f"{INGEST_PREFIX}*/{INTENT_FILE}"):
        if path.parent.name not in {*finished, keep}:
            discard(project, path.parent.name)
