"""The report's picture of compared policies: every number at its place, every name escaped."""

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from distdata.catalogs.comparison import (
    GATE_WORTH,
    ComparedCell,
    ComparedSlice,
    Comparison,
    PolicyFigures,
    figure_rows,
    hours_text,
    share_text,
)
from distdata.catalogs.report_compare import COLOURS, MAX_ROWS, PLOT_END, PLOT_X, compare_section
from distdata.catalogs.report_style import DARK, LIGHT

VOID = {"wbr"}


def _policy(name: str, layers: tuple[float, ...], **changes: object) -> PolicyFigures:
    figures = PolicyFigures(
        policy=name, n_target=1100, n_credit=0, n_fresh=1100, usd=55.0, gpu_h=2.5, layer_share=layers, n_gate_worth=1,
        effective_n=640.4, unseen_share=0.0, smallest_cell="b/y", smallest_n=10, n_at_floor=2, n_at_ceiling=3,
        shortfall=0.0,
    )  # fmt: skip
    return replace(figures, **changes)  # type: ignore[arg-type]


def _comparison(targets: Sequence[tuple[int, ...]], names: Sequence[str] = ("fleet", "gate")) -> Comparison:
    cells = tuple(
        ComparedCell(
            cell=f"s{i}/x", slice=f"s{i}", scenario="x", layer="core" if i % 2 == 0 else "long_tail",
            fleet_share=1 / len(targets), target=target, fresh=target,
        )
        for i, target in enumerate(targets)
    )  # fmt: skip
    return Comparison(
        budget="1,100 samples",
        policies=tuple(_policy(name, (0.75, 0.25)) for name in names),
        layers=("core", "long_tail"),
        fleet_by_layer=(0.9, 0.1),
        cells=cells,
        slices=tuple(ComparedSlice(slice=c.slice, needed=50, target=c.target) for c in cells),
    )


class _Checker(HTMLParser):
    """Every tag closes, in order; collects attributes and texts."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def _parsed(page: str) -> _Checker:
    checker = _Checker()
    checker.feed(page)
    assert checker.open == []
    return checker


def _circles(checker: _Checker) -> list[float]:
    """x of the first policy's marks in the plot; those of the legends sit in icons of 12 by 12."""
    found = [float(a["cx"] or 0) for tag, a in checker.tags if tag == "circle"]
    return [x for x in found if x >= PLOT_X]


def test_marks_stand_on_a_log_scale() -> None:
    """Equal ratios of samples are equal distances: 10, 100 and 1,000 stand evenly from end to end."""
    xs = _circles(_parsed(compare_section(_comparison([(1000, 10), (100, 10), (10, 1000)]))))
    # no zeros: the scale runs from PLOT_X + 14 to PLOT_END - 14; 10, 100 and 1,000 are its ends and its middle
    assert xs == [PLOT_END - 14, (PLOT_X + PLOT_END) / 2, PLOT_X + 14]


def test_zero_has_its_own_place() -> None:
    """A cell without samples stands left of the scale, under a 0, not at the smallest number."""
    checker = _parsed(compare_section(_comparison([(0, 10), (1000, 10)])))
    xs = _circles(checker)
    assert xs == [PLOT_X + 12, PLOT_END - 14]
    assert checker.texts.count("0") == 3  # the axis above and below, and the table
    assert _parsed(compare_section(_comparison([(5, 10), (1000, 10)]))).texts.count("0") == 0


def test_marks_that_would_meet_get_lanes() -> None:
    """Equal numbers are drawn beside each other, different ones on one line."""

    def heights(target: tuple[int, ...]) -> list[float]:
        page = compare_section(_comparison([target, (1000, 1)]))
        circle = re.findall(r'<circle cx="[\d.]+" cy="([\d.]+)" r="4.2"', page)
        square = re.findall(r'<rect x="[\d.]+" y="([\d.]+)" width="7.4"', page)
        icons = 2  # in the table's head and in the legend
        return [float(circle[icons]), float(square[icons]) + 3.7]

    circle, square = heights((100, 100))
    assert square - circle == pytest.approx(5)
    circle, square = heights((900, 10))
    assert square == pytest.approx(circle)


