"""A gate on a terminal: verdicts and scores at their places, intervals drawn to scale, reasons told, widths kept."""

import polars as pl
import pytest

from distdata.catalogs.gate_scale import GateRow, band_words, by_slice, gate_rows_of, worst_of
from distdata.catalogs.gate_table import DRAWING, drawing, gate_table, routing_table

SCHEMA = {
    "slice": pl.String, "metric": pl.String, "contrast": pl.String, "n_seeds": pl.Int64, "n_draws": pl.Int64,
    "estimate": pl.Float64, "low": pl.Float64, "high": pl.Float64, "band": pl.Float64, "side": pl.String,
    "verdict": pl.String, "reason": pl.String, "needed_draws": pl.Int64,
}  # fmt: skip
ROWS = [
    ("day,clear", "outcome", "a | b", 40, 320, 0.02, -0.03, 0.05, 0.1, "both", "pass", "", None),
    ("day,clear", "control", "slope", 40, 320, 1.05, 0.9, 1.15, 0.2, "both", "pass", "", None),
    ("day,clear", "cost", "gpu_s", 40, 320, 0.1, None, None, None, "none", "undecided", "information only", None),
    (
        "fog,dusk",
        "outcome",
        "all",
        12,
        96,
        None,
        None,
        None,
        0.1,
        "both",
        "undecided",
        "12 seeds; a gate needs 20",
        160,
    ),
    ("night,rain", "outcome", "a | b", 40, 320, 0.05, 0.01, 0.08, 0.1, "both", "pass", "", None),
    ("night,rain", "outcome", "hit | rest", 40, 320, 0.21, 0.15, 0.27, 0.1, "both", "fail", "", None),
    ("night,rain", "recall", "hit", 40, 320, 0.3, 0.2, 0.4, 0.5, "lower", "fail", "", None),
]


def _frame(rows: list[tuple[object, ...]] = ROWS) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def _row(**changes: object) -> GateRow:
    base = {
        "slice": "s", "metric": "outcome", "contrast": "c", "n_seeds": 40, "n_draws": 320, "estimate": 0.0,
        "low": -0.05, "high": 0.05, "band": 0.1, "side": "both", "verdict": "pass",
    }  # fmt: skip
    return GateRow(**(base | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "place", "score", "words"),
    [
        ({"estimate": -0.05, "low": -0.1, "high": 0.02}, (-0.5, -1.0, 0.2), 0.5, "within ±0.1"),
        ({"side": "upper", "estimate": -0.05}, (-0.5, -0.5, 0.5), 0.0, "at most 0.1"),
        ({"side": "lower", "metric": "valid", "estimate": -0.04, "low": -0.06, "high": 0.0}, (0.4, 0.0, 0.6), 0.4,
         "at least -0.1"),
        ({"side": "lower", "metric": "recall", "band": 0.5, "estimate": 0.75, "low": 0.5, "high": 1.0}, (0.5, 0.0, 1.0),
         0.5, "at least 0.5"),
        ({"metric": "control", "band": 0.2, "estimate": 1.1, "low": 0.8, "high": 1.2}, (0.5, -1.0, 1.0), 0.5,
         "0.8 to 1.2"),
    ],
)  # fmt: skip
def test_all_metrics_on_one_scale(
    changes: dict[str, object], place: tuple[float, float, float], score: float, words: str
) -> None:
    """1 is the edge of the band on the harmful side, whichever way a metric counts and whatever it counts from."""
    row = _row(**changes)
    assert row.place == pytest.approx(place)
    assert row.score == pytest.approx(score)
    assert band_words(row) == words


def test_the_worst_decides() -> None:
    """A fail beats an undecided row and that a pass, then the larger share of the band; information doesn't count."""
    failed, unsure = _row(verdict="fail", estimate=0.11), _row(verdict="undecided", estimate=0.5)
    assert worst_of([_row(), unsure, failed]) is failed
    assert worst_of([_row(estimate=0.01), worse := _row(estimate=-0.09)]) is worse
    assert worst_of([_row(side="none")]) is None
    assert [name for name, _ in by_slice(gate_rows_of(_frame()))] == ["night,rain", "fog,dusk", "day,clear"]


