"""Find the type of every member over all its samples, so that a dataset can be typed once and for all.

A type is looked at sample by sample and joined: the same members in any order give the same types. What
does not fit together falls back to a form that holds every value (text of JSON, bytes of a file), never
to a value dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..catalogs.codec import decode_member

IMAGE_ENDINGS = frozenset(["png", "jpg", "jpeg", "webp"])
LEAST_PIXELS = 8
"""A smaller picture is taken for what it is more often: an array whose last dimension happens to be 3."""
MAX_JSON_FIELDS = 256
META_MEMBER = "meta.json"


Form = Literal["value", "list", "array", "lists", "flat", "pictures"]


@dataclass(frozen=True, slots=True)
class Tensor:
    """Arrays of one dtype; None in `shape` where a dimension varies.

    `hollow`: in some sample a dimension other than the first is 0, so that nested lists would lose the shape.
    `optional`: some samples have no such array.
    """

    dtype: str
    shape: tuple[int | None, ...]
    hollow: bool = False
    optional: bool = False

    @property
    def form(self) -> Form:
        """Say how such arrays are stored.

        ``array`` is the array type of `datasets`, which has 2 to 5 dimensions of which only the first may
        vary, and can't hold nulls (it gives them back as NaN, or fails); ``lists`` are plain nested lists,
        ``flat`` the values beside the shape, ``pictures`` encoded images.
        """
        n_dims = len(self.shape)
        if n_dims < 2:
            return "list" if n_dims else "value"
        if self.hollow:
            return "flat"
        if self._pictures():
            return "pictures"
        return "array" if n_dims <= 5 and None not in self.shape[1:] and not self.optional else "lists"

    def _pictures(self) -> bool:
        """Tell whether these are uint8 [H, W, 3] or [T, H, W, 3], and not merely small arrays of threes."""
        if self.dtype != "uint8" or len(self.shape) not in (3, 4) or self.shape[-1] != 3:
            return False
        return all(n is None or n >= LEAST_PIXELS for n in self.shape[-3:-1])


@dataclass(frozen=True, slots=True)
class Scalar:
    """JSON's own simple values; `big` marks integers that float64 would round."""

    dtype: Literal["bool", "int64", "float64", "string"]
    big: bool = False


@dataclass(frozen=True, slots=True)
class Listing:
    """JSON arrays of one type of item."""

    item: ColumnType


@dataclass(frozen=True, slots=True)
class Fields:
    """Named parts: JSON objects that all have the same keys, or (`ragged_keys`) the arrays of ``.npz`` files."""

    parts: tuple[tuple[str, ColumnType], ...]
    from_npz: bool = False


@dataclass(frozen=True, slots=True)
class Plain:
    """What needs no parameters.

    ``null`` nothing but nulls; ``text``; ``json`` values whose types differ, kept as text; ``image`` and
    ``bytes`` files as they are; ``npy`` arrays that no one type holds (a dtype that Arrow has not, or
    samples that differ in dtype or number of dimensions), kept as the bytes of an .npy file.
    """

    form: Literal["null", "text", "json", "image", "bytes", "npy"]


ColumnType = Tensor | Scalar | Listing | Fields | Plain
NULL, JSON, NPY = Plain("null"), Plain("json"), Plain("npy")


class KindTypes:
    """The types of a record kind's members, joined over the samples seen so far."""

    def __init__(self) -> None:
        self._types: dict[str, ColumnType] = {}
        self._n_seen: dict[str, int] = {}
        self._n_samples = 0

    def see(self, members: Mapping[str, bytes]) -> None:
        """Join one sample's members in; raises ValueError naming a member that can't be read."""
        self._n_samples += 1
        for name, data in members.items():
            found = member_type(name, data)
            self._n_seen[name] = self._n_seen.get(name, 0) + 1
            self._types[name] = join(self._types.get(name, found), found)

    def members(self) -> dict[str, ColumnType]:
        """Return the members and their types, meta.json first, then by name."""
        names = sorted(self._types, key=lambda name: (name != META_MEMBER, name))
        return {name: self._settle(name) for name in names}

    def _settle(self, name: str) -> ColumnType:
        kind = self._types[name]
        if isinstance(kind, Fields) and not kind.parts:
            return Plain("bytes")  # archives without a single array
        return kind if self._n_seen[name] == self._n_samples else _optional(kind)


def member_type(name: str, data: bytes) -> ColumnType:
    """Look at one encoded member; raises ValueError for bytes that are not what the name's ending says."""
    ending = ending_of(name)
    if ending == "txt":
        return Plain("text")
    if ending == "npy":
        array = decode_member(name, data)
        assert isinstance(array, np.ndarray), "an .npy member decodes to an array"
        return _array_type(array)
    if ending == "npz":
        arrays = decode_member(name, data)
        assert isinstance(arrays, Mapping), "an .npz member decodes to a mapping"
        return Fields(tuple(sorted((key, _array_type(a)) for key, a in arrays.items())), from_npz=True)
    if ending == "json":
        return json_type(decode_member(name, data))
    return Plain("image" if ending in IMAGE_ENDINGS else "bytes")


