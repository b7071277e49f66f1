"""What planning needs from the catalog: cells with their rules, candidates, what exists already, what waits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import polars as pl

from . import store
from .cases import blocked_seeds, open_cases
from .cells import rule_columns
from .frames import Candidates, group_counts, load_candidates
from .plans import PURPOSES, load_plan
from .project import Project
from .views import BOUGHT

CELL_COLUMNS = ("cell_id", "cell", "slice", "scenario", "layer", "feasible", "band", "fleet_share", "k")
_STATE = """CASE WHEN d.sample_id IS NOT NULL THEN 'rejected' WHEN v.unit IS NOT NULL THEN 'kept'
    ELSE 'unverified' END"""
_SAMPLES = """samples s JOIN plans p USING (plan_no)
    LEFT JOIN (SELECT DISTINCT sample_id FROM drops) d USING (sample_id)
    LEFT JOIN (SELECT DISTINCT plan_no, unit, attempt FROM verified_units) v USING (plan_no, unit, attempt)
    WHERE p.teacher_hash = $teacher AND s.split = $split"""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlanInputs:
    """What `stratify.plan.make_plan` takes, as the catalog has it (see there for the columns).

    `pilot` holds one row per existing draw of the frame: seed_id, cell_id, outcome. `measured_gpu_s` and
    `measured_usd` are the mean cost of a draw of this teacher version, None while there is none.
    """

    cells: pl.DataFrame
    candidates: Candidates
    groups: pl.DataFrame
    bought: pl.DataFrame
    corpus: pl.DataFrame
    outside: pl.DataFrame
    cases: pl.DataFrame
    blocked: pl.Series
    goals: pl.DataFrame | None
    measured_gpu_s: float | None
    measured_usd: float | None


def planning_inputs(
    project: Project, teacher_hash: str, purpose: str, split: str, cells: pl.DataFrame | None = None
) -> PlanInputs:
    """Read what a plan for `purpose` starts from; `cells` stands in for a cell table that is not written yet.

    Draws that an open plan for another purpose is still to make count as given: nobody buys them twice.
    """
    key = {"teacher": teacher_hash, "split": split}
    with store.read(project.catalog_path) as con:
        cells = con.sql("FROM cells").pl() if cells is None else cells
        there = _there(con)
        bought = _bought(con, key, there)
        corpus = con.sql(
            "SELECT seed_id, cell_id, k_seed, k_counted FROM corpus WHERE teacher_hash = $teacher AND split = $split",
            params=key,
        ).pl()
        yields = con.sql(
            f"""SELECT cell_id, count(*) FILTER (state = 'kept') AS yield_kept,
                count(*) FILTER (state <> 'unverified') AS yield_verified
            FROM (SELECT s.cell_id, {_STATE} AS state FROM {_SAMPLES} AND $verdicts) GROUP BY ALL""",
            params={**key, "verdicts": there.verdicts},
        ).pl()
        outside = con.sql(_outside(project.config.plan.k), params={**key, "outside": there.outside}).pl()
        goals = _goals(con, purpose, teacher_hash)
        cost = store.first(
            con.execute(
                "SELECT avg(s.gpu_s), avg(s.usd) FROM samples s JOIN plans USING (plan_no) "
                "WHERE teacher_hash = ? AND purpose <> 'byproduct'",
                [teacher_hash],
            )
        )
        others = con.execute(
            "SELECT plan_id FROM plans WHERE superseded_by IS NULL AND purpose IN (SELECT unnest(?)) "
            "AND teacher_hash = ? ORDER BY plan_no",
            [[p for p in PURPOSES if p != purpose], teacher_hash],
        ).fetchall()
    bought = _with_promised(project, bought, [p for (p,) in others])
    gpu_s, usd = cost if cost else (None, None)
    return PlanInputs(
        cells=_with_rules(project, cells, yields),
        candidates=load_candidates(project, split),
        groups=group_counts(project),
        bought=bought,
        corpus=corpus,
        outside=outside,
        cases=open_cases(project, teacher_hash) if split == "train" else open_cases(project, teacher_hash).clear(),
        blocked=blocked_seeds(project, teacher_hash),
        goals=goals,
        measured_gpu_s=gpu_s,
        measured_usd=usd,
    )


class _There(NamedTuple):
    """What of the rarer things the catalog holds at all; without them whole joins can be left out."""

    verdicts: bool
    byproducts: bool
    outside: bool


def _there(con: Any) -> _There:
    found = store.first(
        con.execute(
            """SELECT (SELECT count(*) > 0 FROM drops) OR (SELECT count(*) > 0 FROM verified_units),
                (SELECT count(*) > 0 FROM plans WHERE purpose = 'byproduct'),
                (SELECT count(*) > 0 FROM seeds WHERE origin <> 'frame')"""
        )
    )
    return _There(*(found or (True, True, True)))


def _bought(con: Any, key: dict[str, str], there: _There) -> pl.DataFrame:
    """Read the draws that exist: seed_id, k, planned, state."""
    if there.verdicts or there.byproducts:
        every: pl.DataFrame = con.sql(
            f"""SELECT s.seed_id, s.k::INTEGER AS k, p.purpose <> 'byproduct' AS planned, {_STATE} AS state
            FROM {_SAMPLES}""",
            params=key,
        ).pl()
        return every
    plain: pl.DataFrame = con.sql(
        """SELECT s.seed_id, s.k::INTEGER AS k FROM samples s JOIN plans p USING (plan_no)
        WHERE p.teacher_hash = $teacher AND s.split = $split""",
        params=key,
    ).pl()
    return plain.with_columns(planned=pl.lit(True), state=pl.lit("unverified"))


def measured_costs(project: Project, teacher_hash: str) -> dict[str, Any]:
    """Return what the catalog knows of a programme's costs: the fields of `stratify.costs.Measured`, None where not.

    Draws that were made here, rejected ones included, and those that open plans are still to make; what was ingested
    cost nothing here.
    """
    with store.read(project.catalog_path) as con:
        price = store.first(
            con.execute(
                "SELECT avg(s.gpu_s), avg(s.usd) FROM samples s JOIN plans USING (plan_no) "
                f"WHERE teacher_hash = ? AND {BOUGHT}",
                [teacher_hash],
            )
        )
        seeds, n_rejected, waiting = _draws_bought(con, teacher_hash, held_out=False)
        gate_seeds, _, gate_waiting = _draws_bought(con, teacher_hash, held_out=True)
    n_to_make, n_gate_to_make = sum(waiting.values()), sum(gate_waiting.values())
    n_draws, n_gate = int(seeds["n"].sum()) + n_to_make, int(gate_seeds["n"].sum()) + n_gate_to_make
    promised = [pl.DataFrame(load_plan(project, plan_id).draws.select(["seed_id"])) for plan_id in waiting]
    n_seeds = pl.concat([seeds.select("seed_id"), *promised])["seed_id"].n_unique()
    gpu_s, usd = price or (None, None)
    return {
        "gpu_s_per_draw": gpu_s,
        "usd_per_draw": usd,
        "n_draws": n_draws or None,
        "n_draws_to_make": n_to_make,
        "n_draws_rejected": n_rejected,
        "n_seeds": n_seeds if 0 < n_seeds <= n_draws else None,  # an open plan's failed draws may leave seeds without
        "n_gate_draws": n_gate or None,
        "n_gate_draws_to_make": n_gate_to_make,
    }


def _draws_bought(con: Any, teacher_hash: str, *, held_out: bool) -> tuple[pl.DataFrame, int, dict[str, int]]:
    """Return the draws made [seed_id, n] on training or held-out seeds, how many of them were rejected, and what waits.

    What waits are the draws to make by open plan, for plans that have any.
    """
    bought = f"teacher_hash = $1 AND {BOUGHT} AND (purpose IN ('gate', 'confirm')) = $2"
    key = [teacher_hash, held_out]
    made: pl.DataFrame = con.sql(
        f"SELECT seed_id, count(*) AS n FROM samples JOIN plans USING (plan_no) WHERE {bought} GROUP BY ALL", params=key
    ).pl()
    rejected = store.first(
        con.execute(
            f"""SELECT count(*) FROM samples JOIN plans USING (plan_no)
            WHERE {bought} AND sample_id IN (SELECT sample_id FROM drops)""",
            key,
        )
    )
    waiting = con.execute(
        f"""SELECT plan_id, (n_draws - coalesce(sum(n_ok + n_failed), 0))::BIGINT AS n
        FROM plans LEFT JOIN units USING (plan_no)
        WHERE {bought} AND superseded_by IS NULL GROUP BY plan_id, n_draws HAVING n > 0 ORDER BY plan_id""",
        key,
    ).fetchall()
    return made, int(rejected[0]) if rejected else 0, dict(waiting)


def outcome_counts(project: Project) -> dict[str, int]:
    """Count the outcomes that the catalog's draws have shown of each scenario type."""
    with store.read(project.catalog_path) as con:
        return dict(
            con.execute(
                """SELECT c.scenario, count(DISTINCT s.outcome) FROM samples s JOIN cells c USING (cell_id)
                WHERE s.outcome IS NOT NULL GROUP BY ALL"""
            ).fetchall()
        )


