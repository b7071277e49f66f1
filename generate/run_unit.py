"""Make one unit: ask the teacher, check and encode what it says, write the shard, commit the manifest.

The one function both engines run. Everything it needs is in its arguments; what it changes outside is a
spool file, a shard and a manifest, each a named effect (see `catalogs.effects`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from ..catalogs.check import damaged_entries, manifest_entries
from ..catalogs.codec import check_member, encode_members
from ..catalogs.files import disk_errors, exclusive_lock
from ..catalogs.hashing import bytes_hash
from ..catalogs.manifests import SCHEMA_VERSION, UnitSummary, manifest_name, read_manifest, unit_stem, write_manifest
from ..catalogs.protocol import Draw, Failure, Member, MemberSpec, Request, TeacherInfo
from ..catalogs.shards import Shard, ShardWriter, read_sample
from ..catalogs.storage import Storage
from .ask import Asker, Timed
from .spool import Answer, Spool
from .tasks import UnitTask

META_MEMBER = "meta.json"
MAX_HANGS = 3
UNIT_LOCK_WAIT_S = 60.0

Progress = Callable[[int, int, float], None]
"""(draws answered, of which failed, dollars) since the last call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRules:
    """How units are run, without what decides their content."""

    max_attempts: int


@dataclass(slots=True)
class _Slot:
    """What is known of one draw of the unit so far."""

    answer: Answer | None = None
    salvaged: bool = False  # kept from an earlier attempt: a new answer is paid for, but not used
    tries: int = 0
    gpu_s: float = 0.0  # the last answer's own cost
    usd: float = 0.0
    paid_gpu_s: float = 0.0  # over all tries
    paid_usd: float = 0.0
    in_doubt_usd: float = 0.0

    @property
    def ok(self) -> bool:
        return self.answer is not None and self.answer.members is not None


def run_unit(
    task: UnitTask,
    asker: Asker,
    info: TeacherInfo,
    storage: Storage,
    spool_dir: Path,
    rules: RunRules,
    progress: Progress = lambda *_: None,
) -> UnitSummary:
    """Make the unit of `task` and commit it; a unit that is committed already is only read back.

    `info` is the teacher as the plan knows it. Calling this again after any crash finishes the unit,
    reuses every spooled answer, and gives the same shard bytes for a reproducible teacher.

    Raises:
        DistdataError: the disk is full, the storage can't be written, or the teacher can't be used at all.
    """
    start = time.monotonic()
    name = manifest_name(task.plan_id, task.unit, task.attempt)
    stem = f"{task.plan_id}-{unit_stem(task.unit, task.attempt)}"
    busy = f"{name}: process {{holder}} of an earlier run still makes this unit; wait for it to end."
    lock, spooled = spool_dir / f"{stem}.lock", spool_dir / f"{stem}.spool"
    with exclusive_lock(lock, busy, UNIT_LOCK_WAIT_S):
        if storage.exists(name):  # a worker died, or another one was faster, right after the commit
            summary = read_manifest(storage, name)[1]
            spooled.unlink(missing_ok=True)
        else:
            # the probe spools its answers whatever the teacher costs; they are used here
            spool = Spool(spooled, task.key) if task.spool or spooled.exists() else None
            try:
                slots = _answers(task, asker, info, storage, spool, rules, progress)
                summary = _commit(task, info, storage, slots, start)
            except BaseException:
                if spool is not None:
                    spool.close()
                raise
            if spool is not None:
                spool.remove()
    lock.unlink(missing_ok=True)
    return summary


def probe(task: UnitTask, asker: Asker, info: TeacherInfo, spool_dir: Path) -> list[Answer]:
    """Ask the first micro-batches of a unit and leave their answers in its spool, paid once.

    It stops at the first good answers of a batch whose time is the draws' own: the second one asked, since a
    teacher without a `load` method loads during its first. When all that was probed before failed, all of it
    is asked again: something was put right since, or the caller hears the same again.
    """
    stem = f"{task.plan_id}-{unit_stem(task.unit, task.attempt)}"
    busy = f"{stem}: process {{holder}} of an earlier run still probes the teacher; wait for it to end."
    with exclusive_lock(spool_dir / f"{stem}.lock", busy, UNIT_LOCK_WAIT_S):
        spool = Spool(spool_dir / f"{stem}.spool", task.key)
        try:
            slots = _restore(task, spool)
            again = any(s.answer for s in slots) and not any(s.ok for s in slots)
            warm = 0 if hasattr(asker.teacher, "load") else task.batch
            for start in range(0, len(slots), task.batch):
                positions = range(start, min(start + task.batch, len(slots)))
                _ask(task, [i for i in positions if again or slots[i].answer is None], asker, info, spool, slots)
                if start >= warm and any(s.ok for s in slots) and not again:
                    break
        finally:
            spool.close()
    return [s.answer for s in slots if s.answer is not None]


