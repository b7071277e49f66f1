"""The one place that opens DuckDB: patient, short, and safe to hand a stranger's SQL."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import pytest

from distdata.catalogs import effects, store
from distdata.catalogs.errors import BusyError, DistdataError

HOLD = """
import sys, duckdb
con = duckdb.connect(sys.argv[1], read_only=sys.argv[2] == "read")
con.execute("SELECT 1").fetchall()
print("open", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    path = tmp_path / "catalog.duckdb"
    with store.write(path) as con:
        con.execute("INSERT INTO axes VALUES ('light', 0, 'day', 0), ('light', 0, 'night', 1)")
    return path


def _n_axes(path: Path) -> int:
    with store.read(path) as con:
        row = store.first(con.execute("SELECT count(*) FROM axes"))
    assert row is not None
    return int(row[0])


def test_a_new_catalog_has_the_newest_schema(catalog: Path) -> None:
    """Writing creates the file with every migration applied once, and leaves no other file."""
    with store.read(catalog) as con:
        versions = [r[0] for r in con.execute("SELECT version FROM schema_version ORDER BY 1").fetchall()]
    assert versions == [number for number, _ in store.migrations()]
    assert [p.name for p in catalog.parent.iterdir()] == ["catalog.duckdb"]


def test_the_file_opens_in_the_older_storage_version(catalog: Path) -> None:
    """The file says storage version 1.5, which DuckDB 1.5 and 2 both read."""
    with duckdb.connect(str(catalog), read_only=True) as con:
        row = con.execute("SELECT tags FROM duckdb_databases() WHERE database_name = 'catalog'").fetchone()
    assert row is not None
    assert "v1.5.0" in str(row[0])


def test_a_failed_write_changes_nothing(catalog: Path) -> None:
    """An exception inside a write rolls all of it back and takes the intent away."""

    def fail() -> None:
        with store.write(catalog) as con:
            con.execute("DELETE FROM axes")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert _n_axes(catalog) == 2
    assert [p.name for p in catalog.parent.iterdir()] == ["catalog.duckdb"]


def test_a_crash_before_the_commit_changes_nothing(catalog: Path) -> None:
    """A process that dies just before its commit leaves the catalog as it was, and later writers go on."""
    code = (
        "import os, sys; from pathlib import Path; from distdata.catalogs import effects, store\n"
        "effects.observe(lambda name: os._exit(9) if name == 'catalog.before-commit' else None)\n"
        "with store.write(Path(sys.argv[1])) as con: con.execute('DELETE FROM axes')"
    )
    assert subprocess.run([sys.executable, "-c", code, str(catalog)], check=False).returncode == 9
    assert _n_axes(catalog) == 2
    with store.write(catalog) as con:
        con.execute("DELETE FROM axes WHERE value = 'day'")
    assert _n_axes(catalog) == 1


def test_readers_can_not_write(catalog: Path) -> None:
    """A read connection refuses changes, files, and the settings that would allow them."""
    with store.read(catalog) as con:
        for sql in (
            "DELETE FROM axes",
            f"COPY axes TO '{catalog.parent}/x.csv'",
            "SET enable_external_access = true",
            "SELECT * FROM read_text('/etc/hostname')",
        ):
            with pytest.raises(duckdb.Error):
                con.execute(sql)
    assert _n_axes(catalog) == 2


QUERIES = [
    ("SELECT count(*) AS n FROM axes", [{"n": 2}]),
    ("FROM axes SELECT value ORDER BY value DESC LIMIT 1", [{"value": "night"}]),
    ("WITH x AS (SELECT 1 AS i) SELECT * FROM x;", [{"i": 1}]),
    ("SELECT 1 AS i WHERE false", []),
]


@pytest.mark.parametrize(("sql", "rows"), QUERIES)
def test_queries_are_answered(catalog: Path, sql: str, rows: list[dict[str, int]]) -> None:
    """One query gives its rows; a semicolon at the end is fine."""
    assert store.query(catalog, sql).to_pylist() == rows


@pytest.mark.parametrize(
    "sql", ["SHOW TABLES", "DESCRIBE axes", "SUMMARIZE axes", "EXPLAIN SELECT 1", "PRAGMA version"]
)
def test_the_catalog_can_be_looked_around_in(catalog: Path, sql: str) -> None:
    """What helps to find one's way is a query too."""
    assert store.query(catalog, sql).num_rows > 0


REFUSED = [
    ("COPY axes TO '{out}'", "COPY is not a query"),
    ("COPY (SELECT 1) TO '{out}' (FORMAT parquet)", "COPY is not a query"),
    ("CREATE TABLE t (i INTEGER)", "CREATE is not a query"),
    ("CREATE VIEW t AS SELECT 1", "CREATE is not a query"),
    ("ATTACH '{out}'", "ATTACH is not a query"),
    ("SET enable_external_access = true", "SET is not a query"),
    ("PRAGMA profiling_output = '{out}'", "SET is not a query"),
    ("INSTALL httpfs", "LOAD is not a query"),
    ("LOAD httpfs", "LOAD is not a query"),
    ("EXPORT DATABASE '{out}'", "EXPORT is not a query"),
    ("INSERT INTO axes SELECT * FROM axes", "INSERT is not a query"),
    ("DELETE FROM axes", "DELETE is not a query"),
    ("UPDATE axes SET value = ''", "UPDATE is not a query"),
    ("DROP TABLE axes", "DROP is not a query"),
    ("ALTER TABLE axes ADD COLUMN i INTEGER", "ALTER is not a query"),
    ("CHECKPOINT", "is not a query"),
    ("IMPORT DATABASE '{secret}'", "Queries reach the catalog's tables only, no files"),
    ("EXPLAIN ANALYZE COPY axes TO '{out}'", "Queries reach the catalog's tables only, no files"),
    ("SELECT * FROM read_csv('{secret}')", "Queries reach the catalog's tables only, no files"),
    ("SELECT * FROM read_text('{secret}')", "Queries reach the catalog's tables only, no files"),
    ("SELECT * FROM read_blob('{secret}')", "Queries reach the catalog's tables only, no files"),
    ("SELECT * FROM read_json('{secret}')", "Queries reach the catalog's tables only, no files"),
    ("SELECT * FROM read_parquet('{secret}')", "Queries reach the catalog's tables only, no files"),
    ("SELECT * FROM sniff_csv('{secret}')", "Queries reach the catalog's tables only, no files"),
    ("SELECT * FROM '{secret}'", "Queries reach the catalog's tables only, no files"),
    ("SELECT * FROM glob('{folder}/*')", "Queries reach the catalog's tables only, no files"),
    ("SELECT 1; SELECT 2", "one statement at a time, got 2"),
    ("SELECT 1; DROP TABLE axes", "one statement at a time, got 2"),
    ("SELEC 1", "syntax error"),
    ("SELECT * FROM axis", "axes"),
    ("SELECT valu FROM axes", "value"),
    ("", "the query is empty"),
    ("  ;", "the query is empty"),
    ("/* nothing */", "the query is empty"),
    ("SELECT * FROM path", "path does not exist"),
]


@pytest.mark.parametrize(("sql", "said"), REFUSED, ids=[sql for sql, _ in REFUSED])
def test_everything_else_is_refused(catalog: Path, sql: str, said: str) -> None:
    """What writes, reads files, is no SQL or is several statements is refused; no file appears, none is shown."""
    secret = catalog.parent / "secret.csv"
    secret.write_text("word\nxyzzy\n")
    before = catalog.read_bytes()
    text = sql.format(out=catalog.parent / "out", secret=secret, folder=catalog.parent)
    with pytest.raises(DistdataError) as caught:
        store.query(catalog, text)
    assert str(caught.value).startswith("sql: ")
    assert said in str(caught.value)
    assert "xyzzy" not in str(caught.value)
    assert sorted(p.name for p in catalog.parent.iterdir()) == ["catalog.duckdb", "secret.csv"]
    assert catalog.read_bytes() == before


def test_a_newer_catalog_is_left_alone(catalog: Path) -> None:
    """A schema from the future is refused for reading and writing alike, and nothing changes."""
    with duckdb.connect(str(catalog)) as con:
        con.execute("INSERT INTO schema_version VALUES (99)")
    before = catalog.read_bytes()
    newest = store.migrations()[-1][0]
    said = (
        rf"catalog.duckdb: written by a newer distdata \(schema 99; this one knows up to {newest}\)\. Upgrade distdata"
    )
    with pytest.raises(DistdataError, match=said), store.read(catalog):
        pass
    with pytest.raises(DistdataError, match=said), store.write(catalog):
        pass
    assert catalog.read_bytes() == before


def test_a_missing_catalog_is_named(tmp_path: Path) -> None:
    """Reading makes no catalog; the message says what does."""
    with pytest.raises(DistdataError, match=r"catalog.duckdb: not found\. Run `distdata init` first"):
        store.query(tmp_path / "catalog.duckdb", "SELECT 1")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["empty", "garbage", "cut", "altered"])