def pilot_rows(project: Project, teacher_hash: str) -> pl.DataFrame:
    """Read seed_id, cell_id, k and outcome of the kept draws that this teacher version gave in pilots."""
    with store.read(project.catalog_path) as con:
        rows: pl.DataFrame = con.sql(
            f"""SELECT s.seed_id, s.cell_id, s.k::INTEGER AS k, s.outcome FROM {_SAMPLES}
                AND d.sample_id IS NULL AND p.purpose = 'pilot' ORDER BY s.seed_id, s.k""",
            params={"teacher": teacher_hash, "split": "train"},
        ).pl()
    return rows


def _with_rules(project: Project, cells: pl.DataFrame, yields: pl.DataFrame) -> pl.DataFrame:
    """Add the columns that the rules of distdata.toml and the verdicts so far settle."""
    rules = rule_columns(project.config, cells)
    cells = cells.select(CELL_COLUMNS).join(rules, on="cell_id").join(yields, on="cell_id", how="left")
    return (
        cells.with_columns(
            pl.col("yield_kept", "yield_verified").fill_null(0), k=pl.coalesce("decision_k", "k").cast(pl.Int32)
        )
        .drop("decision_k")
        .sort("cell_id")
    )


def _with_promised(project: Project, bought: pl.DataFrame, plan_ids: Sequence[str]) -> pl.DataFrame:
    """Add the draws of other open plans that are still to be made, each once."""
    promised = [
        pl.DataFrame(load_plan(project, plan_id).draws.select(["seed_id", "k"])).with_columns(
            pl.col("k").cast(pl.Int32)
        )
        for plan_id in plan_ids
    ]
    if not promised:
        return bought
    fresh = pl.concat(promised).unique(maintain_order=True).join(bought, on=["seed_id", "k"], how="anti")
    return pl.concat(
        [bought, fresh.with_columns(planned=pl.lit(True), state=pl.lit("unverified")).select(bought.columns)]
    )