def test_every_cell_and_number_is_there() -> None:
    """Each cell has a line with its name, its tooltip and its numbers, and a row in the table below."""
    page = compare_section(_comparison([(1234, 10), (56, 7890)]))
    checker = _parsed(page)
    assert [a["data-v"] for tag, a in checker.tags if tag == "td" and "data-v" in a] == [
        "0.500000000", "1234", "10", "0.500000000", "56", "7890",
    ]  # fmt: skip
    assert "s0/x (core): fleet 1,234, gate 10" in checker.texts
    assert "s1/x (long tail): fleet 56, gate 7,890" in checker.texts
    assert sum(text == "50%" for text in checker.texts) == 4  # each cell's share, beside the picture and in the table


def test_layers_are_stacked_to_scale() -> None:
    """Three quarters core is three quarters of the bar; the fleet's own bar stands first."""
    page = compare_section(_comparison([(10, 10)]))
    widths = [
        float(a["width"] or 0) + 1
        for tag, a in _parsed(page).tags
        if tag == "rect" and (a.get("class") or "").startswith("cl")
    ]
    whole = widths[0] + widths[1]
    assert [w / whole for w in widths] == pytest.approx([0.9, 0.1, 0.75, 0.25, 0.75, 0.25], abs=1e-3)


def test_many_cells_are_drawn_in_runs() -> None:
    """1,000 cells become 40 lines of 25 neighbours: median as mark, least to most as line, their fleet share summed."""
    checker = _parsed(compare_section(_comparison([(i + 1, 7) for i in range(1000)])))
    xs = _circles(checker)
    assert len(xs) == MAX_ROWS
    # first run 1..25, median 13; last 976..1,000, median 988, on a scale from 1 to 1,000
    left, right = PLOT_X + 14, PLOT_END - 14
    ends = [left + (right - left) * math.log10(n) / 3 for n in (13, 988)]
    assert [xs[0], xs[-1]] == pytest.approx(ends, abs=0.06)
    assert "cells 1–25, from s0/x to s24/x: fleet 1 to 25, median 13, gate 7 to 7, median 7" in checker.texts
    assert "cells 976–1,000, each 0.1%" in checker.texts  # a line is named by what its cells are, not by one of them
    assert "1,000 cells, grouped, most frequent first" in checker.texts
    assert "bar: least to most of a line's 25 cells; mark: their median" in checker.texts
    assert checker.texts.count("2.5%") == MAX_ROWS
    assert "800 rarer cells are left out here." in checker.texts


def test_runs_tell_their_spread() -> None:
    """A line of unlike cells says the most and the least that the fleet meets one of them; lines differ by one cell."""
    c = _comparison([(1, 2)] * 60)
    cells = tuple(replace(cell, fleet_share=1 / 2 ** (i + 1)) for i, cell in enumerate(c.cells))
    texts = _parsed(compare_section(replace(c, cells=cells))).texts
    # 60 cells on 40 lines: one, two, one, two, ... cells; a single cell has its name
    assert "s0/x" in texts
    assert "cells 2–3, each 25% to 12%" in texts  # 1/4 and 1/8 = 12.5%, which rounds to the even 12
    assert "bar: least to most of a line's 1 or 2 cells; mark: their median" in texts


def test_long_names_keep_both_ends() -> None:
    """A name with no room is cut in the middle, so that cells of a slice can be told apart; the tooltip has it all."""
    c = _comparison([(1, 2)])
    name = ",".join(f"a{i}_v{i}" for i in range(20))
    cells = tuple(replace(c.cells[0], cell=f"{name}/{scenario}") for scenario in ("cut_in", "merge"))
    texts = _parsed(compare_section(replace(c, cells=cells))).texts
    shown = [text for text in texts if "…" in text]
    assert [(text[:5], text.split("/")[1], len(text)) for text in shown] == [
        ("a0_v0", "cut_in", 44), ("a0_v0", "merge", 44),
    ]  # fmt: skip
    assert sum(f"{name}/merge (core)" in text for text in texts) == 1


