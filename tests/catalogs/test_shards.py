"""Shards: the same bytes every time, readable by everyone, and damage found wherever it is."""

from __future__ import annotations

import hashlib
import io
import json
import random
import shutil
import subprocess
import tarfile
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distdata.catalogs.codec import encode_members
from distdata.catalogs.effects import observe
from distdata.catalogs.errors import DistdataError
from distdata.catalogs.shards import (
    Damage,
    Digests,
    Entry,
    Shard,
    ShardReader,
    ShardWriter,
    read_sample,
    scan,
    verify_entries,
    write_shard,
)

Sample = tuple[str, list[tuple[str, bytes]]]


def rollout(i: int) -> Sample:
    """A small rollout with values that name it."""
    members: dict[str, Any] = {
        "pose.npy": np.full((24, 7), i, np.float32),
        "meta.json": {"i": i, "cell": "night"},
        "prompt.txt": f"prompt {i}",
    }
    return f"seed{i}-k{i % 3}", encode_members(members)


ROLLOUTS = [rollout(i) for i in range(12)]


@pytest.fixture
def shard(tmp_path: Path) -> tuple[Path, Shard]:
    """A shard of twelve rollouts of three members."""
    path = tmp_path / "shard.tar"
    return path, write_shard(path, ROLLOUTS)


def reference(samples: list[Sample]) -> bytes:
    """The same archive by Python's tarfile, without its padding to 10 KiB records."""
    out = io.BytesIO()
    n_bytes = 0
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for key, members in samples:
            for name, data in members:
                info = tarfile.TarInfo(f"{key}.{name}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
                n_bytes += 512 + (len(data) + 511) // 512 * 512
    return out.getvalue()[: n_bytes + 1024]


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 65_000, 65_536, 1 << 20, (1 << 20) + 1])
def test_bytes_are_those_of_tarfile(tmp_path: Path, size: int) -> None:
    """A shard equals what tarfile writes in ustar format with default fields, at sizes around every limit."""
    rng = random.Random(size)
    samples: list[Sample] = [(f"k{i}", [("a.bin", rng.randbytes(size)), ("b.bin", b"x")]) for i in range(3)]
    shard = write_shard(tmp_path / "s.tar", samples)
    data = (tmp_path / "s.tar").read_bytes()
    assert data == reference(samples)
    assert shard.n_bytes == len(data)


names = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,8}\.[a-z0-9]{1,4}", fullmatch=True)
many_members = st.lists(st.tuples(names, st.binary(max_size=1500)), min_size=1, max_size=4, unique_by=lambda m: m[0])


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.from_regex(r"[A-Za-z0-9_-]{1,40}", fullmatch=True), many_members, max_size=6))
def test_any_samples_round_trip(samples: dict[str, list[tuple[str, bytes]]]) -> None:
    """Whatever is added has tarfile's bytes, and every recorded range gives exactly its sample back."""
    out = io.BytesIO()
    writer = ShardWriter(out)
    for key, members in samples.items():
        writer.add(key, members)
    shard = writer.finish()
    assert out.getvalue() == reference(list(samples.items()))
    assert [entry.key for entry in shard.entries] == list(samples)
    for entry in shard.entries:
        assert list(read_sample(out, entry.offset, entry.n_bytes).items()) == samples[entry.key]


def test_entries_tile_the_file_and_digests_are_of_its_bytes(shard: tuple[Path, Shard]) -> None:
    """Samples follow each other without gap up to the 1,024 zero bytes; digests match the file's own."""
    path, info = shard
    data = path.read_bytes()
    position = 0
    for entry in info.entries:
        assert entry.offset == position
        position += entry.n_bytes
        assert entry.sha256 == hashlib.sha256(data[entry.offset : position]).hexdigest()
    assert data[position:] == bytes(1024)
    assert info.n_bytes == len(data)
    assert info.sha256 == hashlib.sha256(data).hexdigest()


