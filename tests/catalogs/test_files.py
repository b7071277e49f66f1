"""Files appear whole or not at all, and a lock dies with its holder."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from distdata.catalogs import effects
from distdata.catalogs.errors import BusyError, DistdataError
from distdata.catalogs.files import (
    TMP_PREFIX,
    atomic_file,
    check_digests,
    disk_errors,
    exclusive_lock,
    is_locked,
    sha256_file,
    write_atomic,
)

HOLD = """
import sys, time
from pathlib import Path
from distdata.catalogs.files import exclusive_lock
with exclusive_lock(Path(sys.argv[1]), "busy"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_file_appears_with_all_its_bytes(tmp_path: Path) -> None:
    """The folder is made, the bytes are there, no temporary file stays, and the effects come in order."""
    seen: list[str] = []
    effects.observe(seen.append)
    try:
        write_atomic(tmp_path / "a" / "b.bin", b"x" * 1000, "it")
    finally:
        effects.observe(None)
    assert (tmp_path / "a" / "b.bin").read_bytes() == b"x" * 1000
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b.bin"]
    assert seen == ["it.write", "it.fsync", "it.rename"]


def test_interrupted_write_keeps_the_old_file(tmp_path: Path) -> None:
    """An exception while writing leaves the earlier content and no temporary file."""
    path = tmp_path / "a.txt"
    path.write_bytes(b"old")

    def write_half() -> None:
        with atomic_file(path, "it") as f:
            f.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("point", ["it.write", "it.fsync"])
def test_crash_before_the_rename_keeps_the_old_file(tmp_path: Path, point: str) -> None:
    """A process killed at any point before the rename leaves the old bytes; only a temporary file may stay."""
    path = tmp_path / "a.txt"
    path.write_bytes(b"old")
    code = (
        "import os, sys; from pathlib import Path; from distdata.catalogs import effects, files\n"
        "effects.observe(lambda name: os._exit(9) if name == sys.argv[2] else None)\n"
        "files.write_atomic(Path(sys.argv[1]), b'new', 'it')"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path), point], check=False).returncode == 9
    assert path.read_bytes() == b"old"
    assert all(p == path or p.name.startswith(TMP_PREFIX) for p in tmp_path.iterdir())


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "the disk is full"),
        (errno.EACCES, "Check the folder's owner"),
        (errno.EROFS, "Check the folder's owner"),
        (errno.EISDIR, "Name another file"),
        (errno.ENOTDIR, "Name another file"),
        (errno.ENAMETOOLONG, "Name another file"),
        (errno.ENOENT, "Name another file"),
        (errno.EBUSY, "Name another file"),
        (errno.EINVAL, "Name another file"),
    ],
)
def test_refusals_of_the_system_are_explained(tmp_path: Path, code: int, said: str) -> None:
    """A full disk, a folder that can't be written and a wrong name become one message that names the file."""
    with pytest.raises(DistdataError, match=said) as caught, disk_errors(tmp_path / "f"):
        raise OSError(code, os.strerror(code))
    assert str(tmp_path / "f") in str(caught.value)


def test_other_errors_of_the_system_pass_through(tmp_path: Path) -> None:
    """FileExistsError keeps its type: an exclusive commit depends on it."""
    with pytest.raises(FileExistsError), disk_errors(tmp_path / "f"):
        raise FileExistsError(errno.EEXIST, "there")


def test_a_folder_or_a_file_in_the_way_is_explained(tmp_path: Path) -> None:
    """Writing over a folder, or below a file, is refused in words, and both stay."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"1")
    with pytest.raises(DistdataError, match=r"folder: can't be written .*Name another file"):
        write_atomic(tmp_path / "folder", b"2", "it")
    with pytest.raises(DistdataError, match=r"can't be written .*Name another file"):
        write_atomic(tmp_path / "file" / "below", b"2", "it")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]
    assert (tmp_path / "file").read_bytes() == b"1"


@pytest.mark.parametrize("name", ["", ".", "/", "/proc/x", "/proc/x/y", "a" * 300])
def test_places_where_no_file_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The folder itself, a folder of the system and an endless name are refused in words, and nothing is left."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DistdataError, match=r"can't be written"):
        write_atomic(Path(name), b"2", "it")
    assert list(tmp_path.iterdir()) == []


def test_a_device_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    """A pipe gets the bytes and stays a pipe; no file takes the place of /dev/null."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    write_atomic(pipe, b"data", "it")
    reader.join(timeout=30)
    assert got == [b"data"]
    assert pipe.is_fifo()
    assert [p.name for p in tmp_path.iterdir()] == ["pipe"]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    """Writing to a symbolic link replaces what it points to, whether that is there yet or not."""
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "far" / "file")
    for data in (b"new", b"newer"):
        write_atomic(tmp_path / "link", data, "it")
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "far" / "file").read_bytes() == data
    assert [p.name for p in (tmp_path / "far").iterdir()] == ["file"]


def test_a_lock_that_can_not_be_made_is_explained(tmp_path: Path) -> None:
    """A lock below a file is refused by name, without a traceback."""
    (tmp_path / "file").write_bytes(b"1")
    with pytest.raises(DistdataError, match=r"file/lock: can't be written"), exclusive_lock(tmp_path / "file/lock", ""):
        pass


def test_lock_names_its_holder_and_dies_with_it(tmp_path: Path) -> None:
    """A held lock refuses with the holder's process id; after SIGKILL of the holder it is free."""
    path = tmp_path / "lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert is_locked(path)
        with pytest.raises(BusyError, match=f"^process {holder.pid} has it$"), _lock(path):
            pass
        holder.send_signal(signal.SIGKILL)
    assert not is_locked(path)
    with _lock(path):
        assert path.read_text() == str(os.getpid())
        assert is_locked(path)


def _lock(path: Path) -> object:
    return exclusive_lock(path, "process {holder} has it")


def test_looking_at_a_lock_that_nobody_made(tmp_path: Path) -> None:
    """A lock file that does not exist is free, and looking does not make it."""
    assert not is_locked(tmp_path / "lock")
    assert not list(tmp_path.iterdir())


def test_lock_waits_while_somebody_only_looks(tmp_path: Path) -> None:
    """Looking holds the lock for a moment, and a taker without patience of its own still gets it."""
    path = tmp_path / "lock"
    code = "import sys; from pathlib import Path; from distdata.catalogs.files import is_locked\n" + (
        "print('on', flush=True)\nwhile True: is_locked(Path(sys.argv[1]))"
    )
    with _lock(path):
        pass
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True) as looker:
        assert looker.stdout is not None
        looker.stdout.readline()
        try:
            for _ in range(20):
                with _lock(path):
                    pass
        finally:
            looker.kill()


def test_digests_of_files(tmp_path: Path) -> None:
    """A changed byte, and a file that is gone, are noticed; a file without a digest is not looked at."""
    (tmp_path / "a").write_bytes(b"abc")
    # the SHA-256 of "abc" as in FIPS 180-2, appendix B.1
    want = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_file(tmp_path / "a") == want
    check_digests(tmp_path, {"a": want}, "a", "unknown")
    (tmp_path / "a").write_bytes(b"abd")
    with pytest.raises(ValueError, match=r"a does not match its digest"):
        check_digests(tmp_path, {"a": want}, "a")
    (tmp_path / "a").unlink()
    with pytest.raises(FileNotFoundError):
        check_digests(tmp_path, {"a": want}, "a")
