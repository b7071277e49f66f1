"""Budgets as people write them."""

import pytest

from distdata.catalogs.errors import DistdataError
from distdata.stratify.budget import Budget, parse_budget


@pytest.mark.parametrize(
    ("text", "kind", "amount"),
    [
        ("20000samples", "samples", 20000),
        ("20,000 samples", "samples", 20000),
        ("20_000Samples", "samples", 20000),
        ("1e6samples", "samples", 1_000_000),
        ("400gpuh", "gpuh", 400),
        ("0.5 GPU-hours", "gpuh", 0.5),
        (".5gpuh", "gpuh", 0.5),
        ("$800", "usd", 800),
        ("$1,234.50", "usd", 1234.5),
        ("800usd", "usd", 800),
        ("800$", "usd", 800),
    ],
)
def test_the_documented_forms_are_read(text: str, kind: str, amount: float) -> None:
    """Each form gives its kind and amount, whatever the case, spaces and digit separators."""
    budget = parse_budget(text)
    assert (budget.kind, budget.amount) == (kind, amount)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("0samples", "above 0"),
        ("-5usd", "above 0"),
        ("-$5", "above 0"),
        ("$-5", "above 0"),
        ("nan samples", "above 0"),
        ("infusd", "above 0"),
        ("1e999gpuh", "above 0"),
        ("20000", "of what?"),
        ("samples", "no amount"),
        ("", "no amount"),
        ("$", "no amount"),
        ("5 euros", "unknown unit 'euros'"),
        ("5kgpuh", "unknown unit 'kgpuh'"),
        ("$5gpuh", "two units"),
        ("2.5samples", "no whole number"),
    ],
)
def test_bad_budgets_are_refused_with_the_forms_that_work(text: str, reason: str) -> None:
    """A bad budget is a DistdataError that says what is wrong and shows all four forms."""
    with pytest.raises(DistdataError, match=r"20000samples, 400gpuh, 800usd or '\$800'") as caught:
        parse_budget(text)
    assert reason in str(caught.value)


@pytest.mark.parametrize("text", ["1e30samples", "$1e300", "1000000000001samples", "2e12gpuh"])
def test_absurdly_large_budgets_are_refused_with_the_limit(text: str) -> None:
    """What no catalog could use is an error with the amount, the limit of 10^12 and the way out."""
    with pytest.raises(
        DistdataError, match=r"is more than the 1,000,000,000,000 that can be planned.*seeds x K samples"
    ):
        parse_budget(text)
    assert parse_budget("1e12samples").amount == 1e12


@pytest.mark.parametrize(
    ("kind", "amount", "text"),
    [
        ("samples", 1200.0, "1200samples"),
        ("usd", 12.3401, "12.35usd"),  # up to the next cent
        ("usd", 0.1 + 0.2, "0.30usd"),  # 0.30000000000000004 is rounding, not a fraction of a cent
        ("usd", 12.0, "12usd"),
        ("gpuh", 0.00012, "0.001gpuh"),
        ("gpuh", 3.5, "3.5gpuh"),
    ],
)
def test_the_smallest_sufficient_budget_can_be_typed_back(kind: str, amount: float, text: str) -> None:
    """`text_at_least` rounds up to a step of its unit, and `parse_budget` reads it back as no less."""
    budget = Budget(kind=kind, amount=1)  # type: ignore[arg-type]
    assert budget.text_at_least(amount) == text
    assert parse_budget(text).amount >= amount - 1e-9


def test_a_budget_prints_as_it_is_typed() -> None:
    """The text of a budget is one of the forms, so that messages can be copied."""
    for text in ("20000samples", "400gpuh", "800usd", "12.50usd", "0.25gpuh"):
        assert str(parse_budget(text)) == text
