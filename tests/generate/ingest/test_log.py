"""The log of a teacher's service: what a call promises, whoever calls and however it ends."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import distdata
from distdata.catalogs.codec import encode_member
from distdata.catalogs.errors import DistdataError
from distdata.generate.ingest import log
from distdata.generate.ingest.log import FRAME, ByproductLog, log_byproduct
from distdata.generate.ingest.read_log import LogRecord, TornEnd, log_files, read_log

SEED = {"seed_id": "s00", "teacher_hash": "00000000000000aa"}


def records(folder: Path) -> list[LogRecord | TornEnd]:
    """Read all logs of a folder."""
    return [r for path in log_files(folder) for r in read_log(path, 0, path.stat().st_size)]


def whole(folder: Path) -> list[LogRecord]:
    """Read all logs of a folder, of which none may be torn or damaged."""
    found = records(folder)
    assert all(isinstance(r, LogRecord) and r.wrong is None for r in found)
    return [r for r in found if isinstance(r, LogRecord)]


def test_a_record_says_what_the_call_said(tmp_path: Path) -> None:
    """Facts, quality values and members come back as they were given, encoded as a bought draw's are."""
    x, boxes = np.arange(5, dtype=np.float32), {"a": np.arange(3), "b": np.ones((2, 2))}
    members = {"x.npy": x, "b.npz": boxes, "t.txt": "né", "m.json": {"b": 1, "a": [1.5]}, "v.mp4": b"\0\1"}
    kept = log_byproduct(
        tmp_path, axes={"weather": "rain"}, scenario="cross", params={"v": 1}, outcome="low", teacher_version="1",
        group="drive-1", key="request-7", members=members, score=0.5,
    )  # fmt: skip
    assert kept is True
    (record,) = whole(tmp_path)
    assert record.head == {
        "key": "request-7", "axes": {"weather": "rain"}, "scenario": "cross", "params": {"v": 1}, "outcome": "low",
        "teacher_version": "1", "group": "drive-1", "quality": {"score": 0.5},
    }  # fmt: skip
    assert record.members == {name: encode_member(name, value) for name, value in members.items()}


def test_numpy_and_buffers_are_taken_for_what_they_are(tmp_path: Path) -> None:
    """Numbers and arrays of numpy become JSON's, buffers become bytes; an astral character is no half of a pair."""
    assert log_byproduct(
        tmp_path, seed_id=np.int64(7), axes={"a": np.str_("b")}, teacher_version="1", score=np.float32(0.5),
        ok=np.bool_(1), params={"v": np.arange(2), "w": np.float64(1.5)}, group="\U0001f600",
        members={"a.bin": bytearray(b"ab"), "b.bin": memoryview(b"cd"), "m.json": {"n": np.int8(3)}},
    )  # fmt: skip
    (record,) = whole(tmp_path)
    assert record.head["seed_id"] == 7
    assert record.head["params"] == {"v": [0, 1], "w": 1.5}
    assert record.head["group"] == "\U0001f600"
    assert record.head["quality"] == {"score": 0.5, "ok": True}
    assert record.members == {"a.bin": b"ab", "b.bin": b"cd", "m.json": b'{"n":3}'}


def test_every_call_is_an_answer_of_its_own(tmp_path: Path) -> None:
    """Equal answers get different keys, so that a teacher which says the same twice is counted twice."""
    for _ in range(3):
        log_byproduct(tmp_path, **SEED, members={"t.txt": "yes"})
    assert len({r.head["key"] for r in whole(tmp_path)}) == 3


def test_threads_share_a_log(tmp_path: Path) -> None:
    """Eight threads at once: every record is whole and each call is there once."""

    def work(i: int) -> None:
        for j in range(50):
            assert log_byproduct(tmp_path, **SEED, members={"t.txt": f"{i} {j} " + "x" * 3000})

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    texts = [r.members["t.txt"].decode().split()[:2] for r in whole(tmp_path)]
    assert sorted(texts) == sorted([str(i), str(j)] for i in range(8) for j in range(50))
    assert len(log_files(tmp_path)) == 1


