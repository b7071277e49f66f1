"""Ask a teacher for a micro-batch without trusting it: it may raise, hang, answer too little or too much."""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, get_args, get_type_hints

from ..catalogs.errors import DistdataError
from ..catalogs.protocol import Draw, Failure, Request, Teacher

LOAD_S = 1800.0  # a large model may take this long to load before its first answer
RELOAD = 5.0  # a later load may take this many times as long as the first one, and a second more
MAX_REASON_CHARS = 500
_PLAIN_TEXT = (str, type(None))
_PLAIN_COST = (float, type(None))
FAILURES = get_args(get_type_hints(Failure)["kind"])


class Timed(NamedTuple):
    """An answer and the seconds since the batch was asked."""

    answer: Draw | Failure
    elapsed_s: float


class _Raised(NamedTuple):
    error: BaseException


_DONE = object()
_LOADED = object()


class Asker:
    """A teacher behind a thread of its own, so that a hanging call can be given up.

    A thread that hangs can't be stopped; it is left behind and a fresh teacher takes over. `n_hangs` counts
    the hangs since the last micro-batch that went well, so that the caller can stop trying.
    """

    def __init__(self, make: Callable[[], Teacher], timeout_s: float) -> None:
        self._make = make
        self._timeout_s = timeout_s
        self._teacher: Teacher | None = None
        self._line: _Line | None = None
        self._warm = False
        self._load_s = LOAD_S
        self.n_hangs = 0

    @property
    def teacher(self) -> Teacher:
        """The teacher in use, made on first use."""
        if self._teacher is None:
            self._teacher = self._make()
            self._warm = False
        return self._teacher

    def ask(self, requests: Sequence[Request]) -> Iterator[Timed]:
        """Yield exactly one answer per request as they arrive; what got none ends as a Failure.

        A DistdataError of the teacher (a missing model, a bad option) is the user's to solve and passes
        through; any other exception fails the requests that had no answer yet.
        """
        if self._line is None:
            self._line = _Line(self.teacher)
        answers = self._line.ask(requests)
        waiting = {(r.seed_id, r.k): r for r in requests}
        start = time.monotonic()
        deadline = start + self._timeout_s + (0.0 if self._warm else self._load_s)
        n_answered = 0
        while True:
            try:
                item = answers.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                self._give_up()
                reason = f"no answer within {self._timeout_s:g} s (teacher.timeout_s)"
                yield from _all_failed(waiting.values(), "timeout", reason, start)
                return
            if item is _LOADED:
                start = time.monotonic()  # loading is nobody's draw
                deadline = start + self._timeout_s
                continue
            if item is _DONE:
                break
            if isinstance(item, _Raised):
                if isinstance(item.error, DistdataError):
                    raise item.error
                reason = f"{type(item.error).__name__}: {item.error}"
                yield from _all_failed(waiting.values(), "error", reason, start)
                return
            elapsed = time.monotonic() - start
            deadline = start + elapsed + self._timeout_s
            assert isinstance(item, list), "answers come in lists"
            for answer in item:
                if not isinstance(answer, Draw | Failure):
                    reason = f"the teacher answered with a {type(answer).__name__}, not a Draw or Failure"
                    yield from _all_failed(waiting.values(), "error", reason, start)
                    return
                # an answer nobody asked for, or a second one, is dropped: the first answer counts
                if _names_a_draw(answer) and waiting.pop((answer.seed_id, answer.k), None) is not None:
                    n_answered += 1
                    yield Timed(checked(answer), elapsed)
        self.n_hangs = 0
        if not self._warm:
            self._warm = True
            self._load_s = min(self._load_s, RELOAD * (time.monotonic() - start) + 1.0)
        reason = f"the teacher answered {n_answered} of {len(requests)} requests; this one got nothing"
        yield from _all_failed(waiting.values(), "error", reason, start)

    def _give_up(self) -> None:
        self.n_hangs += 1
        self._teacher = self._line = None