def test_a_damaged_catalog_is_named(catalog: Path, damage: str) -> None:
    """A file that is no catalog any more is said to be one, and that a rebuild loses nothing."""
    data = bytearray(catalog.read_bytes())
    for at in range(0, len(data), 97):
        data[at] ^= 255
    broken = {"empty": b"", "garbage": b"xyzzy" * 5000, "cut": catalog.read_bytes()[:14000], "altered": bytes(data)}
    catalog.write_bytes(broken[damage])
    with pytest.raises(store.DamagedCatalogError, match=r"Nothing is lost: `distdata catalog rebuild` makes it anew"):
        _n_axes(catalog)


@pytest.mark.parametrize("kind", ["read", "write"])
def test_a_held_catalog_is_reported_with_its_holder(catalog: Path, kind: str) -> None:
    """Waiting has an end, and the message names the process; when it lets go, the same call works."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(catalog), kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        said = f"catalog.duckdb: held by process {holder.pid} for more than 0.1 s"
        with pytest.raises(BusyError, match=said), store.write(catalog, wait_s=0.1):
            pass
        if kind == "read":
            assert _n_axes(catalog) == 2
        else:
            with pytest.raises(BusyError, match=said), store.read(catalog, wait_s=0.1):
                pass
        holder.communicate("go\n")
    with store.write(catalog) as con:
        con.execute("DELETE FROM axes")
    assert _n_axes(catalog) == 0
    assert [p.name for p in catalog.parent.iterdir()] == ["catalog.duckdb"]


def test_an_intent_left_by_a_crash_is_ignored(catalog: Path) -> None:
    """A stale writer intent does not make readers wait for ever, and a fresh one only for so long."""
    intent = catalog.with_name("catalog.duckdb.writer-intent")
    intent.write_text("1")
    assert _n_axes(catalog) == 2
    old = time.time() - 60
    os.utime(intent, (old, old))
    assert _n_axes(catalog) == 2


def test_effects_of_a_write(catalog: Path) -> None:
    """A commit announces itself before and after, so that crash tests can stop at both."""
    seen: list[str] = []
    effects.observe(seen.append)
    try:
        with store.write(catalog):
            pass
    finally:
        effects.observe(None)
    assert seen == ["catalog.before-commit", "catalog.commit"]
