"""The loader: an order that is unbiased and known at every step, and reads that give exactly the stored samples."""

from __future__ import annotations

import os
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distdata.catalogs.errors import DistdataError
from distdata.catalogs.storage import Storage
from distdata.train_min import loader
from distdata.train_min.loader import Batches, Order, Place, StoredSamples, _systematic, read_ahead, sample_weights

MEMBERS = ("cond.npy", "latent.npy")

many_weights = st.lists(st.floats(0, 1e6, allow_subnormal=False), min_size=1, max_size=30).filter(lambda w: max(w) > 0)


@settings(max_examples=80, deadline=None)
@given(many_weights, st.integers(0, 2**40))
def test_an_epoch_has_floor_or_ceil_of_each_share(weights: list[float], seed: int) -> None:
    """In an epoch of n places sample i comes floor or ceil of n w_i / sum(w) times; weight 0 never comes."""
    w = np.array(weights)
    order = Order(w, seed)
    n = len(order)
    assert n == (w > 0).sum()
    found = np.bincount(order.epoch(3), minlength=w.size)
    share = n * w / w.sum()
    assert found.sum() == n
    assert (np.abs(found - share) < 1 + 1e-6).all()
    assert not found[w == 0].any()


def test_expected_counts_are_the_shares_exactly() -> None:
    """Over all offsets the mean count of item i is n w_i / sum(w): the integral of a step function, done exactly.

    With weights k_i / 8 of n items the counts change only at offsets that are multiples of 1/8 of a place, here
    (n w_i / sum(w) = 4 * (1, 2, 5, 8)/16 = 1/4, 1/2, 5/4, 2) multiples of 1/4: the mean over the midpoints of the
    four quarters is the integral.
    """
    weights, items = np.array([1.0, 2.0, 5.0, 8.0]), np.arange(4)
    counts = [np.bincount(_systematic(weights, items, u), minlength=4) for u in (1 / 8, 3 / 8, 5 / 8, 7 / 8)]
    assert np.mean(counts, 0).tolist() == [0.25, 0.5, 1.25, 2.0]


def test_draws_of_many_epochs_have_the_shares() -> None:
    """Over 2,000 epochs the mean counts are n w / sum(w), to 4 standard errors of a count that is floor or ceil.

    A count's variance is f (1 - f) with f the share's fraction, epochs are independent; 4 s.e. for 7 samples is a false
    alarm of 1 in 2,000, and the seed is fixed.
    """
    w = np.array([0.1, 0.9, 1.0, 1.7, 2.3, 4.0, 0.0])
    order = Order(w, 11)
    mean = np.mean([np.bincount(order.epoch(e), minlength=7) for e in range(2000)], 0)
    share = 6 * w / w.sum()
    f = share % 1
    assert (np.abs(mean - share) <= 4 * np.sqrt(f * (1 - f) / 2000) + 1e-12).all()


def test_even_weights_give_each_once() -> None:
    """With equal weights an epoch is a permutation, another one in each epoch and for each seed."""
    order = Order(np.full(50, 0.3), 5)
    first, second = order.epoch(0).copy(), order.epoch(1).copy()
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(50))
    assert first.tolist() != second.tolist()
    assert Order(np.full(50, 0.3), 6).epoch(0).tolist() != first.tolist()
    assert Order(np.full(50, 7.0), 5).epoch(0).tolist() == first.tolist()


def test_any_step_is_known_by_itself(corpus: Any, regression: Any) -> None:
    """A step's rows are the same whether the steps before were asked for or not, across epochs and batch sizes."""
    _, frame = corpus(regression(13), weight=[1.0 + i for i in range(13)])
    batches = Batches(frame, batch=5, seed=2)
    rows = [batches.rows(step).tolist() for step in range(12)]
    fresh = Batches(frame, batch=5, seed=2)
    assert [fresh.rows(step).tolist() for step in reversed(range(12))] == rows[::-1]
    order = Order(sample_weights(frame, "plan"), 2, "teacher")
    assert [r for part in rows for r in part] == np.concatenate([order.epoch(e) for e in range(5)])[:60].tolist()
    assert order.place(60) == Place(4, 8)


def test_batches_larger_than_an_epoch(corpus: Any, regression: Any) -> None:
    """A batch of more places than samples holds whole epochs one after the other."""
    _, frame = corpus(regression(3))
    batches = Batches(frame, batch=7, seed=0)
    first_nine = np.concatenate([batches.rows(0), batches.rows(1)[:2]])
    assert np.bincount(first_nine).tolist() == [3, 3, 3]


