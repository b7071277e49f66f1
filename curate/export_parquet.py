"""Write one record kind as Parquet files that `datasets`, and every other reader of Parquet, loads typed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from ..catalogs.effects import effect
from ..catalogs.files import sync_file
from ..catalogs.project import Project
from .export_arrow import arrow_schema, member_array
from .export_read import Choice, ReadSample, read_samples
from .export_types import Column

FILE_BYTES = 300 * 10**6
ROW_GROUP_BYTES = 16 * 10**6
"""Encoded members per row group: what a streaming reader holds at once, and a writer some five times over."""
ROW_GROUP_ROWS = 1000

Tick = Callable[[int], None]
"""Hears how many more samples are done."""


def write_parquet(
    project: Project, choice: Choice, kind: str, columns: list[Column], folder: Path, stem: str, tick: Tick
) -> list[Path]:
    """Write every sample of `kind` under `folder` as ``{stem}-00000-of-0000N.parquet``; return the files.

    Raises DistdataError when a shard can't be read or the catalog has changed.
    """
    files = _Files(folder, stem, arrow_schema(columns, choice.fact_fields), choice)
    rows: list[ReadSample] = []
    n_bytes = 0
    try:
        for sample in read_samples(project, choice, choice.of_kind(kind), check=False):
            rows.append(sample)
            n_bytes += sum(map(len, sample.members.values()))
            if n_bytes >= ROW_GROUP_BYTES or len(rows) == ROW_GROUP_ROWS:
                files.add(_table(rows, columns, files.schema))
                tick(len(rows))
                rows, n_bytes = [], 0
        if rows:
            files.add(_table(rows, columns, files.schema))
            tick(len(rows))
    finally:
        files.close()
    assert files.n_rows == choice.kinds[kind], "every chosen sample is a row"
    return files.name_all()


def _table(rows: list[ReadSample], columns: list[Column], schema: pa.Schema) -> pa.Table:
    n_facts = len(schema) - len(columns)
    arrays = [pa.array([r.facts[f.name] for r in rows], f.type) for f in list(schema)[:n_facts]]
    arrays += [member_array(c, [r.members.get(c.member) for r in rows]) for c in columns]
    return pa.Table.from_arrays(arrays, schema=schema)


class _Files:
    """Parquet files written one after the other, each closed when it has reached its size."""

    def __init__(self, folder: Path, stem: str, schema: pa.Schema, choice: Choice) -> None:
        self.schema, self.n_rows = schema, 0
        self._folder, self._stem = folder, stem
        self._facts = [f.name for f in choice.fact_fields]
        self._paths: list[Path] = []
        self._file: BinaryIO | None = None
        self._writer: Any = None

    def add(self, table: pa.Table) -> None:
        """Write `table` as one row group."""
        if self._file is None:
            self._open()
        assert self._file is not None, "opened above"
        self._writer.write_table(table, row_group_size=len(table))
        self.n_rows += len(table)
        if self._file.tell() >= FILE_BYTES:
            self.close()

    def _open(self) -> None:
        path = self._folder / f"{self._stem}-{len(self._paths):05d}.parquet"
        self._file = open(path, "wb")  # noqa: SIM115 - closed by close()
        self._paths.append(path)
        # a dictionary of floats or of pictures only costs time; the facts repeat a lot
        self._writer = pq.ParquetWriter(self._file, self.schema, compression="zstd", use_dictionary=self._facts)

    def close(self) -> None:
        """Finish and sync the current file, if there is one."""
        if self._file is not None:
            self._writer.close()
            sync_file(self._file)
            self._file.close()
            self._file = None
            effect("export.file")

    def name_all(self) -> list[Path]:
        """Give the files their final names, which say how many there are."""
        n = len(self._paths)
        named = [self._folder / f"{self._stem}-{i:05d}-of-{n:05d}.parquet" for i in range(n)]
        for old, new in zip(self._paths, named, strict=True):
            old.rename(new)
        return named