def _answers(
    task: UnitTask,
    asker: Asker,
    info: TeacherInfo,
    storage: Storage,
    spool: Spool | None,
    rules: RunRules,
    progress: Progress,
) -> list[_Slot]:
    """Get an answer for every draw: salvaged, spooled or asked; failed ones are asked again one by one."""
    slots = _restore(task, spool)
    for position, answer in _salvaged(task, storage):
        slots[position].answer, slots[position].salvaged = answer, True
        slots[position].gpu_s, slots[position].usd = answer.gpu_s, answer.usd
    for start in range(0, len(slots), task.batch):
        stop = min(start + task.batch, len(slots))
        open_positions = [i for i in range(start, stop) if slots[i].answer is None]
        if open_positions and asker.n_hangs < MAX_HANGS:
            # computed as one, a micro-batch gives the same bits only when it is asked whole
            _ask(task, range(start, stop) if info.joint_batches else open_positions, asker, info, spool, slots)
        for i in open_positions:
            if slots[i].answer is None:
                reason = f"not asked: the teacher hung {asker.n_hangs} times in this run"
                slots[i].answer = Answer(position=i, members=None, failure="timeout", reason=reason)
        progress(stop - start, sum(not s.ok for s in slots[start:stop]), sum(s.paid_usd for s in slots[start:stop]))
    for i, slot in enumerate(slots):
        before, was_ok = slot.paid_usd, slot.ok
        while _worth_asking_again(slot, info, rules) and asker.n_hangs < MAX_HANGS:
            _ask(task, [i], asker, info, spool, slots)
        if slot.paid_usd != before or slot.ok != was_ok:
            progress(0, int(was_ok) - int(slot.ok), slot.paid_usd - before)
    return slots


def _worth_asking_again(slot: _Slot, info: TeacherInfo, rules: RunRules) -> bool:
    if slot.ok or slot.answer is None or slot.tries == 0 or slot.tries >= rules.max_attempts:
        return False
    # a reproducible teacher would say the same invalid thing again; a refusal is an answer
    return slot.answer.failure in ("error", "timeout") or (
        slot.answer.failure == "invalid" and info.reproducible == "none"
    )


def _restore(task: UnitTask, spool: Spool | None) -> list[_Slot]:
    slots = [_Slot() for _ in range(len(task.rows))]
    if spool is not None:
        state = spool.state
        for answer in state.answers:
            _record(slots[answer.position], answer)
        for i, usd in state.in_doubt_usd.items():
            slots[i].in_doubt_usd = usd
        # what an interrupted task of the same unit cost has no draw here to go to, and must go somewhere
        slots[0].paid_gpu_s += state.other_gpu_s
        slots[0].paid_usd += state.other_usd
        slots[0].in_doubt_usd += state.other_in_doubt_usd
    return slots


def _record(slot: _Slot, answer: Answer) -> None:
    if not slot.salvaged:
        slot.answer = answer
        slot.gpu_s, slot.usd = answer.gpu_s, answer.usd
    slot.tries += 1
    slot.paid_gpu_s += answer.gpu_s
    slot.paid_usd += answer.usd


def _ask(
    task: UnitTask, positions: Sequence[int], asker: Asker, info: TeacherInfo, spool: Spool | None, slots: list[_Slot]
) -> None:
    """Ask for these draws as one micro-batch, check and encode the answers, and spool them."""
    if not positions:
        return
    first, last = positions[0], positions[-1]
    together = task.rows.slice(first, last - first + 1).to_pylist()
    rows = [together[i - first] for i in positions]
    capture = frozenset(task.capture)
    requests = [request_of(r, capture) for r in rows]
    if spool is not None:
        spool.ask(positions, task.usd_per_draw)
    where = {(r["seed_id"], r["k"]): (i, r) for i, r in zip(positions, rows, strict=True)}
    joint: list[Answer] = []
    last_s = 0.0
    for timed in asker.ask(requests):
        position, row = where[timed.answer.seed_id, timed.answer.k]
        alone_s = timed.elapsed_s - last_s
        last_s = timed.elapsed_s
        answer = _encode(task, info, position, row, timed, alone_s)
        if info.joint_batches:
            joint.append(answer)
        else:
            _record(slots[position], answer)
            if spool is not None:
                spool.got([answer])
    if joint:
        _share_cost(joint, last_s, info)
        for answer in joint:
            _record(slots[answer.position], answer)
        if spool is not None:
            spool.got(joint)


def _share_cost(answers: list[Answer], total_s: float, info: TeacherInfo) -> None:
    """Split a joint batch's wall time evenly over the draws whose cost the teacher did not measure itself."""
    each = total_s / len(answers)
    for a in answers:
        if a.gpu_s < 0:
            a.gpu_s = each
        if a.usd < 0:
            a.usd = a.gpu_s / 3600 * info.usd_per_gpuh


