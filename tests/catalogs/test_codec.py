"""The codec: bytes that numpy's own tools agree with, and refusals that name the member."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp

from distdata.catalogs.codec import check_member, decode_member, encode_member, encode_members, member_order
from distdata.catalogs.protocol import MemberSpec


def saved(array: Any) -> bytes:
    """What np.save writes, the reference for .npy."""
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


ARRAYS = [
    np.arange(168, dtype=np.float32).reshape(24, 7),
    np.array(3.5),
    np.zeros((0, 4), np.int8),
    np.zeros((2, 0, 3), np.uint32),
    np.array([True, False]),
    np.array([1 + 2j, 3], np.complex64),
    np.array(["ab", "ç"]),
    np.array([b"ab", b"c"]),
    np.array(["2020-01-01", "NaT"], "M8[D]"),
    np.array([(1, [2.0, 3.0])], [("a", "<i4"), ("b", "<f8", (2,))]),
    np.array([np.nan, np.inf, -0.0], np.float16),
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: f"{a.dtype}{a.shape}")
def test_npy_is_what_np_save_writes(array: Any) -> None:
    """A C-ordered little-endian array is encoded to np.save's bytes, and decoded to dtype, shape and bits."""
    data = encode_member("a.npy", array)
    assert data == saved(array)
    back: Any = decode_member("a.npy", data)
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert back.tobytes() == array.tobytes()


LITTLE = hnp.scalar_dtypes().map(lambda dtype: dtype.newbyteorder("<"))


@settings(max_examples=100, deadline=None)
@given(hnp.arrays(LITTLE, hnp.array_shapes(min_dims=0, min_side=0)))
def test_npy_agrees_with_numpy_both_ways(array: Any) -> None:
    """Any numeric, string or date array: np.load reads our bytes, and we read np.save's."""
    assert np.load(io.BytesIO(encode_member("a.npy", array)), allow_pickle=False).tobytes() == array.tobytes()
    assert decode_member("a.npy", saved(array)).tobytes() == array.tobytes()  # type: ignore[union-attr]


def test_memory_layout_does_not_show_in_the_bytes() -> None:
    """Fortran order, strides and big-endian input give the bytes of the plain array of equal values."""
    plain = np.arange(12, dtype=np.int32).reshape(3, 4)
    wanted = saved(plain)
    assert encode_member("a.npy", np.asfortranarray(plain)) == wanted
    assert encode_member("a.npy", plain.astype(">i4")) == wanted
    wide = np.zeros((3, 8), np.int32)
    wide[:, ::2] = plain
    assert encode_member("a.npy", wide[:, ::2]) == wanted


def test_decoded_arrays_are_read_only_views() -> None:
    """A decoded .npy can't be written to, so a shared buffer is never changed by accident."""
    back: Any = decode_member("a.npy", saved(np.zeros(3)))
    assert not back.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        back[0] = 1


