"""The report's loop: verdicts at their places, intervals to scale, every text escaped, nothing drawn of nothing."""

import re
from html.parser import HTMLParser

from distdata.catalogs.gate_scale import GateRow
from distdata.catalogs.report_gates import (
    BAR_WIDTH,
    STYLE,
    CauseView,
    GateView,
    LoopView,
    causes_section,
    gates_section,
    interval_svg,
    loop_section,
    promotions_section,
    routes_section,
)
from distdata.catalogs.report_style import DARK, LIGHT

LIE = "<script>alert(1)</script>&\"'"


def _row(**changes: object) -> GateRow:
    base = {
        "slice": "night,rain", "metric": "outcome", "contrast": "hit | rest", "n_seeds": 40, "n_draws": 320,
        "estimate": 0.21, "low": 0.15, "high": 0.27, "band": 0.1, "side": "both", "verdict": "fail",
    }  # fmt: skip
    return GateRow(**(base | changes))  # type: ignore[arg-type]


def _gate(*rows: GateRow, verdict: str = "fail") -> GateView:
    return GateView(
        gate_id="g1", student="0123456789abcdef", split="gate", verdict=verdict, n_draws=960, alpha=0.025,
        created="2026-11-01", rows=rows,
    )  # fmt: skip


class _Balance(HTMLParser):
    """Collects tags that are closed wrongly; SVG shapes close themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("br", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def _text(page: str) -> str:
    """Return what a reader sees; fails on tags that don't match."""
    parser = _Balance()
    parser.feed(page)
    assert parser.wrong == []
    assert parser.open == []
    return "".join(parser.text)


FULL = LoopView(
    gates=(
        _gate(
            _row(), _row(slice="day", verdict="pass", estimate=0.02, low=-0.03, high=0.05),
            _row(slice="fog", verdict="undecided", estimate=None, low=None, high=None,
                 reason="12 seeds; a gate needs 20", needed_draws=1600),
            _row(slice="day", metric="cost", side="none"),
        ),
        _gate(_row(), verdict="undecided"),
    ),
    causes=(
        CauseView(slice="fog", cause="unknown", remedy="a person has to look", evidence=("nothing helped",)),
        CauseView(slice="night,rain", cause="coverage", remedy="buy more", evidence=("half 2.80", "full 2.05")),
    ),
    promotions=(
        {"student_id": "0123456789", "stage": "shadow", "created": "2026-11-02", "note": ""},
        {"student_id": "0123456789", "stage": "rollback", "created": "2026-11-03", "note": "worse at night"},
    ),
    routes=({"slice": "day", "student_id": "0123456789", "share": 0.05, "fallback": "teacher", "horizon_s": 3.2,
             "reason": "canary"},),
)  # fmt: skip


def test_the_whole_section_reads() -> None:
    """Each part tells its numbers, and the tags match."""
    text = _text(loop_section(FULL).replace(f"<style>{STYLE}</style>", ""))
    for said in (
        "1 green, 1 red, 1 undecided", "✗ 2.10", "✓ 0.20",
        "fog: outcome: 12 seeds; a gate needs 20 (1,600 draws a side", "1 of 2 red slices lack coverage",
        "night,rain: coverage", "half 2.80",
        "rollback of student 01234567", "worse at night", "5%", "3.2s", "Earlier gates",
    ):  # fmt: skip
        assert said in text, said


def test_nothing_where_there_is_nothing() -> None:
    """An empty loop draws nothing, part by part and as a whole."""
    assert loop_section(LoopView()) == ""
    assert [gates_section([]), causes_section([]), promotions_section([]), routes_section([])] == [""] * 4


def test_every_text_is_escaped() -> None:
    """Names, reasons, notes and evidence that hold HTML stay text."""
    lies = LoopView(
        gates=(_gate(_row(slice=LIE, metric=LIE, contrast=LIE, verdict="undecided", reason=LIE)),),
        causes=(CauseView(slice=LIE, cause=LIE, remedy=LIE, evidence=(LIE,)),),
        promotions=({"student_id": LIE, "stage": LIE, "created": LIE, "note": LIE},),
        routes=({"slice": LIE, "student_id": LIE, "share": 1.0, "fallback": LIE, "horizon_s": None, "reason": LIE},),
    )
    page = loop_section(lies)
    assert "<script" not in page
    assert "alert(1)" in _text(page.replace(f"<style>{STYLE}</style>", ""))


def test_an_interval_is_to_scale() -> None:
    """From -3 to 3 bands over 124 pixels from 4 on: 0.15, 0.21, 0.27 lie at 1.5, 2.1, 2.7 bands, 20.7 pixels each."""
    svg = interval_svg(_row())
    per_band = (BAR_WIDTH - 8) / 6
    assert f'cx="{4 + per_band * 5.1:.1f}"' in svg
    assert f'x1="{4 + per_band * 4.5:.1f}" x2="{4 + per_band * 5.7:.1f}"' in svg
    assert f'x="{4 + per_band * 2:.1f}" y="3" width="{per_band * 2:.1f}"' in svg
    assert f'cx="{BAR_WIDTH - 4:.1f}"' in interval_svg(_row(estimate=9.0))
    assert "circle" not in interval_svg(_row(estimate=None))


def test_the_slice_that_is_worst_stands_first() -> None:
    """Red before undecided before green, in the table of the newest gate."""
    page = gates_section(FULL.gates)
    order = [page.index(f'<th scope="row">{name}') for name in ("night", "fog", "day")]
    assert order == sorted(order)
    assert "cost" not in re.sub(r"title=\"[^\"]*\"", "", page)


def test_colours_exist_in_light_and_dark() -> None:
    """Every colour that the style asks for is one of the report's, in both palettes."""
    asked = set(re.findall(r"var\(--([\w-]+)\)", STYLE))
    assert asked <= set(LIGHT)
    assert asked <= set(DARK)
