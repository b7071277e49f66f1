"""Terminal tables: every expected text is worked out by hand in a comment beside it."""

from __future__ import annotations

import datetime
import re
from decimal import Decimal

import pytest

from distdata.catalogs.slice_names import short_names
from distdata.catalogs.tables import (
    CoverageCell,
    PlanRow,
    bar,
    count,
    coverage_table,
    duration,
    level,
    percent,
    plan_table,
    render_rows,
    size,
    usd,
)


def plan_row(slice_: str, scenario: str, weight: float, buy: int, band: float = 0.1, have: int = 0) -> PlanRow:
    return PlanRow(
        slice=slice_, scenario=scenario, band=band, weight=weight, target=buy + have, have=have, buy=buy, usd=buy * 0.5
    )


def coverage_cell(slice_: str, scenario: str, kept: int, target: int, **more: object) -> CoverageCell:
    return CoverageCell(slice=slice_, scenario=scenario, layer="core", kept=kept, target=target, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "maximum", "width", "drawn"),
    [
        (8, 8, 3, "███"),
        (4, 8, 3, "█▌"),  # 1.5 characters = one full and four eighths
        (5, 8, 2, "█▎"),  # 1.25 characters = one full and two eighths
        (1, 8, 1, "▏"),
        (1, 100_000, 10, "▏"),  # rounds to nothing, but what is there shows
        (99, 8, 2, "██"),  # more than the maximum stays inside
        (0, 8, 3, ""),
        (5, 0, 3, ""),
        (float("nan"), 8, 3, ""),
    ],
)
def test_bar_is_drawn_to_an_eighth_of_a_character(value: float, maximum: float, width: int, drawn: str) -> None:
    """A bar's length is value / maximum of its width, rounded to eighths."""
    assert bar(value, maximum, width) == drawn


def test_only_a_complete_cell_gets_the_full_block() -> None:
    """Level blocks: nothing is a dot, all is the full block, and 99% is not all."""
    assert [level(k, 100) for k in (0, 1, 50, 99, 100, 140)] == ["·", "▁", "▄", "▇", "█", "█"]
    assert level(1, 0) == "·"


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [(0, 7, "0%"), (1, 1000, "<1%"), (2, 3, "66%"), (999, 1000, "99%"), (7, 7, "100%"), (29, 100, "29%"), (1, 0, "–")],
)
def test_percent_never_claims_more_than_is_there(part: int, whole: int, text: str) -> None:
    """Shares round down (0.29 stays 29 despite binary fractions), so 100% means all."""
    assert percent(part, whole) == text


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0, "$0"),
        (0.0123, "$0.0123"),
        (0.00020004, "$0.0002"),
        (0.0999, "$0.0999"),
        (0.09999, "$0.10"),
        (0.5, "$0.50"),
        (12.345, "$12.35"),
        (999.994, "$999.99"),
        (999.996, "$1,000"),
        (1_800_000, "$1,800,000"),
        (-1.2, "-$1.20"),
        (1e-9, "<$0.000001"),
        (float("nan"), "unknown"),
    ],
)
def test_dollars_keep_the_digits_that_matter(amount: float, text: str) -> None:
    """Whole dollars from a thousand on, cents in between, three digits for prices of single draws."""
    assert usd(amount) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.44, "0.4s"),
        (9.96, "10s"),
        (59.4, "59s"),
        (59.6, "1m00s"),
        (95, "1m35s"),
        (3599.6, "1h00m"),
        (11_220, "3h07m"),
        (86_399, "1d00h"),
        (187_200, "2d04h"),
        (-95, "-1m35s"),
        (float("inf"), "unknown"),
    ],
)
def test_durations_carry_over_when_they_round_up(seconds: float, text: str) -> None:
    """A span reads in its two largest units, and 59.6 s is a minute, not 60 s."""
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(999, "999 B"), (1500, "1.5 kB"), (9_960, "10 kB"), (999_600, "1.0 MB"), (256_000_000, "256 MB")],
)
def test_sizes_use_powers_of_a_thousand(n_bytes: int, text: str) -> None:
    """Sizes keep two digits and move to the next unit when they round up to it."""
    assert size(n_bytes) == text


def test_count_separates_thousands() -> None:
    """Counts read in groups of three digits."""
    assert count(12345) == "12,345"


def test_query_results_align_numbers_and_leave_identifiers_alone() -> None:
    """Numbers stand right with separators, seeds and ids without, None is blank; a bool is not a number."""
    rows = [
        ("a", 12345, 12345, True, None, Decimal("2.50")),
        ("bb", 7, 9, False, datetime.datetime(2026, 1, 2, 3, 4, 5), 1234567.891),
    ]
    text = render_rows(["name", "n", "rng_seed", "ok", "made", "usd"], rows, width=80, color=False)
    assert text.split("\n") == [
        "name       n  rng_seed  ok     made                          usd",
        "─" * 64,
        "a     12,345     12345  true                                 2.5",
        "bb         7         9  false  2026-01-02 03:04:05  1,234,567.89",
    ]


