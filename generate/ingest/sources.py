"""Read rows from WebDataset archives, Parquet, JSONL and our own logs, a few at a time.

A row has *facts* (columns, or the fields of a sample's JSON) and *parts*, which may become members: encoded bytes, or
values as the file has them. What can't be read stops the file with its name, the place and the reason.
"""

from __future__ import annotations

import hashlib
import json
import os
from codecs import BOM_UTF8 as BOM
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...catalogs.errors import DistdataError
from .outcome import Refused
from .read_log import LOG_DEPTH, TornEnd, log_files, read_log

ENDINGS = (".tar", ".tar.gz", ".tgz", ".parquet", ".jsonl", ".ndjson")
DATA_ENDINGS = (".tar", ".tar.gz", ".tgz", ".parquet")
"""What is taken of a folder: beside an export's data lie JSON files that are none."""
_BATCH_BYTES = 16 << 20
_HASH_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One row: where it is, its facts and parts, and what is wrong with it if it can't be read."""

    place: str
    facts: Mapping[str, Any]
    parts: Mapping[str, Any]
    wrong: Refused | None = None
    log_span: tuple[str, int, int] | None = None  # file, first byte, byte after the last
    n_bytes: int = 0  # about what it takes in memory

    def fact(self, name: str) -> Any:
        """Return a fact by its name, or by a dotted path into JSON; None where there is none."""
        if name in self.facts:
            return plain(self.facts[name])
        value: Any = self.facts
        for step in name.split("."):
            value = _parsed(value)
            if not isinstance(value, Mapping) or step not in value:
                return None
            value = value[step]
        return plain(value)


@dataclass(slots=True, kw_only=True)
class Source:
    """One file, or one folder of logs, that is ingested whole or not at all.

    `sha256` names its content. `spans` of a folder of logs are the bytes to read of each file, by its name. `notes`
    collects what is worth saying.
    """

    path: Path
    label: str
    sha256: str
    n_bytes: int
    spans: dict[str, tuple[int, int]] | None = None
    notes: list[str] = field(default_factory=list)

    def rows(self) -> Iterator[SourceRow]:
        """Yield every row.

        Raises:
            DistdataError: the file is torn, damaged, or changed since it was opened.
        """
        if self.spans is not None:
            yield from _log_rows(self)
            return
        before = _state(self.path)
        if self.path.suffix == ".parquet":
            yield from _parquet_rows(self.path)
        elif self.path.suffix in (".jsonl", ".ndjson"):
            yield from _jsonl_rows(self.path)
        else:
            from .archives import tar_rows

            yield from tar_rows(self.path)
        if _state(self.path) != before:
            raise DistdataError(f"{self.path}: was changed while it was read. Nothing of it was ingested; try again.")


def open_source(path: Path, read_before: Mapping[str, int]) -> Source:
    """Open a file or a folder of logs; `read_before` says up to where log files were taken in full, by name.

    Raises:
        DistdataError: missing, or of a kind that is not read here.
    """
    if path.is_dir():
        return _open_logs(path, read_before)
    if not path.exists():
        raise DistdataError(f"{path}: not found.")
    if not path.name.endswith(ENDINGS):
        raise DistdataError(
            f"{path}: unknown ending {path.suffix!r}. Read are {', '.join(ENDINGS)}, and folders of log_byproduct."
        )
    digest, n_bytes = hashlib.sha256(), 0
    try:
        with open(path, "rb") as f:
            while chunk := f.read(_HASH_BYTES):
                digest.update(chunk)
                n_bytes += len(chunk)
    except OSError as e:
        raise DistdataError(f"{path}: can't be read ({os.strerror(e.errno or 0)}).") from None
    return Source(path=path, label=path.name, sha256=digest.hexdigest(), n_bytes=n_bytes)


def source_paths(paths: Sequence[Path]) -> list[Path]:
    """Put in the place of a folder without logs the data files in it and in its data/, which is how exports lie.

    Raises:
        DistdataError: a folder with neither.
    """
    found: list[Path] = []
    for path in paths:
        if not path.is_dir() or log_files(path):
            found.append(path)
            continue
        places = (path.glob("*"), (path / "data").glob("*"), (path / "data").glob("*/*"))
        files = sorted(f for place in places for f in place if f.name.endswith(DATA_ENDINGS) and f.is_file())
        if not files:
            raise DistdataError(
                f"{path}: holds no log of log_byproduct (*.ddlog, at most {LOG_DEPTH} folders down), and neither it "
                f"nor its data/ a file that ends in {', '.join(DATA_ENDINGS)}."
            )
        found += files
    return found


def _open_logs(folder: Path, read_before: Mapping[str, int]) -> Source:
    files = log_files(folder)
    if not files:
        raise DistdataError(f"{folder}: holds no log of log_byproduct (*.ddlog).")
    spans = {str(f.relative_to(folder)): (read_before.get(f.name, 0), f.stat().st_size) for f in files}
    spans = {name: (start, max(start, stop)) for name, (start, stop) in spans.items()}
    text = json.dumps([(Path(name).name, *span) for name, span in spans.items()])
    return Source(
        path=folder,
        label=f"{folder.name}/ ({len(files)} logs)",
        sha256=hashlib.sha256(text.encode()).hexdigest(),
        n_bytes=sum(stop - start for start, stop in spans.values()),
        spans=spans,
    )


