"""What estimates start from: the right draws, counted words about the rest, and messages for wrong expressions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from distdata.catalogs import store
from distdata.catalogs.config import parse_config
from distdata.catalogs.errors import DistdataError
from distdata.catalogs.estimates import EstimateRows, estimate_rows
from distdata.catalogs.macros import macro_statements
from distdata.catalogs.project import Project
from distdata.catalogs.views import view_statements
from distdata.stratify.estimate import estimate_rows_by

CONFIG = """
[project]
name = "tiny"
salt = "s"
[axes.light]
values = ["day", "night"]
[scenarios.x]
layer = "core"
[bands]
default = 0.1
[teacher]
kind = "python"
"""
OLD, NEW = "0" * 16, "feedbeef" * 2


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Make two cells, one sampled: seeds of the walk, bought after looking, outside, unweighed; a draw rejected."""
    root: Path = tmp_path_factory.mktemp("tiny")
    project = Project(root, parse_config(CONFIG, "distdata.toml"))
    with store.write(project.catalog_path) as con:
        con.execute(
            """CREATE TABLE cells AS SELECT * FROM (VALUES (0, 'day/x', 'day', 'x', 'core', true, 0.75, 'day'),
            (1, 'night/x', 'night', 'x', 'core', true, 0.25, 'night'))
            t(cell_id, cell, slice, scenario, layer, feasible, fleet_share, light)"""
        )
        for column in ("reason", "band_source"):
            con.execute(f"ALTER TABLE cells ADD COLUMN {column} VARCHAR")
        con.execute("ALTER TABLE cells ADD COLUMN band DOUBLE")
        con.execute("ALTER TABLE cells ADD COLUMN k INTEGER")
        store.insert(con, "plans", _table(*(
            {"plan_no": n, "plan_id": name, "purpose": "train", "teacher": "t", "teacher_version": str(n),
             "teacher_hash": h}
            for n, name, h in ((1, "old", OLD), (2, "new", NEW))
        )))  # fmt: skip
        store.insert(
            con, "units", _table(*({"plan_no": n, "unit": 0, "attempt": 0, "shard_offset": 0} for n in (1, 2)))
        )
        corpus = [
            ("a", 2, 0.5, NEW),
            ("b", 2, 0.5, NEW),
            ("late", 0, 0.0, NEW),
            ("dead", 2, 0.5, NEW),
            ("a", 1, 1.0, OLD),
        ]
        store.insert(con, "corpus", _table(*(
            {"split": "train", "teacher_hash": teacher, "seed_id": seed, "cell_id": 0, "k_seed": 2, "k_counted": k,
             "share": share, "pi": 0.2}
            for seed, k, share, teacher in corpus
        )))  # fmt: skip
        store.insert(con, "seeds", _table(*(
            {"seed_id": f"f{i}", "cell_id": i % 2, "split": "train" if i < 30 else "gate", "origin": "frame"}
            for i in range(40)
        ), *({"seed_id": seed, "cell_id": 0, "split": "train", "origin": "divergence"} for seed in ("out", "case"))
        ))  # fmt: skip
        draws = [("a", 0, 2, 1.0, "go"), ("a", 1, 2, 3.0, "stop"), ("b", 0, 2, 5.0, "go"), ("late", 0, 2, 100.0, "go"),
                 ("out", 0, 2, 100.0, "go"), ("b", 1, 2, 100.0, "go"), ("a", 0, 1, 8.0, "go"),
                 ("case", 0, 2, 100.0, "go"), ("new", 0, 2, 100.0, "go")]  # fmt: skip
        store.insert(con, "samples", _table(*(
            {"sample_id": f"{seed}-{k}-{plan}", "plan_no": plan, "unit": 0, "attempt": 0, "cell_id": 0, "seed_id": seed,
             "k": k, "split": "train", "gpu_s": gpu_s, "outcome": outcome, "offset": 0}
            for seed, k, plan, gpu_s, outcome in draws
        )))  # fmt: skip
        con.execute("INSERT INTO drops BY NAME SELECT 'b-1-2' AS sample_id, 'verify' AS stage, 'blurred' AS reason")
        for statement in [*view_statements(["light"]), *macro_statements()]:
            con.execute(statement)
    return project


def _table(*rows: dict[str, object]) -> object:
    return pl.DataFrame(rows).to_arrow()


def _values(rows: EstimateRows) -> list[object]:
    return rows.draws.sort("value")["value"].to_list()


def test_only_draws_of_the_walk_enter(project: Project) -> None:
    """Rejected draws, those beyond the walk and those outside the frame are left out, and the words count them."""
    rows = estimate_rows(project, "gpu_s")
    assert _values(rows) == [1.0, 3.0, 5.0]
    assert rows.kind == "number"
    assert rows.draws.columns == ["seed_id", "cell_id", "share", "pi", "certain", "value", "domain"]
    assert rows.cells.select("cell", "light", "fleet_share", "n_frame").rows() == [
        ("day/x", "day", 0.75, 15),
        ("night/x", "night", 0.25, 15),
    ]
    assert (rows.n_rejected, rows.n_beyond, rows.n_outside, rows.n_unweighed) == (1, 1, 2, 1)
    assert (rows.n_waiting, rows.n_seeds) == (1, 3)
    words = "\n".join(rows.words())
    for said in (
        "3 draws of teacher t 2 (feedbeef)", "covers 75.0% of the fleet; 1 of 2 cells have none: night/x",
        "1 rejected by a verifier", "1 bought after looking", "2 outside the frame", "1 weighed by no plan yet",
        "1 of 3 sampled seeds have no kept draw",
    ):  # fmt: skip
        assert said in words
    # a: 2, b: 5
    assert estimate_rows_by(rows, []).table["estimate"].to_list() == [3.5]


