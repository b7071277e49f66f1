import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distdata.catalogs.codec import decode_member, encode_member
from distdata.catalogs.errors import DistdataError
from distdata.curate.export_arrow import arrow_schema, feature, member_array
from distdata.curate.export_card import yaml_feature
from distdata.curate.export_types import (
    JSON,
    NPY,
    NULL,
    Column,
    Fields,
    KindTypes,
    Listing,
    Plain,
    Scalar,
    Tensor,
    join,
    json_type,
    name_columns,
)
from distdata.curate.export_webdataset import webdataset_features

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(-1e300, 1e300) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "_type"]), inner),
    max_leaves=6,
)  # fmt: skip


def type_of(name, *values):
    """The type of a member over samples with these values; None is a sample without the member."""
    types = KindTypes()
    for value in values:
        types.see({} if value is None and not name.endswith(".json") else {name: encode_member(name, value)})
    return types.members()[name]


def through_parquet(tmp_path, column, encoded):
    schema = arrow_schema([column], [])
    pq.write_table(pa.Table.from_arrays([member_array(column, encoded)], schema=schema), tmp_path / "x.parquet")
    return pq.read_table(tmp_path / "x.parquet")[column.name].to_pylist()


@pytest.mark.parametrize(
    ("arrays", "wanted"),
    [
        ([np.zeros((2, 3), np.float32)] * 2, Tensor("float32", (2, 3))),
        ([np.zeros((2, 3)), np.zeros((5, 3))], Tensor("float64", (None, 3))),
        ([np.zeros((2, 3)), np.zeros((2, 4))], Tensor("float64", (2, None))),
        ([np.zeros(0), np.zeros(3)], Tensor("float64", (None,))),
        ([np.zeros((3, 0))], Tensor("float64", (3, 0), hollow=True)),
        ([np.zeros(2, np.float16), np.zeros(2, np.float32)], Tensor("float32", (2,))),
        ([np.zeros(2, np.uint8), np.zeros(2, np.int8)], Tensor("int16", (2,))),
        ([np.zeros(2, np.int64), np.zeros(2, np.float64)], NPY),  # float64 can't hold every int64
        ([np.zeros(2, np.uint64), np.zeros(2, np.int64)], NPY),
        ([np.zeros(2), np.zeros((2, 1))], NPY),
        ([np.zeros(2, np.complex64)], NPY),
        ([np.zeros(2, "datetime64[s]")], NPY),
        ([np.zeros(2), np.zeros(2, np.complex64)], NPY),
    ],
)
def test_arrays_join_to_one_type_that_holds_all(arrays, wanted):
    """Varying sizes open a dimension, exact promotions widen, and what no type holds stays a file."""
    assert type_of("x.npy", *arrays) == wanted
    assert type_of("x.npy", *reversed(arrays)) == wanted


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([{"a": 1, "b": "x"}], Fields((("a", Scalar("int64")), ("b", Scalar("string"))))),
        ([{"a": 1}, {"a": 0.5}], Fields((("a", Scalar("float64")),))),
        ([{"a": None}, {"a": [True]}], Fields((("a", Listing(Scalar("bool"))),))),
        ([{"a": 2**60}, {"a": 1}], Fields((("a", Scalar("int64", big=True)),))),
        ([{"a": 2**60}, {"a": 0.5}], JSON),  # as float64 it would be another number
        ([{"a": 2**63}], JSON),
        ([{"a": 1}, {"b": 1}], JSON),  # a struct would put nulls where there is nothing
        ([{"a": True}, {"a": 1}], JSON),
        ([[1, "x"]], JSON),
        ([{}], JSON),
        ([{"_type": "Value"}], JSON),  # datasets would take it for a feature of its own
        ([[], [{"a": 1}]], Listing(Fields((("a", Scalar("int64")),)))),
    ],
)
def test_json_is_typed_only_where_every_sample_fits(values, wanted):
    """Objects with the same keys become structs; anything that would change a value stays JSON text."""
    assert type_of("x.json", *values) == wanted
    assert type_of("x.json", *reversed(values)) == wanted


@settings(deadline=None, max_examples=200)
@given(st.lists(VALUES, min_size=1, max_size=4))
def test_any_json_comes_back_equal(tmp_path_factory, values):
    """Whatever JSON values the samples hold, the column built for them gives each back, equal and of its type."""
    encoded = [encode_member("x.json", v) for v in values]
    kind = type_of("x.json", *values)
    back = through_parquet(tmp_path_factory.getbasetemp(), Column("x", "x.json", kind), encoded)
    if kind == JSON:
        back = [json.loads(text) for text in back]
    assert back == values  # 1 == 1.0: numbers that differ in notation only may share float64


