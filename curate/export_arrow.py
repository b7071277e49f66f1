"""Build the Arrow columns of an export, marked so that `datasets` reads its own feature types back.

`datasets` itself is not imported: it knows its types by the ``huggingface`` key of the schema's metadata
and its array types by Arrow's extension name on the field, both written here by hand. Every other reader
(pyarrow, polars, DuckDB, pandas) sees plain nested lists.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..catalogs.codec import decode_member
from .export_types import Column, ColumnType, Fields, Listing, Plain, Scalar, Tensor

PNG_LEVEL = 1
"""On noisy camera frames level 6 takes 2.7 times as long as level 1 and saves nothing."""
_BYTES_AND_PATH = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_PLAIN_TYPES = {
    "null": pa.null(), "text": pa.string(), "json": pa.string(), "image": _BYTES_AND_PATH,
    "bytes": pa.binary(), "npy": pa.binary(),
}  # fmt: skip


def arrow_schema(columns: Sequence[Column], facts: Sequence[pa.Field]) -> pa.Schema:
    """Return the schema of a kind's files: `facts` (flat fields known without opening a sample), then members."""
    features = {f.name: {"dtype": str(f.type).replace("double", "float64"), "_type": "Value"} for f in facts}
    features |= {c.name: feature(c.kind) for c in columns}
    meta = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    return pa.schema([*facts, *(_field(c.name, c.kind) for c in columns)], metadata=meta)


def feature(kind: ColumnType) -> dict[str, Any]:
    """Return the feature of a column in the form in which `datasets` writes it to JSON."""
    if isinstance(kind, Tensor):
        return _tensor_feature(kind)
    if isinstance(kind, Scalar):
        return _value(kind.dtype)
    if isinstance(kind, Listing):
        return _list(feature(kind.item))
    if isinstance(kind, Fields):
        return {key: feature(part) for key, part in kind.parts}
    if kind.form == "image":
        return {"_type": "Image"}
    return _value({"null": "null", "bytes": "binary", "npy": "binary"}.get(kind.form, "string"))


def _tensor_feature(kind: Tensor) -> dict[str, Any]:
    n_dims = len(kind.shape)
    if kind.form == "pictures":
        return {"_type": "Image"} if n_dims == 3 else _list({"_type": "Image"})
    if kind.form == "array":
        return {"shape": list(kind.shape), "dtype": kind.dtype, "_type": f"Array{n_dims}D"}
    if kind.form == "flat":
        return {"values": _list(_value(kind.dtype)), "shape": _list(_value("int64"))}
    return nested_lists(kind)


def nested_lists(kind: Tensor) -> dict[str, Any]:
    """Return the feature of arrays as plain nested lists, or as a single value without dimensions."""
    item = _value(kind.dtype)
    for _ in kind.shape:
        item = _list(item)
    return item


def _value(dtype: str) -> dict[str, Any]:
    return {"dtype": dtype, "_type": "Value"}


def _list(item: dict[str, Any]) -> dict[str, Any]:
    return {"feature": item, "_type": "List"}


def _field(name: str, kind: ColumnType) -> pa.Field:
    meta = None
    if isinstance(kind, Tensor) and kind.form == "array":
        meta = {
            "ARROW:extension:name": f"datasets.features.features.Array{len(kind.shape)}DExtensionType",
            "ARROW:extension:metadata": json.dumps([list(kind.shape), kind.dtype]),
        }
    return pa.field(name, arrow_type(kind), metadata=meta)


def arrow_type(kind: ColumnType) -> pa.DataType:
    """Return the Arrow type that a column is stored as."""
    if isinstance(kind, Tensor):
        return _tensor_type(kind)
    if isinstance(kind, Scalar):
        return pa.type_for_alias(kind.dtype)
    if isinstance(kind, Listing):
        return pa.list_(arrow_type(kind.item))
    if isinstance(kind, Fields):
        return pa.struct([_field(key, part) for key, part in kind.parts])
    return _PLAIN_TYPES[kind.form]


