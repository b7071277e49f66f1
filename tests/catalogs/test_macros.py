"""The SQL macro gives the numbers of `estimate`, on a catalog with every kind of draw in it."""

from __future__ import annotations

import duckdb
import numpy as np
import polars as pl
import pytest

from distdata.catalogs.estimates import read_draws
from distdata.catalogs.macros import MACRO_NAMES, MACRO_VIEWS, macro_statements
from distdata.catalogs.store import first, insert, migrations
from distdata.catalogs.views import view_statements
from distdata.stratify.estimate import estimate

TEACHER = "feedbeef"
N_CELLS = 20


def _corpus(rng: np.random.Generator) -> pl.DataFrame:
    """Make the seeds of 19 cells: equal and mixed shares, sizes, single seeds, byproducts beside a walk and alone.

    Their scenarios are 7 cells in turn, one seed each in the cells from 11 on.
    """
    rows = []
    for cell in range(N_CELLS - 1):  # the last cell has none
        m = int(rng.integers(1, 7)) if cell < 11 else 1
        share, pi = np.full(m, 1 / m), np.full(m, m / 30)
        if cell in (3, 4) and (m := 5):  # a walk over mixed K: two of five seeds could have come last
            share = np.array([1 / 4, 1 / 8, 1 / 4, 1 / 4, 1 / 8])
            pi = np.full(m, 5 / 30)
        elif cell in (5, 6) and (m := 6):  # sizes
            pi = rng.uniform(0.1, 1.0, m)
            share = 1 / (30 * pi)
        chosen = np.zeros(m, dtype=bool)
        if cell in (7, 8):
            share, pi = np.append(share * 28 / 30, [1 / 30] * 2), np.append(pi, [1.0] * 2)
            chosen = np.append(chosen, [True] * 2)
        elif cell == 9:  # chosen by others alone: stands for nobody else
            chosen[:] = True
        for i in range(len(share)):
            n_draws = 1 if cell == 10 else int(rng.integers(1, 5))
            rows.append((f"c{cell}-{i}", cell, 2 if not chosen[i] else 32767, float(share[i]), float(pi[i]), n_draws))
    schema = ["seed_id", "cell_id", "k_counted", "share", "pi", "n_draws"]
    return pl.DataFrame(rows, schema=schema, orient="row")


@pytest.fixture(scope="module")
def con() -> duckdb.DuckDBPyConnection:
    """Make 12 cells with draws that count and draws that don't: rejected, beyond the walk, another teacher's."""
    rng = np.random.default_rng(5)
    con = duckdb.connect()
    for _, sql in migrations():
        con.execute(sql)
    con.execute(
        f"""CREATE TABLE cells AS SELECT i::INTEGER AS cell_id, 's' || (i % 3) || '/x' || i AS cell,
        's' || (i % 3) AS slice, 'x' || (i % 7) AS scenario, 'core' AS layer, i <> {N_CELLS} AS feasible,
        NULL AS reason, 0.1 AS band, '' AS band_source,
        (i + 1) / 210 AS fleet_share, 2 AS k, 'l' || (i % 2) AS light FROM range({N_CELLS + 1}) t(i)"""
    )
    plan = "'train', 'gate', 'b', '2026', 't'"
    con.execute(
        f"""INSERT INTO plans BY NAME SELECT * FROM (VALUES (1, 'old', {plan}, '1', '{"0" * 8}'),
        (2, 'new', {plan}, '2', '{TEACHER}')) t(plan_no, plan_id, purpose, policy, budget, created, teacher,
        teacher_version, teacher_hash)"""
    )
    con.execute(
        "INSERT INTO units BY NAME SELECT unnest([1, 2]) AS plan_no, 0 AS unit, 0 AS attempt, 0 AS shard_offset"
    )
    corpus = _corpus(rng)
    rows = corpus.drop("n_draws").with_columns(split=pl.lit("train"), teacher_hash=pl.lit(TEACHER))
    insert(con, "corpus", rows.to_arrow())
    con.execute(
        "INSERT INTO seeds BY NAME "
        "SELECT 'f' || i AS seed_id, (i % 20)::INTEGER AS cell_id, 'train' AS split FROM range(600) t(i)"
    )
    draws = corpus.select(
        "seed_id", "cell_id", plan_no=pl.lit(2), unit=pl.lit(0), attempt=pl.lit(0), split=pl.lit("train"),
        k=pl.int_ranges(0, pl.col("n_draws")), offset=pl.lit(0),
    ).explode("k")  # fmt: skip
    draws = draws.with_columns(
        sample_id=pl.col("seed_id") + "-" + pl.col("k").cast(pl.String),
        gpu_s=pl.Series(rng.normal(size=draws.height)) + pl.col("cell_id"),
        outcome=pl.Series(rng.choice(["go", "stop", "yield"], draws.height, p=[0.6, 0.3, 0.1])),
    )
    old = draws.with_columns(pl.lit(1).alias("plan_no"), pl.col("sample_id") + "-old", gpu_s=pl.lit(999.0))
    for rows in (draws, old):
        insert(con, "samples", rows.to_arrow())
    con.execute("INSERT INTO drops BY NAME SELECT sample_id FROM samples WHERE k = 0 AND cell_id = 1 AND plan_no = 2")
    for statement in [*view_statements(["light"]), *macro_statements()]:
        con.execute(statement)
    return con


