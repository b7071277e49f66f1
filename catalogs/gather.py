"""Collect what the report shows: coverage, spend, and a few samples with their pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from . import store
from .codec import decode_member
from .comparison import Comparison
from .errors import DistdataError
from .gather_loop import gather_loop
from .project import Project
from .report_cover import cover_status
from .report_data import Fact, Futures, Headline, Lidar, Preview, Query, ReportData, SpendRow
from .samples import read_stored
from .tables import CoverageCell, count, usd
from .ustar import ADVICE
from .views import BOUGHT

N_PREVIEWS = 9
N_FUTURES = 3


def coverage_cells(project: Project, before: Mapping[str, int] | None = None) -> list[CoverageCell]:
    """Read the coverage of every cell; `before` (cell -> kept) adds what was there at an earlier time."""
    with store.read(project.catalog_path) as con:
        rows = con.execute(
            """SELECT v.slice, v.scenario, v.layer, target, kept, deficit, v.band, usd, v.feasible, c.reason, v.cell
            FROM coverage v JOIN cells c USING (cell) ORDER BY cell_id"""
        ).fetchall()
    return [
        CoverageCell(
            slice=r[0], scenario=r[1], layer=r[2], target=r[3], kept=r[4],
            kept_before=None if before is None else before.get(r[10], 0),
            deficit=r[5], band=r[6], usd=r[7], feasible=r[8], reason=r[9] or "",
        )
        for r in rows
    ]  # fmt: skip


def kept_by_cell(project: Project) -> dict[str, int]:
    """Return how many samples each cell holds now, cells without any left out."""
    with store.read(project.catalog_path) as con:
        return dict(con.execute("SELECT cell, kept FROM coverage WHERE kept > 0").fetchall())


def gather_report(project: Project, generated_at: str, comparison: Comparison | None = None) -> ReportData:
    """Read everything the HTML report shows; `generated_at` is printed as it is, `comparison` is drawn if given."""
    with store.read(project.catalog_path) as con:
        totals = store.first(
            con.execute(
                """SELECT coalesce(sum(generated), 0) - (SELECT coalesce(sum(dropped), 0) FROM drop_cells)::BIGINT,
                    coalesce(sum(gpu_s), 0) / 3600, coalesce(sum(known_usd), 0), coalesce(sum(in_doubt_usd), 0)
                FROM spend"""
            )
        )
        planned = store.first(con.execute("SELECT coalesce(sum(planned), 0) FROM coverage_by_purpose"))
        failures = store.first(con.execute("SELECT count(*) FROM attempts"))
        layers = con.execute(_spend("layer")).fetchall()
        cells = con.execute(_spend("cell")).fetchall()
        plans = con.execute(
            "SELECT plan_id, purpose, policy, budget, n_draws, usd, created, teacher, teacher_version FROM plans "
            f"WHERE superseded_by IS NULL AND {BOUGHT} ORDER BY plan_no"
        ).fetchall()
    shown = coverage_cells(project)
    assert totals is not None, "aggregates have one row"
    assert planned is not None, "aggregates have one row"
    assert failures is not None, "aggregates have one row"
    last = plans[-1] if plans else None
    return ReportData(
        title=f"{project.config.project.name}: coverage and cost",
        project=str(project.root),
        generated_at=generated_at,
        teacher=f"{last[7]} {last[8]}" if last else project.config.teacher.kind,
        headline=Headline(
            n_samples=totals[0], n_planned=planned[0], known_usd=totals[2], in_doubt_usd=totals[3],
            n_failures=failures[0], gpuh=totals[1],
        ),
        cells=tuple(shown),
        spend_by_layer=tuple(SpendRow(name=r[0], n_draws=r[1], known_usd=r[2], in_doubt_usd=r[3]) for r in layers),
        spend_by_cell=tuple(SpendRow(name=r[0], n_draws=r[1], known_usd=r[2], in_doubt_usd=r[3]) for r in cells),
        plan=tuple(
            Fact(name=f"{p[1]} plan {p[0]}", value=f"{p[3]} by policy {p[2]}: {count(p[4])} draws to buy, {usd(p[5])}")
            for p in plans
        ),
        previews=tuple(_previews(project)),
        futures=tuple(_futures(project)),
        queries=_queries(project),
        comparison=comparison,
        loop=gather_loop(project),
        cover=cover_status(
            project.config, project.root, [f"{c.slice}/{c.scenario}" for c in shown if c.feasible],
            [f"{c.slice}/{c.scenario}" for c in shown if c.kept],
        ),
    )  # fmt: skip


def _spend(column: str) -> str:
    return f"""SELECT {column}, sum(generated)::BIGINT, sum(known_usd), sum(in_doubt_usd) FROM spend_by_cell
        GROUP BY ALL HAVING sum(known_usd) + sum(in_doubt_usd) > 0 ORDER BY 3 DESC, 1"""


def _queries(project: Project) -> tuple[Query, ...]:
    axis = next(iter(project.config.axes))
    by_axis = f'select "{axis}", sum(kept) kept, sum(target) target from coverage group by all'
    return (
        Query(about="How far each value of an axis has come",
              command=f"distdata sql '{by_axis}'"),
        Query(about="What happened, by scenario type",
              command="distdata sql 'select scenario, outcome, count(*) n from samples_wide group by all'"),
        Query(about="Where the money went",
              command="distdata sql 'select layer, sum(known_usd) usd from spend_by_cell group by all'"),
    )  # fmt: skip


def _previews(project: Project) -> list[Preview]:
    """Pick one sample of each scenario type and outcome, spread over slices, and decode what can be seen."""
    with store.read(project.catalog_path) as con:
        rows = con.execute(
            f"""WITH one AS (
                SELECT *, row_number() OVER (PARTITION BY scenario, outcome ORDER BY hash(sample_id)) AS n
                FROM samples_wide
            ) SELECT sample_id, cell, outcome, shard, "offset", n_bytes FROM one
            ORDER BY n, hash(scenario, outcome) LIMIT {N_PREVIEWS}"""
        ).fetchall()
    return [_preview(project, *row) for row in rows]


def _preview(
    project: Project, sample_id: str, cell: str, outcome: str | None, shard: str, offset: int, n_bytes: int
) -> Preview:
    members = _read(project, shard, offset, n_bytes)
    camera = next((m for n, m in members.items() if n.startswith("cam") and _is_video(m)), None)
    points = members.get("lidar.npz")
    text = next((m for n, m in members.items() if n.endswith(".txt")), None)
    return Preview(
        sample_id=sample_id,
        cell=cell,
        outcome=outcome,
        camera=camera,
        lidar=_first_sweep(points) if isinstance(points, Mapping) else None,
        text=text if isinstance(text, str) else None,
    )


def _is_video(member: Any) -> bool:
    return isinstance(member, np.ndarray) and member.ndim == 4 and member.dtype == np.uint8


def _first_sweep(points: Mapping[str, Any]) -> Lidar | None:
    """Take the middle sweep of a lidar member (`offsets` cuts the points into sweeps)."""
    if "xyz" not in points:
        return None
    xyz, intensity, offsets = points["xyz"], points.get("intensity"), points.get("offsets")
    if offsets is not None and len(offsets) > 1:
        i = (len(offsets) - 1) // 2
        cut = slice(int(offsets[i]), int(offsets[i + 1]))
        xyz, intensity = xyz[cut], None if intensity is None else intensity[cut]
    return Lidar(xyz=xyz, intensity=intensity)


def _futures(project: Project) -> list[Futures]:
    """Pick decision points whose draws show the most different outcomes, one per scenario type."""
    with store.read(project.catalog_path) as con:
        seeds = con.execute(
            f"""WITH seed AS (
                SELECT seed_id, cell, scenario, count(DISTINCT outcome) AS kinds, count(*) AS n FROM samples_wide
                WHERE decision_point GROUP BY ALL HAVING count(*) > 1
            ) SELECT seed_id, cell FROM seed
            QUALIFY row_number() OVER (PARTITION BY scenario ORDER BY kinds DESC, n DESC, hash(seed_id)) = 1
            ORDER BY kinds DESC, hash(seed_id) LIMIT {N_FUTURES}"""
        ).fetchall()
        draws = {
            s: con.execute(
                'SELECT outcome, shard, "offset", n_bytes FROM samples_wide WHERE seed_id = ? ORDER BY k', [s]
            ).fetchall()
            for s, _ in seeds
        }
    found = []
    for seed_id, cell in seeds:
        paths = [_paths(_read(project, shard, offset, n)) for _, shard, offset, n in draws[seed_id]]
        shown = [(p, outcome or "") for p, (outcome, *_) in zip(paths, draws[seed_id], strict=True) if p is not None]
        if shown:
            found.append(
                Futures(
                    seed_id=seed_id, cell=cell, trajectories=tuple(p for p, _ in shown),
                    outcomes=tuple(o for _, o in shown)
                )
            )  # fmt: skip
    return found


def _paths(members: Mapping[str, Any]) -> np.ndarray[Any, np.dtype[np.float64]] | None:
    """Return the trajectories of a sample, float64 [T, A, 2] in metres: all agents, or the vehicle's poses."""
    agents, pose = members.get("agents.npy"), members.get("pose.npy")
    if isinstance(agents, np.ndarray) and agents.ndim == 3:
        return agents[:, :, :2].astype(np.float64)
    if isinstance(pose, np.ndarray) and pose.ndim == 2:
        return pose[:, None, :2].astype(np.float64)
    return None


