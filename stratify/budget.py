"""What a person may spend on a plan: samples, GPU-hours or dollars."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from ..catalogs.errors import DistdataError
from ..catalogs.tables import usd

BudgetKind = Literal["samples", "gpuh", "usd"]
MAX_AMOUNT = 10**12

FORMS = "Write it as 20000samples, 400gpuh, 800usd or '$800'."
_UNITS: dict[str, BudgetKind] = {
    "sample": "samples",
    "samples": "samples",
    "draws": "samples",
    "gpuh": "gpuh",
    "gpu-h": "gpuh",
    "gpu-hours": "gpuh",
    "usd": "usd",
    "$": "usd",
}
_NUMBER = re.compile(r"(?P<number>[+-]?(?:\d[\d,_]*(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?|[+-]?(?:nan|inf(?:inity)?))", re.I)
_STEP = {"gpuh": 1000, "usd": 100}


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """An amount of one kind: kept samples, GPU-hours or US dollars; finite and above 0."""

    kind: BudgetKind
    amount: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.amount) or self.amount <= 0:
            raise DistdataError(f"budget: {self.amount:g} {self.kind} buys nothing; it must be above 0. {FORMS}")
        if self.amount > MAX_AMOUNT:
            raise DistdataError(
                f"budget: {self.amount:g} {self.kind} is more than the {MAX_AMOUNT:,} that can be planned. Leave "
                f"out some zeros: a plan that takes every draw there is needs no more than seeds x K samples. {FORMS}"
            )
        if self.kind == "samples" and self.amount != int(self.amount):
            raise DistdataError(f"budget: {self.amount:g} samples is no whole number. {FORMS}")

    def __str__(self) -> str:
        return _amount_text(self.kind, self.amount)

    def words(self, amount: float) -> str:
        """Say `amount` of this budget's kind to a person: ``$3.42``, ``1.25 GPU-hours``, ``12 samples``."""
        if self.kind == "usd":
            return usd(amount)
        if self.kind == "gpuh":
            digits = f"{amount:,.0f}" if amount >= 999.5 else f"{amount:.3g}"
            return f"{digits} GPU-hour{'' if digits == '1' else 's'}"
        return f"{amount:,.0f} sample{'' if amount == 1 else 's'}"

    def text_at_least(self, amount: float) -> str:
        """Write `amount` in this budget's kind, rounded up so that it suffices when typed back."""
        step = _STEP.get(self.kind, 1)
        return _amount_text(self.kind, math.ceil(amount * step - 1e-7) / step)


def parse_budget(text: str) -> Budget:
    """Read ``20000samples``, ``400gpuh``, ``800usd`` or ``$800``; commas, underscores and spaces may help the eye.

    Raises:
        DistdataError: no number, no unit, an unknown unit, an amount of 0, below 0, NaN or infinite, or a
            sample budget that is no whole number.
    """
    bare = text.strip().lower()
    dollar = bare.startswith(("$", "-$"))
    bare = bare.replace("$", "", 1).strip() if dollar else bare
    found = _NUMBER.match(bare)
    if found is None:
        raise DistdataError(f"budget {text!r}: no amount found. {FORMS}")
    number, unit = found.group("number").replace(",", "").replace("_", ""), bare[found.end() :].strip()
    if dollar and unit not in ("", "usd"):
        raise DistdataError(f"budget {text!r}: has two units, $ and {unit!r}. {FORMS}")
    if not unit and not dollar:
        raise DistdataError(f"budget {text!r}: {number} of what? {FORMS}")
    if not dollar and unit not in _UNITS:
        raise DistdataError(f"budget {text!r}: unknown unit {unit!r}. {FORMS}")
    amount = float(number)
    if not math.isfinite(amount) or amount <= 0:
        raise DistdataError(f"budget {text!r}: the amount must be a number above 0. {FORMS}")
    return Budget(kind="usd" if dollar else _UNITS[unit], amount=amount)


def _amount_text(kind: BudgetKind, amount: float) -> str:
    if kind == "samples":
        return f"{int(amount)}samples"
    if amount == int(amount):
        return f"{int(amount)}{kind}"
    return (f"{amount:.2f}" if kind == "usd" and round(amount, 2) == amount else f"{amount:.12g}") + kind
