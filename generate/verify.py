"""Replay: draw samples again and compare them with what is stored."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..catalogs import store
from ..catalogs.codec import decode_member
from ..catalogs.errors import DistdataError
from ..catalogs.manifests import read_manifest
from ..catalogs.plans import SavedPlan, load_plan
from ..catalogs.project import Project
from ..catalogs.protocol import Draw, TeacherInfo
from ..catalogs.samples import read_stored
from ..catalogs.views import BOUGHT
from .ask import Asker
from .run import check_teacher
from .run_unit import encode_draw, request_of
from .tasks import FrozenUnits, load_units, task_rows, unit_bounds
from .teachers.registry import make_teacher
from .worker import limit_threads

TOLERANCE = 1e-4
_OPEN_SAMPLES = f"""FROM samples s JOIN plans p USING (plan_no) JOIN units u USING (plan_no, unit, attempt)
    WHERE p.superseded_by IS NULL AND {BOUGHT}"""


@dataclass(slots=True, kw_only=True)
class ReplayResult:
    """What a replay compared: samples that came out the same, and the ones that did not with the reason."""

    reproducible: str
    n_compared: int = 0
    n_equal: int = 0
    different: list[tuple[str, str]] = field(default_factory=list)


def parse_share(text: str) -> float:
    """Read ``0.1%`` or ``0.001`` as a share in (0, 1]; raises DistdataError for anything else."""
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise DistdataError(f"verify: --replay {text}: give a share above 0 and at most 100%, such as 0.1% or 0.001.")
    return share


def replay(project: Project, share: float) -> ReplayResult:
    """Draw a share of each open plan's samples again, in their own micro-batches, and compare.

    The samples are chosen by a hash of their id; at least one is drawn. A teacher that is reproducible exactly
    must give the same bytes; one within tolerance, values within 1e-4 of the largest in each array. So must a
    draw that failed at first: it was asked again in other company, and bits may depend on that.

    Raises:
        DistdataError: nothing was generated, or the teacher gives no promise or is another one.
    """
    chosen = _choose(project, share)
    result: ReplayResult | None = None
    for plan_id in dict.fromkeys(r["plan_id"] for r in chosen.values()):
        plan = load_plan(project, plan_id)
        info = check_teacher(project, plan)
        if info.reproducible == "none":
            raise DistdataError(
                f"verify: teacher {info.id} does not promise to repeat itself, so a replay proves nothing."
            )
        result = result or ReplayResult(reproducible=info.reproducible)
        _replay_plan(project, plan, info, chosen, result)
    assert result is not None, "at least one sample was chosen"
    return result


def _choose(project: Project, share: float) -> dict[str, dict[str, Any]]:
    """Pick the samples with the smallest hashes of their ids: by id, where they lie and how often they were tried."""
    with store.read(project.catalog_path) as con:
        total = store.first(con.execute(f"SELECT count(*) {_OPEN_SAMPLES}"))
        n = max(1, round(share * (total[0] if total else 0)))
        rows: list[dict[str, Any]] = (
            con.sql(
                f"""SELECT s.sample_id, p.plan_id, u.shard, s."offset" + u.shard_offset AS "offset", s.n_bytes,
                    u.manifest, u.attempt {_OPEN_SAMPLES} ORDER BY md5(s.sample_id) LIMIT {n}"""
            )
            .pl()
            .to_dicts()
        )
    if not rows:
        raise DistdataError("verify: nothing was generated yet. Run `distdata generate` first.")
    tries: dict[str, int] = {}
    for manifest in dict.fromkeys(r["manifest"] for r in rows):
        table, _ = read_manifest(project.storage, manifest)
        tries.update(zip(table["sample_id"].to_pylist(), table["tries"].to_pylist(), strict=True))
    return {r["sample_id"]: {**r, "alone": tries[r["sample_id"]] > 1 or r["attempt"] > 0} for r in rows}


def _replay_plan(
    project: Project, plan: SavedPlan, info: TeacherInfo, chosen: dict[str, dict[str, Any]], result: ReplayResult
) -> None:
    units = load_units(project, plan.plan_id)
    assert units is not None, "a plan with samples has frozen units"
    config = project.config.teacher
    limit_threads(config.threads)
    asker = Asker(lambda: make_teacher(config, project.root), config.timeout_s)
    for start, stop in _batches(plan, units):
        ids = plan.draws["sample_id"].slice(start, stop - start).to_pylist()
        if not any(i in chosen for i in ids):
            continue
        batch = task_rows(plan, start, stop).to_pylist()
        by_key = {(r["seed_id"], r["k"]): r for r in batch}
        for timed in asker.ask([request_of(r, frozenset(units.capture)) for r in batch]):
            row = by_key[timed.answer.seed_id, timed.answer.k]
            if row["sample_id"] in chosen:
                _compare(project, units, info, row, timed.answer, chosen[row["sample_id"]], result)


def _batches(plan: SavedPlan, units: FrozenUnits) -> list[tuple[int, int]]:
    return [
        (at, min(at + units.batch, stop))
        for start, stop in unit_bounds(plan, units.unit_draws)
        for at in range(start, stop, units.batch)
    ]


def _compare(
    project: Project, units: FrozenUnits, info: TeacherInfo, row: dict[str, Any], answer: Any,
    stored: dict[str, Any], result: ReplayResult,
) -> None:  # fmt: skip
    result.n_compared += 1
    if not isinstance(answer, Draw):
        result.different.append((row["sample_id"], f"now fails: {answer.kind}: {answer.reason}"))
        return
    members, reason = encode_draw(answer, row, units.members, info)
    if members is None:
        result.different.append((row["sample_id"], f"now invalid: {reason}"))
        return
    old = read_stored(project.storage, stored["shard"], stored["offset"], stored["n_bytes"])
    wrong = _difference(old, dict(members), exact=info.reproducible == "exact" and not stored["alone"])
    if wrong:
        result.different.append((row["sample_id"], wrong))
    else:
        result.n_equal += 1


def _difference(old: dict[str, bytes], new: dict[str, bytes], *, exact: bool) -> str | None:
    if set(old) != set(new):
        return f"members differ: stored {', '.join(sorted(old))}; now {', '.join(sorted(new))}"
    for name in old:
        if old[name] == new[name]:
            continue
        if exact:
            return f"{name}: bytes differ ({len(old[name]):,} stored, {len(new[name]):,} now)"
        a, b = decode_member(name, old[name]), decode_member(name, new[name])
        if not (isinstance(a, np.ndarray) and isinstance(b, np.ndarray)):
            return f"{name}: differs"
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"{name}: {a.dtype} {a.shape} stored, {b.dtype} {b.shape} now"
        largest = float(np.max(np.abs(a), initial=0.0))
        apart = float(np.max(np.abs(a.astype(np.float64) - b.astype(np.float64)), initial=0.0))
        if not apart <= TOLERANCE * max(largest, 1.0):
            return f"{name}: values differ by up to {apart:.3g}, of at most {largest:.3g}"
    return None
