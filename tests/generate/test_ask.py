"""Asking a teacher that can't be trusted: every request gets exactly one answer, whatever the teacher does."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest

from distdata.catalogs.errors import DistdataError
from distdata.catalogs.protocol import Draw, Failure, Request, TeacherInfo
from distdata.generate import ask
from distdata.generate.ask import Asker

REQUESTS = [Request(seed_id=f"s{i}", k=0, rng_seed=i, axes={}, scenario="one", params={}) for i in range(4)]


class Scripted:
    """A teacher whose `sample` is the given function."""

    def __init__(self, sample: Callable[[Sequence[Request]], Iterable[Any]]) -> None:
        self._sample = sample

    def describe(self) -> TeacherInfo:
        return TeacherInfo(id="scripted", version="1", content_hash="00", kind="text")

    def sample(self, requests: Sequence[Request]) -> Iterable[Any]:
        return self._sample(requests)


def draw(r: Request, text: str = "first") -> Draw:
    return Draw(seed_id=r.seed_id, k=r.k, members={"a.txt": text})


def answers(sample: Callable[[Sequence[Request]], Iterable[Any]]) -> dict[str, Draw | Failure]:
    """Ask for all requests, assert that each got one answer, and return them by seed."""
    asker = Asker(lambda: Scripted(sample), timeout_s=30)
    got = [t.answer for t in asker.ask(REQUESTS)]
    assert sorted(a.seed_id for a in got) == [r.seed_id for r in REQUESTS], "one answer per request"
    assert asker.n_hangs == 0
    return {a.seed_id: a for a in got}


def test_an_exception_fails_only_what_had_no_answer() -> None:
    """Answers given before the teacher raised are kept; the others fail with the exception's name and text."""

    def sample(requests: Sequence[Request]) -> Iterable[Draw]:
        yield draw(requests[1])
        yield draw(requests[0])
        raise MemoryError("40 GB wanted")

    got = answers(sample)
    assert got["s0"] == draw(REQUESTS[0])
    assert got["s1"] == draw(REQUESTS[1])
    for seed in ("s2", "s3"):
        assert got[seed] == Failure(seed_id=seed, k=0, kind="error", reason="MemoryError: 40 GB wanted")


def test_an_exception_of_the_call_itself_fails_all() -> None:
    """A `sample` that raises at once fails every request; an overlong reason is cut at 500 characters."""

    def sample(_: Sequence[Request]) -> Iterable[Draw]:
        raise ValueError("x" * 1000)

    reasons = {a.reason for a in answers(sample).values() if isinstance(a, Failure)}
    assert reasons == {("ValueError: " + "x" * 1000)[:500]}


def test_the_teacher_goes_on_after_an_exception() -> None:
    """The next micro-batch is asked of the same teacher, which is made once."""
    made = []

    def make() -> Scripted:
        made.append(1)
        bad = [True]

        def sample(requests: Sequence[Request]) -> list[Draw]:
            if bad.pop() if bad else False:
                raise RuntimeError("once")
            return [draw(r) for r in requests]

        return Scripted(sample)

    asker = Asker(make, timeout_s=30)
    assert all(isinstance(t.answer, Failure) for t in asker.ask(REQUESTS))
    assert all(isinstance(t.answer, Draw) for t in asker.ask(REQUESTS))
    assert made == [1]


def test_too_few_answers_are_counted() -> None:
    """A request that the teacher passed over fails, and the reason says how many were answered."""
    got = answers(lambda requests: [draw(r) for r in requests[:3]])
    assert got["s3"] == Failure(
        seed_id="s3", k=0, kind="error", reason="the teacher answered 3 of 4 requests; this one got nothing"
    )


def test_the_first_of_two_answers_counts() -> None:
    """A second answer to a request and an answer to no request are dropped."""
    stranger = Draw(seed_id="nobody", k=0, members={"a.txt": "?"})
    other_k = Draw(seed_id="s0", k=9, members={"a.txt": "?"})
    got = answers(lambda rs: [stranger, other_k, *map(draw, rs), *(draw(r, "second") for r in rs)])
    assert got == {r.seed_id: draw(r) for r in REQUESTS}


