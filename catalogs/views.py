"""The views that people query, built for a project's own axes (they are real columns)."""

from __future__ import annotations

from collections.abc import Sequence

SERVED_BY = {"train": ("train", "pilot", "byproduct"), "gate": ("gate",), "confirm": ("confirm",), "pilot": ("pilot",)}
"""Whose samples count for a purpose: a pilot's draws and byproducts come from training seeds and join the corpus."""

BOUGHT = "purpose NOT IN ('byproduct', 'clean', 'student')"
"""SQL for what is bought of the teacher: ingested samples have a pseudo plan, and students draw for their gates."""


def view_statements(axes: Sequence[str]) -> list[str]:
    """Return the CREATE statements of all views for these axes, in the order of their dependence."""
    columns = "".join(f'c."{a}", ' for a in axes)
    served = ", ".join(f"('{purpose}', '{of}')" for purpose, plans in SERVED_BY.items() for of in plans)
    return [
        f"""CREATE OR REPLACE VIEW coverage_by_purpose AS
WITH target AS (
    SELECT purpose, cell_id, target, credit, fresh, mark
    FROM plan_cells JOIN plans USING (plan_no)
    QUALIFY row_number() OVER (PARTITION BY purpose, cell_id ORDER BY plan_no DESC) = 1
), planned AS (
    SELECT purpose, cell_id, sum(fresh) AS planned
    FROM plan_cells JOIN plans USING (plan_no) WHERE superseded_by IS NULL GROUP BY ALL
), served AS (
    -- whose samples count for a purpose: a pilot's draws are part of the training corpus
    SELECT s.purpose, plans.* EXCLUDE (purpose) FROM plans
    JOIN (VALUES {served}) AS s(purpose, plan_purpose) ON s.plan_purpose = plans.purpose
    -- and of which teacher: another version's samples fill no target of this one
    QUALIFY teacher_hash = last_value(teacher_hash) OVER (
        PARTITION BY s.purpose ORDER BY plan_no ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING)
), made AS (
    SELECT purpose, cell_id, sum(generated)::BIGINT AS generated, sum(failed)::BIGINT AS failed, sum(u.gpu_s) AS gpu_s,
        sum(u.usd) AS usd, sum(in_doubt_usd) AS in_doubt_usd, sum(n_bytes)::BIGINT AS bytes,
        CASE WHEN sum(weight_sq_sum) > 0 THEN sum(weight_sum) ** 2 / sum(weight_sq_sum) ELSE 0 END AS effective_n,
        sum(CASE WHEN superseded_by IS NOT NULL THEN generated ELSE 0 END)::BIGINT AS of_superseded
    FROM unit_cells u JOIN served USING (plan_no) GROUP BY ALL
), lost AS (
    SELECT purpose, cell_id, sum(dropped)::BIGINT AS dropped FROM drop_cells JOIN served USING (plan_no) GROUP BY ALL
), frame AS (
    SELECT cell_id, count(*) AS n_seeds FROM seeds GROUP BY ALL
), purposes AS (SELECT DISTINCT purpose FROM plans WHERE purpose <> 'student' UNION SELECT 'train')
SELECT p.purpose, {columns}c.cell, c.slice, c.scenario, c.layer, c.feasible, c.band, c.fleet_share,
    coalesce(f.n_seeds, 0) AS n_seeds,
    coalesce(t.target, 0) AS target,
    (coalesce(n.planned, 0) + coalesce(m.of_superseded, 0))::BIGINT AS planned,
    coalesce(m.generated, 0) AS generated,
    coalesce(m.generated, 0) - coalesce(l.dropped, 0) AS kept,
    coalesce(t.credit, 0) AS credited,
    coalesce(m.failed, 0) AS failed,
    greatest(coalesce(t.target, 0) - coalesce(m.generated, 0) + coalesce(l.dropped, 0), 0) AS deficit,
    coalesce(m.effective_n, 0) AS effective_n,
    coalesce(m.gpu_s, 0) AS gpu_s, coalesce(m.usd, 0) AS usd, coalesce(m.in_doubt_usd, 0) AS in_doubt_usd,
    coalesce(m.bytes, 0) AS bytes
FROM cells c CROSS JOIN purposes p
LEFT JOIN target t USING (purpose, cell_id) LEFT JOIN planned n USING (purpose, cell_id)
LEFT JOIN made m USING (purpose, cell_id) LEFT JOIN lost l USING (purpose, cell_id)
LEFT JOIN frame f USING (cell_id)""",
        "CREATE OR REPLACE VIEW coverage AS "
        "SELECT * EXCLUDE (purpose) FROM coverage_by_purpose WHERE purpose = 'train'",
        f"""CREATE OR REPLACE VIEW all_samples AS
SELECT s.sample_id, {columns}c.cell, c.slice, c.scenario, c.layer, s.outcome, s.seed_id, s.k, s.n_k, s.decision_point,
    s.split, s.source, p.purpose, s.pi, s.weight, s.kind, s.gpu_s, s.usd, u.shard,
    s."offset" + u.shard_offset AS "offset",
    s.n_bytes, p.plan_id, s.unit, p.teacher, p.teacher_version, p.teacher_hash
FROM samples s JOIN cells c USING (cell_id) JOIN plans p USING (plan_no) JOIN units u USING (plan_no, unit, attempt)""",
        # what a student drew for its gate is no sample of the teacher
        "CREATE OR REPLACE VIEW samples_wide AS FROM all_samples WHERE purpose <> 'student'",
        "CREATE OR REPLACE VIEW student_samples AS "
        "SELECT * EXCLUDE (purpose, teacher, teacher_version, teacher_hash), teacher_hash AS student_id "
        "FROM all_samples WHERE purpose = 'student'",
        """CREATE OR REPLACE VIEW samples_weighted AS
WITH marked AS (
    SELECT w.*, d.sample_id IS NULL AS kept, d.reason AS drop_reason,
        -- a draw stands for its share of the fleet if a plan's walk chose it (docs/design/0002-planning.md)
        d.sample_id IS NULL AND w.k < c.k_counted AS counted, c.share, cells.fleet_share
    FROM samples_wide w JOIN cells USING (cell)
    LEFT JOIN corpus c USING (split, teacher_hash, seed_id)
    LEFT JOIN (SELECT sample_id, min(reason) AS reason FROM drops GROUP BY ALL) d USING (sample_id)
) SELECT * EXCLUDE (counted, share, fleet_share),
    CASE WHEN counted THEN fleet_share * share / count(*) FILTER (counted) OVER (
        PARTITION BY seed_id, split, teacher_hash) ELSE 0 END AS fleet_weight
FROM marked""",
        f"""CREATE OR REPLACE VIEW failed_attempts AS
SELECT {columns}c.cell, c.scenario, a.seed_id, a.k, a.failure, a.reason, a.tries, a.usd, p.plan_id, a.unit, a.attempt
FROM attempts a JOIN cells c USING (cell_id) JOIN plans p USING (plan_no)""",
        """CREATE OR REPLACE VIEW spend AS
SELECT plan_no, unit, generated, gpu_s, usd AS known_usd, in_doubt_usd, 'draws' AS note
FROM unit_cells SEMI JOIN (FROM plans WHERE purpose <> 'student') USING (plan_no)
UNION ALL SELECT plan_no, NULL, 0, gpu_s, known_usd, in_doubt_usd, note FROM other_spend""",
        f"""CREATE OR REPLACE VIEW spend_by_cell AS
SELECT {columns}c.cell, c.slice, c.scenario, c.layer, p.purpose, p.teacher, sum(u.generated)::BIGINT AS generated,
    sum(u.gpu_s) / 3600 AS gpu_h, sum(u.usd) AS known_usd, sum(u.in_doubt_usd) AS in_doubt_usd
FROM unit_cells u JOIN cells c USING (cell_id) JOIN plans p USING (plan_no) WHERE p.purpose <> 'student'
GROUP BY ALL""",
        f"""CREATE OR REPLACE VIEW seeds_wide AS
SELECT s.seed_id, {columns}c.cell, c.slice, c.scenario, c.layer, s.grp AS "group", s.split, s.prn, s.decision_point,
    coalesce(s.k, c.k) AS k, s.size, s.origin, s.control_axis, s.control_value, s.params, i.source
FROM seeds s JOIN cells c USING (cell_id) JOIN imports i USING (import_id)""",
        """CREATE OR REPLACE VIEW gates_latest AS
SELECT g.gate_id, g.split, g.student_id, g.teacher_hash, g.candidate, g.verdict AS gate_verdict, g.created,
    r.* EXCLUDE (gate_no)
FROM gate_rows r JOIN gates g USING (gate_no)
WHERE gate_no IN (SELECT max(gate_no) FROM gates WHERE role = 'candidate' GROUP BY split)""",
        """CREATE OR REPLACE VIEW slice_verdicts AS
SELECT g.gate_id, g.split, g.student_id, g.created, slice,
    CASE WHEN bool_or(r.verdict = 'fail') THEN 'fail' WHEN bool_and(r.verdict = 'pass') THEN 'pass'
        ELSE 'undecided' END AS verdict,
    list(DISTINCT metric ORDER BY metric) FILTER (r.verdict = 'fail') AS failed
FROM gate_rows r JOIN gates g USING (gate_no) WHERE r.side <> 'none' GROUP BY ALL""",
        """CREATE OR REPLACE VIEW lag AS
SELECT r.teacher, r.teacher_version, r.teacher_hash, r.released, p.promoted,
    date_diff('day', r.released::DATE, p.promoted[:10]::DATE) AS days
FROM releases r LEFT JOIN (
    SELECT teacher_hash, min(created) AS promoted FROM promotions WHERE stage = 'bulk' GROUP BY ALL
) p USING (teacher_hash) ORDER BY r.event""",
        """CREATE OR REPLACE VIEW routing AS
SELECT slice, student_id, share, fallback, horizon_s, reason FROM routes
WHERE event = (SELECT max(event) FROM routes)""",
    ]


LOOP_VIEWS = ("gates_latest", "slice_verdicts", "lag", "routing")
"""Views about slices as a whole, students and teachers: without axes."""
LOOP_TABLES = ("releases", "snapshots", "students", "gates", "gate_rows", "causes", "promotions", "routes")
"""Tables of the loop, likewise."""

VIEW_NAMES = (
    "coverage", "coverage_by_purpose", "all_samples", "samples_wide", "student_samples", "samples_weighted",
    "failed_attempts", "spend", "spend_by_cell", "seeds_wide", *LOOP_VIEWS,
)  # fmt: skip