def ending_of(name: str) -> str:
    """Return what comes after the last dot, in lower case."""
    return name.rpartition(".")[2].lower()


def _array_type(array: NDArray[Any]) -> ColumnType:
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        return NPY
    return Tensor(array.dtype.name, array.shape, 0 in array.shape[1:])


def json_type(value: Any) -> ColumnType:
    """Return the type of one JSON value; `JSON` where its parts do not fit together."""
    if value is None:
        return NULL
    if isinstance(value, bool):
        return Scalar("bool")
    if isinstance(value, int):
        return Scalar("int64", big=abs(value) > 2**53) if -(2**63) <= value < 2**63 else JSON
    if isinstance(value, float):
        return Scalar("float64")
    if isinstance(value, str):
        return Scalar("string")
    if isinstance(value, list):
        item: ColumnType = NULL
        for part in value:
            item = join(item, json_type(part))
        return JSON if item == JSON else Listing(item)
    if not value or len(value) > MAX_JSON_FIELDS or not {"", "_type"}.isdisjoint(value):
        return JSON  # Parquet has no struct without fields, and `datasets` takes _type for its own
    parts = tuple((key, json_type(value[key])) for key in sorted(value))
    return JSON if any(part == JSON for _, part in parts) else Fields(parts)


def join(a: ColumnType, b: ColumnType) -> ColumnType:
    """Return the narrowest type that holds both; the order of joining makes no difference."""
    if a == b or b == NULL:
        return a
    if a == NULL:
        return b
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return _join_tensors(a, b)
    if isinstance(a, Fields) and isinstance(b, Fields) and a.from_npz:
        return _join_archives(a, b)
    return NPY if NPY in (a, b) else _join_values(a, b)


def _join_archives(a: Fields, b: Fields) -> Fields:
    ours, theirs = dict(a.parts), dict(b.parts)
    parts = [
        (
            key,
            join(ours[key], theirs[key]) if key in ours and key in theirs else _optional(ours.get(key) or theirs[key]),
        )
        for key in sorted({*ours, *theirs})
    ]
    return Fields(tuple(parts), from_npz=True)


def _join_values(a: ColumnType, b: ColumnType) -> ColumnType:
    """Join two JSON types: numbers become float64, anything else that differs stays text."""
    if isinstance(a, Scalar) and isinstance(b, Scalar):
        if a.dtype == b.dtype:
            return Scalar(a.dtype, big=True)
        fits = {a.dtype, b.dtype} == {"int64", "float64"} and not (a.big or b.big)
        return Scalar("float64") if fits else JSON
    if isinstance(a, Listing) and isinstance(b, Listing):
        item = join(a.item, b.item)
        return JSON if item == JSON else Listing(item)
    if isinstance(a, Fields) and isinstance(b, Fields) and [k for k, _ in a.parts] == [k for k, _ in b.parts]:
        parts = tuple((k, join(x, y)) for (k, x), (_, y) in zip(a.parts, b.parts, strict=True))
        return JSON if any(part == JSON for _, part in parts) else Fields(parts)
    return JSON


def _join_tensors(a: Tensor, b: Tensor) -> ColumnType:
    dtype = np.promote_types(a.dtype, b.dtype)
    if len(a.shape) != len(b.shape) or not (_exact(a.dtype, dtype) and _exact(b.dtype, dtype)):
        return NPY
    shape = tuple(m if m == n else None for m, n in zip(a.shape, b.shape, strict=True))
    return Tensor(dtype.name, shape, a.hollow or b.hollow, a.optional or b.optional)


def _exact(narrow: str, wide: np.dtype[Any]) -> bool:
    """Tell whether every value of one dtype is a value of the other (int64 in float64 is not)."""
    small = np.dtype(narrow)
    if small.kind == wide.kind:
        return True
    return small.kind == "u" and wide.kind == "i"


def _optional(kind: ColumnType) -> ColumnType:
    """Mark arrays as missing in some samples."""
    if isinstance(kind, Tensor):
        return replace(kind, optional=True)
    if isinstance(kind, Fields) and kind.from_npz:
        return replace(kind, parts=tuple((key, _optional(part)) for key, part in kind.parts))
    return kind


class Column(NamedTuple):
    """One column of a record kind: its name, the member it comes from, and the member's type."""

    name: str
    member: str
    kind: ColumnType


def name_columns(members: Mapping[str, ColumnType], taken: Iterable[str]) -> list[Column]:
    """Name a column after each member: without its ending where that is unique and not `taken`, else with it."""
    stems: dict[str, int] = {}
    for name in members:
        stem = name.rpartition(".")[0].replace(".", "_").lower()
        stems[stem] = stems.get(stem, 0) + 1
    used = {name.lower() for name in taken}
    columns = []
    for name, kind in members.items():
        short, full = name.rpartition(".")[0].replace(".", "_"), name.replace(".", "_")
        column = short if stems[short.lower()] == 1 and short.lower() not in used else full
        while column.lower() in used:
            column += "_"
        used.add(column.lower())
        columns.append(Column(column, name, kind))
    return columns