def test_what_is_no_answer_fails_what_is_open() -> None:
    """Anything but a Draw or Failure ends the batch: its type is named, earlier answers are kept."""
    got = answers(lambda rs: [draw(rs[0]), "hello", *map(draw, rs[1:])])
    assert got["s0"] == draw(REQUESTS[0])
    reason = "the teacher answered with a str, not a Draw or Failure"
    assert [got[s].reason for s in ("s1", "s2", "s3") if isinstance(got[s], Failure)] == [reason] * 3


@pytest.mark.parametrize("said", [None, 7])
def test_an_answer_that_is_no_series_fails_the_batch(said: Any) -> None:
    """A `sample` that returns nothing, or a number, fails every request with Python's own words."""
    got = answers(lambda _: said)
    assert {a.kind for a in got.values() if isinstance(a, Failure)} == {"error"}
    assert all("not iterable" in a.reason for a in got.values() if isinstance(a, Failure))


def test_the_users_errors_pass_through() -> None:
    """A DistdataError of the teacher (no weights, a bad option) is raised, not turned into failed draws."""

    def sample(_: Sequence[Request]) -> Iterable[Draw]:
        raise DistdataError("weights.bin: not found")

    with pytest.raises(DistdataError, match=r"weights\.bin: not found"):
        list(Asker(lambda: Scripted(sample), timeout_s=30).ask(REQUESTS))


def test_a_hanging_teacher_is_given_up_and_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the deadline the open requests fail as timeouts, earlier answers are kept, and a fresh teacher answers."""
    monkeypatch.setattr(ask, "LOAD_S", 0.0)
    made = []
    release = threading.Event()

    def make() -> Scripted:
        made.append(1)
        first = len(made) == 1

        def sample(requests: Sequence[Request]) -> Iterable[Draw]:
            yield draw(requests[0])
            if first:
                release.wait(60)
            yield from map(draw, requests[1:])

        return Scripted(sample)

    asker = Asker(make, timeout_s=0.3)
    got = {t.answer.seed_id: t.answer for t in asker.ask(REQUESTS)}
    assert got["s0"] == draw(REQUESTS[0])
    reason = "no answer within 0.3 s (teacher.timeout_s)"
    assert [got[s] for s in ("s1", "s2", "s3")] == [
        Failure(seed_id=s, k=0, kind="timeout", reason=reason) for s in ("s1", "s2", "s3")
    ]
    assert asker.n_hangs == 1
    assert all(isinstance(t.answer, Draw) for t in asker.ask(REQUESTS))
    assert len(made) == 2
    release.set()


def test_loading_is_no_hang_the_first_time_and_bounded_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first answer may take the loading time on top; a teacher made again gets about what the first one took."""
    monkeypatch.setattr(ask, "LOAD_S", 60.0)
    hang = threading.Event()
    release = threading.Event()

    def sample(requests: Sequence[Request]) -> Iterable[Draw]:
        release.wait(60 if hang.is_set() else 0.3)  # 0.3 s of loading, three times the timeout
        return map(draw, requests)

    asker = Asker(lambda: Scripted(sample), timeout_s=0.1)
    assert all(isinstance(t.answer, Draw) for t in asker.ask(REQUESTS))
    hang.set()
    for n in (1, 2):  # the second of these is asked of a teacher that was just made: 60 s more would hang this test
        assert {t.answer.kind for t in asker.ask(REQUESTS) if isinstance(t.answer, Failure)} == {"timeout"}
        assert asker.n_hangs == n
    release.set()


def test_answers_of_a_generator_arrive_one_by_one() -> None:
    """What a generator yields is handed on while the teacher still works on the rest."""
    go_on = threading.Event()

    def sample(requests: Sequence[Request]) -> Iterable[Draw]:
        for r in requests:
            yield draw(r)
            assert go_on.wait(60)  # only the arrival of the first answer lets it go on

    seen = []
    for timed in Asker(lambda: Scripted(sample), timeout_s=30).ask(REQUESTS):
        seen.append(timed)
        go_on.set()
    assert [t.answer.seed_id for t in seen] == ["s0", "s1", "s2", "s3"]
    assert [t.elapsed_s for t in seen] == sorted(t.elapsed_s for t in seen)