def test_names_are_escaped() -> None:
    """No name can bring markup into the page."""
    bad = "<script>alert(1)</script>"
    c = _comparison([(1, 2)])
    c = replace(
        c, budget=bad, layers=(bad, "long_tail"), cells=(replace(c.cells[0], cell=bad, layer=bad),),
        policies=(replace(c.policies[0], policy=bad), c.policies[1]),
    )  # fmt: skip
    assert "<script" not in compare_section(c)
    assert "&lt;script" in compare_section(c)


def test_shapes_and_colours_tell_policies_apart() -> None:
    """Four policies have four shapes, and colours of at least 3:1 against the page in light and in dark."""
    page = compare_section(_comparison([(1, 10, 100, 1000)], names=("gate", "uniform", "fleet", "neyman")))
    assert [page.count(mark) for mark in ('r="4.2"', 'width="7.4"', "h-9.6z", "-5.2-5.2z")] == [3, 3, 3, 3]
    for light, dark in COLOURS.values():
        assert _contrast(light, LIGHT["page"]) >= 3
        assert _contrast(dark, DARK["page"]) >= 3
        assert f"--c:{light}" in page
        assert f"--c:{dark}" in page.split("prefers-color-scheme:dark", 1)[1]


def _contrast(one: str, other: str) -> float:
    """Contrast ratio of WCAG 2.1: (L1 + 0.05) / (L2 + 0.05) of the relative luminances."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_nothing_to_compare_draws_nothing() -> None:
    """Without policies or cells there is no section."""
    c = _comparison([(1, 2)])
    assert compare_section(replace(c, cells=())) == ""
    assert compare_section(replace(c, policies=())) == ""


def test_key_figures() -> None:
    """Lines that say something are there with a value per policy; those that say nothing are not."""
    c = _comparison([(1, 2)])
    rows = dict(figure_rows(c))
    assert rows["slices with a gate's worth of samples"] == ["1 of 1", "1 of 1"]
    assert GATE_WORTH.replace("'", "&#x27;") in compare_section(c)
    assert not any("decidable" in name for name in rows)  # training samples decide no gate
    assert (rows["effective sample size"][0], rows["cost"][0], rows["GPU-hours"][0]) == ("640", "$55.00", "2.5")
    assert {"that exist", "fleet share unseen", "left over, all full"}.isdisjoint(rows)
    more = replace(c, policies=tuple(
        replace(p, n_credit=5, unseen_share=0.02, shortfall=12.0 if i else 0.0) for i, p in enumerate(c.policies)
    ), slices=tuple(replace(s, needed=None) for s in c.slices))  # fmt: skip
    rows = dict(figure_rows(more))
    assert (rows["that exist"], rows["fleet share unseen"], rows["left over, all full"]) == (
        ["5", "5"], ["2%", "2%"], ["–", "12"],
    )  # fmt: skip
    assert "slices with a gate's worth of samples" not in rows


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0, "0%"), (1.0, "100%"), (0.41, "41%"), (0.0996, "10%"), (0.032, "3.2%"), (0.0004, "0.04%"), (1e-6, "<0.01%")],
)
def test_shares_are_written_short(share: float, text: str) -> None:
    """Two digits below ten per cent, whole per cents above, and never 0% for something."""
    assert share_text(share) == text


@pytest.mark.parametrize(
    ("gpu_h", "text"),
    [
        (0.0, "0"), (1e-7, "<0.000001"), (2.375e-5, "0.0000238"), (0.00292, "0.00292"), (0.5, "0.5"),
        (0.9996, "1.0"), (2.5, "2.5"), (999.96, "1,000"), (13_976.4, "13,976"),
    ],
)  # fmt: skip
def test_gpu_hours_are_never_0_for_something(gpu_h: float, text: str) -> None:
    """A purchase of some dollars' fractions shows its fractions of an hour."""
    assert hours_text(gpu_h) == text
