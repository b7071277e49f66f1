"""The only place that opens DuckDB: short writes, patient reads, migrations, safe SQL.

DuckDB lets one process write, and then shuts out every other one, readers included; and readers that
loop can starve a writer. Hence writes are short and announced by an intent file, which our own readers
respect by waiting a moment before they open the file again.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import time
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from .effects import effect
from .errors import BusyError, DistdataError
from .macros import macro_statements
from .views import view_statements

READ_WAIT_S = 4.0
WRITE_WAIT_S = 20.0
INTENT_FRESH_S = 2.0
_LOCKED = re.compile(r"Could not set lock|Conflicting lock")
_HOLDER = re.compile(r"\(PID (\d+)\)")
READ_ONLY = {"enable_external_access": "false", "lock_configuration": "true"}
QUERY_KINDS = {"SELECT", "EXPLAIN", "PRAGMA"}
_BROKEN = (duckdb.IOException, duckdb.SerializationException, duckdb.InternalException, duckdb.FatalException)


class DamagedCatalogError(DistdataError):
    """The catalog file is no catalog (any more); events and manifests hold all that was in it."""


def migrations() -> list[tuple[int, str]]:
    """Return the numbered schema changes in order: (number, SQL)."""
    folder = resources.files(__package__) / "schema"
    found = [(int(f.name[:4]), f.read_text()) for f in folder.iterdir() if f.name.endswith(".sql")]
    return sorted(found)


@contextlib.contextmanager
def write(path: Path, wait_s: float = WRITE_WAIT_S) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open the catalog for one short transaction, creating or migrating it first.

    Raises:
        BusyError: another process still holds the file after `wait_s` seconds.
        DistdataError: the catalog was written by a newer version, or is damaged.
    """
    intent = path.with_name(path.name + ".writer-intent")
    try:
        intent.write_text(str(os.getpid()))
        con = _connect(path, wait_s, time.monotonic() + wait_s, read_only=False)
        try:
            _migrate(con, path)
            con.execute("BEGIN")
            yield con
            effect("catalog.before-commit")
            con.execute("COMMIT")
            effect("catalog.commit")
        except _BROKEN as e:
            raise _unusable(path, e) from None
        finally:
            con.close()
    finally:
        intent.unlink(missing_ok=True)


@contextlib.contextmanager
def read(path: Path, wait_s: float = READ_WAIT_S) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open the catalog for queries that can neither write nor touch any other file.

    Raises:
        BusyError: a writer still holds the file after `wait_s` seconds.
        DistdataError: there is no catalog, or a newer version wrote it.
    """
    if not path.exists():
        raise DistdataError(f"{path}: not found. Run `distdata init` first, or `distdata catalog rebuild`.")
    deadline = time.monotonic() + wait_s
    _yield_to_writer(path, deadline)
    con = _connect(path, wait_s, deadline, read_only=True)
    try:
        _check_version(con, path)
        yield con
    except _BROKEN as e:
        raise _unusable(path, e) from None
    finally:
        con.close()


def query(path: Path, sql: str) -> pa.Table:
    """Answer one SQL query from the catalog, read-only and with external access off.

    Raises:
        DistdataError: the text is not exactly one query, writes, reads files, or is wrong SQL; the message
            is DuckDB's own plus what to do.
    """
    with read(path) as con:
        try:
            statements = con.extract_statements(sql)
            if not statements:
                raise DistdataError("sql: the query is empty. See what there is: distdata sql 'show tables'")
            if len(statements) > 1:
                raise DistdataError(f"sql: one statement at a time, got {len(statements)}. Run them one by one.")
            kind = statements[0].type.name
            if kind not in QUERY_KINDS:
                raise DistdataError(
                    f"sql: {kind} is not a query. The catalog is read-only here: it is rebuilt from events/ and "
                    "manifests, so a change in it would be lost. To keep a result, use --format csv|json|parquet."
                )
            answer = con.sql(sql)
            return pa.table({}) if answer is None else answer.to_arrow_table()
        except duckdb.PermissionException as e:
            raise DistdataError(
                f"sql: {_first_line(e)}. Queries reach the catalog's tables only, no files; see "
                "`distdata sql 'show tables'`."
            ) from None
        except _BROKEN:
            raise
        except duckdb.Error as e:
            raise DistdataError(f"sql: {str(e).strip()}") from None


def _connect(path: Path, wait_s: float, deadline: float, *, read_only: bool) -> duckdb.DuckDBPyConnection:
    pause = 0.005
    while True:
        try:
            if read_only:
                return duckdb.connect(str(path), read_only=True, config=dict(READ_ONLY))
            if not path.exists():
                _create(path)
            return duckdb.connect(str(path))
        except duckdb.Error as e:
            text = str(e)
            if "newer version" in text or "storage version" in text:
                raise DistdataError(f"{path}: written by a newer DuckDB: {_first_line(e)}. Upgrade duckdb.") from None
            if not _LOCKED.search(text):
                raise _unusable(path, e) from None
            if time.monotonic() > deadline:
                holder = _HOLDER.search(text)
                who = f"process {holder[1]}" if holder else "another process"
                raise BusyError(
                    f"{path}: held by {who} for more than {wait_s:g} s. Close that connection, or try "
                    "again in a moment."
                ) from None
        time.sleep(pause * (0.5 + random.random()))
        pause = min(pause * 1.5, 0.1)


def _unusable(path: Path, e: duckdb.Error) -> DistdataError:
    if "No space left" in str(e):
        return DistdataError(f"{path}: the disk is full. Free some space and run the same command again.")
    return DamagedCatalogError(
        f"{path}: can't be used as a catalog: {_first_line(e)}. Nothing is lost: `distdata catalog rebuild` makes it "
        "anew from events/ and the manifests."
    )


def _create(path: Path) -> None:
    """Make an empty file in the storage version that DuckDB 1.5 and 2.x both read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with duckdb.connect() as con:
        con.execute(f"ATTACH '{str(path).replace(chr(39), chr(39) * 2)}' AS fresh (STORAGE_VERSION 'v1.5.0')")