def test_foreign_npy_files_are_read() -> None:
    """Fortran-ordered files and header version 2, which we never write, are decoded to the same values."""
    array = np.arange(6.0).reshape(2, 3)
    assert np.array_equal(decode_member("a.npy", saved(np.asfortranarray(array))), array)  # type: ignore[arg-type]
    out = io.BytesIO()
    np.lib.format.write_array(out, array, version=(2, 0))
    assert np.array_equal(decode_member("a.npy", out.getvalue()), array)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value", "error", "reason"),
    [
        ("a.npy", [1, 2], TypeError, r"a\.npy: got list, want a numpy array"),
        ("a.npy", np.array([{}]), TypeError, r"a\.npy: dtype object holds Python objects"),
        ("a.npy", np.array([(1, None)], [("a", "i4"), ("b", "O")]), TypeError, "never pickled"),
        ("a.npy", np.array(["x"], np.dtypes.StringDType()), TypeError, "never pickled"),
        ("a.npy", np.ma.array([1, 2], mask=[0, 1]), TypeError, "lose its mask"),
        ("a.npy", np.zeros(2, "V2"), TypeError, r"can't read dtype .* back"),
        ("a.npy", np.zeros(1, [("日", "<f4")]), ValueError, r"a\.npy: dtype .* does not fit a npy header"),
        ("l.npz", np.zeros(2), TypeError, r"l\.npz: got ndarray, want a mapping"),
        ("l.npz", {"x": [1]}, TypeError, r"l\.npz\[x\]: got list"),
        ("l.npz", {"../x": np.zeros(1)}, ValueError, r"l\.npz: array name '\.\./x'"),
        ("m.json", {"loss": float("nan")}, ValueError, r"m\.json: not storable as JSON"),
        ("m.json", {"n": np.float32(1)}, TypeError, r"m\.json: .*float32"),
        ("m.json", "\ud800", ValueError, r"m\.json: not storable as JSON"),
        ("p.txt", b"x", TypeError, r"p\.txt: got bytes, want a str"),
        ("p.txt", "\ud800", ValueError, r"p\.txt: not storable as UTF-8"),
        ("v.mp4", "x", TypeError, r"v\.mp4: got str, want bytes"),
        ("v.mp4", bytearray(b"x"), TypeError, "got bytearray"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_by_name(name: str, value: Any, error: type, reason: str) -> None:
    """What an ending can't hold raises with the member, what was given and what is wanted."""
    with pytest.raises(error, match=reason):
        encode_member(name, value)


def test_npz_is_read_by_numpy_and_depends_on_values_only() -> None:
    """np.load reads a .npz in its order; its entries are stored uncompressed and dated 1980."""
    value = {"xyz": np.arange(6.0).reshape(2, 3), "intensity": np.array([1, 2], ">u2")}
    data = encode_member("lidar.npz", value)
    assert data == encode_member("lidar.npz", {k: v.copy() for k, v in value.items()})
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        assert arrays.files == ["xyz", "intensity"]
        assert np.array_equal(arrays["xyz"], value["xyz"])
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for info in archive.infolist():
            assert info.compress_type == zipfile.ZIP_STORED
            assert info.date_time == (1980, 1, 1, 0, 0, 0)
    back: Any = decode_member("lidar.npz", data)
    assert list(back) == ["xyz", "intensity"]
    assert back["intensity"].tolist() == [1, 2]


def test_json_and_text_are_compact_utf8() -> None:
    """JSON has sorted keys, no blanks and unescaped UTF-8; text is UTF-8; both come back equal."""
    assert encode_member("m.json", {"b": [1, 2.5, None], "a": "é"}) == '{"a":"é","b":[1,2.5,null]}'.encode()
    assert decode_member("m.json", b'{"a":[1]}') == {"a": [1]}
    assert encode_member("prompt.txt", "straße\n") == b"stra\xc3\x9fe\n"
    assert decode_member("prompt.txt", b"stra\xc3\x9fe\n") == "straße\n"


def test_the_last_ending_decides_and_others_pass_through() -> None:
    """`history.messages.json` is JSON; an unknown ending holds its bytes as they are, even empty."""
    assert encode_member("history.messages.json", []) == b"[]"
    assert encode_member("cam.mp4", b"\x00\xff") == decode_member("cam.mp4", b"\x00\xff") == b"\x00\xff"
    assert encode_member("cam.mp4", b"") == b""


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.npy", saved(np.arange(5.0))[:-1], "39 bytes of values, its header wants 40"),
        ("a.npy", saved(np.arange(5.0)) + b"\x00", "41 bytes of values, its header wants 40"),
        ("a.npy", saved(np.arange(5.0))[:20], r"a\.npy"),
        ("a.npy", b"", "no npy magic"),
        ("a.npy", saved(np.arange(5.0)).replace(b"<f8", b"|O8"), "pickled"),
        ("l.npz", b"PK\x03\x04 nonsense", r"l\.npz"),
        ("l.npz", b"", r"l\.npz"),
        ("m.json", b"{", r"m\.json"),
        ("p.txt", b"\xff", r"p\.txt"),
    ],
)
def test_damaged_bytes_are_refused_by_name(name: str, data: bytes, reason: str) -> None:
    """Bytes that are not what the ending says raise ValueError with the member; a pickle is never loaded."""
    with pytest.raises(ValueError, match=reason) as caught:
        decode_member(name, data)
    assert str(caught.value).startswith(f"{name}: not a readable .")


