"""Read samples from WebDataset archives with webdataset's own functions, after a look at the archive's layout.

Python's tarfile takes a damaged header for the end of the archive and says nothing, so that samples would be lost in
silence; hence every header is checked first.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from ...catalogs.errors import DistdataError
from ...catalogs.ustar import BLOCK_BYTES, padded
from .outcome import Refused
from .sources import SourceRow, torn

FACTS_MEMBERS = ("meta.json", "json")
"""Members of a WebDataset sample that hold its facts, the first one there."""
_SUM = slice(148, 156)
_SIZE = slice(124, 136)


def tar_rows(path: Path) -> Iterator[SourceRow]:
    """Yield the samples of an archive, plain or gzipped; keys and members are what webdataset makes of them.

    Raises:
        DistdataError: a damaged header, or an archive that was cut off; the key before it is named.
    """
    from webdataset.tariterators import group_by_keys, tar_file_expander

    key = ""
    try:
        with open(path, "rb") as raw:
            _check_layout(path, raw)
            raw.seek(0)
            for sample in group_by_keys(tar_file_expander([{"url": path.name, "stream": raw}]), lcase=False):
                key = sample["__key__"]
                yield _row(key, {name: data for name, data in sample.items() if not name.startswith("__")})
    except DistdataError:
        raise
    except ValueError as e:
        if "duplicate file name" in str(e):
            raise _same_name(path, str(e)) from None
        raise torn(path, f"after key {key or '(none)'}: {_first_words(e)}") from None
    except Exception as e:  # what a damaged archive makes tarfile, gzip and webdataset raise has no common class
        raise torn(path, f"after key {key or '(none)'}: {_first_words(e)}") from None


def _check_layout(path: Path, raw: BinaryIO) -> None:
    """Go from header to header up to the end of the archive, without looking at what is between them."""
    is_plain = raw.read(2) != b"\x1f\x8b"
    raw.seek(0)
    f = raw if is_plain else cast(BinaryIO, gzip.GzipFile(fileobj=raw))
    size = os.fstat(raw.fileno()).st_size if is_plain else None
    at, name = 0, "(none)"
    while True:
        header = f.read(BLOCK_BYTES)
        if len(header) < BLOCK_BYTES:
            raise torn(path, f"ends at byte {at:,}, after {name}, without an end of archive: it was cut off")
        if not any(header):
            return
        if _number(header[_SUM]) != sum(header) - sum(header[_SUM]) + 8 * 32:
            raise torn(path, f"byte {at:,}, after {name}: no header of a tar archive, so it is damaged from there on")
        name = header[:100].rstrip(b"\0").decode(errors="replace")
        at += BLOCK_BYTES + padded(_number(header[_SIZE]))
        if size is not None and at > size:
            raise torn(path, f"{name} ends at byte {at:,}, the file at {size:,}: it was cut off")
        f.seek(at)


def _number(field: bytes) -> int:
    """Read a number of a header: octal text, or the rest of the field in base 256 where its first bit is set."""
    if field[:1] >= b"\x80":
        return int.from_bytes(field[1:], "big")
    try:
        return int(field.rstrip(b"\0 ") or b"0", 8)
    except ValueError:
        return -1


def _row(key: str, parts: dict[str, bytes]) -> SourceRow:
    name = next((n for n in FACTS_MEMBERS if n in parts), None)
    facts: dict[str, object] = {"__key__": key}
    place = f"key {key}"
    if name is not None:
        try:
            read = json.loads(parts[name])
        except ValueError as e:
            return SourceRow(place, facts, {}, Refused(f"{name} is not JSON", f"{e}.", "Write it as a JSON object."))
        facts |= read if isinstance(read, dict) else {}
        parts = {n: data for n, data in parts.items() if n != name}
    return SourceRow(place, facts, parts, n_bytes=sum(map(len, parts.values())))


def _same_name(path: Path, words: str) -> DistdataError:
    """Say which key webdataset has met again; its words begin with the entry's name."""
    entry = words.partition(": duplicate file name")[0].lstrip("(\"'")
    folder, slash, name = entry.rpartition("/")
    key = folder + slash + name.partition(".")[0]
    return DistdataError(
        f"{path}: key {key!r} comes twice ({entry}); give each sample a key of its own. Nothing of this file was "
        "ingested."
    )


def _first_words(e: Exception) -> str:
    return str(e.args[0] if e.args else e).strip().splitlines()[0]