def _outside(k: int | str) -> str:
    """Count, per cell, the draws on seeds outside the frame that are not rejected, at most K per seed."""
    default = k if isinstance(k, int) else 8
    return f"""SELECT cell_id, sum(least(n, k_seed))::BIGINT AS n FROM (
            SELECT o.seed_id, o.cell_id, count(*) AS n,
                CASE WHEN o.decision_point IS FALSE THEN 1 ELSE coalesce(o.k, c.k, {default}) END AS k_seed
            FROM (SELECT s.seed_id FROM {_SAMPLES} AND d.sample_id IS NULL AND $outside) x
            JOIN (FROM seeds WHERE origin <> 'frame') o USING (seed_id) JOIN cells c USING (cell_id) GROUP BY ALL
        ) GROUP BY ALL ORDER BY ALL"""


def _goals(con: Any, purpose: str, teacher_hash: str) -> pl.DataFrame | None:
    """Return the targets [cell_id, target] of the last plan for this purpose and teacher, or None."""
    last = store.first(
        con.execute("SELECT max(plan_no) FROM plans WHERE purpose = ? AND teacher_hash = ?", [purpose, teacher_hash])
    )
    if last is None or last[0] is None:
        return None
    goals: pl.DataFrame = con.sql("SELECT cell_id, target FROM plan_cells WHERE plan_no = ?", params=[last[0]]).pl()
    return goals
