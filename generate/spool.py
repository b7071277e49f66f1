"""The spool: what a running unit asked and got, so that a crash never pays for an answer twice.

One append-only file per running unit. A record is ``length u32 | crc32 u32 | JSON head | member bytes``;
a torn tail is cut off when the file is opened again. Three kinds of record:

- ``unit``: which task the records from here on belong to. Answers to another task (a retry that was
  interrupted before a repair) are not used, but what they cost is carried over;
- ``ask``: the positions of the draws about to be asked for and their expected price, synced to disk
  before the teacher sees them;
- ``got``: answers, several in one record where a micro-batch is computed as one.

An ``ask`` without its ``got`` is spend in doubt: the teacher may or may not have been paid.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..catalogs.effects import effect
from ..catalogs.files import disk_errors, sync_file, sync_folder

_FRAME = struct.Struct("<IQI")  # head bytes, body bytes, crc of both


@dataclass(slots=True, kw_only=True)
class Answer:
    """One spooled answer: encoded members of a draw, or the failure it ended in.

    `gpu_s` and `usd` are what this answer cost, whichever it is.
    """

    position: int
    members: list[tuple[str, bytes]] | None
    outcome: str | None = None
    failure: str | None = None
    reason: str | None = None
    gpu_s: float = 0.0
    usd: float = 0.0


@dataclass(slots=True)
class SpoolState:
    """What an earlier attempt left: its answers in order, and per position the dollars in doubt.

    `other_*` is what answers to other tasks in the same file cost; nothing else of them is of use.
    """

    answers: list[Answer] = field(default_factory=list)
    in_doubt_usd: dict[int, float] = field(default_factory=dict)
    other_gpu_s: float = 0.0
    other_usd: float = 0.0
    other_in_doubt_usd: float = 0.0


class Spool:
    """An open spool file; `state` holds what was in it."""

    def __init__(self, path: Path, task_key: str) -> None:
        self.path = path
        self.state = SpoolState()
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            end, ours = self._recover(task_key) if path.exists() else (0, False)
            self._file = open(path, "r+b" if path.exists() else "w+b")  # noqa: SIM115 - closed by close()
            self._file.truncate(end)
            self._file.seek(end)
            if not ours:
                self._append({"t": "unit", "key": task_key}, ())
                sync_folder(path.parent)  # or a power cut could take the file and every synced ask in it

    def ask(self, positions: Sequence[int], usd_each: float) -> None:
        """Record durably that these draws are about to be asked for."""
        self._append({"t": "ask", "i": list(positions), "usd": usd_each}, ())
        with disk_errors(self.path):
            sync_file(self._file)
        effect("spool.ask")

    def got(self, answers: Sequence[Answer]) -> None:
        """Record answers, all or none of them. Survives the death of the process at once."""
        heads: list[dict[str, Any]] = []
        body: list[bytes] = []
        for a in answers:
            heads.append(
                {
                    "i": a.position, "outcome": a.outcome, "failure": a.failure, "reason": a.reason,
                    "gpu_s": a.gpu_s, "usd": a.usd,
                    "members": None if a.members is None else [(n, len(b)) for n, b in a.members],
                }
            )  # fmt: skip
            body.extend(b for _, b in a.members or ())
        self._append({"t": "got", "a": heads}, body)
        effect("spool.got")

    def close(self) -> None:
        """Close the file and leave it for the next attempt."""
        self._file.close()

    def remove(self) -> None:
        """Delete the spool; call only after the unit's manifest is committed."""
        self._file.close()
        self.path.unlink(missing_ok=True)
        effect("spool.remove")

    def _append(self, head: dict[str, Any], body: Sequence[bytes]) -> None:
        text = json.dumps(head, separators=(",", ":")).encode()
        crc = zlib.crc32(text)
        for chunk in body:
            crc = zlib.crc32(chunk, crc)
        with disk_errors(self.path):
            self._file.write(_FRAME.pack(len(text), sum(map(len, body)), crc) + text + b"".join(body))
            self._file.flush()

    def _recover(self, task_key: str) -> tuple[int, bool]:
        """Read the intact records into `state`; return where they end, and whether the last task in there is ours."""
        end, ours = 0, False
        pending: dict[tuple[bool, int], float] = {}  # price of the latest ask of a position without an answer yet
        for stop, head, body in _records(self.path):
            end = stop
            if head["t"] == "unit":
                ours = head["key"] == task_key
                for key in [k for k in pending if not k[0]]:
                    self._doubt(key, pending.pop(key))
            elif head["t"] == "ask":
                for i in head["i"]:
                    self._doubt((ours, i), pending.pop((ours, i), 0.0))  # the one before was lost in a crash
                    pending[ours, i] = head["usd"]
            else:
                for answer in _answers(head["a"], body):
                    pending.pop((ours, answer.position), None)
                    self._heard(ours, answer)
        for key, usd in pending.items():
            self._doubt(key, usd)
        return end, ours

    def _heard(self, ours: bool, answer: Answer) -> None:
        if ours:
            self.state.answers.append(answer)
        else:
            self.state.other_gpu_s += answer.gpu_s
            self.state.other_usd += answer.usd

    def _doubt(self, key: tuple[bool, int], usd: float) -> None:
        ours, position = key
        if not ours:
            self.state.other_in_doubt_usd += usd
        elif usd:
            self.state.in_doubt_usd[position] = self.state.in_doubt_usd.get(position, 0.0) + usd


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """What a spool holds that nobody committed: good answers, and what they and all others cost."""

    n_good: int
    gpu_s: float
    known_usd: float
    in_doubt_usd: float


def leftover(paths: Iterable[Path]) -> Leftover:
    """Sum up the spools at `paths`, whatever tasks they belong to."""
    n_good, gpu_s, known, doubt = 0, 0.0, 0.0, 0.0
    for path in paths:
        pending: dict[int, float] = {}
        for _, head, body in _records(path):
            if head["t"] == "ask":
                for i in head["i"]:
                    doubt += pending.pop(i, 0.0)
                    pending[i] = head["usd"]
            elif head["t"] == "got":
                for answer in _answers(head["a"], body):
                    pending.pop(answer.position, None)
                    n_good += answer.members is not None
                    gpu_s, known = gpu_s + answer.gpu_s, known + answer.usd
        doubt += sum(pending.values())
    return Leftover(n_good=n_good, gpu_s=gpu_s, known_usd=known, in_doubt_usd=doubt)


def _answers(heads: list[dict[str, Any]], body: bytes) -> Iterator[Answer]:
    at = 0
    for h in heads:
        members = None
        if h["members"] is not None:
            members = []
            for name, n in h["members"]:
                members.append((name, body[at : at + n]))
                at += n
        yield Answer(position=h["i"], members=members, **{k: h[k] for k in _ANSWER_FIELDS})


_ANSWER_FIELDS = ("outcome", "failure", "reason", "gpu_s", "usd")


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any], bytes]]:
    """Yield (end offset, head, body) of every intact record from the start."""
    with open(path, "rb") as f:
        size = os.fstat(f.fileno()).st_size
        at = 0
        while at + _FRAME.size <= size:
            n_head, n_body, crc = _FRAME.unpack(f.read(_FRAME.size))
            stop = at + _FRAME.size + n_head + n_body
            if stop > size or n_head == 0:  # zeros, as a power cut leaves them, would pass the checksum
                return
            data = f.read(n_head + n_body)
            if zlib.crc32(data) != crc:
                return
            yield stop, json.loads(data[:n_head]), data[n_head:]
            at = stop