def test_a_fork_writes_files_of_its_own(tmp_path: Path) -> None:
    """Parent and child both go on after a fork, also one in the middle of another thread's call: no bytes mix."""
    code = f"""
import os, sys, threading, warnings
warnings.simplefilter("ignore")  # that forking with threads may go wrong is what this is about
from distdata import log_byproduct
say = lambda text: log_byproduct({str(tmp_path)!r}, seed_id="s", teacher_version="1", members={{"t.txt": text * 20000}})
stop = threading.Event()
def work():
    while not stop.is_set():
        say("t")
thread = threading.Thread(target=work); thread.start()
for i in range(20):
    if os.fork() == 0:
        assert say("c")
        os._exit(0)
    os.wait()
    say("p")
stop.set(); thread.join()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    found = [r.members["t.txt"][:1] for r in whole(tmp_path)]
    assert found.count(b"c") == 20
    assert found.count(b"p") == 20
    assert len(log_files(tmp_path)) == 21
    assert len({r.head["key"] for r in whole(tmp_path)}) == len(found), "a child's keys are not its parent's"


def test_files_roll_by_size(tmp_path: Path) -> None:
    """A file that has reached its size is followed by the next; none is cut inside a record."""
    small = ByproductLog(tmp_path, file_bytes=5_000)
    for i in range(10):
        small.write(**SEED, members={"t.txt": f"{i:04d}" * 500})
    small.close()
    sizes = [p.stat().st_size for p in log_files(tmp_path)]
    assert len(sizes) == 4  # 2,000 bytes and a head of some 150: three to a file
    assert len(whole(tmp_path)) == 10


def test_a_removed_file_takes_no_records(tmp_path: Path) -> None:
    """After somebody removed the current file, records go to a new one instead of nowhere."""
    log_byproduct(tmp_path, **SEED, members={"t.txt": "a"})
    log_files(tmp_path)[0].unlink()
    assert log_byproduct(tmp_path, **SEED, members={"t.txt": "b"})
    assert [r.members["t.txt"] for r in whole(tmp_path)] == [b"b"]


def test_a_full_disk_is_counted_and_leaves_nothing_torn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A write that stops half-way returns False, is counted, said once, and taken back; later records are whole."""
    opened = ByproductLog(tmp_path)
    assert opened.write(**SEED, members={"t.txt": "a"})
    real = os.writev

    def half(fd: int, pieces: Any) -> int:
        os.write(fd, b"".join(pieces)[:40])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(log.os, "writev", half)
    assert opened.write(**SEED, members={"t.txt": "b"}) is False
    assert opened.write(**SEED, members={"t.txt": "b"}) is False
    monkeypatch.setattr(log.os, "writev", real)
    assert opened.write(**SEED, members={"t.txt": "c"})
    assert [r.members["t.txt"] for r in whole(tmp_path)] == [b"a", b"c"]
    assert opened.n_dropped == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "No space left on device: 1 answers were not kept so far" in said


def test_strict_raises(tmp_path: Path) -> None:
    """Who asks for it gets the system's error instead of False; a folder that can't be made is one."""
    (tmp_path / "file").write_text("")
    assert log_byproduct(tmp_path / "file" / "log", **SEED, members={"t.txt": "a"}) is False
    with pytest.raises(NotADirectoryError):
        log_byproduct(tmp_path / "file" / "log", **SEED, members={"t.txt": "a"}, strict=True)