CASES = [
    ("gpu_s", None),
    ("outcome = 'stop'", None),
    ("gpu_s * 2 - k", "outcome <> 'yield'"),
    ("CASE WHEN k = 0 THEN gpu_s END", None),  # null elsewhere
    ("gpu_s", "cell_id = 10"),  # single draws
    ("gpu_s", "false"),
    # one scenario whose strata of several seeds say 0, one where they are unlike those of one seed
    (
        "CASE WHEN scenario = 'x4' AND cell_id < 11 THEN 3 WHEN scenario = 'x5' AND cell_id < 11 THEN gpu_s / 9 "
        "ELSE gpu_s END",
        None,
    ),
]


@pytest.mark.parametrize("target", ["superpopulation", "frame"])
@pytest.mark.parametrize("by", [None, "slice", "slice, light", "scenario", "cell"])
@pytest.mark.parametrize(("expr", "where"), CASES)
def test_the_macro_equals_estimate(
    con: duckdb.DuckDBPyConnection, expr: str, where: str | None, by: str | None, target: str
) -> None:
    """Estimate, standard error, degrees of freedom and counts agree to 1e-12, for every grouping and target."""
    kind = "share" if "=" in expr and "CASE" not in expr else "number"
    draws, cells = read_draws(con, expr, where, kind, "train", TEACHER)
    names = [] if by is None else by.split(", ")
    ours = estimate(draws, cells, by=names, what="share" if kind == "share" else "mean", target=target).table
    given = {"expr": expr, "condition": where or "true", "by_axes": by or "'fleet'", "target": target}
    rows = con.execute(
        "FROM fleet_estimate($expr, condition := $condition, by_axes := $by_axes, target := $target)", given
    ).fetchall()
    label = pl.lit("fleet") if by is None else pl.concat_str(names, separator=", ")
    columns = ["estimate", "se", "df", "n_seeds", "n_draws", "effective_n", "covered"]
    expected = ours.filter(pl.col("n_draws") > 0).select(label.alias("part"), *columns).sort("part")
    assert [row[0] for row in rows] == expected["part"].to_list()
    assert len(rows) > 0
    for row, mine in zip(rows, expected.iter_rows(), strict=True):
        for value, wanted in zip(row[1:], mine[1:], strict=True):
            assert value == (None if wanted is None else pytest.approx(wanted, rel=1e-12, abs=1e-13)), (row, mine)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("'gpu_s', target := 'nope'", "target nope is not known"),
        ("'gpu_s', of_split := 'gate'", "no corpus of split gate"),
        ("'gpu_s', of_teacher := 'zz'", r"no corpus of split train and teacher zz\* is weighed yet"),
        ("'teacher_version'", "gives VARCHAR values"),
        ("'[gpu_s]'", r"gives DOUBLE\[\] values"),
    ],
)
def test_wrong_arguments_are_refused(con: duckdb.DuckDBPyConnection, arguments: str, said: str) -> None:
    """A word that is not known, a split without a corpus and a text are errors, not answers."""
    with pytest.raises(duckdb.Error, match=said):
        con.execute(f"FROM fleet_estimate({arguments})").fetchall()


def test_draws_that_do_not_count_do_not_enter(con: duckdb.DuckDBPyConnection) -> None:
    """Rejected draws, those beyond the walk and another teacher's leave no trace: their values are never near 999."""
    counted = first(con.execute("SELECT count(*), max(gpu_s) FROM fleet_draws WHERE counted"))
    # of every seed k 0 and 1 count (all of a byproduct's seed), less the rejected k 0 of cell 1
    expected = first(
        con.execute(
            f"""SELECT count(*) FROM samples JOIN corpus USING (seed_id) WHERE plan_no = 2 AND k < k_counted
            AND NOT (k = 0 AND samples.cell_id = 1) AND teacher_hash = '{TEACHER}'"""
        )
    )
    assert counted is not None
    assert expected is not None
    assert counted[0] == expected[0]
    assert counted[1] < 100


def test_every_name_is_made(con: duckdb.DuckDBPyConnection) -> None:
    """The macro and the views that the module names exist."""
    macros = {row[0] for row in con.execute("SELECT function_name FROM duckdb_functions()").fetchall()}
    views = {row[0] for row in con.execute("SELECT view_name FROM duckdb_views()").fetchall()}
    assert set(MACRO_NAMES) <= macros
    assert set(MACRO_VIEWS) <= views