def test_slices_by_metrics() -> None:
    """The worst slice stands first; 0.21 of a band of 0.1 is 2.10, recall 0.3 is (1 - 0.3) / (1 - 0.5) = 1.40."""
    lines = gate_table(_frame(), width=100, color=False).split("\n")
    assert lines[0].split() == ["slice", "outcome", "control", "recall"]
    assert [line.split() for line in lines[1:4]] == [
        ["night,rain", "✗", "2.10", "·", "✗", "1.40"],
        ["fog,dusk", "?", "–", "·", "·"],
        ["day,clear", "✓", "0.20", "✓", "0.25", "·"],
    ]
    assert "cost" not in lines[0]


def test_fails_are_drawn_and_undecided_explained() -> None:
    """The failed slice's worst contrast has numbers, band and drawing; the undecided one its reason and the way out."""
    text = gate_table(_frame(), width=120, color=False)
    assert "  night,rain  outcome hit | rest: 0.21 (0.15 to 0.27), within ±0.1  -------[------|------]" in text
    assert "  fog,dusk: outcome: 12 seeds; a gate needs 20; 160 draws a side would settle it" in text
    assert "day,clear:" not in text


def test_a_drawing_is_to_scale() -> None:
    """29 characters from -2 to 2 bands, 7 a band: -1, 0, 1 stand at 7, 14, 21, and 0.5 to 1.5 at 18 to 24.

    An end beyond 2 bands is an arrow, and so is an estimate; one-sided rows go from 0 to 2, 14 characters a band.
    """
    inside = drawing(_row(estimate=0.1, low=0.05, high=0.15))
    assert len(inside) == DRAWING
    assert (inside[7], inside[14]) == ("[", "|")
    assert (inside[21], inside.index("="), inside.rindex("=")) == ("o", 18, 24)
    assert drawing(_row(estimate=0.15, low=0.12, high=0.9))[24:] == "o===>"
    assert drawing(_row(estimate=-0.9, low=-1.0, high=-0.16))[:5] == "<===-"
    one = drawing(_row(side="upper", estimate=0.05, low=0.0, high=0.1))
    assert (one.index("o"), one.index("]"), "[" in one) == (7, 14, False)
    assert drawing(_row(estimate=None)).replace("-", "") == "[|]"


@pytest.mark.parametrize("width", [30, 44, 60, 100])
def test_widths_are_kept(width: int) -> None:
    """No line is wider than the terminal from 30 columns on; metrics without room follow below, and none is lost."""
    many = [
        ("a_rather_long_slice,with_rain,at_night", f"metric_{i}", "left | right", 40, 320, 0.21, 0.15, 0.27, 0.1,
         "both", "fail", "", None) for i in range(9)
    ]  # fmt: skip
    text = gate_table(_frame([*ROWS, *many]), width=width, color=False)
    assert max(len(line) for line in text.split("\n")) <= width
    assert all(f"metric_{i}" in text for i in range(9))


def test_colour_and_names_that_lie() -> None:
    """Colours only where asked for; a name that holds control codes or markup prints as text."""
    bad = [("x\x1b[31m[red]", *ROWS[5][1:])]
    plain = gate_table(_frame(bad), width=80, color=False)
    assert "\x1b" not in plain
    assert "[red]" in plain
    coloured = gate_table(_frame(), width=80, color=True)
    assert "\x1b[1;31m  ✗ 2.10" in coloured
    assert "\x1b[32m  ✓ 0.20" in coloured


def test_many_slices_are_counted() -> None:
    """Of 50 passing slices 40 are listed, the others counted."""
    many = [(f"s{i:02d}", *ROWS[0][1:]) for i in range(50)]
    text = gate_table(_frame(many), width=80, color=False)
    assert text.count("✓") == 40
    assert "… 10 more slices, none of them worse" in text
    assert gate_table(_frame([]), width=80, color=False) == "No gate rows."


def test_routes_say_who_answers() -> None:
    """A line per slice: student, share of the traffic, who has the rest, for how long it is trusted, and why."""
    routes = [
        {"slice": "day", "student_id": "0123456789ab", "share": 0.05, "fallback": "teacher", "horizon_s": 3.2,
         "reason": "canary"},
        {"slice": "fog", "student_id": None, "share": 0.0, "fallback": "teacher", "horizon_s": None, "reason": "red"},
    ]  # fmt: skip
    lines = routing_table(routes, width=80, color=False).split("\n")
    assert lines[2].split() == ["day", "01234567", "5%", "teacher", "3.2s", "canary"]
    assert lines[3].split() == ["fog", "–", "0%", "teacher", "–", "red"]