def request_of(row: Mapping[str, Any], capture: frozenset[str]) -> Request:
    """Build the request of one plan row."""
    return Request(
        seed_id=row["seed_id"],
        k=row["k"],
        rng_seed=row["rng_seed"],
        axes=_axes(row["axes"]),
        scenario=row["scenario"],
        params=json.loads(row["params"]),
        capture=capture,
    )


@lru_cache(maxsize=65536)
def _axes(text: str) -> Mapping[str, str]:
    return MappingProxyType(json.loads(text))  # shared by many requests, so nobody may change it


def _encode(
    task: UnitTask, info: TeacherInfo, position: int, row: Mapping[str, Any], timed: Timed, alone_s: float
) -> Answer:
    """Turn a teacher's answer into bytes, or into the failure that says why it can't be kept.

    A joint batch's unmeasured cost is left at -1 for `_share_cost`.
    """
    said = timed.answer
    if isinstance(said, Failure):
        gpu_s = -1.0 if info.joint_batches else alone_s
        usd = said.usd if said.usd is not None else (-1.0 if info.joint_batches else gpu_s / 3600 * info.usd_per_gpuh)
        return Answer(
            position=position, members=None, failure=said.kind, reason=said.reason, gpu_s=gpu_s, usd=usd
        )  # fmt: skip
    gpu_s = said.gpu_s if said.gpu_s is not None else (-1.0 if info.joint_batches else alone_s)
    usd = said.usd if said.usd is not None else (-1.0 if gpu_s < 0 else gpu_s / 3600 * info.usd_per_gpuh)
    members, reason = encode_draw(said, row, task.members, info)
    return Answer(
        position=position,
        members=members,
        outcome=said.outcome if members is not None else None,
        failure=None if members is not None else "invalid",
        reason=reason,
        gpu_s=gpu_s,
        usd=usd,
    )


def encode_draw(
    draw: Draw, row: Mapping[str, Any], specs: Mapping[str, MemberSpec], info: TeacherInfo
) -> tuple[list[tuple[str, bytes]] | None, str | None]:
    """Check a draw against what every draw must carry and encode it: (members, None), or (None, why not)."""
    missing = [n for n in specs if n not in draw.members]
    if missing:
        return None, f"member(s) {', '.join(missing)} missing; the draw has {', '.join(sorted(draw.members))}"
    for name, value in draw.members.items():
        spec = specs.get(name)
        wrong = check_member(name, value, spec) if spec is not None else _not_finite(name, value)
        if wrong:
            return None, wrong
    if info.outcomes and draw.outcome not in info.outcomes:
        return None, f"outcome {draw.outcome!r} is not one of {', '.join(info.outcomes)}"
    try:
        return encode_members({**draw.members, META_MEMBER: _meta(draw, row, info)}), None
    except (TypeError, ValueError) as e:
        return None, str(e)


def _not_finite(name: str, value: Member) -> str | None:
    if isinstance(value, Mapping) and name.endswith(".npz"):
        found = (
            check_member(f"{name}[{key}]", a, MemberSpec(dtype=str(a.dtype), shape=tuple([None] * a.ndim)))
            for key, a in value.items()
            if isinstance(a, np.ndarray) and a.dtype.kind in "fc"
        )
        return next((w for w in found if w), None)
    if isinstance(value, np.ndarray) and value.dtype.kind in "fc":
        return check_member(name, value, MemberSpec(dtype=str(value.dtype), shape=tuple([None] * value.ndim)))
    return None


def _meta(draw: Draw, row: Mapping[str, Any], info: TeacherInfo) -> dict[str, Any]:
    """Return the sample's own facts: the same keys and types in every sample; nothing measured."""
    given = draw.members.get(META_MEMBER)
    return {
        **(given if isinstance(given, Mapping) else {}),
        **_axes(row["axes"]),
        "sample_id": row["sample_id"],
        "seed_id": row["seed_id"],
        "k": row["k"],
        "rng_seed": row["rng_seed"],
        "cell": row["cell"],
        "scenario": row["scenario"],
        "outcome": draw.outcome or "",
        "teacher": info.id,
        "teacher_hash": info.content_hash,
    }