def test_digests_change_no_byte() -> None:
    """Switching digests off leaves them empty and the file the same, small and large samples mixed."""
    samples: list[Sample] = [
        (f"k{i}", [("a.bin", bytes([i]) * size)]) for i, size in enumerate([10, 70_000, 20, 2_000_000])
    ]
    files = {}
    modes: tuple[Digests, ...] = ("both", "samples", "none")
    for digests in modes:
        out = io.BytesIO()
        writer = ShardWriter(out, digests=digests)
        for key, members in samples:
            writer.add(key, members)
        files[digests] = (writer.finish(), out.getvalue())
    both, some, none = files["both"], files["samples"], files["none"]
    assert both[1] == some[1] == none[1] == reference(samples)
    assert both[0].sha256 == hashlib.sha256(both[1]).hexdigest()
    assert some[0].entries == both[0].entries
    assert some[0].sha256 == none[0].sha256 == ""
    assert {entry.sha256 for entry in none[0].entries} == {""}


@pytest.mark.parametrize(
    ("key", "members", "reason"),
    [
        ("a.b", [("x.bin", b"")], "sample key 'a.b' is not made of"),
        ("", [("x.bin", b"")], "sample key '' is not made of"),
        ("a\n", [("x.bin", b"")], "is not made of"),
        ("ü", [("x.bin", b"")], "is not made of"),
        ("first", [("x.bin", b"")], "sample key 'first' is already in this shard"),
        ("a", [], "sample 'a' has no members"),
        ("a", [("x.bin", b""), ("x.bin", b"")], "a member is there twice"),
        ("a", [("x.bin", b""), ("X.bin", b"")], "differ in case only"),
        ("a", [("x/y.bin", b"")], r"member name 'x/y\.bin'"),
        ("a" * 95, [("x.bin", b"")], r"\.x\.bin: 101 bytes, a tar name holds 100"),
    ],
)
def test_a_refused_sample_leaves_the_shard_as_it_was(key: str, members: Any, reason: str) -> None:
    """A sample that can't be stored raises ValueError and leaves no trace; the shard goes on without it."""
    out, wanted = io.BytesIO(), io.BytesIO()
    writer, clean = ShardWriter(out), ShardWriter(wanted)
    for target in (writer, clean):
        target.add("first", [("x.bin", b"1")])
    with pytest.raises(ValueError, match=reason):
        writer.add(key, members)
    for target in (writer, clean):
        target.add("last", [("x.bin", b"2")])
    assert writer.finish() == clean.finish()
    assert out.getvalue() == wanted.getvalue()


def test_a_name_of_exactly_100_bytes_is_read_back(tmp_path: Path) -> None:
    """A name that fills its field, and so has no zero behind it, is stored and read by tarfile and by us."""
    key = "a" * 94  # + ".x.bin" = 100
    shard = write_shard(tmp_path / "s.tar", [(key, [("x.bin", b"1")])])
    with ShardReader(tmp_path / "s.tar") as reader:
        assert reader.read(0, shard.entries[0].n_bytes) == {"x.bin": b"1"}
        assert [s.key for s in reader.iterate()] == [key]
    with tarfile.open(tmp_path / "s.tar") as archive:
        assert archive.getnames() == [f"{key}.x.bin"]


def test_a_member_over_8_gib_is_refused() -> None:
    """Eleven octal digits hold 8**11 - 1 bytes; one more raises ValueError with the number."""

    class Huge(bytes):
        def __len__(self) -> int:
            return 8**11

    with pytest.raises(ValueError, match=r"x\.bin: 8,589,934,592 bytes, a tar member holds 8,589,934,591"):
        ShardWriter(io.BytesIO()).add("a", [("x.bin", Huge())])