def test_clean_samples_have_their_places(corpus: Any, regression: Any) -> None:
    """With a clean share of 0.2 a batch of 10 ends with 2 clean samples, without it has none; weights hold in both."""
    source = ["clean" if i >= 9 else "planned" for i in range(12)]
    _, frame = corpus(regression(12), source=source, fleet_weight=[0.0 if i == 10 else 2.0 for i in range(12)])
    batches = Batches(frame, batch=10, seed=0, weights="fleet", clean_share=0.2)
    for step in range(20):
        rows = batches.rows(step)
        assert (rows[:8] < 9).all()
        assert set(rows[8:].tolist()) == {9, 11}
    assert (Batches(frame, batch=10, seed=0).rows(0) < 9).all()
    assert (Batches(frame, batch=3, seed=0, clean_share=1.0).rows(0) >= 9).all()
    assert Batches(frame, batch=10, seed=0, clean_share=0.001).n_clean == 1


@pytest.mark.parametrize(
    ("columns", "options", "words"),
    [
        ({"weight": [1.0, -1.0, 1.0]}, {}, "s0001 has -1.0"),
        ({"weight": [1.0, 1.0, float("nan")]}, {}, "s0002 has nan"),
        ({"fleet_weight": [None, 1.0, None]}, {"weights": "fleet"}, "2 of 3 samples have no usable fleet_weight"),
        ({"weight": [0.0, 0.0, 0.0]}, {}, "none of the 3 samples is a teacher's draw of positive weight"),
        ({}, {"clean_share": 0.5}, "none of the 3 samples is clean"),
        ({"source": ["clean", "planned", "clean"]}, {"clean_share": 0.5, "batch": 1}, "batch = 1 can't hold"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn(corpus: Any, regression: Any, columns: Any, options: Any, words: str) -> None:
    """Weights that are none, and a share without samples, are refused with the sample and the number."""
    _, frame = corpus(regression(3), **columns)
    with pytest.raises(DistdataError) as e:
        Batches(frame, **{"batch": 4, "seed": 0, **options})
    assert words in str(e.value)


@pytest.fixture(params=[0, loader.WHOLE_BELOW_BYTES], ids=["guessed", "whole"])
def reading(request: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads the tests' small samples by guessed places, as large ones are, and whole."""
    monkeypatch.setattr(loader, "WHOLE_BELOW_BYTES", request.param)


def check_all(samples: StoredSamples, want: list[dict[str, Any]], rows: Any) -> None:
    """Compare samples with what was written, member by member."""
    for row in rows:
        found = samples[row]
        assert set(found) == {*samples.members, "weight", "clean", "row"}
        assert (found["weight"], found["row"]) == (1.0, row)
        for member in samples.members:
            assert np.array_equal(found[member], want[row][member]), (row, member)


@pytest.mark.usefixtures("reading")
@pytest.mark.parametrize("cache_bytes", [0, 700, 1 << 20])
@pytest.mark.parametrize("members", [MEMBERS, ("latent.npy",), ("meta.json", "picture.npy", "latent.npy"), ()])
def test_samples_are_what_was_written(corpus: Any, regression: Any, members: tuple[str, ...], cache_bytes: int) -> None:
    """Every sample, in any order, twice, gives the members asked for and no others, whatever is kept in memory.

    The samples' layouts differ: pictures of 320 to 352 bytes, and a member that only every fifth has and that moves
    the ones behind it.
    """
    want = regression(23)
    for i in range(0, 23, 5):
        want[i]["a_first.npy"] = np.arange(200 + 100 * i, dtype=np.int16)
    storage, frame = corpus(want)
    samples = StoredSamples(storage, frame, members, cache_bytes=cache_bytes)
    rng = np.random.default_rng(3)
    check_all(samples, want, [*rng.permutation(23), *rng.permutation(23)])
    assert set(samples.whole(5)) == set(want[5])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=12), st.randoms())
def test_layouts_never_give_another_members_bytes(tmp_path_factory: Any, sizes: Any, rng: Any) -> None:
    """Whatever sizes the members have, in whatever order samples are read, the bytes are the right ones."""
    from distdata.catalogs.shards import write_shard

    folder = tmp_path_factory.mktemp("layouts")
    parts = [
        (
            f"s{i}",
            [
                ("a.bin", bytes([i]) * (300 * a)),
                ("b.bin", bytes([i + 100]) * 7),
                ("c.bin", bytes([200]) * (8192 + 300 * c)),
            ],
        )
        for i, (a, c) in enumerate(sizes)
    ]
    shard = write_shard(folder / "x.tar", parts)
    frame = pl.DataFrame(
        [
            {"sample_id": e.key, "shard": "x.tar", "offset": e.offset, "n_bytes": e.n_bytes, "source": "p"}
            for e in shard.entries
        ]
    )
    samples = StoredSamples(Storage(str(folder), folder, folder), frame, ("b.bin", "a.bin"), cache_bytes=0)
    rows = list(range(len(parts))) * 2
    rng.shuffle(rows)
    for row in rows:
        found = samples.read(row)
        assert list(found) == ["b.bin", "a.bin"]
        assert found == {name: data for name, data in parts[row][1] if name != "c.bin"}


def test_only_what_is_asked_for_is_read(corpus: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the first sample, two small members of a large sample cost one read of their own bytes."""
    small = {"cond.npy": np.zeros(4, np.float32), "dent.npy": np.zeros(8, np.float32)}
    want = [
        {**small, "big.npy": np.zeros(100_000, np.uint8), "zoom.npy": np.zeros(100_000, np.uint8)} for _ in range(20)
    ]
    samples = StoredSamples(*corpus(want), ("dent.npy", "cond.npy"), cache_bytes=0)
    samples[0]
    read: list[int] = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, n, at: read.append(n) or pread(fd, n, at))
    for row in range(1, 20):
        samples[row]
    # two headers of 512 bytes, cond.npy's data (144 bytes) padded to 512, dent.npy's 160 bytes
    assert read == [512 + 512 + 512 + 160] * 19


def test_each_shard_is_opened_once(corpus: Any, regression: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading everything twice in random order opens each of the five shards one time, and keeps them open."""
    storage, frame = corpus(regression(23))
    opened: list[str] = []
    before = storage.open
    monkeypatch.setattr(storage, "open", lambda name: opened.append(name) or before(name))
    samples = StoredSamples(storage, frame, MEMBERS, cache_bytes=0)
    for row in [*range(0, 23, 2), *range(1, 23, 2)] * 2:
        samples[row]
    assert sorted(opened) == sorted(set(frame["shard"]))


def n_open() -> int:
    """The number of files this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


def test_more_shards_than_may_be_open(corpus: Any, regression: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a limit of 8 open files, 23 shards are read in any order, closed and opened again, by threads too."""
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda _: (16, 16))
    want = regression(23)
    storage, frame = corpus(want, per_shard=1)
    n_before = n_open()
    samples = StoredSamples(storage, frame, MEMBERS, cache_bytes=0)
    with ThreadPoolExecutor(4) as pool:
        orders = [np.random.default_rng(seed).permutation(23) for seed in range(4)]
        list(pool.map(check_all, [samples] * 4, [want] * 4, orders))
    assert n_open() - n_before <= 8
    del samples
    assert n_open() == n_before


@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_any_storage(corpus: Any, regression: Any, tmp_path: Path, scheme: str) -> None:
    """Shards are read by pyarrow's file system and by fsspec's, in memory, as they are from a folder."""
    want = regression(12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of fsspec's own doing
        location = f"file://{tmp_path}/remote" if scheme == "file" else "memory://loader"
        storage, frame = corpus(want, location=location)
        samples = StoredSamples(storage, frame, MEMBERS, cache_bytes=0)
        check_all(samples, want, [11, 0, 5, 5, 3])
        rows = Batches(frame, batch=4, seed=0)
        got = list(read_ahead(samples, rows.rows, lambda part: {"rows": [s["row"] for s in part]}, 0, 9, 3))
    assert [g["rows"] for g in got] == [rows.rows(step).tolist() for step in range(9)]


@pytest.mark.parametrize("n_workers", [0, 1, 3])
def test_batches_come_in_order(corpus: Any, regression: Any, n_workers: int) -> None:
    """Batches read ahead by any number of threads come in their order, from any step on."""
    want = regression(10)
    storage, frame = corpus(want)
    samples, batches = StoredSamples(storage, frame, MEMBERS), Batches(frame, batch=4, seed=1)

    def collate(part: list[dict[str, Any]]) -> dict[str, Any]:
        return {"x": np.stack([s["cond.npy"] for s in part])}

    got = [b["x"] for b in read_ahead(samples, batches.rows, collate, 3, 20, n_workers)]
    wanted = [np.stack([want[r]["cond.npy"] for r in batches.rows(step)]) for step in range(3, 20)]
    assert all(np.array_equal(a, b) for a, b in zip(got, wanted, strict=True))


def test_stopping_early_leaves_no_threads(corpus: Any, regression: Any) -> None:
    """Whoever takes a few batches and closes the iterator leaves no thread behind."""
    storage, frame = corpus(regression(10))
    samples, batches = StoredSamples(storage, frame, MEMBERS), Batches(frame, batch=4, seed=1)
    before = threading.active_count()
    ahead = read_ahead(samples, batches.rows, lambda _: {}, 0, 1000, 3)
    next(ahead)
    assert threading.active_count() > before
    ahead.close()
    assert threading.active_count() == before


def damage(storage: Storage, frame: pl.DataFrame, kind: str) -> None:
    """Do `kind` to the shard of sample s0007."""
    assert storage.root is not None
    path = storage.root / frame["shard"][7]
    data = bytearray(path.read_bytes())
    at = frame["offset"][7]
    if kind == "missing":
        path.unlink()
        return
    if kind == "truncated":
        data = data[: at + 600]
    elif kind == "overwritten":
        data[at : at + frame["n_bytes"][7]] = bytes(frame["n_bytes"][7])
    elif kind == "npy":
        start = data.index(b"\x93NUMPY", at)
        data[start : start + 6] = b"nonsen"
    path.write_bytes(data)


@pytest.mark.usefixtures("reading")
@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", "the shard is missing"),
        ("truncated", "the shard ends at byte"),
        ("overwritten", "no tar header"),
        ("npy", "not a readable .npy"),
    ],
)
@pytest.mark.parametrize("n_workers", [0, 2])
def test_damage_is_named(corpus: Any, regression: Any, kind: str, words: str, n_workers: int, warm: bool) -> None:
    """A damaged or missing sample is an error with its id, its shard and what to do; the others are read before it."""
    storage, frame = corpus(regression(10))
    damage(storage, frame, kind)
    samples = StoredSamples(storage, frame, MEMBERS, cache_bytes=0)
    if warm:
        samples[2]  # a layout is known
    got = read_ahead(samples, lambda step: np.array([step]), lambda part: {"row": part[0]["row"]}, 3, 10, n_workers)
    seen: list[int] = []
    with pytest.raises(DistdataError) as e:
        seen.extend(batch["row"] for batch in got)
    assert words in str(e.value)
    bad = "s0005" if kind == "missing" else "s0007"  # the shard's first sample, or the damaged one
    assert seen == list(range(3, int(bad[1:])))
    assert storage.root is not None
    for part in (f"sample {bad}", str(storage.root / "shards/0005.tar"), "distdata generate --repair"):
        assert part in str(e.value)


@pytest.mark.usefixtures("reading")
def test_a_wrong_place_is_noticed(corpus: Any, regression: Any) -> None:
    """A frame that points at another sample's bytes, or at half of one, is refused and not trained on."""
    storage, frame = corpus(regression(10))
    swapped = frame.with_columns(offset=pl.Series([*frame["offset"][:3], frame["offset"][4], *frame["offset"][4:]]))
    samples = StoredSamples(storage, swapped, MEMBERS)
    samples[0]
    with pytest.raises(DistdataError, match=r"sample s0003 .* sample s0004 lies there"):
        samples[3]
    half = StoredSamples(storage, frame.with_columns(n_bytes=pl.col("n_bytes") - 512), MEMBERS)
    with pytest.raises(DistdataError, match="s0003"):
        half[3]


@pytest.mark.usefixtures("reading")
def test_a_missing_member_is_named(corpus: Any, regression: Any) -> None:
    """A sample that lacks a member is named with what it has."""
    want = regression(4)
    del want[2]["latent.npy"]
    samples = StoredSamples(*corpus(want), MEMBERS)
    samples[1]
    with pytest.raises(DistdataError, match=r"s0002 .* no member latent.npy; it has meta.json, cond.npy, picture.npy"):
        samples[2]


def test_memory_is_bounded(corpus: Any, regression: Any) -> None:
    """No more encoded bytes are kept than allowed: with room for three samples the rest is read each time."""
    storage, frame = corpus(regression(10))
    one = sum(map(len, StoredSamples(storage, frame, MEMBERS).read(0).values()))
    samples = StoredSamples(storage, frame, MEMBERS, cache_bytes=3 * one)
    first = [samples[row] for row in range(10)]
    assert [samples[row]["cond.npy"] is first[row]["cond.npy"] for row in range(10)] == [True] * 3 + [False] * 7
