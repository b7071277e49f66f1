"""The life of one sample, as `distdata why` tells it."""

from __future__ import annotations

from typing import Any

from . import store
from .errors import DistdataError, nearest
from .project import Project
from .tables import size, usd


def life_of(project: Project, sample_id: str) -> dict[str, Any]:
    """Collect what is known of a sample, in the order in which it happened.

    Raises DistdataError when the catalog has no such sample; a draw that failed is named as such.
    """
    with store.read(project.catalog_path) as con:
        found = con.sql("SELECT * FROM samples_wide WHERE sample_id = ?", params=[sample_id]).pl().to_dicts()
        if not found:
            raise DistdataError(_no_such(con, sample_id))
        s = found[0]
        seed = con.sql("SELECT * FROM seeds_wide WHERE seed_id = ?", params=[s["seed_id"]]).pl().to_dicts()[0]
        plan = con.sql("SELECT * FROM plans WHERE plan_id = ?", params=[s["plan_id"]]).pl().to_dicts()[0]
        cell = con.sql(
            """SELECT band, band_source, fleet_share, target, p.weight FROM cells c
            LEFT JOIN (
                SELECT cell_id, target, weight FROM plan_cells JOIN plans USING (plan_no) WHERE plan_id = $plan
            ) p USING (cell_id) WHERE cell = $cell""",
            params={"cell": s["cell"], "plan": s["plan_id"]},
        ).pl().to_dicts()[0]  # fmt: skip
        now = con.sql(
            "SELECT kept, drop_reason, fleet_weight FROM samples_weighted WHERE sample_id = ?", params=[sample_id]
        ).pl().to_dicts()[0]  # fmt: skip
        siblings = con.execute(
            "SELECT k, outcome, sample_id FROM samples_wide WHERE seed_id = ? AND sample_id <> ? ORDER BY k, sample_id",
            [s["seed_id"], sample_id],
        ).fetchall()
        tries = store.first(
            con.execute("SELECT count(*) FROM failed_attempts WHERE seed_id = ? AND k = ?", [s["seed_id"], s["k"]])
        )
    point = "a decision point" if s["decision_point"] else "no decision point"
    others = ", ".join(f"k={k} {outcome or 'no outcome'}" for k, outcome, _ in siblings) or "none"
    bought = cell["target"] is not None
    return {
        "sample": sample_id,
        "seed": f"{s['seed_id']} (group {seed['group']}, split {s['split']}, {point}), from {seed['source']}",
        "seed state": seed["params"],
        "cell": f"{s['cell']} ({s['layer']}), fleet share {cell['fleet_share']:.4%}",
        "band": f"{cell['band']:g} ({cell['band_source']})",
        "plan": f"{plan['plan_id']}: {plan['purpose']}, policy {plan['policy']}, budget {plan['budget']}, "
        f"{plan['created']}"
        if bought
        else f"none: ingested as {plan['plan_id']}, {plan['created']}",
        "why this cell": f"weight {cell['weight']:.4g} gave it a target of {cell['target']:,}"
        if bought
        else "somebody else chose it",
        "why this seed": f"permanent random number {seed['prn']:.6f}; inclusion probability {s['pi']:.4g}"
        if bought
        else f"somebody else chose it ({'a seed of' if seed['origin'] == 'frame' else 'outside'} the frame)",
        "draw": (f"k = {s['k']} of {s['n_k']}" if bought else "not ours: its noise is unknown")
        + f", fleet weight {now['fleet_weight']:.4g} now ({s['weight']:.4g} when "
        f"bought), source {s['source']}",
        "verdict": "kept" if now["kept"] else f"rejected: {now['drop_reason']}",
        "teacher": f"{s['teacher']} {s['teacher_version']} ({s['teacher_hash']})" if s["teacher_hash"] else "none",
        "outcome": s["outcome"] or "none",
        "price": f"{usd(s['usd'])}, {s['gpu_s']:.4g} s of teacher time" if bought else "not ours to pay",
        "failed before": int(tries[0]) if tries else 0,
        "siblings": others,
        "stored": f"{project.storage.address(s['shard'])} at byte {s['offset']:,}, {size(s['n_bytes'])}",
    }


def _no_such(con: Any, sample_id: str) -> str:
    seed_id = sample_id.rsplit("-k", 1)[0]
    failed = con.execute("SELECT k, failure, reason FROM failed_attempts WHERE seed_id = ?", [seed_id]).fetchall()
    for k, failure, reason in failed:
        if f"-k{k:03d}-" in sample_id:
            return f"why: draw {sample_id} failed: {failure}: {reason}. Ask again: distdata generate --retry-failed"
    prefix = con.execute(
        "SELECT sample_id FROM samples WHERE starts_with(sample_id, ?) ORDER BY 1 LIMIT 12", [sample_id[:12]]
    ).fetchall()
    hint = nearest(sample_id, [p[0] for p in prefix])
    return f"why: the catalog has no sample {sample_id!r}.{hint} List some: distdata sql 'from samples_wide limit 5'"