def _yield_to_writer(path: Path, deadline: float) -> None:
    """Wait while a writer has announced itself, so that readers in a loop can't starve it."""
    intent = path.with_name(path.name + ".writer-intent")
    deadline = min(deadline, time.monotonic() + INTENT_FRESH_S)
    while time.monotonic() < deadline:
        try:
            if time.time() - intent.stat().st_mtime > INTENT_FRESH_S:
                return  # left behind by a killed writer
        except OSError:
            return
        time.sleep(0.01)


def is_current(path: Path, wait_s: float = READ_WAIT_S) -> bool:
    """Return whether the catalog has the newest schema; one written by an older distdata has not."""
    with read(path, wait_s) as con:
        return _version(con) == migrations()[-1][0]


def _version(con: duckdb.DuckDBPyConnection) -> int:
    found = first(con.execute("SELECT count(*) FROM duckdb_tables() WHERE table_name = 'schema_version'"))
    if found is None or found[0] == 0:
        return 0
    row = first(con.execute("SELECT max(version) FROM schema_version"))
    return int(row[0]) if row and row[0] is not None else 0


def _check_version(con: duckdb.DuckDBPyConnection, path: Path) -> int:
    version, known = _version(con), migrations()[-1][0]
    if version > known:
        raise DistdataError(
            f"{path}: written by a newer distdata (schema {version}; this one knows up to {known}). Upgrade distdata; "
            "nothing was changed."
        )
    return version


def _migrate(con: duckdb.DuckDBPyConnection, path: Path) -> None:
    version = _check_version(con, path)
    for number, sql in migrations():
        if number > version:
            con.execute("BEGIN")
            con.execute("CREATE TABLE IF NOT EXISTS schema_version (version INTEGER)")
            con.execute(sql)
            con.execute("INSERT INTO schema_version VALUES (?)", [number])
            con.execute("COMMIT")
    if 0 < version < migrations()[-1][0]:  # a new catalog gets its views with its cells
        axes = con.execute("SELECT axis FROM axes GROUP BY axis ORDER BY min(position)").fetchall()
        for statement in [*view_statements([a for (a,) in axes]), *macro_statements()] if axes else ():
            con.execute(statement)


def insert(con: duckdb.DuckDBPyConnection, table: str, rows: Any) -> None:
    """Insert an Arrow table or polars frame into `table`, matching columns by name."""
    con.register("incoming", rows)
    con.execute(f"INSERT INTO {table} BY NAME SELECT * FROM incoming")
    con.unregister("incoming")


def first(result: duckdb.DuckDBPyConnection) -> tuple[Any, ...] | None:
    """Return the first row of a result, or None; the result is read to its end, as DuckDB 2 wants it."""
    rows = result.fetchall()
    return rows[0] if rows else None


def _first_line(e: Exception) -> str:
    return str(e).strip().split("\n")[0]