@settings(deadline=None)
@given(st.permutations([json_type(v) for v in (1, 0.5, None, "x", [1], [None], {"a": 1}, {"a": None}, {"b": 1})]))
def test_the_order_of_samples_makes_no_difference(types):
    """Joining is commutative and associative over pairs that fit and pairs that don't."""
    a, b, c = types[:3]
    assert join(a, b) == join(b, a)
    assert join(join(a, b), c) == join(a, join(b, c))


@pytest.mark.parametrize(
    "arrays",
    [
        [np.arange(6, dtype=np.float32).reshape(2, 3), np.ones((0, 3), np.float32)],
        [np.arange(6, dtype=np.float32).reshape(2, 3), np.ones((4, 1), np.float32)],
        [np.ones((1, 2, 1, 2, 1, 2), bool)],
        [np.arange(24, dtype=np.int16).reshape(2, 3, 2, 2)] * 2,
        [np.arange(120, dtype=np.uint16).reshape(1, 2, 3, 4, 5)],
        [np.array([True, False]), np.array([], bool)],
        [np.array(7, np.uint64), np.array(2**63, np.uint64)],
        [np.array([1.5, -2], np.float16)],
    ],
)
def test_nested_arrays_come_back_equal(tmp_path, arrays):
    """Arrays of any number of dimensions come back as nested lists, null where a sample has none."""
    column = Column("x", "x.npy", type_of("x.npy", *arrays))
    assert isinstance(column.kind, Tensor)
    encoded = [encode_member("x.npy", a) for a in arrays]
    assert through_parquet(tmp_path, column, encoded) == [a.tolist() for a in arrays]
    column = Column("x", "x.npy", type_of("x.npy", *arrays, None))
    assert through_parquet(tmp_path, column, [None, *encoded, None]) == [None, *(a.tolist() for a in arrays), None]


@pytest.mark.parametrize("shapes", [[(2, 2), (2, 2)], [(2, 2), (3, 2)], [(2, 2), (0, 2)]])
def test_datasets_gives_missing_arrays_back_as_missing(tmp_path, shapes):
    """An integer array that some samples lack is None there, not NaN, and stays integer elsewhere."""
    import datasets

    arrays = [np.ones(shape, np.int16) for shape in shapes]
    column = Column("x", "x.npy", type_of("x.npy", None, *arrays))
    encoded = [None, *(encode_member("x.npy", a) for a in arrays)]
    table = pa.Table.from_arrays([member_array(column, encoded)], schema=arrow_schema([column], []))
    pq.write_table(table, tmp_path / "x.parquet")
    data = datasets.Dataset.from_parquet(str(tmp_path / "x.parquet"), cache_dir=str(tmp_path / "cache"))
    assert data["x"] == [None, *(a.tolist() for a in arrays)]
    assert data.with_format("numpy")[1]["x"].dtype.kind == "i"


def test_hollow_arrays_keep_their_shape(tmp_path):
    """Arrays with a later dimension of 0, which lists would lose, are stored flat beside their shape."""
    for arrays in ([np.ones((2, 3)), np.ones((2, 0))], [np.ones((3, 0, 5))]):
        column = Column("x", "x.npy", type_of("x.npy", *arrays))
        back = through_parquet(tmp_path, column, [*(encode_member("x.npy", a) for a in arrays), None])
        assert back == [*({"values": a.ravel().tolist(), "shape": list(a.shape)} for a in arrays), None]


def test_arrays_without_a_type_stay_files(tmp_path):
    """Complex numbers and samples of different rank are stored as the very bytes of their .npy files."""
    encoded = [encode_member("x.npy", np.array([1 + 2j])), encode_member("x.npy", np.zeros(3))]
    assert through_parquet(tmp_path, Column("x", "x.npy", NPY), encoded) == encoded