def _salvaged(task: UnitTask, storage: Storage) -> Iterator[tuple[int, Answer]]:
    """Yield what a repair can keep: every sample of earlier attempts whose bytes are still what they were."""
    position = {sample: i for i, sample in enumerate(task.rows["sample_id"].to_pylist())}
    for source in task.salvage:
        table, _ = read_manifest(storage, source.manifest)
        rows = {r["sample_id"]: r for r in table.select(["sample_id", "outcome", "gpu_s", "usd"]).to_pylist()}
        entries = manifest_entries(storage, source.manifest, source.shard_offset)
        damaged = damaged_entries(storage, source.shard, entries)
        intact = [e for e in entries if e.key not in damaged]
        if not intact:
            continue
        with storage.open(source.shard) as f:
            for entry in intact:
                row, at = rows[entry.key], position[entry.key]
                members = list(read_sample(f, entry.offset, entry.n_bytes).items())
                answer = Answer(
                    position=at, members=members, outcome=row["outcome"], gpu_s=row["gpu_s"], usd=row["usd"]
                )  # fmt: skip
                yield at, answer


def _commit(task: UnitTask, info: TeacherInfo, storage: Storage, slots: list[_Slot], start: float) -> UnitSummary:
    """Write the shard, then the manifest, whose appearance is the commit."""
    sample_ids = task.rows["sample_id"].to_pylist()
    shard_name, shard = _write_shard(task, storage, sample_ids, slots)
    entries = {e.key: e for e in shard.entries} if shard else {}
    columns = _columns(task, info, slots, shard_name)
    for field, absent in (("offset", None), ("n_bytes", None), ("sha256", None)):
        columns[field] = [getattr(entries[s], field) if s in entries else absent for s in sample_ids]
    n_ok = sum(s.ok for s in slots)
    summary = UnitSummary(
        plan_id=task.plan_id,
        unit=task.unit,
        attempt=task.attempt,
        replaces=task.replaces,
        manifest=manifest_name(task.plan_id, task.unit, task.attempt),
        shard=shard_name,
        shard_bytes=shard.n_bytes if shard else 0,
        shard_digest=shard_digest(shard) if shard else None,
        n_ok=n_ok,
        n_failed=len(slots) - n_ok,
        gpu_s=sum(s.paid_gpu_s for s in slots),
        usd=sum(s.paid_usd for s in slots),
        in_doubt_usd=sum(s.in_doubt_usd for s in slots),
        wall_s=time.monotonic() - start,
    )
    try:
        write_manifest(storage, columns, summary)
    except FileExistsError:  # another worker committed this very unit first: its commit counts
        return read_manifest(storage, summary.manifest)[1]
    return summary


def shard_digest(shard: Shard) -> str:
    """Return 16 hex digits over the digests of a shard's samples: the shard's name and identity."""
    return bytes_hash(e.sha256.encode() for e in shard.entries)


def _write_shard(
    task: UnitTask, storage: Storage, sample_ids: Sequence[str], slots: Sequence[_Slot]
) -> tuple[str | None, Shard | None]:
    """Write the good draws in plan order; the name holds their digest, so that no writer overwrites another's."""
    good = [
        (s, slot.answer.members)
        for s, slot in zip(sample_ids, slots, strict=True)
        if slot.answer and slot.answer.members
    ]
    if not good:
        return None, None
    stem = f"{task.plan_id}/{unit_stem(task.unit, task.attempt)}"
    path = storage.build_path(f"{stem}.tar")
    try:
        with disk_errors(path), open(path, "wb") as f:
            writer = ShardWriter(f, digests="samples")
            for sample_id, members in good:
                writer.add(sample_id, members)
            shard = writer.finish()
            name = f"{stem}-{shard_digest(shard)}.tar"
            storage.commit(f, path, name, "shard")
    finally:
        path.unlink(missing_ok=True)
    return name, shard


def _columns(task: UnitTask, info: TeacherInfo, slots: Sequence[_Slot], shard: str | None) -> dict[str, Any]:
    """Build the manifest's columns but for the shard entries; single values are repeated by the writer."""
    ok = [s.ok for s in slots]
    answers = [s.answer for s in slots]
    plan_columns = (
        "sample_id", "seed_id", "k", "n_k", "cell", "split", "decision_point", "pi", "weight", "rng_seed",
        "control_axis", "control_value",
    )  # fmt: skip
    return {
        **{name: task.rows[name] for name in plan_columns},
        "status": ["ok" if good else "failed" for good in ok],
        "failure": [a.failure if a else None for a in answers],
        "reason": [a.reason if a else None for a in answers],
        "tries": [s.tries for s in slots],
        "outcome": [a.outcome if a else None for a in answers],
        "shard": [shard if good else None for good in ok],
        "gpu_s": [s.gpu_s for s in slots],
        "usd": [s.usd for s in slots],
        "paid_gpu_s": [s.paid_gpu_s for s in slots],
        "paid_usd": [s.paid_usd for s in slots],
        "in_doubt_usd": [s.in_doubt_usd for s in slots],
        "source": "planned",
        "purpose": task.purpose,
        "kind": info.kind,
        "plan_id": task.plan_id,
        "teacher_hash": info.content_hash,
        "schema_version": SCHEMA_VERSION,
    }