def test_conditions_and_nulls(project: Project) -> None:
    """A condition marks draws and drops none; a null value is counted."""
    rows = estimate_rows(project, "CASE WHEN k = 0 THEN gpu_s END", "light = 'day' -- by day")
    assert rows.draws["domain"].to_list() == [True] * 3
    assert rows.n_null == 1
    assert "outside the condition: 1" in "\n".join(rows.words())
    assert estimate_rows(project, "gpu_s", "outcome = 'stop'").draws["domain"].sum() == 1


def test_kinds_follow_the_expression(project: Project) -> None:
    """Truth values make shares, texts the share of each, and a text has no total."""
    share = estimate_rows(project, "outcome = 'go'")
    assert (share.kind, _values(share)) == ("share", [0.0, 1.0, 1.0])
    texts = estimate_rows(project, "outcome")
    assert (texts.kind, _values(texts)) == ("text", ["go", "go", "stop"])
    table = estimate_rows_by(texts, ["light"]).table
    assert table.select("light", "value", "estimate").drop_nulls().rows() == [
        ("day", "go", 0.75),
        ("day", "stop", 0.25),
    ]
    with pytest.raises(DistdataError, match="texts have no total"):
        estimate_rows_by(texts, [], total=True)


def test_teachers_are_chosen_by_version_or_hash(project: Project) -> None:
    """The newest is the default; a version or a hash's beginning names another."""
    assert _values(estimate_rows(project, "gpu_s", teacher="1")) == [8.0]
    assert _values(estimate_rows(project, "gpu_s", teacher="0000")) == [8.0]
    with pytest.raises(DistdataError, match=r"no teacher has version or hash '3'.*Known: 2, 1, feedbeef, 00000000"):
        estimate_rows(project, "gpu_s", teacher="3")


@pytest.mark.parametrize(
    ("expr", "where", "said"),
    [
        ("outcom = 'go'", None, r"no column 'outcom' in samples_wide. Did you mean 'outcome'\?"),
        ("outcome = \"stop\"", None, "no column 'stop'.*single quotes"),
        ("avg(gpu_s)", None, "is an aggregate. Give the value of one draw"),
        ("gpu_s, k", None, "is several values; give a single expression"),
        ("1) FROM samples; DROP TABLE samples; SELECT (1", None, "more than one statement"),
        ("gpu_s +", None, "syntax error"),
        ("", None, "the expression is empty"),
        ("gpu_s", "k", "--where 'k' gives SMALLINT values"),
        ("[gpu_s]", None, r"gives DOUBLE\[\] values; give numbers"),
        ("1 / (k - 1.0) * 'Infinity'::DOUBLE", None, "infinite or NaN in .* of 3 draws, .* the first"),
        ("outcome::INTEGER", None, "Conversion Error"),
        ("(SELECT count(*) FROM read_csv('/etc/passwd'))", None, "holds a query of its own"),
        ("unnest([1, 2])", None, r"'unnest\(\[1, 2\]\)' makes several rows of one draw"),
        ("row_number() over ()", None, "looks at other draws"),
        ("gpu_s", "k = (SELECT max(k) FROM samples)", "holds a query of its own"),
    ],
)  # fmt: skip
def test_wrong_expressions_are_explained(project: Project, expr: str, where: str | None, said: str) -> None:
    """Each mistake in an expression gets a message about it, and no file is read."""
    with pytest.raises(DistdataError, match=said):
        estimate_rows(project, expr, where)


def test_an_empty_teacher_is_refused(project: Project) -> None:
    """The beginning of no hash would be that of every hash."""
    with pytest.raises(DistdataError, match="--teacher is empty"):
        estimate_rows(project, "k", teacher=" ")


def test_a_condition_that_no_draw_meets_is_named(project: Project) -> None:
    """The words say why there are no numbers."""
    assert "no draw meets --where" in estimate_rows(project, "gpu_s", "false").words()
    assert "no draw meets --where" not in estimate_rows(project, "gpu_s", "k = 0").words()


def test_cells_of_byproducts_alone_are_not_covered(project: Project) -> None:
    """What is said to be covered is what is used: seeds that others chose stand for no cell of 15 seeds."""
    rows = estimate_rows(project, "gpu_s")
    chosen = replace(rows, draws=rows.draws.with_columns(certain=pl.lit(True)))
    words = "\n".join(chosen.words())
    assert "covers 0.0% of the fleet; 2 of 2 cells have none" in words
    assert "cells that hold only samples that others chose, which stand for nobody else: 1;" in words
    assert "others chose" not in "\n".join(rows.words())


def test_wrong_purposes_are_explained(project: Project) -> None:
    """A pilot is part of the training corpus; a purpose without weights says what to do; others are not known."""
    with pytest.raises(DistdataError, match="part of the training corpus"):
        estimate_rows(project, "k", purpose="pilot")
    with pytest.raises(DistdataError, match="no weighed gate corpus yet"):
        estimate_rows(project, "k", purpose="gate")
    with pytest.raises(DistdataError, match=r"no purpose 'trian'.*'train'"):
        estimate_rows(project, "k", purpose="trian")