def test_query_results_count_what_they_leave_out() -> None:
    """Rows past the limit and columns past the terminal's edge are counted, numbers are never cut."""
    rows = ((i, "x" * 50, i * 10**9) for i in range(1, 1003))
    lines = render_rows(["n", "text", "big"], rows, width=30, color=False, max_rows=2).split("\n")
    # 30 columns hold 1 + 2 + 14 ("2,000,000,000" is 13 wide): text is cut to 30 - 1 - 13 - 4 = 12
    assert lines[2] == "1  xxxxxxxxxxx…  1,000,000,000"
    assert lines[-1] == "… 1,000 more rows"
    lines = render_rows(["n", "text", "big"], [(1, "x" * 50, 10**12)], width=20, color=False).split("\n")
    assert lines[2] == "1  " + "x" * 16 + "…"
    assert lines[3].startswith("… 1 more column")


def test_text_from_data_can_not_steer_the_terminal_or_the_styling() -> None:
    """Escape codes, line breaks and markup in a value are shown, not obeyed."""
    text = render_rows(["a"], [("\x1b[31m[bold]x[/bold]\ny",)], width=60, color=False)
    assert "\x1b" not in text
    assert text.split("\n")[2] == "�[31m[bold]x[/bold]↵y"


def test_colour_is_only_added_on_request() -> None:
    """Without colour there is no escape code; with it the text stays the same."""
    rows = [plan_row("night", "cut_in", 1, 10)]
    plain, coloured = (plan_table(rows, width=80, color=c) for c in (False, True))
    assert "\x1b" not in plain
    assert "\x1b[36m" in coloured
    bare = re.sub(r"\x1b\[[\d;]*m", "", coloured)
    assert [line.rstrip() for line in bare.split("\n")] == plain.split("\n")


def test_wide_characters_take_two_columns() -> None:
    """East Asian text is aligned by what it takes on screen."""
    lines = render_rows(["t", "n"], [("日本", 1), ("abcd", 2)], width=40, color=False).split("\n")
    assert lines[2:] == ["日本  1", "abcd  2"]


def test_a_small_plan_shows_every_cell_in_order_of_weight() -> None:
    """Slices fall by their total weight, cells inside by their own; the bars compare what is bought."""
    rows = [
        plan_row("day", "cut_in", 1.0, 25),
        plan_row("night", "cut_in", 2.0, 50, band=0.05, have=3),
        plan_row("night", "crossing", 3.0, 100, band=0.04),
    ]
    lines = plan_table(rows, width=70, color=False).split("\n")
    assert [line.split() for line in lines[2:5]] == [
        # the columns take 5 + 8 + 4 + 6 + 4 + 3 + 6 and 7 gaps of 2 = 50 of 70: the bars get 20, 10 and 5
        ["night", "crossing", "0.04", "100", "0", "100", "$50.00", "█" * 20],
        ["cut_in", "0.05", "53", "3", "50", "$25.00", "█" * 10],
        ["day", "cut_in", "0.1", "25", "0", "25", "$12.50", "█" * 5],
    ]
    assert lines[-1].split() == ["total", "178", "3", "175", "$87.50"]
    assert max(map(len, lines)) <= 70


def test_a_large_plan_shows_slices_and_counts_the_rest() -> None:
    """Past the line limit cells are added up per slice, bands become a range and the remaining slices one line."""
    rows = [
        plan_row(f"s{i:03d}", name, 100 - i, 10, band=band)
        for i in range(40)
        for name, band in (("a", 0.04), ("b", 0.12))
    ]
    lines = plan_table(rows, width=80, color=False, max_lines=24).split("\n")
    assert lines[2].split()[:7] == ["s000", "2", "0.04–0.12", "20", "0", "20", "$10.00"]
    assert sum(line.startswith("s0") for line in lines) == 24
    assert "total" in lines[-2]
    assert "800" in lines[-2]  # 80 cells x 10, the hidden ones included
    assert lines[-1] == "… and 16 more slices, buying 320"
    assert max(map(len, lines)) <= 80


def test_a_plan_without_cells_says_so() -> None:
    """An empty plan is a sentence, not an empty table."""
    assert plan_table([], width=80, color=False) == "the plan has no cells"


