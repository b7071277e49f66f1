"""Estimation in SQL: views of the draws that stand for the fleet, and the macro that estimates from them.

The macro computes what `distdata estimate` does, by the same formulas (the module `stratify.estimate` derives them and
names their sources), for the ratio form. Tests hold the two together to 1e-12.
"""

from __future__ import annotations

ALL_COUNTED = 32767
"""`corpus.k_counted` of a seed that others chose: all its draws count, and it stands for itself alone.

It is the largest number that the column holds, so the k of a draw must lie below it.
"""
MACRO_NAMES = ("fleet_estimate",)
MACRO_VIEWS = ("fleet_draws", "fleet_cells")

_DRAWS = f"""CREATE OR REPLACE VIEW fleet_draws AS
SELECT w.*, cells.cell_id, c.share, c.pi AS corpus_pi, c.k_counted = {ALL_COUNTED} AS chosen,
    d.sample_id IS NULL AS kept, coalesce(d.sample_id IS NULL AND w.k < c.k_counted, false) AS counted
FROM samples_wide w JOIN cells USING (cell)
LEFT JOIN corpus c USING (split, teacher_hash, seed_id)
LEFT JOIN (SELECT DISTINCT sample_id FROM drops) d USING (sample_id)"""

_CELLS = """CREATE OR REPLACE VIEW fleet_cells AS
SELECT c.*, f.split, coalesce(n.n_frame, 0) AS n_frame
FROM cells c CROSS JOIN (VALUES ('train'), ('gate'), ('confirm')) f(split)
LEFT JOIN (
    SELECT cell_id, split, count(*) AS n_frame FROM seeds WHERE coalesce(origin, 'frame') = 'frame' GROUP BY ALL
) n USING (cell_id, split)"""

