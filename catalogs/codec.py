"""Turn a draw's members into bytes and back, by the ending of their names, the same bytes every time.

``.npy`` is what ``np.save`` writes (C order, little-endian), ``.npz`` an uncompressed zip of those with
fixed dates, ``.json`` compact UTF-8 with sorted keys, ``.txt`` UTF-8; any other ending is bytes as they are.
Nothing is ever pickled. A value that does not fit its ending raises TypeError or ValueError with the
member, what was given and what is wanted; the caller makes a failure row of it.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .protocol import Member, MemberSpec

MEMBER_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(?:\.[A-Za-z0-9_-]+)*\.[A-Za-z0-9]+")
FIRST_MEMBERS = ("meta.json", "prompt.txt")
"""What a sequential reader filters on comes before the payloads; the rest follows by name."""

_ARRAY_NAME = re.compile(r"[A-Za-z0-9_-]+")
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest a zip can hold
_NPY_MAGIC = b"\x93NUMPY"
_BUFFER_KINDS = frozenset("biufc")  # datetimes and strings export no plain buffer


class _ArrayHeader(NamedTuple):
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool


def encode_members(members: Mapping[str, Member]) -> list[tuple[str, bytes]]:
    """Encode all members of a draw, in the one order every shard uses (see `member_order`).

    Raises:
        TypeError: a value is not of the type its ending wants.
        ValueError: a name or a value can't be stored.
    """
    return [(name, encode_member(name, members[name])) for name in member_order(tuple(members))]


@lru_cache(maxsize=1024)
def member_order(names: tuple[str, ...]) -> tuple[str, ...]:
    """Sort member names into their order in a shard: `FIRST_MEMBERS`, then by name.

    Raises ValueError for a name that webdataset would not give back, and for two that differ in case only
    (its readers lower-case member names).
    """
    seen: dict[str, str] = {}
    for name in names:
        if not MEMBER_PATTERN.fullmatch(name):
            raise ValueError(
                f"member name {name!r} is not of the form name.ending (letters, digits, '_', '-', dots between)"
            )
        other = seen.setdefault(name.lower(), name)
        if other is not name:
            raise ValueError(f"members {other!r} and {name!r} differ in case only; rename one")
    rank = {name: i for i, name in enumerate(FIRST_MEMBERS)}
    return tuple(sorted(names, key=lambda name: (rank.get(name, len(rank)), name)))


def encode_member(name: str, value: Member) -> bytes:
    """Encode one member by the ending of `name`; equal values give equal bytes.

    Raises TypeError or ValueError (see the module's text).
    """
    ending = _ending(name)
    if ending == "npy":
        return _encode_npy(name, value)
    if ending == "npz":
        return _encode_npz(name, value)
    if ending == "json":
        return _encode_json(name, value)
    if ending == "txt":
        if not isinstance(value, str):
            raise _wrong_type(name, value, "a str")
        try:
            return value.encode()
        except UnicodeEncodeError as e:
            raise ValueError(f"{name}: not storable as UTF-8: {e}") from None
    if not isinstance(value, bytes):
        raise _wrong_type(name, value, "bytes (only .npy, .npz, .json and .txt are encoded here)")
    return value


def decode_member(name: str, data: bytes) -> Member:
    """Decode what `encode_member` wrote.

    Arrays of a ``.npy`` are read-only views into `data` (no copy); those of a ``.npz`` are fresh. Raises
    ValueError with the member's name for bytes that are not what the ending says; never unpickles.
    """
    ending = _ending(name)
    try:
        if ending == "npy":
            return _decode_npy(data)
        if ending == "npz":
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                return {key: arrays[key] for key in arrays.files}
        if ending == "json":
            value: Member = json.loads(data)
            return value
        if ending == "txt":
            return data.decode()
    except (ValueError, TypeError, KeyError, EOFError, OSError, zipfile.BadZipFile) as e:
        raise ValueError(f"{name}: not a readable .{ending} ({len(data):,} bytes): {e}") from None
    return data


def check_member(name: str, array: object, spec: MemberSpec) -> str | None:
    """Say what is wrong with a declared array member, or return None when it is as declared.

    Byte order is not compared (shards are little-endian whatever comes in). Without `spec.allow_nan`, NaN
    and infinities of floating and complex arrays are counted and refused.
    """
    wanted = np.dtype(spec.dtype)
    if not isinstance(array, np.ndarray):
        return f"{name}: a {type(array).__name__}, want an array of {wanted.name} {_shape_text(spec.shape)}"
    if array.dtype.newbyteorder("=") != wanted.newbyteorder("="):
        return f"{name}: dtype {array.dtype.name}, want {wanted.name}"
    fits = len(array.shape) == len(spec.shape) and all(
        want is None or n == want for n, want in zip(array.shape, spec.shape, strict=True)
    )
    if not fits:
        return f"{name}: shape {array.shape}, want {_shape_text(spec.shape)}"
    if spec.allow_nan or array.dtype.kind not in "fc" or np.isfinite(array).all():
        return None
    n_nan = int(np.isnan(array).sum())
    n_inf = int(np.isinf(array).sum())
    found = [f"{n} {what}" for n, what in ((n_nan, "NaN"), (n_inf, "infinite")) if n]
    return f"{name}: {' and '.join(found)} of {array.size} values"


def _encode_npy(name: str, value: object) -> bytes:
    if not isinstance(value, np.ndarray):
        raise _wrong_type(name, value, "a numpy array")
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name}: a masked array would lose its mask; store .filled(...) and the mask as two members")
    dtype: np.dtype[Any] = value.dtype
    if dtype.hasobject:
        raise TypeError(f"{name}: dtype {dtype} holds Python objects, which are never pickled; store numbers or JSON")
    if dtype.kind == "V" and dtype.fields is None:
        raise TypeError(f"{name}: numpy can't read dtype {dtype} back; store it as float32 or view it as uint8/uint16")
    stored = dtype.newbyteorder("<")
    array = np.asarray(value, dtype=stored, order="C")
    try:
        header = _npy_header(stored, array.shape)
    except ValueError as e:
        raise ValueError(f"{name}: dtype {dtype} does not fit a npy header: {e}") from None
    # one copy where the array lends its buffer, two where it has to be serialised first
    return b"".join((header, array if dtype.kind in _BUFFER_KINDS else array.tobytes()))  # type: ignore[arg-type]


@lru_cache(maxsize=4096)
def _npy_header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """Write the header `np.save` writes; cached, since a teacher's draws share a few dtypes and shapes."""
    out = io.BytesIO()
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(out, header)
    return out.getvalue()


def _decode_npy(data: bytes) -> NDArray[Any]:
    if data[:6] != _NPY_MAGIC:
        raise ValueError("no npy magic at the start")
    width = 2 if data[6:7] == b"\x01" else 4  # format version 1 counts its header in 2 bytes, 2 and 3 in 4
    start = 8 + width + int.from_bytes(data[8 : 8 + width], "little")
    header = _read_npy_header(data[:start])
    n_values = 1
    for n in header.shape:
        n_values *= n
    n_bytes = n_values * header.dtype.itemsize
    if len(data) - start != n_bytes:
        raise ValueError(f"{len(data) - start:,} bytes of values, its header wants {n_bytes:,}")
    if n_bytes == 0:
        return np.empty(header.shape, header.dtype)
    flat = np.frombuffer(data, header.dtype, offset=start)
    return flat.reshape(header.shape, order="F" if header.fortran else "C")


@lru_cache(maxsize=4096)
def _read_npy_header(data: bytes) -> _ArrayHeader:
    f = io.BytesIO(data)
    version = np.lib.format.read_magic(f)
    if version > (2, 0):
        raise ValueError(f"npy format {version}; 1.0 and 2.0 are read here")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(f)
    if dtype.hasobject:
        raise ValueError(f"dtype {dtype} holds pickled objects, which are never loaded")
    return _ArrayHeader(dtype, shape, fortran)


def _encode_npz(name: str, value: object) -> bytes:
    if not isinstance(value, Mapping):
        raise _wrong_type(name, value, "a mapping of names to numpy arrays")
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for key, array in value.items():
            if not isinstance(key, str) or not _ARRAY_NAME.fullmatch(key):
                raise ValueError(f"{name}: array name {key!r} is not made of letters, digits, '_' and '-'")
            info = zipfile.ZipInfo(f"{key}.npy", _ZIP_DATE)
            info.create_system = 3  # Unix, whatever machine writes
            info.external_attr = 0o644 << 16
            archive.writestr(info, _encode_npy(f"{name}[{key}]", array))
    return out.getvalue()


def _encode_json(name: str, value: object) -> bytes:
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
        return text.encode()
    except TypeError as e:
        raise TypeError(f"{name}: not storable as JSON: {e}") from None
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{name}: not storable as JSON: {e}") from None


def _ending(name: str) -> str:
    return name.rpartition(".")[2].lower()


def _wrong_type(name: str, value: object, wanted: str) -> TypeError:
    return TypeError(f"{name}: got {type(value).__name__}, want {wanted}")


def _shape_text(shape: tuple[int | None, ...]) -> str:
    sizes = ["any" if n is None else str(n) for n in shape]
    return f"({sizes[0]},)" if len(sizes) == 1 else f"({', '.join(sizes)})"