class _Line:
    """One thread that talks to one teacher; it lives as long as the teacher answers."""

    def __init__(self, teacher: Teacher) -> None:
        self._teacher = teacher
        self._calls: queue.SimpleQueue[tuple[Sequence[Request], queue.SimpleQueue[object]]] = queue.SimpleQueue()
        threading.Thread(target=self._serve, daemon=True, name="teacher").start()

    def ask(self, requests: Sequence[Request]) -> queue.SimpleQueue[object]:
        """Hand over a micro-batch; its answers arrive one by one, or as a list where the teacher returns one."""
        answers: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._calls.put((requests, answers))
        return answers

    def _serve(self) -> None:
        loaded = not callable(getattr(self._teacher, "load", None))
        while True:
            requests, answers = self._calls.get()
            try:
                if not loaded:
                    self._teacher.load()  # type: ignore[attr-defined]
                    loaded = True
                    answers.put(_LOADED)
                said = self._teacher.sample(requests)
                if isinstance(said, list | tuple):
                    answers.put(list(said))
                else:
                    for item in said:
                        answers.put([item])
                answers.put(_DONE)
            except BaseException as e:  # whatever it is, the asking side must hear of it
                answers.put(_Raised(e))


def checked(answer: Draw | Failure) -> Draw | Failure:
    """Return an answer whose bookkeeping is sound: plain floats of at least 0, texts, members to store.

    What can't be put right makes a Failure of kind ``invalid`` that says what the teacher gave.
    """
    if isinstance(answer, Failure):
        usd, wrong = _cost("usd", answer.usd)
        kind = answer.kind if answer.kind in FAILURES else "error"
        reason = "; ".join(str(part) for part in (answer.reason, wrong) if part)
        return Failure(
            seed_id=answer.seed_id, k=answer.k, kind=kind, reason=reason[:MAX_REASON_CHARS], usd=usd
        )  # fmt: skip
    gpu_s, wrong_s = _cost("gpu_s", answer.gpu_s)
    usd, wrong_usd = _cost("usd", answer.usd)
    wrong = wrong_s or wrong_usd
    said: Any = answer.outcome
    if not wrong and not (said is None or isinstance(said, str)):
        wrong = f"outcome is a {type(said).__name__}, want text or None"
    members: Any = answer.members
    if not wrong and not (isinstance(members, Mapping) and members):
        wrong = f"members is a {type(members).__name__}, want a mapping with at least one member"
    if wrong:
        return Failure(seed_id=answer.seed_id, k=answer.k, kind="invalid", reason=wrong[:MAX_REASON_CHARS], usd=usd)
    if type(said) in _PLAIN_TEXT and type(answer.gpu_s) in _PLAIN_COST and type(answer.usd) in _PLAIN_COST:
        return answer  # nothing to put right, which is the rule
    outcome = None if said is None else str(said)
    return Draw(
        seed_id=answer.seed_id, k=answer.k, members=answer.members, outcome=outcome, gpu_s=gpu_s, usd=usd
    )  # fmt: skip


def _cost(name: str, value: object) -> tuple[float | None, str]:
    """Return a cost as a plain float, and what is wrong with it (nothing: an empty text)."""
    if value is None:
        return None, ""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, str) or not math.isfinite(number) or number < 0:
        return None, f"{name} is {value!r}, want a number of at least 0"
    return number, ""


def _names_a_draw(answer: Draw | Failure) -> bool:
    return isinstance(answer.seed_id, str) and isinstance(answer.k, int)


def _all_failed(requests: object, kind: str, reason: str, start: float) -> Iterator[Timed]:
    elapsed = time.monotonic() - start
    for r in list(requests):  # type: ignore[call-overload]
        yield Timed(Failure(seed_id=r.seed_id, k=r.k, kind=kind, reason=reason[:MAX_REASON_CHARS]), elapsed)  # type: ignore[arg-type]
