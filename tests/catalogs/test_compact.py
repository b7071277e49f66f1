"""Compaction: which shards are joined, and that joining is the same as having written one shard."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distdata.catalogs.compact import ShardPart, join_shards, plan_compaction
from distdata.catalogs.errors import DistdataError
from distdata.catalogs.shards import Entry, Shard, ShardReader, verify_entries, write_shard

Sample = tuple[str, list[tuple[str, bytes]]]


def samples(first: int, n: int) -> list[Sample]:
    return [
        (f"s{i}", [("meta.json", b'{"i":%d}' % i), ("x.bin", bytes([i % 256]) * (i * 37))]) for i in range(first, n)
    ]


def part_of(path: Path, shard: Shard) -> ShardPart:
    return ShardPart(path=path, n_bytes=shard.n_bytes, sha256=shard.sha256)


def sized(*sizes: int) -> list[ShardPart]:
    return [ShardPart(path=Path(f"{i}.tar"), n_bytes=size) for i, size in enumerate(sizes)]


def names(parts: list[ShardPart]) -> list[list[str]]:
    return [[part.path.stem for part in group.parts] for group in plan_compaction(parts, target_bytes=100_000)]


def test_neighbours_are_joined_up_to_the_target() -> None:
    """Groups fill up in order; 3 x 30,000 fit into 100,000, a fourth does not."""
    # joined size = sum of (size - 1024 for the end of archive) + 1024: 3 parts 87,952; 4 parts 116,928
    groups = plan_compaction(sized(*[30_000] * 5), target_bytes=100_000)
    assert [[p.path.stem for p in g.parts] for g in groups] == [["0", "1", "2"], ["3", "4"]]
    assert [g.n_bytes for g in groups] == [3 * 28_976 + 1024, 2 * 28_976 + 1024]


def test_the_target_may_be_met_exactly() -> None:
    """Parts whose joined size is the target to the byte form one group; one block more splits them."""
    third = (100_000 - 1024 - 2 * 28_976) + 1024  # fills up to 100,000 exactly
    assert names(sized(30_000, 30_000, third)) == [["0", "1", "2"]]
    assert names(sized(30_000, 30_000, third + 512)) == [["0", "1"]]


def test_large_shards_and_lone_ones_stay() -> None:
    """A shard of half the target or more is left alone and not jumped over; nothing to join gives no group."""
    assert names(sized(10_000, 50_000, 10_000, 10_000)) == [["2", "3"]]
    assert names(sized(10_000)) == []
    assert names([]) == []
    assert names(sized(60_000, 250_000)) == []


@given(st.lists(st.integers(2, 300).map(lambda n: n * 512), max_size=30))
def test_groups_keep_order_fit_and_need_no_second_pass(sizes: list[int]) -> None:
    """Groups are runs of neighbours within the target, and planning again after joining finds nothing."""
    parts = sized(*sizes)
    groups = plan_compaction(parts, target_bytes=100_000)
    after: list[ShardPart] = []
    rest = list(parts)
    for group in groups:
        at = rest.index(group.parts[0])
        assert tuple(rest[at : at + len(group.parts)]) == group.parts
        assert len(group.parts) > 1
        assert group.n_bytes <= 100_000
        after += [*rest[:at], ShardPart(path=Path("joined"), n_bytes=group.n_bytes)]
        rest = rest[at + len(group.parts) :]
    assert plan_compaction([*after, *rest], target_bytes=100_000) == []


def test_joined_bytes_are_those_of_one_shard_written_at_once(tmp_path: Path) -> None:
    """Joining three shards, one of them empty, gives the file, size and digest of one with all samples."""
    cuts = [(0, 40), (40, 40), (40, 41), (41, 130)]
    parts = []
    entries: list[tuple[int, Entry]] = []
    for i, (first, end) in enumerate(cuts):
        shard = write_shard(tmp_path / f"{i}.tar", samples(first, end))
        parts.append(part_of(tmp_path / f"{i}.tar", shard))
        entries += [(i, entry) for entry in shard.entries]
    whole = write_shard(tmp_path / "whole.tar", samples(0, 130))
    out = io.BytesIO()
    joined = join_shards(parts, out)
    assert out.getvalue() == (tmp_path / "whole.tar").read_bytes()
    assert (joined.n_bytes, joined.sha256) == (whole.n_bytes, whole.sha256)
    # 1024 is the end of archive that every part loses
    assert joined.deltas == (
        0,
        parts[0].n_bytes - 1024,
        parts[0].n_bytes - 1024,
        joined.deltas[2] + parts[2].n_bytes - 1024,
    )
    moved = [
        Entry(key=e.key, offset=e.offset + joined.deltas[i], n_bytes=e.n_bytes, sha256=e.sha256) for i, e in entries
    ]
    assert tuple(moved) == whole.entries


def test_a_joined_shard_is_read_like_any_other(tmp_path: Path) -> None:
    """tarfile and our reader find all samples of a joined shard, and the old digests verify."""
    shards = [write_shard(tmp_path / f"{i}.tar", samples(10 * i, 10 * i + 10)) for i in range(3)]
    path = tmp_path / "joined.tar"
    with open(path, "wb") as f:
        joined = join_shards([part_of(tmp_path / f"{i}.tar", s) for i, s in enumerate(shards)], f)
    with tarfile.open(path) as archive:
        assert len(archive.getnames()) == 60
    with ShardReader(path) as reader:
        assert [key for key, _ in reader.iterate()] == [f"s{i}" for i in range(30)]
    last = shards[2].entries[4]
    moved = Entry(key=last.key, offset=last.offset + joined.deltas[2], n_bytes=last.n_bytes, sha256=last.sha256)
    assert verify_entries(path, [moved]) == []


def test_damage_is_not_copied_under_a_fresh_digest(tmp_path: Path) -> None:
    """An altered byte, a wrong size, a missing file and a missing end of archive each stop the joining."""
    path = tmp_path / "a.tar"
    part = part_of(path, write_shard(path, samples(0, 5)))
    good = path.read_bytes()

    def refusal(data: bytes, part: ShardPart = part) -> str:
        path.write_bytes(data)
        with pytest.raises(DistdataError) as caught:
            join_shards([part], io.BytesIO())
        return str(caught.value)

    altered = good[:600] + bytes([good[600] ^ 1]) + good[601:]
    assert "its manifest says " + part.sha256[:16] in refusal(altered)
    assert f"{len(good) - 512:,} bytes, its manifest says {len(good):,}" in refusal(good[:-512])
    assert "does not end like a shard" in refusal(good[:-1] + b"x")
    path.unlink()
    with pytest.raises(DistdataError, match="the shard to join is missing"):
        join_shards([part], io.BytesIO())