def test_an_interrupted_shard_leaves_no_file(tmp_path: Path) -> None:
    """When a sample can't be added, neither the shard nor its temporary file stays behind."""

    def failing() -> Iterator[Sample]:
        yield ROLLOUTS[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shard(tmp_path / "s.tar", failing())
    assert list(tmp_path.iterdir()) == []


def test_writing_announces_its_effects_in_order(tmp_path: Path) -> None:
    """Write, fsync and rename are announced under the given point, which crash tests rely on."""
    heard: list[str] = []
    observe(heard.append)
    try:
        write_shard(tmp_path / "s.tar", ROLLOUTS, point="unit.shard")
    finally:
        observe(None)
    assert heard == ["unit.shard.write", "unit.shard.fsync", "unit.shard.rename"]


def test_tarfile_reads_it(shard: tuple[Path, Shard]) -> None:
    """Python's tarfile finds every member with its bytes, and headers without owner, time or group."""
    with tarfile.open(shard[0]) as archive:
        found = {}
        for info in archive:
            assert (info.mode, info.uid, info.gid, info.mtime) == (0o644, 0, 0, 0)
            assert (info.uname, info.gname, info.pax_headers) == ("", "", {})
            source = archive.extractfile(info)
            assert source is not None
            found[info.name] = source.read()
    assert found == {f"{key}.{name}": data for key, members in ROLLOUTS for name, data in members}


def test_gnu_tar_reads_it(shard: tuple[Path, Shard], tmp_path: Path) -> None:
    """GNU tar extracts every member and warns of nothing."""
    tar = shutil.which("tar")
    if tar is None or "GNU tar" not in subprocess.run([tar, "--version"], capture_output=True, text=True).stdout:
        pytest.skip("no GNU tar on this machine")
    folder = tmp_path / "out"
    folder.mkdir()
    done = subprocess.run([tar, "-xvf", str(shard[0]), "-C", str(folder)], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    for key, members in ROLLOUTS:
        for name, data in members:
            assert (folder / f"{key}.{name}").read_bytes() == data


def test_webdataset_reads_it(shard: tuple[Path, Shard]) -> None:
    """webdataset gives back all samples in order, decoded to the values that went in."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own, at import
        from webdataset import WebDataset

        found = list(WebDataset(str(shard[0]), shardshuffle=False).decode())
    assert [sample["__key__"] for sample in found] == [key for key, _ in ROLLOUTS]
    for i, sample in enumerate(found):
        assert sample["meta.json"] == {"i": i, "cell": "night"}
        assert sample["prompt.txt"] == f"prompt {i}"
        assert sample["pose.npy"].dtype == np.float32
        assert np.array_equal(sample["pose.npy"], np.full((24, 7), i))


def test_datasets_reads_it(shard: tuple[Path, Shard], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hugging Face's webdataset loader, offline, gives back every sample with the types of its members."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own, at import and of its worker threads
        from datasets import load_dataset
        from datasets.utils.logging import disable_progress_bar

        disable_progress_bar()
        data: Any = load_dataset(
            "webdataset", data_files=[str(shard[0])], split="train", cache_dir=str(tmp_path / "cache")
        )
    assert data.num_rows == len(ROLLOUTS)
    for i, row in enumerate(data):
        assert row["__key__"] == ROLLOUTS[i][0]
        assert row["meta.json"] == {"i": i, "cell": "night"}
        assert np.array_equal(np.array(row["pose.npy"]), np.full((24, 7), i))


def test_samples_are_read_in_any_order(shard: tuple[Path, Shard]) -> None:
    """Random access gives the members that went in, in their order, from many threads as from one."""
    path, info = shard
    wanted = dict(ROLLOUTS)
    wrong: list[str] = []
    with ShardReader(path) as reader:

        def read_all(seed: int) -> None:
            entries = list(info.entries) * 20
            random.Random(seed).shuffle(entries)
            wrong.extend(e.key for e in entries if list(reader.read(e.offset, e.n_bytes).items()) != wanted[e.key])

        threads = [threading.Thread(target=read_all, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert [(s.key, list(s.members.items())) for s in reader.iterate()] == ROLLOUTS


def test_one_member_is_read_alone(shard: tuple[Path, Shard]) -> None:
    """`ranges` says where each member's bytes lie in the file; reading that range gives them."""
    path, info = shard
    data = path.read_bytes()
    entry, members = info.entries[5], dict(ROLLOUTS[5][1])
    with ShardReader(path) as reader:
        ranges = reader.ranges(entry.offset, entry.n_bytes)
        assert list(ranges) == list(members)
        for name, where in ranges.items():
            assert data[where.offset : where.offset + where.n_bytes] == members[name]
            assert reader.read_range(where) == members[name]


def test_wrong_ranges_are_refused(shard: tuple[Path, Shard]) -> None:
    """A range that is shifted, cut, spans two samples or leaves the file raises with path and offset."""
    path, info = shard
    first, second = info.entries[:2]
    with ShardReader(path) as reader:
        with pytest.raises(DistdataError, match=r"shard\.tar, byte 512: no tar header"):
            reader.read(512, first.n_bytes)
        with pytest.raises(DistdataError, match="are not a whole sample"):
            reader.read(0, first.n_bytes - 512)
        with pytest.raises(DistdataError, match="700 bytes are not a whole sample; its entries take 1,024"):
            reader.read(0, 700)
        with pytest.raises(DistdataError, match="byte 1,024: no tar header"):
            reader.read(0, 1100)
        with pytest.raises(DistdataError, match="'seed0-k0' runs into another's, 'seed1-k1'"):
            reader.read(0, first.n_bytes + second.n_bytes)
        with pytest.raises(DistdataError, match=f"the file ends at {info.n_bytes:,}"):
            reader.read(info.n_bytes - 512, 1024)
        with pytest.raises(DistdataError, match="are not a whole sample"):
            reader.read(0, 0)
        with pytest.raises(DistdataError, match="are not a whole sample"):
            reader.ranges(0, first.n_bytes - 512)
    with pytest.raises(DistdataError, match="the file ends at"), open(path, "rb") as f:
        read_sample(f, info.n_bytes - 512, 1024)


def test_a_negative_size_in_a_header_ends_reading(shard: tuple[Path, Shard]) -> None:
    """A damaged size field that reads as a negative number is refused, not followed backwards for ever."""
    path, info = shard
    data = bytearray(path.read_bytes())
    data[124:135] = b"-0000001000"  # -512 bytes: the next header would be this one
    path.write_bytes(data)
    with ShardReader(path) as reader:
        with pytest.raises(DistdataError, match="no tar header"):
            reader.read(0, info.entries[0].n_bytes)
        with pytest.raises(DistdataError, match="no tar header"):
            reader.ranges(0, info.entries[0].n_bytes)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    """Opening or scanning a shard that is not there raises with its path; closing twice is harmless."""
    for opening in (ShardReader, scan):
        with pytest.raises(DistdataError, match=r"gone\.tar: the shard is missing"):
            opening(tmp_path / "gone.tar")
    write_shard(tmp_path / "s.tar", ROLLOUTS)
    reader = ShardReader(tmp_path / "s.tar")
    reader.close()
    reader.close()
    with pytest.raises(DistdataError, match="can't be read"):
        reader.read(0, 512)


def test_a_scan_finds_what_the_writer_recorded(shard: tuple[Path, Shard]) -> None:
    """Without a manifest, a whole shard scans to the writer's own entries, digests included."""
    found = scan(shard[0])
    assert found.entries == shard[1].entries
    assert found.broken is None
    assert found.n_intact_bytes == shard[1].n_bytes - 1024


def test_a_truncated_shard_scans_to_its_whole_samples(shard: tuple[Path, Shard]) -> None:
    """Cut anywhere, a scan gives exactly the samples before the last one that may be incomplete, and where."""
    path, info = shard
    data = path.read_bytes()
    end = info.n_bytes - 1024
    for cut in [*range(0, end, 256), end - 1, end, end + 511]:
        path.write_bytes(data[:cut])
        found = scan(path)
        # a sample counts when an entry of another key was read whole after it
        n_items = sum(item <= cut for item in _item_ends(data, end))
        keys = _keys(data, end)[:n_items]
        n_whole = max(len(dict.fromkeys(keys)) - 1, 0)
        assert found.entries == info.entries[:n_whole], cut
        assert found.broken is not None
        assert "truncated" in found.broken
    path.write_bytes(data[: end + 512])  # one of the two zero blocks is enough to know that all is there
    assert scan(path).entries == info.entries


def _item_ends(data: bytes, end: int) -> list[int]:
    ends, position = [], 0
    while position < end:
        position += 512 + (int(data[position + 124 : position + 135], 8) + 511) // 512 * 512
        ends.append(position)
    return ends


def _keys(data: bytes, end: int) -> list[str]:
    starts = [0, *_item_ends(data, end)[:-1]]
    return [data[s : s + 100].split(b".")[0].decode() for s in starts]


def test_sequential_reading_stops_at_damage(shard: tuple[Path, Shard]) -> None:
    """`iterate` yields the whole samples before a damaged header and then raises with its position."""
    path, info = shard
    data = bytearray(path.read_bytes())
    at = info.entries[3].offset
    data[at + 10] ^= 1  # in the name: the checksum no longer fits
    path.write_bytes(data)
    read: list[str] = []
    with ShardReader(path) as reader:
        keys = (sample.key for sample in reader.iterate())
        with pytest.raises(DistdataError, match=f"no valid tar header at byte {at:,}"):
            read.extend(keys)
    assert read == [key for key, _ in ROLLOUTS[:2]]  # the third may lack members as far as a reader can tell
    assert scan(path).entries == info.entries[:2]


def test_headers_and_paddings_are_checked_without_a_manifest(shard: tuple[Path, Shard]) -> None:
    """A scan stops at a padding byte that is not zero, and reading at a header without its magic."""
    path, info = shard
    data = bytearray(path.read_bytes())
    entry = info.entries[1]
    data[entry.offset + 1023] = 1  # meta.json takes far less than the block behind its header
    path.write_bytes(data)
    found = scan(path)
    assert found.entries == ()  # the first sample may lack members, as far as a scan can tell
    assert found.broken == f"seed1-k1.meta.json has a damaged padding at byte {entry.offset:,}"
    data[entry.offset + 257] ^= 1
    path.write_bytes(data)
    with ShardReader(path) as reader:
        for read in (reader.read, reader.ranges):
            with pytest.raises(DistdataError, match=f"byte {entry.offset:,}: no tar header"):
                read(entry.offset, entry.n_bytes)


def test_foreign_archives_are_not_taken_for_shards(tmp_path: Path) -> None:
    """An archive with PAX headers is reported as no shard of ours instead of giving odd samples."""
    with tarfile.open(tmp_path / "pax.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("k.x.bin")
        info.mtime = 1.5
        archive.addfile(info)
    found = scan(tmp_path / "pax.tar")
    assert found.entries == ()
    assert found.broken is not None
    assert "no plain file" in found.broken


def test_every_altered_byte_is_found_and_blamed_on_its_sample(tmp_path: Path) -> None:
    """Flip any one byte of any sample, header and padding included: exactly that sample is reported."""
    path = tmp_path / "s.tar"
    shard = write_shard(path, [(f"k{i}", [("m.json", json.dumps({"i": i}).encode())]) for i in range(2)])
    good = path.read_bytes()
    assert verify_entries(path, shard.entries) == []
    with open(path, "r+b", buffering=0) as f:
        for position in range(shard.n_bytes - 1024):
            f.seek(position)
            f.write(bytes([good[position] ^ 0x40]))
            owner = next(e for e in shard.entries if e.offset <= position < e.offset + e.n_bytes)
            found = verify_entries(path, shard.entries)
            assert [(d.key, d.offset) for d in found] == [(owner.key, owner.offset)], position
            assert found[0].reason.startswith("altered: sha256 ")
            f.seek(position)
            f.write(good[position : position + 1])


def test_truncation_and_absence_are_told_apart(shard: tuple[Path, Shard]) -> None:
    """Samples behind a cut are reported as truncated with both sizes, all of a missing file as missing."""
    path, info = shard
    cut = info.entries[8].offset + 100
    path.write_bytes(path.read_bytes()[:cut])
    found = verify_entries(path, info.entries)
    assert [d.key for d in found] == [e.key for e in info.entries[8:]]
    end = info.entries[8].offset + info.entries[8].n_bytes
    assert found[0].reason == f"truncated: ends at byte {end:,}, the file at {cut:,}"
    assert all(d.reason.endswith(f"the file at {cut:,}") for d in found)
    path.unlink()
    assert verify_entries(path, info.entries[:2]) == [
        Damage(key=e.key, offset=e.offset, reason="missing file") for e in info.entries[:2]
    ]


def test_verifying_without_digest_is_refused(shard: tuple[Path, Shard]) -> None:
    """An entry written without digest can't be verified, and saying so beats calling it whole."""
    with pytest.raises(ValueError, match="has no sha256"):
        verify_entries(shard[0], [Entry(key="a", offset=0, n_bytes=512, sha256="")])