def _log_rows(source: Source) -> Iterator[SourceRow]:
    torn: list[tuple[str, TornEnd]] = []
    for name, (start, stop) in (source.spans or {}).items():
        for record in read_log(source.path / name, start, stop):
            if isinstance(record, TornEnd):
                torn.append((name, record))
                continue
            place, span = f"{name} byte {record.start:,}", (name, record.start, record.stop)
            if record.wrong is not None:
                wrong = Refused("damaged record", record.wrong, "This answer is lost; the records around it are whole.")
                yield SourceRow(place, {}, {}, wrong, span)
                continue
            quality = record.head.pop("quality", {})
            size = record.stop - record.start
            yield SourceRow(place, {**quality, **record.head}, record.members, None, span, size)
    if torn:
        name, end = torn[0]
        source.notes.append(
            f"{len(torn)} log(s) end in a record that is not whole, the first {name} at byte {end.start:,} "
            f"({end.n_bytes:,} bytes): being written, or cut off by a kill. It was left; no call that returned lies in "
            "it."
        )


def _jsonl_rows(path: Path) -> Iterator[SourceRow]:
    try:
        with open(path, "rb") as f:
            for number, line in enumerate(f, start=1):
                if line.strip():
                    yield _jsonl_row(path, f"line {number:,}", line.removeprefix(BOM) if number == 1 else line)
    except OSError as e:
        raise torn(path, str(e)) from None


def _jsonl_row(path: Path, place: str, line: bytes) -> SourceRow:
    try:
        record = json.loads(line.decode(), parse_constant=_refuse_constant)
    except _NoNumberError as e:
        return SourceRow(place, {}, {}, Refused("a number that JSON doesn't have", f"{e}.", "Write a number, or null."))
    except UnicodeDecodeError as e:
        raise DistdataError(
            f"{path}: {place}: byte {e.start + 1:,} is no UTF-8. Nothing of this file was ingested; write it in UTF-8 "
            "(from Latin-1: iconv -f latin1 -t utf-8) and try again."
        ) from None
    except (ValueError, RecursionError) as e:
        if not line.endswith(b"\n"):
            raise torn(path, f"{place}: not valid JSON: {e}") from None
        raise DistdataError(
            f"{path}: {place}: not valid JSON: {e}. Nothing of this file was ingested; every line is one JSON object."
        ) from None
    if not isinstance(record, dict):
        raise DistdataError(
            f"{path}: {place}: a row must be an object, got {type(record).__name__}. Nothing of this file was "
            "ingested; every line is one JSON object."
        )
    return SourceRow(place, record, record, n_bytes=4 * len(line))


class _NoNumberError(Exception):
    pass


def _refuse_constant(word: str) -> float:
    raise _NoNumberError(f"{word} is no JSON number")


class _ArrowRow(Mapping[str, Any]):
    """One row of a record batch, its values taken out when they are asked for."""

    def __init__(self, batch: Any, row: int) -> None:
        self._batch, self._row = batch, row

    def __getitem__(self, name: str) -> Any:
        index = self._batch.schema.get_field_index(name)
        if index < 0:
            raise KeyError(name)
        scalar = self._batch.column(index)[self._row]
        return scalar if scalar.is_valid else None

    def __iter__(self) -> Iterator[str]:
        return iter(self._batch.schema.names)

    def __len__(self) -> int:
        return len(self._batch.schema.names)


def _parquet_rows(path: Path) -> Iterator[SourceRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            meta = file.metadata
            n_bytes = sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups))
            at_once = max(1, min(1024, int(_BATCH_BYTES / max(1.0, n_bytes / max(1, meta.num_rows)))))
            for batch in file.iter_batches(batch_size=at_once, use_threads=False):
                for i in range(batch.num_rows):
                    number += 1
                    row = _ArrowRow(batch, i)
                    yield SourceRow(f"row {number:,}", row, row, n_bytes=batch.nbytes // batch.num_rows)
    except (pa.ArrowException, OSError) as e:
        raise torn(path, f"after row {number:,}: {str(e).strip().splitlines()[0]}") from None


def torn(path: Path, what: str) -> DistdataError:
    """Return the error of a file that can't be read to its end."""
    return DistdataError(f"{path}: {what}. Nothing of this file was ingested; get it whole and try again.")


def _state(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _parsed(value: Any) -> Any:
    """Look into JSON that a column holds as text, and into Arrow's structs."""
    value = plain(value)
    if isinstance(value, str) and value[:1] == "{":
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def plain(value: Any) -> Any:
    """Return what an Arrow scalar holds, and anything else as it is."""
    return value.as_py() if hasattr(value, "as_py") else value
