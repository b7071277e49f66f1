"""From what a file holds to what a member holds: arrays out of lists, bytes out of text, always of the stated type."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...catalogs.codec import decode_member
from ...catalogs.protocol import Member, MemberSpec
from .mapping import MemberRule
from .sources import plain

IMAGE_COLUMN = {"bytes", "path"}
"""Fields of a picture as `datasets` stores it."""


def member_value(name: str, raw: Any, rule: MemberRule | None, spec: MemberSpec | None) -> Member:
    """Return the member `name` that `raw` stands for.

    `raw` is encoded bytes, a Python value of JSON, or an Arrow scalar. Raises ValueError, which says what is wrong.
    """
    ending = name.rpartition(".")[2].lower()
    if rule is not None and rule.encoding is not None:
        raw = _decoded_text(name, plain(raw), rule.encoding)
    if isinstance(raw, bytes):
        return _decoded(name, raw)
    if ending == "npy":
        return _array(name, raw, _dtype(rule, spec))
    raw = plain(raw)
    if ending == "npz" and isinstance(raw, Mapping):
        return {key: _array(f"{name}[{key}]", value, None) for key, value in raw.items()}
    if isinstance(raw, Mapping) and set(raw) == IMAGE_COLUMN and isinstance(raw["bytes"], bytes):
        raw = raw["bytes"]
    if isinstance(raw, bytes):
        return _decoded(name, raw)
    if ending == "json":
        value: Member = _json(raw)
        return value
    if ending == "txt":
        if not isinstance(raw, str):
            raise ValueError(f"{name}: got {type(raw).__name__}, want text")
        return raw
    raise ValueError(f'{name}: got {type(raw).__name__}, want bytes (in JSON: encoding = "base64" in the mapping)')


def _decoded(name: str, data: bytes) -> Member:
    value: Member = decode_member(name, data)
    return value


def _json(raw: Any) -> Any:
    if not isinstance(raw, str):
        return raw
    try:
        return json.loads(raw)
    except ValueError:
        return raw  # a JSON string is a value of its own


def _decoded_text(name: str, raw: Any, encoding: str) -> bytes:
    if not isinstance(raw, str):
        raise ValueError(f"{name}: got {type(raw).__name__}, want text in {encoding}")
    try:
        return base64.b64decode(raw, validate=True) if encoding == "base64" else bytes.fromhex(raw)
    except (binascii.Error, ValueError) as e:
        raise ValueError(f"{name}: not {encoding}: {e}") from None


def _dtype(rule: MemberRule | None, spec: MemberSpec | None) -> str | None:
    return (rule.dtype if rule is not None else None) or (spec.dtype if spec is not None else None)


def _array(name: str, raw: Any, dtype: str | None) -> NDArray[Any]:
    """Make an array of nested lists, of a number, of `datasets`' flat and picture forms, or of the bytes of a .npy."""
    if hasattr(raw, "as_py") and not callable(getattr(raw, "values", print)):  # a list of Arrow's, no struct
        array = _from_arrow(name, raw.values)
        if array is not None:
            return _cast(name, array, dtype)
    raw = plain(raw)
    if isinstance(raw, bytes):
        value = decode_member(f"{name}.npy", raw)
        assert isinstance(value, np.ndarray), "an .npy member decodes to an array"
        return value
    if isinstance(raw, Mapping) and set(raw) == {"values", "shape"}:
        return _cast(name, np.asarray(raw["values"]).reshape(raw["shape"]), dtype)
    if isinstance(raw, Mapping) and set(raw) == IMAGE_COLUMN:
        return _picture(raw["bytes"])
    if isinstance(raw, list) and raw and isinstance(raw[0], Mapping) and set(raw[0]) == IMAGE_COLUMN:
        return np.stack([_picture(frame["bytes"]) for frame in raw])
    if not isinstance(raw, list | int | float | bool):
        raise ValueError(f"{name}: got {type(raw).__name__}, want an array (nested lists, or the bytes of a .npy file)")
    if dtype is None:
        raise ValueError(f"{name}: JSON says no dtype. Give it in the mapping: {name} = {{ from = ..., dtype = ... }}")
    try:
        return _cast(name, np.asarray(raw), dtype)
    except ValueError as e:
        raise ValueError(f"{name}: no array: {e}") from None


def _from_arrow(name: str, values: Any) -> NDArray[Any] | None:
    """Take a nested Arrow list apart without a Python object per number; None for lists of something else."""
    import pyarrow as pa

    shape = [len(values)]
    while pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        lengths = values.value_lengths().unique().to_pylist()
        if len(lengths) > 1 or None in lengths:
            raise ValueError(f"{name}: lists of {len(lengths)} different lengths make no array")
        shape.append(lengths[0] if lengths else 0)
        values = values.flatten()
    if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type) or pa.types.is_boolean(values.type)):
        return None
    if values.null_count:
        raise ValueError(f"{name}: {values.null_count} of {len(values)} numbers are missing")
    array: NDArray[Any] = values.to_numpy(zero_copy_only=False).reshape(shape)
    return array


def _cast(name: str, array: NDArray[Any], dtype: str | None) -> NDArray[Any]:
    """Give an array its stated dtype, where every value stays what it is (rounding of floats excepted)."""
    if dtype is None or array.dtype == np.dtype(dtype):
        return array
    wanted = np.dtype(dtype)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name}: holds {array.dtype}, want {wanted.name}")
    with np.errstate(over="ignore", invalid="ignore"):
        cast = array.astype(wanted)
    same = np.array_equal(cast.astype(array.dtype), array) if wanted.kind != "f" else True
    if not same:
        raise ValueError(f"{name}: values don't fit {wanted.name}")
    return cast


def _picture(data: bytes) -> NDArray[Any]:
    import io

    from PIL import Image

    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture)