def test_archives_keep_arrays_that_some_samples_lack(tmp_path):
    """An .npz array that a sample has not is null there; one of a dtype without a type is an .npy file."""
    archives = [{"a": np.arange(2), "z": np.array([1j])}, {"a": np.arange(3), "b": np.ones((2, 2), np.float32)}]
    column = Column("x", "x.npz", type_of("x.npz", *archives, None))
    back = through_parquet(tmp_path, column, [*(encode_member("x.npz", a) for a in archives), None])
    z = back[0].pop("z")
    assert back[0] == {"a": [0, 1], "b": None}
    assert np.array_equal(decode_member("z.npy", z), [1j])
    assert back[1:] == [{"a": [0, 1, 2], "b": [[1, 1], [1, 1]], "z": None}, None]


@pytest.mark.parametrize(
    ("array", "pictures"),
    [
        (np.zeros((2, 9, 8, 3), np.uint8), True),
        (np.zeros((9, 8, 3), np.uint8), True),
        (np.zeros((9, 7, 3), np.uint8), False),  # too small to be one
        (np.zeros((9, 8, 4), np.uint8), False),
        (np.zeros((9, 8, 3), np.int16), False),
        (np.zeros((2, 9, 8, 3, 3), np.uint8), False),
        (np.zeros((2, 9, 0, 3), np.uint8), False),
    ],
)
def test_only_pictures_are_stored_as_pictures(array, pictures):
    """uint8 arrays [H, W, 3] and [T, H, W, 3] of at least 8 x 8 pixels become images, nothing else does."""
    assert ("Image" in str(feature(type_of("x.npy", array)))) == pictures


def test_pictures_of_varying_size_and_none_at_all_survive(tmp_path):
    """PNG is lossless: clips of other lengths and sizes, and one without frames, decode to what they were."""
    import io

    from PIL import Image

    rng = np.random.default_rng(0)
    clips = [rng.integers(0, 256, (t, 8 + t, 9, 3), dtype=np.uint8) for t in (1, 3)] + [
        np.zeros((0, 9, 9, 3), np.uint8)
    ]
    column = Column("cam", "cam.npy", type_of("cam.npy", *clips))
    back = through_parquet(tmp_path, column, [encode_member("cam.npy", c) for c in clips])
    for clip, frames in zip(clips, back, strict=True):
        decoded = [np.asarray(Image.open(io.BytesIO(f["bytes"]))) for f in frames]
        assert np.array_equal(np.array(decoded, np.uint8).reshape(clip.shape), clip)


def test_columns_get_short_names_where_they_are_free():
    """A member loses its ending unless two share the stem or the catalog has a column of that name."""
    members = dict.fromkeys(["pose.npy", "pose.txt", "k.json", "history.ids.npy", "Cam.npy", "cam.mp4"], Plain("text"))
    names = [c.name for c in name_columns(members, ["k", "sample_id", "pose_npy"])]
    assert names == ["pose_npy_", "pose_txt", "k_json", "history_ids", "Cam_npy", "cam_mp4"]


FEATURES = [
    Tensor("float32", ()),
    Tensor("uint8", (None,)),
    Tensor("float16", (None, 2)),
    Tensor("int8", (2, None)),
    Tensor("uint8", (None, 16, 16, 3)),
    Listing(Fields((("a", Listing(Scalar("string"))), ("b", NULL)))),
    Fields((("xyz", Tensor("float32", (None, 3))), ("n", Tensor("int64", ()))), from_npz=True),
    *(Plain(form) for form in ("text", "json", "image", "bytes", "npy")),
]


@pytest.mark.parametrize("kind", FEATURES, ids=str)
def test_datasets_reads_both_forms_of_every_feature(kind):
    """The hand-written JSON and YAML of a feature are what `datasets` itself writes for the same feature."""
    import datasets

    written = {"x": feature(kind)}
    features = datasets.Features.from_dict(written)
    assert json.loads(json.dumps(features.to_dict())) == written
    assert features._to_yaml_list() == [{"name": "x", **yaml_feature(written["x"])}]
    stored = pa.ipc.read_schema(arrow_schema([Column("x", "x", kind)], []).serialize())
    assert datasets.Features.from_arrow_schema(stored) == features


def test_webdataset_declares_only_what_its_loader_decodes():
    """Endings that the loader treats in its own way are left to it; arrays it can't type are refused."""
    assert webdataset_features("k", {"a.txt": Plain("text"), "b.mp4": Plain("bytes")}) is None
    assert set(webdataset_features("k", {"a.txt": Plain("text")})) == {"__key__", "__url__", "a.txt"}
    for kind in (NPY, Fields((("z", NPY),), from_npz=True)):
        with pytest.raises(DistdataError, match="--layout parquet"):
            webdataset_features("k", {"x.npz": kind})
