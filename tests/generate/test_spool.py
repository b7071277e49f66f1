"""The spool: what was paid for is found again, whatever a crash left of the file."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from distdata.catalogs.errors import DistdataError
from distdata.generate.spool import Answer, Leftover, Spool, leftover

KEY = "plan/0/0/3/first"
OTHER = "plan/0/1/3/first/1/first/retry"


def answer(position: int, payload: bytes = b"\x00\x01payload", usd: float = 0.25) -> Answer:
    members = [("meta.json", b"{}"), ("x.npy", payload)]
    return Answer(position=position, members=members, outcome="low", gpu_s=900.0, usd=usd)


def failure(position: int) -> Answer:
    return Answer(position=position, members=None, failure="error", reason="RuntimeError: no", gpu_s=1.0, usd=0.5)


def reopened(path: Path, key: str = KEY) -> Spool:
    spool = Spool(path, key)
    spool.close()
    return spool


def test_answers_come_back_as_they_were(tmp_path: Path) -> None:
    """Members, outcome, failure and cost of every answer survive in order; what was answered is not in doubt."""
    path = tmp_path / "u.spool"
    spool = Spool(path, KEY)
    spool.ask([0, 1, 2], 0.25)
    given = [answer(0), answer(1, b""), failure(2)]
    spool.got(given[:2])
    spool.got(given[2:])
    spool.close()
    state = reopened(path).state
    assert state.answers == given
    assert state.in_doubt_usd == {}
    assert (state.other_usd, state.other_gpu_s, state.other_in_doubt_usd) == (0.0, 0.0, 0.0)


def test_asked_without_an_answer_is_in_doubt(tmp_path: Path) -> None:
    """Each ask that a crash left unanswered adds its price, also when the same draw was lost twice."""
    path = tmp_path / "u.spool"
    spool = Spool(path, KEY)
    spool.ask([0, 1], 0.25)
    spool.close()
    again = Spool(path, KEY)
    assert again.state.in_doubt_usd == {0: 0.25, 1: 0.25}
    again.ask([0, 1], 0.25)
    again.got([answer(0)])
    again.close()
    # draw 0: the first ask is lost, the second answered; draw 1: both are lost
    assert reopened(path).state.in_doubt_usd == {0: 0.25, 1: 0.5}


def test_any_torn_tail_leaves_the_records_before_it(tmp_path: Path) -> None:
    """Cut at every byte, the file gives back the whole records before the cut, and takes new ones after it."""
    path = tmp_path / "u.spool"
    spool = Spool(path, KEY)
    ends = [path.stat().st_size]
    spool.ask([0, 1], 0.25)
    ends.append(path.stat().st_size)
    spool.got([answer(0), answer(1)])
    ends.append(path.stat().st_size)
    spool.ask([2], 0.25)
    ends.append(path.stat().st_size)
    spool.got([answer(2)])
    spool.close()
    data = path.read_bytes()
    #         nothing      unit    asked 0, 1                got 0, 1  asked 2         got 2
    expected = [(0, {}), (0, {}), (0, {0: 0.25, 1: 0.25}), (2, {}), (2, {2: 0.25}), (3, {})]
    for cut in range(len(data) + 1):
        path.write_bytes(data[:cut])
        n_whole = sum(end <= cut for end in ends) + (cut == len(data))
        torn = Spool(path, KEY)
        assert (len(torn.state.answers), torn.state.in_doubt_usd) == expected[n_whole], f"cut at {cut}"
        torn.got([answer(7)])
        torn.close()
        assert reopened(path).state.answers[-1] == answer(7), f"written after a cut at {cut}"


def test_a_flipped_bit_ends_the_file(tmp_path: Path) -> None:
    """An altered record and all after it are not believed; its ask is then in doubt."""
    path = tmp_path / "u.spool"
    spool = Spool(path, KEY)
    spool.ask([0], 0.25)
    spool.got([answer(0)])
    spool.close()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    state = reopened(path).state
    assert state.answers == []
    assert state.in_doubt_usd == {0: 0.25}


def test_garbage_is_not_believed(tmp_path: Path) -> None:
    """A file that is no spool gives nothing, whatever lengths its first bytes claim."""
    path = tmp_path / "u.spool"
    for data in (b"\xff" * 40, bytes(12), bytes(4096), b"PK\x03\x04 hello", b""):
        path.write_bytes(data)
        assert reopened(path).state.answers == []


def test_answers_to_another_task_are_paid_but_not_used(tmp_path: Path) -> None:
    """Answers to another task of the same unit are left out, their known and doubtful cost is carried over."""
    path = tmp_path / "u.spool"
    retry = Spool(path, OTHER)
    retry.ask([0, 1], 0.25)
    retry.got([answer(0)])
    retry.close()
    mine = Spool(path, KEY)
    assert mine.state.answers == []
    assert mine.state.in_doubt_usd == {}
    assert (mine.state.other_usd, mine.state.other_gpu_s, mine.state.other_in_doubt_usd) == (0.25, 900.0, 0.25)
    mine.ask([0], 0.25)
    mine.got([failure(0)])
    mine.close()
    # the retry is taken up again: its own answer is used, the other task's failure was paid 0.5
    state = reopened(path, OTHER).state
    assert state.answers == [answer(0)]
    assert state.in_doubt_usd == {1: 0.25}
    assert (state.other_usd, state.other_in_doubt_usd) == (0.5, 0.0)


def test_what_a_given_up_spool_cost(tmp_path: Path) -> None:
    """Known and doubtful dollars of abandoned spools are summed over files and tasks; only good answers count."""
    path = tmp_path / "u.spool"
    spool = Spool(path, KEY)
    spool.ask([0, 1, 2], 0.25)
    spool.got([answer(0), failure(1)])
    spool.close()
    other = Spool(tmp_path / "v.spool", OTHER)
    other.ask([0], 0.5)
    other.close()
    again = Spool(tmp_path / "v.spool", OTHER)
    again.ask([0], 0.5)
    again.got([answer(0)])
    again.close()
    found = leftover([path, tmp_path / "v.spool"])
    # answered: 0.25 and the failure's 0.5, then 0.25; in doubt: draw 2, and the first ask of the other file
    assert found == Leftover(n_good=2, gpu_s=900.0 + 1.0 + 900.0, known_usd=1.0, in_doubt_usd=0.75)


def test_remove_leaves_nothing_and_close_leaves_everything(tmp_path: Path) -> None:
    """A closed spool is found again, a removed one is gone."""
    path = tmp_path / "deep" / "u.spool"
    spool = Spool(path, KEY)
    spool.got([answer(0)])
    spool.close()
    again = Spool(path, KEY)
    assert len(again.state.answers) == 1
    again.remove()
    assert list(path.parent.iterdir()) == []


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    """Running out of space while spooling is one clear error, and nothing false is in the file."""
    path = tmp_path / "u.spool"
    spool = Spool(path, KEY)
    spool.ask([0], 0.25)
    real = spool._file
    spool._file = open("/dev/full", "r+b")  # noqa: SIM115 - the kernel's own full disk
    with pytest.raises(DistdataError, match="the disk is full"):
        spool.got([answer(0, os.urandom(100_000))])
    with contextlib.suppress(OSError):  # what is still buffered has nowhere to go
        spool._file.close()
    real.close()
    state = reopened(path).state
    assert (state.answers, state.in_doubt_usd) == ([], {0: 0.25})