def test_coverage_shows_before_and_after_and_the_worst_slice_first() -> None:
    """Blocks for before and now, shares rounded down, what can't occur marked, totals over feasible cells."""
    cells = [
        coverage_cell("day", "a", 10, 10, kept_before=5),
        coverage_cell("day", "b", 1, 3, kept_before=0),
        coverage_cell("night", "a", 0, 10, kept_before=0),
        coverage_cell("night", "b", 0, 0, feasible=False, reason="no"),
    ]
    lines = coverage_table(cells, "Coverage", width=80, color=False).split("\n")
    assert lines[0] == "Coverage"
    assert [line.split() for line in lines[3:5]] == [
        ["night", "··", "0%", "×", "10"],
        ["day", "▄█", "100%", "·▃", "33%", "2"],  # 5/10 of 7 steps = 3.5 -> ▄, 1/3 of 7 = 2.3 -> ▃
    ]
    assert lines[6].split() == ["all", "50%", "33%", "12"]  # (10 + 0) / 20, 1 / 3, 10 + 2


def test_coverage_fits_narrow_terminals_and_many_scenario_types() -> None:
    """Names give way to letters with a key, then percentages go, then scenarios are counted; the width holds."""
    cells = [coverage_cell("night,rain", f"scenario_number_{i}", i, 12) for i in range(12)]
    for width in (40, 60, 80, 120):
        text = coverage_table(cells, "Coverage", width=width, color=False)
        assert max(map(len, text.split("\n"))) <= width
    assert "A scenario_number_0" in coverage_table(cells, "Coverage", width=80, color=False)
    # 200 columns: twelve of 8 + 2 and the names fit, stacked at the underscores
    assert "scenario" in coverage_table(cells, "Coverage", width=200, color=False).split("\n")[1]
    crowded = [coverage_cell("night,rain", f"s{i}", i, 40) for i in range(40)]
    # 40 wide: 40 - 7 - 2 - 10 leave 21 = 5 scenarios of 2 + 2
    assert "… and 35 more scenario types" in coverage_table(crowded, "Coverage", width=40, color=False)


def test_the_plan_of_many_axes_shows_what_is_bought_first() -> None:
    """Slices in which nothing is wanted come last, whatever their weight; long names are cut to what differs."""
    middle = ",".join(["value"] * 20)
    rows = [plan_row(f"{a},{middle},{b}", "s", 9 - i, i % 2) for i, (a, b) in enumerate(["xk", "yk", "xm", "ym"])]
    lines = plan_table(rows, width=60, color=False).split("\n")
    # weights 9 to 6; the second and the fourth are bought
    assert [line.split()[0] for line in lines[2:6]] == ["y,k", "y,m", "x,k", "x,m"]
    assert "slices by values 1 and 22 of 22, in the order of the axes" in " ".join(lines)


def test_coverage_of_many_axes_shows_what_tells_rows_apart() -> None:
    """Thirty values don't fit: the few that differ between the rows stay, and no two rows are named alike."""
    head, tail = ["v"] * 20, ["w"] * 7
    cells = [coverage_cell(",".join([*head, a, b, c, *tail]), "s", 0, 1) for a, b, c in ("xpq", "ypq", "yrt")]
    lines = coverage_table(cells, "Coverage", width=60, color=False).split("\n")
    assert [line.split()[0] for line in lines[3:6]] == ["x,p,q", "y,p,q", "y,r,t"]
    assert "slices by values 21, 22 and 23 of 30, in the order of the axes" in " ".join(lines)
    assert short_names(["a,b,c", "a,d,e"], 5) == (["a,b,c", "a,d,e"], "")  # they fit
    # b and d alone tell the rows apart, and c and e add nothing
    assert short_names(["aa,b,cc", "aa,d,ee"], 3)[0] == ["b", "d"]
    assert short_names(["aa,bb", "aa,bb,cc"], 3)[0] == ["aa,bb", "aa,bb,cc"]  # not of the same axes


def test_coverage_counts_the_slices_it_leaves_out() -> None:
    """Past the line limit the slices that lack least become one line with what they lack together."""
    cells = [coverage_cell(f"s{i:02d}", "a", i, 30) for i in range(30)]
    lines = coverage_table(cells, "Coverage", width=80, color=False, max_lines=24).split("\n")
    # the last six miss 6 + 5 + 4 + 3 + 2 + 1
    assert "… and 6 more slices, missing 21" in lines
    assert coverage_table([], "Coverage", width=80, color=False) == "Coverage\nno cells yet: run `distdata plan`"


def test_a_cell_misses_its_deficit_unless_it_can_not_occur() -> None:
    """A given deficit (credits counted) wins over target less kept; surplus and infeasible cells lack nothing."""
    assert coverage_cell("s", "a", 4, 10).missing == 6
    assert coverage_cell("s", "a", 4, 10, deficit=2).missing == 2
    assert coverage_cell("s", "a", 14, 10).missing == 0
    assert coverage_cell("s", "a", 0, 10, feasible=False).missing == 0