def test_a_pickle_inside_a_npz_is_never_loaded() -> None:
    """A .npz with an object array, as np.savez would pickle it, is refused."""
    out = io.BytesIO()
    np.savez(out, x=np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"l\.npz: not a readable"):
        decode_member("l.npz", out.getvalue())


def test_members_have_one_order() -> None:
    """meta.json comes first, prompt.txt second, the rest by name, however the draw lists them."""
    wanted = ("meta.json", "prompt.txt", "action.npy", "pose.npy")
    assert member_order(("pose.npy", "meta.json", "action.npy", "prompt.txt")) == wanted
    members = {"pose.npy": np.zeros(1), "meta.json": {"k": 1}}
    assert encode_members(members) == [("meta.json", b'{"k":1}'), ("pose.npy", saved(np.zeros(1)))]


@pytest.mark.parametrize("name", ["pose", ".npy", "a/b.npy", "a b.npy", "__key__", "_x.npy", "a..npy", "a.npy\n", ""])
def test_member_names_that_readers_would_lose_are_refused(name: str) -> None:
    """Names without ending, with folders, blanks or a leading underscore raise ValueError."""
    with pytest.raises(ValueError, match="is not of the form"):
        member_order(("meta.json", name))


def test_members_that_differ_in_case_only_are_refused() -> None:
    """webdataset lower-cases member names, so two that meet there are refused here."""
    with pytest.raises(ValueError, match=r"'Cam\.npy' and 'cam\.npy' differ in case only"):
        member_order(("Cam.npy", "cam.npy"))


POSE = MemberSpec(dtype="float32", shape=(24, 7))


@pytest.mark.parametrize(
    ("value", "spec", "reason"),
    [
        (np.zeros((24, 7), np.float32), POSE, None),
        (np.zeros((24, 7), ">f4"), POSE, None),
        (np.zeros((24, 6), np.float32), POSE, "m.npy: shape (24, 6), want (24, 7)"),
        (np.zeros(24, np.float32), POSE, "m.npy: shape (24,), want (24, 7)"),
        (np.zeros((24, 7)), POSE, "m.npy: dtype float64, want float32"),
        ([0.0], POSE, "m.npy: a list, want an array of float32 (24, 7)"),
        (np.zeros((3, 9)), MemberSpec(dtype="float64", shape=(None, 9)), None),
        (np.zeros((3, 8)), MemberSpec(dtype="float64", shape=(None, 9)), "m.npy: shape (3, 8), want (any, 9)"),
        (np.zeros((3, 8)), MemberSpec(dtype="float64", shape=(9,)), "m.npy: shape (3, 8), want (9,)"),
        (np.zeros(0), MemberSpec(dtype="float64", shape=(None,)), None),
        (np.zeros((), np.int64), MemberSpec(dtype="int64", shape=()), None),
        (np.array([1.0, np.nan, np.inf, np.nan]), MemberSpec(dtype="float64", shape=(4,)), "2 NaN and 1 infinite of 4"),
        (np.array([-np.inf, 0.0]), MemberSpec(dtype="float64", shape=(2,)), "m.npy: 1 infinite of 2 values"),
        (np.array([complex(0, np.nan)]), MemberSpec(dtype="complex128", shape=(1,)), "m.npy: 1 NaN of 1 values"),
        (np.array([np.nan]), MemberSpec(dtype="float64", shape=(1,), allow_nan=True), None),
    ],
)
def test_declared_members_are_checked(value: object, spec: MemberSpec, reason: str | None) -> None:
    """dtype, shape and non-finite values are compared with the declaration; byte order is not."""
    found = check_member("m.npy", value, spec)
    assert found is None if reason is None else (found is not None and reason in found)


def test_nan_count_is_stated_in_full() -> None:
    """The reason counts the NaN: 3 planted in 144 values."""
    latent = np.zeros((4, 6, 6), np.float32)
    latent.flat[[0, 7, 143]] = np.nan
    spec = MemberSpec(dtype="float32", shape=(4, 6, 6))
    assert check_member("latent.npy", latent, spec) == "latent.npy: 3 NaN of 144 values"