# the macro puts its arguments in place of the names in braces
_ESTIMATE = """
WITH newest AS (
    SELECT CASE WHEN '{target}' NOT IN ('superpopulation', 'frame')
        THEN error('fleet_estimate: target {target} is not known; it is superpopulation or frame')
        ELSE coalesce(max(teacher_hash),
            error('fleet_estimate: no corpus of split {of_split} and teacher {of_teacher}* is weighed yet')) END
        AS teacher_hash
    FROM (
        SELECT teacher_hash FROM plans JOIN (SELECT DISTINCT teacher_hash FROM corpus WHERE split = '{of_split}')
        USING (teacher_hash) WHERE starts_with(teacher_hash, '{of_teacher}') ORDER BY plan_no DESC LIMIT 1
    )
), part AS (
    SELECT cell_id, scenario, fleet_share AS a, n_frame, concat_ws(', ', {by_axes}) AS part FROM fleet_cells
    WHERE feasible AND split = '{of_split}'
), given AS (
    SELECT seed_id, cell_id, share, corpus_pi AS pi, chosen, CAST(CASE WHEN typeof(({expr}
    )) SIMILAR TO '"NULL"|BOOLEAN|U?(TINY|SMALL|BIG|HUGE)INT|U?INTEGER|FLOAT|DOUBLE|DECIMAL.*' THEN ({expr}
    ) ELSE error('fleet_estimate: the expression gives ' || typeof(({expr}
    )) || ' values; give a number or a truth value, such as k') END AS DOUBLE) AS y, coalesce(({condition}
    ), false) AS d FROM fleet_draws SEMI JOIN newest USING (teacher_hash) WHERE counted AND split = '{of_split}'
), draw AS (
    SELECT given.* EXCLUDE (y, d), scenario, a, n_frame, part,
        CASE WHEN d AND y IS NOT NULL THEN 1.0::DOUBLE ELSE 0 END AS x,
        CASE WHEN d AND y IS NOT NULL THEN y ELSE 0 END AS z
    FROM given JOIN part USING (cell_id)
), seed AS (
    SELECT part, scenario, cell_id, chosen, seed_id, a, n_frame, share, pi, avg(z) AS z, avg(x) AS x, count(*) AS n
    FROM draw GROUP BY ALL
), shared AS (
    SELECT *, CASE WHEN sum(share) OVER s > 0 THEN share / sum(share) OVER s ELSE 1 / count(*) OVER s END AS p0,
        max(pi) OVER s > min(pi) OVER s AS sized
    FROM seed WINDOW s AS (PARTITION BY cell_id, chosen)
), leaning AS (
    SELECT *, CASE WHEN sized THEN p0 * (1 - pi) ELSE 0 END AS lean FROM shared
), weighed AS (
    SELECT * EXCLUDE (p0, lean), p0 * (1 + lean - sum(p0 * lean) OVER (PARTITION BY cell_id, chosen)) AS p FROM leaning
), summed AS (
    SELECT part, scenario, cell_id, chosen, a, n_frame, sum(p * z) AS z, sum(p * x) AS x, count(*) AS m FROM weighed
    GROUP BY ALL
), stratum AS (
    SELECT *, coalesce(sum(m) FILTER (chosen) OVER c, 0) AS n_chosen, bool_or(NOT chosen) OVER c AS walked
    FROM summed WINDOW c AS (PARTITION BY cell_id)
), whole AS (
    SELECT part, scenario, cell_id, chosen, a, n_frame, z, x,
        CASE WHEN chosen THEN least(n_chosen / n_frame, 1) ELSE 1 - least(n_chosen / n_frame, 1) END AS of_cell
    FROM stratum WHERE walked OR n_chosen >= n_frame
), mean AS (
    SELECT part, sum(a * of_cell * z) / nullif(sum(a * of_cell * x), 0) AS estimate, sum(a * of_cell * x) AS over,
        sum(a * of_cell) AS covered
    FROM whole GROUP BY part
), common AS (
    SELECT avg(coalesce(estimate, 0)) AS r0 FROM mean
), residual AS (
    SELECT cell_id, chosen, seed_id, avg(z - coalesce(estimate, 0) * x) AS r,
        var_samp(z - coalesce(estimate, 0) * x) / count(*) AS w, avg(z - r0 * x) AS e0
    FROM draw JOIN mean USING (part) CROSS JOIN common SEMI JOIN whole USING (cell_id, chosen)
    GROUP BY cell_id, chosen, seed_id
), centred AS (
    SELECT weighed.* EXCLUDE (z, x, share), x, w, r, e0, r - sum(p * r) OVER s AS e,
        sum(p * p) OVER s AS sum_p2,
        p < max(p) OVER s * (1 - 1e-9) AS is_end
    FROM weighed JOIN residual USING (cell_id, chosen, seed_id) WINDOW s AS (PARTITION BY cell_id, chosen)
), facts AS (
    SELECT cell_id, chosen, count(*)::DOUBLE AS m, count(*) FILTER (is_end)::DOUBLE AS l, sum_p2, max(p) AS p_max,
        min(p) AS p_min, sum(p * p * e * e / nullif(1 - 2 * p + sum_p2, 0)) AS usual,
        sum(p * e * e) / nullif(1 - sum_p2, 0) AS s2, greatest(sum(p * p) ** 2 / sum(p ** 4) - 1, 1) AS df,
        sum(e) AS e1, sum(e * e) AS e2, coalesce(sum(e) FILTER (is_end), 0) AS end1,
        coalesce(sum(e * e) FILTER (is_end), 0) AS end2, sum(n) AS n_draws, sum(n - 1)::DOUBLE AS df_w,
        CASE WHEN count(w) = count(*) THEN sum(p * w) END AS w, sum(p * p * w) AS v_w, sum(p * x) AS gain,
        sum(p * p * x * x) AS gain2
    FROM centred GROUP BY cell_id, chosen, sum_p2
), spread AS (
    SELECT cell_id, chosen, m, n_draws, df_w, w, v_w, gain, gain2, sum_p2 > 1 - 1e-9 AS alone,
        CASE WHEN sum_p2 <= 1 - 1e-9 THEN s2 END AS s2, CASE WHEN sum_p2 <= 1 - 1e-9 THEN df END AS df,
        CASE WHEN sum_p2 > 1 - 1e-9 THEN NULL
            WHEN l > 1 AND abs(p_max * (m - 1) - 1) < 1e-6 AND abs(p_min * (m - 1) - (l - 1) / l) < 1e-6
            THEN greatest(-(l * (e1 * e1 - e2) - 2 * (e1 * end1 - end2)) / (l * (m - 1) * (m - 2)), 0)
            ELSE usual END AS v
    FROM facts
), lender AS (
    SELECT scenario, cell_id, chosen, count(*)::DOUBLE - 1 AS df, coalesce(var_samp(e0), 0) * (count(*) - 1) AS ee,
        coalesce(covar_samp(e0, x), 0) * (count(*) - 1) AS ex, coalesce(var_samp(x), 0) * (count(*) - 1) AS xx,
        sum(p * e0) AS e_mean, sum(p * x) AS x_mean, sum(p * p) > 1 - 1e-9 AS alone
    FROM centred GROUP BY scenario, cell_id, chosen
), others AS (
    SELECT scenario, var_samp(e0) AS t_ee, covar_samp(e0, x) AS t_ex, var_samp(x) AS t_xx
    FROM centred JOIN (FROM lender SELECT cell_id, chosen WHERE df > 0) USING (cell_id, chosen)
    GROUP BY GROUPING SETS ((scenario), ())
), lent AS (
    SELECT scenario, sum(ee) / nullif(sum(df), 0) AS w_ee, sum(ex) / nullif(sum(df), 0) AS w_ex,
        sum(xx) / nullif(sum(df), 0) AS w_xx, sum(df) AS all_df, min(df) FILTER (df > 0) AS least_df,
        sum(ee) ** 2 / nullif(sum(ee ** 2 / (df + 2)), 0) - 2 AS welch_df,
        var_samp(e_mean) FILTER (alone) AS b_ee, covar_samp(e_mean, x_mean) FILTER (alone) AS b_ex,
        var_samp(x_mean) FILTER (alone) AS b_xx, count(*) FILTER (alone)::DOUBLE - 1 AS b_df
    FROM lender GROUP BY GROUPING SETS ((scenario), ())
), pool AS (
    SELECT lent.* EXCLUDE (all_df, least_df, welch_df), t_ee, t_ex, t_xx,
        CASE WHEN welch_df IS NULL THEN all_df ELSE greatest(least(welch_df, all_df), least_df) END AS w_df
    FROM lent LEFT JOIN others ON lent.scenario IS NOT DISTINCT FROM others.scenario
), shifted AS (
    SELECT part, pool.scenario, w_df, b_df, greatest(w_ee - 2 * d * w_ex + d * d * w_xx, 0) AS w,
        greatest(t_ee - 2 * d * t_ex + d * d * t_xx, 0) AS t,
        CASE WHEN b_df > 0 THEN greatest(b_ee - 2 * d * b_ex + d * d * b_xx, 0) END AS b
    FROM pool CROSS JOIN (SELECT part, coalesce(estimate, 0) - r0 AS d FROM mean CROSS JOIN common)
), trusted AS (
    SELECT *, w_df > 0 AND NOT coalesce(w <= 1e-9 * b OR b > 4 * t, false) AS trusts FROM shifted
), offer AS (
    SELECT h.part, h.scenario, h.trusts AND (h.b IS NOT NULL OR h.w > 1e-9 * g.w) AS own,
        own OR h.b IS NOT NULL AS here,
        CASE WHEN own THEN h.w WHEN h.b IS NOT NULL THEN h.b WHEN g.trusts THEN g.w ELSE g.b END AS s2_lent,
        greatest(CASE WHEN own THEN h.w_df WHEN h.b IS NOT NULL THEN h.b_df WHEN g.trusts THEN g.w_df ELSE g.b_df END,
            1) AS df_lent
    FROM trusted h JOIN trusted g ON h.part = g.part AND h.scenario IS NOT NULL AND g.scenario IS NULL
), line AS (
    SELECT part, cell_id, chosen, m, n_draws, gain, gain2, a, of_cell, spread.df AS own_df, df_lent,
        CASE WHEN here THEN scenario END AS pool,
        '{target}' = 'frame' AND chosen AND w IS NOT NULL AS known, df_w, v_w, w, alone,
        coalesce(s2, s2_lent) AS s2, coalesce(v, s2_lent) AS v, round(of_cell * n_frame) AS n_stratum
    FROM whole JOIN spread USING (cell_id, chosen) JOIN offer USING (part, scenario)
), term AS (
    SELECT part, cell_id, m, n_draws, a * of_cell AS weight, gain, gain2, pool, df_lent, alone AND NOT known AS borrows,
        CASE WHEN known THEN df_w WHEN alone THEN NULL ELSE own_df END AS df,
        (a * of_cell) ** 2 * CASE WHEN known THEN v_w
            WHEN '{target}' = 'frame' THEN greatest(v - coalesce(greatest(s2 - w, 0) / n_stratum, 0), 0)
            ELSE v END AS v
    FROM line
), source AS (
    SELECT part, v, df FROM term WHERE NOT borrows
    UNION ALL SELECT part, sum(v), any_value(df_lent) FROM term WHERE borrows GROUP BY part, pool
), freedom AS (
    SELECT part, sum(v) AS v, CASE WHEN sum(v * v / (df + 2)) > 0
            THEN greatest(least(sum(v) ** 2 / sum(v * v / (df + 2)) - 2, sum(df)), min(df)) END AS df
    FROM source GROUP BY part
), total AS (
    SELECT part, sum(m)::BIGINT AS n_seeds, sum(n_draws)::BIGINT AS n_draws,
        sum(weight * gain) ** 2 / nullif(sum(weight ** 2 * gain2), 0) AS effective_n
    FROM term GROUP BY part
)
SELECT part, estimate, sqrt(v) / nullif(over, 0) AS se, CASE WHEN estimate IS NOT NULL THEN df END AS df,
    n_seeds, n_draws, effective_n,
    covered / nullif((SELECT sum(a) FROM part p WHERE p.part = mean.part), 0) AS covered
FROM mean JOIN total USING (part) JOIN freedom USING (part)
UNION ALL SELECT teacher_hash, 0, 0, 0, 0, 0, 0, 0 FROM newest WHERE teacher_hash IS NULL -- raises its errors always
ORDER BY part
"""

_PARAMETERS = ("expr", "by_axes", "condition", "target", "of_split", "of_teacher")


def macro_statements() -> list[str]:
    """Return the CREATE statements, in the order of their dependence; they need the view ``samples_wide``.

    The macro is ``fleet_estimate(expr, by_axes, condition, target, of_split, of_teacher)``, all but the first optional.
    It takes SQL texts over the columns of ``fleet_draws``; `by_axes` is a list of columns of cells, `of_teacher` the
    beginning of a teacher's hash (the newest that has a corpus).
    """
    text = "'" + _ESTIMATE.replace("'", "''") + "'"
    for name in _PARAMETERS:
        text = text.replace("{" + name + "}", f"' || {name} || '")
    return [
        _DRAWS,
        _CELLS,
        "CREATE OR REPLACE MACRO fleet_estimate(expr, by_axes := '''fleet''', condition := 'true', "
        f"target := 'superpopulation', of_split := 'train', of_teacher := '') AS TABLE FROM query({text})",
    ]