def _read(project: Project, shard: str, offset: int, n_bytes: int) -> dict[str, Any]:
    members = read_stored(project.storage, shard, offset, n_bytes)
    try:
        return {name: decode_member(name, data) for name, data in members.items()}
    except ValueError as e:
        raise DistdataError(f"shard {project.storage.address(shard)}, byte {offset:,}: {e}. {ADVICE}") from None


class _OpenPlan(NamedTuple):
    """How far a plan in force has come, in draws."""

    plan_id: str
    purpose: str
    n_draws: int
    n_ok: int
    n_failed: int  # by their last answer

    @property
    def n_waiting(self) -> int:
        """Draws that were not asked for yet."""
        return self.n_draws - self.n_ok - self.n_failed


def catalog_facts(project: Project) -> dict[str, Any]:
    """Sum the catalog up: what it holds, what was made and spent, and what to do next."""
    with store.read(project.catalog_path) as con:
        axes = con.execute("SELECT axis, count(*) FROM axes GROUP BY axis ORDER BY min(position)").fetchall()
        cells = store.first(
            con.execute(
                """SELECT count(*), count(*) FILTER (feasible), count(DISTINCT slice), count(DISTINCT scenario)
                FROM cells"""
            )
        )
        seeds = con.execute("SELECT split, count(*) FROM seeds GROUP BY ALL ORDER BY 1").fetchall()
        plans = con.execute(
            f"""WITH made AS (
                SELECT plan_no, sum(n_ok)::BIGINT AS n FROM units GROUP BY ALL
            ), failed AS (
                SELECT plan_no, count(*) AS n FROM (
                    SELECT DISTINCT plan_no, seed_id, k FROM attempts a
                    ANTI JOIN samples s ON s.seed_id = a.seed_id AND s.k = a.k AND s.plan_no = a.plan_no
                ) GROUP BY ALL
            ) SELECT plan_id, purpose, n_draws, coalesce(made.n, 0), coalesce(failed.n, 0)
            FROM plans LEFT JOIN made USING (plan_no) LEFT JOIN failed USING (plan_no)
            WHERE superseded_by IS NULL AND {BOUGHT} ORDER BY plan_no"""
        ).fetchall()
        made = store.first(
            con.execute(
                """SELECT coalesce(sum(generated), 0)::BIGINT, coalesce(sum(known_usd), 0),
            coalesce(sum(in_doubt_usd), 0), coalesce(sum(gpu_s), 0) / 3600 FROM spend"""
            )
        )
        held = store.first(
            con.execute(
                """SELECT count(*) FILTER (d.sample_id IS NOT NULL), count(*) FILTER (purpose = 'byproduct'),
                    count(*) FILTER (purpose = 'clean'), count(*)
                FROM samples s JOIN plans USING (plan_no)
                LEFT JOIN (SELECT DISTINCT sample_id FROM drops) d USING (sample_id) WHERE purpose <> 'student'"""
            )
        )
        short = store.first(con.execute("SELECT sum(deficit)::BIGINT FROM coverage"))
        cases = con.execute("SELECT state, count(*) FROM cases GROUP BY ALL ORDER BY 1").fetchall()
    assert cells is not None, "aggregates have one row"
    assert held is not None, "aggregates have one row"
    assert made is not None, "aggregates have one row"
    n_seeds = sum(n for _, n in seeds)
    open_plans = [_OpenPlan(*row) for row in plans]
    n_rejected, n_byproducts, n_clean, n_samples = held
    parts = [(n_rejected, "rejected by verifiers"), (n_byproducts, "byproducts"), (n_clean, "clean")]
    said = ", ".join(f"{count(n)} {what}" for n, what in parts if n)
    return {
        "project": str(project.root),
        "axes": ", ".join(f"{a} ({n})" for a, n in axes),
        "cells": f"{count(cells[0])} ({count(cells[1])} feasible): {cells[2]} slices x {cells[3]} scenario types",
        "seeds": count(n_seeds) + (f" ({', '.join(f'{count(n)} {s}' for s, n in seeds)})" if seeds else ""),
        "plans": "; ".join(f"{p.plan_id} {p.purpose}: {count(p.n_ok)} of {count(p.n_draws)} draws" for p in open_plans)
        or "none",
        "samples": count(n_samples) + (f" ({said})" if said else ""),
        **({"divergences": ", ".join(f"{count(n)} {state}" for state, n in cases)} if cases else {}),
        "spend": f"{usd(made[1])} known, {usd(made[2])} in doubt, {made[3]:.3g} GPU-hours",
        "failed draws": count(sum(p.n_failed for p in open_plans)),
        "next": _next_step(n_seeds, open_plans, bool(n_rejected and short and short[0])),
    }


def _next_step(n_seeds: int, plans: Sequence[_OpenPlan], short: bool) -> str:
    if not n_seeds:
        return "distdata catalog import FILE"
    if not plans:
        return "distdata plan --budget 2000samples"
    for todo, option in (
        ([p for p in plans if p.n_waiting > 0], ""),
        ([p for p in plans if p.n_failed], " --retry-failed"),
    ):
        if todo:
            # without --plan it is the newest plan that runs
            which = f" --plan {todo[0].plan_id}" if len(todo) > 1 or todo[0] is not plans[-1] else ""
            return f"distdata generate{which}{option}"
    if short:
        return "distdata plan --top-up"
    return "distdata report; distdata export hf OUT/"
