"""What an ingest did: counts, and per reason how many rows were refused, the first of them, and what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

Say = Callable[[str], None]
"""Hears how long work goes on."""


class Refused(NamedTuple):
    """Why a row is not taken: the reason that it shares with others, its own facts, and what to do about it."""

    reason: str
    example: str
    advice: str


@dataclass(slots=True, kw_only=True)
class Refusal:
    """All rows that were refused for one reason: how many, where the first is, what is wrong with it, what to do."""

    reason: str
    n_rows: int
    first_row: str
    example: str
    advice: str


@dataclass(slots=True)
class Refusals:
    """Refused rows, grouped by reason in the order in which the reasons came up."""

    groups: dict[str, Refusal] = field(default_factory=dict)

    def add(self, place: str, refused: Refused) -> None:
        """Count one more row at `place`."""
        group = self.groups.get(refused.reason)
        if group is None:
            self.groups[refused.reason] = Refusal(
                reason=refused.reason, n_rows=1, first_row=place, example=refused.example, advice=refused.advice
            )
        else:
            group.n_rows += 1

    def extend(self, others: Iterable[Refusal]) -> None:
        """Add what another file had refused."""
        for other in others:
            group = self.groups.get(other.reason)
            if group is None:
                self.groups[other.reason] = Refusal(**asdict(other))
            else:
                group.n_rows += other.n_rows

    @property
    def n_rows(self) -> int:
        """How many rows were refused."""
        return sum(g.n_rows for g in self.groups.values())

    def rows(self) -> list[dict[str, Any]]:
        """Return the groups as the catalog's table `refusals` has them; advice goes with the example."""
        return [
            {"reason": g.reason, "n_rows": g.n_rows, "first_row": g.first_row, "example": f"{g.example} {g.advice}"}
            for g in self.groups.values()
        ]


@dataclass(slots=True, kw_only=True)
class IngestResult:
    """What an ingest read and did.

    `n_taken` of `n_rows` rows are new in the catalog, `n_known` were there already, `n_refused` were refused.
    `n_credit` of the taken ones lower what a plan buys; `n_new_seeds` conditions were new. `notes` are worth a line
    each; `corrects` are the cases that clean samples correct. Of a dry run, the numbers say what would be.
    """

    kind: str
    sources: list[str] = field(default_factory=list)
    n_rows: int = 0
    n_taken: int = 0
    n_known: int = 0
    n_credit: int = 0
    n_new_seeds: int = 0
    refusals: Refusals = field(default_factory=Refusals)
    notes: list[str] = field(default_factory=list)
    corrects: list[str] = field(default_factory=list)
    dry_run: bool = False

    @property
    def n_refused(self) -> int:
        """How many rows were refused."""
        return self.refusals.n_rows

    def add(self, other: IngestResult) -> None:
        """Add what another file brought."""
        self.sources += other.sources
        for name in ("n_rows", "n_taken", "n_known", "n_credit", "n_new_seeds"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.refusals.extend(other.refusals.groups.values())
        self.notes += other.notes
        self.corrects += other.corrects

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain data."""
        data = asdict(self)
        data["refusals"] = list(data["refusals"]["groups"].values())
        return {**data, "n_refused": self.n_refused}

    def lines(self) -> list[str]:
        """Say in words what happened: the counts, then one line per reason for a refusal, then the notes."""
        what, done = _WORDS.get(self.kind, "samples"), "closed" if self.kind == CLOSED else "taken"
        facts = [f"{self.n_taken:,} of {self.n_rows:,} {what} {'would be ' if self.dry_run else ''}{done}"]
        if self.n_known and self.kind == CLOSED:
            facts.append(f"{self.n_known:,} were over already")
        elif self.n_known:
            facts.append(f"{self.n_known:,} were here already or came twice")
        if self.kind in CREDIT_KINDS:
            facts.append(f"{self.n_credit:,} count as credit")
        if self.n_new_seeds:
            facts.append(f"{self.n_new_seeds:,} new seeds outside the frame")
        if self.n_refused:
            facts.append(f"{self.n_refused:,} refused")
        lines = [f"{', '.join(self.sources) or self.kind}: {'; '.join(facts)}."]
        lines += [
            f"  refused, {g.n_rows:,}: {g.reason}. First: {g.first_row}: {g.example} {g.advice}"
            for g in self.refusals.groups.values()
        ]
        return lines + [f"  {note}" for note in self.notes]


CREDIT_KINDS = ("golden", "audit", "arbitration")
CLOSED = "closed"
_WORDS = {"rejects": "verdicts", "divergence": "cases", CLOSED: "cases", "clean": "clean samples"}