def test_a_long_write_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that the system takes in several parts is whole."""
    real = os.writev
    monkeypatch.setattr(log.os, "writev", lambda fd, pieces: real(fd, [b"".join(pieces)[:100]]))
    assert log_byproduct(tmp_path, **SEED, members={"t.txt": "a" * 1000})
    assert whole(tmp_path)[0].members["t.txt"] == b"a" * 1000


@pytest.mark.parametrize(
    ("more", "error", "words"),
    [
        ({"seed_id": None}, ValueError, "give seed_id, or axes and scenario"),
        ({"teacher_hash": None}, ValueError, "give teacher_hash or teacher_version"),
        ({"members": {}}, ValueError, "no members"),
        ({"members": {"x.npy": [1, 2]}}, TypeError, "x.npy: got list, want a numpy array"),
        ({"members": {"m.json": {1.5: float("nan")}}}, ValueError, "not JSON compliant"),
        ({"members": {"m.json": {1.5: object()}}}, TypeError, "member m.json: object is nothing that JSON has"),
        ({"members": {"x.npy": b"garbage"}}, ValueError, "member x.npy: these bytes are no .npy file"),
        ({"members": {"meta.json": {}}}, ValueError, "member 'meta.json': want name.ending, and not meta.json"),
        ({"members": {"a/b.txt": "a"}}, ValueError, "member 'a/b.txt': want name.ending"),
        ({"seed_id": None, "axes": {}, "scenario": "cross"}, ValueError, "give seed_id, or axes and scenario"),
        ({"outcome": object()}, TypeError, "log_byproduct: outcome: object is nothing that JSON has"),
        ({"score": float("nan")}, ValueError, "log_byproduct: score: Out of range float"),
        ({"params": {"v": np.float32("inf")}}, ValueError, "log_byproduct: params: Out of range float"),
        ({"group": "\ud800"}, ValueError, "log_byproduct: group: .*surrogates not allowed"),
    ],
)
def test_what_could_never_be_ingested_is_told_at_once(
    tmp_path: Path, more: dict[str, Any], error: type[Exception], words: str
) -> None:
    """Arguments without condition, teacher or fitting members raise, and leave nothing in the log."""
    with pytest.raises(error, match=words):
        log_byproduct(tmp_path, **{**SEED, "members": {"t.txt": "a"}, **more})
    assert records(tmp_path) == []


def test_logs_lie_at_most_two_folders_down(tmp_path: Path) -> None:
    """A folder of services and machines is looked through, a whole disk is not."""
    for folder in ("", "a", "a/b", "a/b/c"):
        log_byproduct(tmp_path / folder, **SEED, members={"t.txt": "a"})
    assert sorted(p.parent.relative_to(tmp_path).as_posix() for p in log_files(tmp_path)) == [".", "a", "a/b"]


def test_a_uri_is_refused(tmp_path: Path) -> None:
    """An object store can't append: the message says what to do instead."""
    with pytest.raises(DistdataError, match=r"s3://bucket/x is no folder of this machine.*log to a local folder"):
        log_byproduct("s3://bucket/x", **SEED, members={"t.txt": "a"})


def test_a_damaged_record_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    """Bytes altered inside a record spoil that record; without a valid frame the rest of the file is its torn end."""
    for text in ("a", "b", "c"):
        log_byproduct(tmp_path, **SEED, members={"t.txt": text * 100})
    (path,) = log_files(tmp_path)
    starts = [r.start for r in whole(tmp_path)]
    data = bytearray(path.read_bytes())
    data[starts[2] - 1] ^= 1  # the last byte of the second record
    path.write_bytes(data)
    wrong = [r.wrong for r in records(tmp_path) if isinstance(r, LogRecord)]
    assert wrong == [None, "its bytes do not match their checksum", None]
    data[starts[1] + 5] ^= 1  # the second record's frame
    path.write_bytes(data)
    assert records(tmp_path)[1:] == [TornEnd(starts[1], len(data) - starts[1])]
    path.write_bytes(bytes(data[: starts[1]]) + bytes(FRAME.size * 3))  # zeros, as a power cut leaves them
    assert records(tmp_path)[1:] == [TornEnd(starts[1], FRAME.size * 3)]


def test_the_package_offers_it_without_loading_anything(tmp_path: Path) -> None:
    """`distdata.log_byproduct` is this function; using it without arrays loads no library of ours or others."""
    assert distdata.log_byproduct is log_byproduct
    assert distdata.ByproductLog is ByproductLog
    code = f"""
import sys
import distdata
before = set(sys.modules)
assert "json" not in before
members = {{"a.txt": "b", "c.json": [1]}}
assert distdata.log_byproduct({str(tmp_path)!r}, seed_id="s", teacher_version="1", members=members)
print(sorted(m for m in sys.modules if m.partition(".")[0] in ("numpy", "pyarrow", "polars", "duckdb", "pydantic")))
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="no attribute 'log_byproducts'"):
        distdata.log_byproducts  # noqa: B018