def _tensor_type(kind: Tensor) -> pa.DataType:
    value = pa.from_numpy_dtype(np.dtype(kind.dtype))
    if kind.form == "pictures":
        return _BYTES_AND_PATH if len(kind.shape) == 3 else pa.list_(_BYTES_AND_PATH)
    if kind.form == "flat":
        return pa.struct([("values", pa.list_(value)), ("shape", pa.list_(pa.int64()))])
    for _ in kind.shape:
        value = pa.list_(value)
    return value


def member_array(column: Column, encoded: Sequence[bytes | None]) -> pa.Array:
    """Build a column from the encoded member of each row; None where a row has no such member."""
    return _array(column.kind, [_value_of(column, data) for data in encoded])


def _value_of(column: Column, data: bytes | None) -> Any:
    kind = column.kind
    if data is None or (isinstance(kind, Plain) and kind.form in ("bytes", "npy")):
        return data
    if isinstance(kind, Plain) and kind.form in ("text", "json"):
        return data.decode()
    if isinstance(kind, Plain) and kind.form == "image":
        return {"bytes": data, "path": None}
    return decode_member(column.member, data)


def _array(kind: ColumnType, values: Sequence[Any]) -> pa.Array:
    if isinstance(kind, Tensor):
        return _tensors(kind, values)
    if isinstance(kind, Fields) and kind.from_npz:
        parts = [
            _array(part, [None if v is None else _part(part, v.get(key)) for v in values]) for key, part in kind.parts
        ]
        fields = [_field(key, part) for key, part in kind.parts]
        return pa.StructArray.from_arrays(parts, fields=fields, mask=_missing(values))
    return pa.array(values, arrow_type(kind))


def _part(kind: ColumnType, array: NDArray[Any] | None) -> Any:
    """Take an array out of an archive; one that Arrow has no type for becomes the bytes of an .npy file."""
    if array is None or isinstance(kind, Tensor):
        return array
    out = io.BytesIO()
    np.save(out, array, allow_pickle=False)
    return out.getvalue()


def _tensors(kind: Tensor, values: Sequence[NDArray[Any] | None]) -> pa.Array:
    """Lay arrays out without a Python object per value, nulls kept as nulls."""
    if kind.form == "pictures":
        encode: Callable[[NDArray[Any]], Any] = _png if len(kind.shape) == 3 else lambda clip: [_png(f) for f in clip]
        return pa.array([None if v is None else encode(v) for v in values], _tensor_type(kind))
    dtype = np.dtype(kind.dtype)
    if kind.form == "value":
        return pa.array([None if v is None else v.item() for v in values], pa.from_numpy_dtype(dtype))
    there = [v for v in values if v is not None]
    data = pa.array(np.concatenate([np.empty(0, dtype), *(v.ravel() for v in there)]).astype(dtype, copy=False))
    if kind.form == "flat":
        shapes = pa.array([None if v is None else v.shape for v in values], pa.list_(pa.int64()))
        parts = [_lists([None if v is None else v.size for v in values], data), shapes]
        return pa.StructArray.from_arrays(parts, names=["values", "shape"], mask=_missing(values))
    for depth in range(len(kind.shape) - 1, 0, -1):
        lengths = [np.full(math.prod(v.shape[:depth]), v.shape[depth], np.int64) for v in there]
        ends = np.cumsum(np.concatenate([np.zeros(1, np.int64), *lengths]))
        data = pa.ListArray.from_arrays(pa.array(ends, pa.int32()), data)
    return _lists([None if v is None else len(v) for v in values], data)


def _lists(lengths: Sequence[int | None], data: pa.Array) -> pa.Array:
    ends = np.cumsum([0, *(n or 0 for n in lengths)])
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), data, mask=_missing(lengths))


def _missing(values: Sequence[Any]) -> pa.Array | None:
    missing = [v is None for v in values]
    return pa.array(missing) if any(missing) else None


def _png(picture: NDArray[np.uint8]) -> Mapping[str, Any]:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(out, "PNG", compress_level=PNG_LEVEL)
    return {"bytes": out.getvalue(), "path": None}
