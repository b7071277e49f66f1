"""A catalog of an older distdata opens, is brought up to date once, and answers as a new one does."""

from __future__ import annotations

from typing import Any

import duckdb

from distdata.catalogs import store
from distdata.catalogs.intake import open_project
from distdata.catalogs.project import Project
from distdata.catalogs.register import rebuild


def _tables(project: Project) -> dict[str, list[tuple[Any, ...]]]:
    with store.read(project.catalog_path) as con:
        names = [r[0] for r in con.execute("SELECT table_name FROM duckdb_tables() ORDER BY 1").fetchall()]
        return {n: sorted(con.execute(f"FROM {n}").fetchall(), key=repr) for n in names if n not in ("schema_version",)}


def _as_the_first_version_left_it(project: Project) -> None:
    """Take from a catalog what the first schema did not have, as a catalog of that time lacks it."""
    first = store.migrations()[0][1]
    with duckdb.connect(str(project.catalog_path)) as con:
        views = con.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall()
        for (view,) in views:
            con.execute(f'DROP VIEW "{view}"')
        old = duckdb.connect()
        old.execute(first)
        had = {(t, c) for t, c in old.execute("SELECT table_name, column_name FROM duckdb_columns()").fetchall()}
        for table, column in con.execute(
            "SELECT table_name, column_name FROM duckdb_columns() WHERE NOT internal AND table_name NOT IN "
            "('cells', 'schema_version')"
        ).fetchall():
            if table not in {t for t, _ in had}:
                con.execute(f"DROP TABLE IF EXISTS {table}")
            elif (table, column) not in had:
                con.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
        con.execute("DELETE FROM schema_version WHERE version > 1")


def test_an_old_catalog_opens(tiny: Any, tmp_path: Any) -> None:
    """Its tables gain what is new, its views are made anew, and rebuilding from the files gives the same."""
    project = tiny.build(tmp_path / "p")
    tiny.run(project)
    _as_the_first_version_left_it(project)
    assert not store.is_current(project.catalog_path)

    open_project(project.root)
    assert store.is_current(project.catalog_path)
    with store.read(project.catalog_path) as con:
        total = store.first(con.execute("SELECT sum(kept), sum(target) FROM coverage"))
        origin = con.execute("SELECT DISTINCT origin, size FROM seeds").fetchall()
    assert total == (14, 14)
    assert origin == [("frame", None)]
    migrated = _tables(project)
    rebuild(project)
    rebuilt = _tables(project)
    # what the first version did not store is read again from the plans when the catalog is rebuilt
    assert {n: rows for n, rows in migrated.items() if n not in ("corpus", "plan_cells")} == {
        n: rows for n, rows in rebuilt.items() if n not in ("corpus", "plan_cells")
    }
