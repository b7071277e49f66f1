"""The cost table: how its figures are written and laid out."""

import json
import re

import pytest

from distdata.catalogs.cost_table import CostRow, CostTable, cost_words, figure, quantity

ROWS = (
    CostRow(
        key="generation_gpuh", section="generation", label="generation", formula="50,000 draws x 18 GPU-h",
        value=900_000.0, unit="GPU-h", source="given",
    ),
    CostRow(
        key="training_h", section="training", label="wall time", value=35.15625, unit="h", source="given",
        formula="on 512 GPUs at 0.4 PFLOP/s, and some more words so that this line does not fit", rounded="36 h",
    ),
    CostRow(
        key="payback", section="serving", label="pays", formula="it saves nothing", value=None, unit="GPU-h",
        source="measured",
    ),
)  # fmt: skip
TABLE = CostTable(rows=ROWS, notes=("A note that is said below the table, in as many lines as it takes.",))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.0005, "0.0005"),
        (0.015, "0.015"),
        (1.7, "1.7"),
        (9.996, "10"),
        (35.15625, "35.2"),
        (50.0, "50"),
        (99.96, "100"),
        (187.3, "187"),
        (900_000, "900,000"),
        (999_999_999, "999,999,999"),
        (7.2e11, "7.2e11"),
        (2.592e22, "2.592e22"),
        (1e9, "1e9"),
    ],
)
def test_figures(value: float, text: str) -> None:
    """Numbers keep three digits or all whole ones; from 1e9 on they are written with an exponent."""
    assert figure(value) == text


def test_units() -> None:
    """Dollars stand in front, x and :1 right behind, other units after a space."""
    assert [quantity(2, u) for u in ("$", "$/GPU-h", "x", ":1", "h", "")] == [
        "$2.00", "$2.00/GPU-h", "2x", "2:1", "2 h", "2",
    ]  # fmt: skip


@pytest.mark.parametrize("width", [50, 80, 120, 160])
def test_every_word_at_every_width(width: int) -> None:
    """Whatever the width: every label, value, source, formula and note is there, and no line is wider."""
    text = cost_words(TABLE, width, False)
    assert max(map(len, text.split("\n"))) <= width
    flat = re.sub(r"\s+", " ", text)
    for row in ROWS:
        assert f"{row.label} {row.text} " in flat
        assert row.source in flat
    assert "36 h given" in flat
    letters = re.sub(r"\s", "", text)
    assert all(re.sub(r"\s", "", part) in letters for part in (*(r.formula for r in ROWS[::2]), *TABLE.notes))
    assert all(word in flat for word in ROWS[1].formula.split())
    assert "pays never" in flat


def test_sections_in_order() -> None:
    """Sections come in the order of the programme, whatever the order of the rows."""
    text = cost_words(CostTable(rows=ROWS[::-1]), 120, False)
    assert [line for line in text.split("\n") if line and not line.startswith(" ")] == [
        "generation", "training", "serving",
    ]  # fmt: skip


def test_colour_changes_no_letter() -> None:
    """In colour the table is the same text with escapes."""
    colour = cost_words(TABLE, 100, True)
    assert "\x1b[" in colour
    assert re.sub(r"\x1b\[[0-9;]*m", "", colour) == cost_words(TABLE, 100, False)


def test_machines_get_the_whole_numbers() -> None:
    """The form for --json survives json and keeps values unrounded, with None where there is no number."""
    data = json.loads(json.dumps(TABLE.as_dict()))
    assert [row["value"] for row in data["rows"]] == [900_000.0, 35.15625, None]
    assert data["rows"][1]["rounded"] == "36 h"
    assert data["notes"] == list(TABLE.notes)


def test_unknown_row() -> None:
    """Asking for a line that isn't there is an error, not a zero."""
    with pytest.raises(KeyError):
        TABLE.row("nothing")


def test_empty_table() -> None:
    """No rows, no notes: no text, no error."""
    assert cost_words(CostTable(rows=()), 80, False) == ""
