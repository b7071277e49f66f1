"""The HTML report: parsed as a browser would, numbers looked up in the parsed page."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from distdata.catalogs.pictures import OUTCOME_COLOURS, camera_strip, lidar_bev
from distdata.catalogs.report import (
    CoverageCell,
    Fact,
    Futures,
    Headline,
    Lidar,
    Preview,
    Query,
    ReportData,
    SpendRow,
    render_report,
)
from distdata.catalogs.report_heatmap import FULL_ROWS, HIDDEN_ROWS, MANY_SLICES, heatmap, shade
from distdata.catalogs.report_style import DARK, LIGHT

VOID = {"meta", "img", "link", "wbr", "br"}


class Node:
    def __init__(self, tag: str, attrs: dict[str, str]) -> None:
        self.tag, self.attrs = tag, attrs
        self.children: list[Node] = []
        self.parts: list[str | Node] = []

    @property
    def text(self) -> str:
        return "".join(p if isinstance(p, str) else p.text for p in self.parts)

    def find(self, tag: str, cls: str | None = None) -> list[Node]:
        found = []
        for child in self.children:
            if child.tag == tag and (cls is None or cls in child.attrs.get("class", "").split()):
                found.append(child)
            found += child.find(tag, cls)
        return found


class Page(HTMLParser):
    """Build a tree; a tag that is closed wrongly or never is an error."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Node("root", {})
        self.open = [self.root]
        self.feed(text)
        self.close()
        assert [n.tag for n in self.open] == ["root"], "tags left open"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        node = Node(tag, {k: v or "" for k, v in attrs})
        self.open[-1].children.append(node)
        self.open[-1].parts.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].parts.append(data)


def parse(text: str) -> Node:
    return Page(text).root


def cell(slice_: str, scenario: str, kept: int, target: int, layer: str = "core", **more: object) -> CoverageCell:
    return CoverageCell(slice=slice_, scenario=scenario, layer=layer, kept=kept, target=target, **more)  # type: ignore[arg-type]


CELLS = (
    cell("day,rain", "crash", 12, 48, "long_tail", band=0.04),
    cell("day,rain", "cut_in", 1234, 1234, usd=2.5),
    cell("night,rain", "crash", 0, 77, "long_tail"),
    cell("night,rain", "cut_in", 0, 0, feasible=False, reason="no rain by night"),
)
DATA = ReportData(
    title="Coverage",
    project="demo",
    generated_at="2026-11-22",
    teacher="crossing 1",
    headline=Headline(n_samples=1246, n_planned=1359, known_usd=2.5, in_doubt_usd=0.25, n_failures=14, gpuh=1.25),
    cells=CELLS,
)


def full_page() -> ReportData:
    rng = np.random.default_rng(1)
    camera = rng.integers(0, 256, (4, 8, 10, 3), dtype=np.uint8)
    lidar = Lidar(xyz=rng.normal(0, 9, (50, 3)).astype(np.float32), intensity=rng.random(50, dtype=np.float32))
    track = np.array([[[0, 0]], [[4, 1]]], np.float32)
    return replace(
        DATA,
        spend_by_layer=(SpendRow(name="long_tail", n_draws=12, known_usd=0.5),),
        spend_by_cell=(
            SpendRow(name="day,rain/cut_in", n_draws=1000, known_usd=2.0),
            SpendRow(name="day,rain/crash", n_draws=50, known_usd=0.5, in_doubt_usd=0.25),
        ),
        plan=(Fact(name="policy", value="gate"),),
        previews=(
            Preview(sample_id="s-1", cell="day,rain/crash", outcome="stops", camera=camera, lidar=lidar),
            Preview(sample_id="s-2", cell="day,rain/crash", outcome="goes", text="two < three"),
        ),
        futures=(
            Futures(seed_id="seed-9", cell="day,rain/crash", trajectories=(track, track), outcomes=("stops", "goes")),
        ),
        queries=(Query(about="What lacks most?", command='distdata sql "select 1 < 2"'),),
    )


def test_the_page_is_well_formed_and_fetches_nothing() -> None:
    """Every tag is closed in order, nothing refers outside, and the page forbids it; equal data, equal bytes."""
    text = render_report(full_page())
    root = parse(text)
    assert text == render_report(full_page())
    for node in (n for tag in ("img", "link", "script", "iframe", "a") for n in root.find(tag)):
        assert node.attrs.get("src", "data:").startswith("data:")
        assert "href" not in node.attrs
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", text)
    policy = [m.attrs["content"] for m in root.find("meta") if m.attrs.get("http-equiv")]
    assert policy[0].startswith("default-src 'none'")


def test_every_cell_shows_its_numbers() -> None:
    """Kept and target of each feasible cell stand in its box, with the rest in its title, worst slice first."""
    table = parse(render_report(DATA)).find("table", "heat")[0]
    head = [th.text for th in table.find("thead")[0].find("th")]
    assert head == ["core", "long tail", "slice", "cut_in", "crash", "kept", "missing"]  # core stands before long tail
    rows = [[c.text for c in tr.children] for tr in table.find("tbody")[0].find("tr")]
    assert rows == [
        ["night,rain", "can't occur", "0/77", "0%", "77"],
        # 12 + 1,234 of 48 + 1,234 = 97.2%
        ["day,rain", "1,234/1,234", "12/48", "97%", "36"],
    ]
    boxes = table.find("tbody")[0].find("td")
    titles = [b.attrs["title"] for b in boxes if "title" in b.attrs]
    assert "day,rain / cut_in: 1,234 of 1,234 kept, 0 missing, $2.50" in titles
    assert "day,rain / crash: 12 of 48 kept, 36 missing, band 0.04, $0" in titles
    totals = [c.text for c in table.find("tfoot")[0].find("tr")[-1].children]
    assert totals == ["all slices", "100%", "9%", "91%", "113"]  # 12/125 = 9.6%, 1246/1359 = 91.7%, 36 + 77


@pytest.mark.parametrize(
    ("kept", "target", "name"),
    [(0, 8, "s0"), (1, 8, "s1"), (2, 8, "s2"), (4, 8, "s3"), (6, 8, "s4"), (7, 8, "s4"), (8, 8, "s5"), (9, 8, "s5")],
)
def test_the_fill_is_the_share_kept(kept: int, target: int, name: str) -> None:
    """Nothing, each quarter, and the target met have shades of their own: 2/8 starts the second quarter."""
    assert shade(kept, target) == name
    boxes = parse(f"<div>{heatmap([cell('s', 'a', kept, target)])}</div>").find("tbody")[0].find("td")
    assert boxes[0].attrs["class"] == name


def test_infeasible_cells_are_hatched_with_their_reason() -> None:
    """A cell that can't occur is marked, explains itself, is in the legend and counted below."""
    root = parse(render_report(DATA))
    box = root.find("tbody")[0].find("td", "x")
    assert [b.attrs["title"] for b in box] == ["night,rain / cut_in: can't occur: no rain by night"]
    assert "can't occur" in root.find("ul", "legend")[0].text
    assert "1 cell can't occur: no rain by night (1)." in [p.text for p in root.find("p", "note")]
    only_feasible = parse(render_report(replace(DATA, cells=CELLS[:3])))
    assert "can't occur" not in only_feasible.text


def test_text_from_data_is_escaped_everywhere() -> None:
    """An id, cell, reason, outcome, prompt or command that looks like a tag or closes a quote stays text."""
    bad = "<script>alert('1')</script>\"&"
    track = np.zeros((2, 1, 2), np.float32)
    camera = np.zeros((1, 2, 2, 3), np.uint8)
    lidar = Lidar(xyz=np.zeros((1, 3), np.float32))
    data = ReportData(
        title=bad,
        project=bad,
        generated_at=bad,
        teacher=bad,
        headline=DATA.headline,
        cells=(cell(bad, bad, 1, 2, bad), cell(bad, "b", 0, 0, bad, feasible=False, reason=bad)),
        spend_by_layer=(SpendRow(name=bad, n_draws=1, known_usd=1),),
        spend_by_cell=(SpendRow(name=bad, n_draws=1, known_usd=1),),
        plan=(Fact(name=bad, value=bad),),
        previews=(Preview(sample_id=bad, cell=bad, outcome=bad, camera=camera, lidar=lidar, text=bad),),
        futures=(Futures(seed_id=bad, cell=bad, trajectories=(track,), outcomes=(bad,), agents=(bad,)),),
        queries=(Query(about=bad, command=bad),),
    )
    root = parse(render_report(data))
    assert len(root.find("script")) == 1  # the page's own
    assert not any(name.startswith("on") for n in root.find("img") for name in n.attrs)
    assert root.find("h1")[0].text == bad
    assert bad in root.find("img")[0].attrs["alt"]
    assert [b.attrs["title"] for b in root.find("td", "x")] == [f"{bad} / b: can't occur: {bad}"]
    assert root.find("td", "s3")[0].attrs["title"].startswith(f"{bad} / {bad}: 1 of 2 kept")
    assert root.find("path")[0].attrs["data-outcome"] == bad
    assert root.find("figcaption")[0].find("code")[0].text == bad
    assert [p.text for p in root.find("pre")] == [bad, bad]


def test_an_empty_catalog_says_what_to_run() -> None:
    """Without samples the page names the next command; without a plan, the plan first."""
    nothing = Headline(n_samples=0, n_planned=0)
    bare = parse(render_report(replace(DATA, headline=nothing, cells=())))
    assert [p.text for p in bare.find("p", "empty")] == [
        "Nothing generated yet: run distdata plan --budget 1000samples, then distdata generate."
    ]
    assert not bare.find("table")
    planned = tuple(replace(c, kept=0) for c in CELLS)
    root = parse(render_report(replace(DATA, headline=nothing, cells=planned)))
    assert [p.text for p in root.find("p", "empty")] == ["Nothing generated yet: run distdata generate."]
    assert "0/1,234" in root.find("tbody")[0].text
    assert not parse(render_report(DATA)).find("p", "empty")


def test_the_lead_counts_a_cell_only_up_to_its_target() -> None:
    """A surplus in one cell can't hide an empty one: 10 + 0 of 10 + 10 is half, though 90 are kept."""
    cells = (cell("a", "x", 90, 10), cell("b", "x", 0, 10))
    lead = parse(render_report(replace(DATA, cells=cells))).find("p", "lead")[0].text
    assert lead == (
        "50%of the target corpus is kept: 10 of 20 draws. 10 are missing; the largest gap is b with 10. "
        "1 of 2 cells hold nothing."
    )
    totals = parse(f"<div>{heatmap(cells)}</div>").find("tfoot")[0].find("tr")[-1]
    assert [c.text for c in totals.children] == ["all slices", "50%", "50%", "10"]
    done = parse(render_report(replace(DATA, cells=cells[:1]))).find("p", "lead")[0].text
    assert done == "100%of the target corpus is kept: 10 of 10 draws. Every cell has what it needs."


def test_many_slices_show_the_worst_and_fold_the_rest() -> None:
    """Slice i lacks i draws: the 40 worst stand in the table, one row adds up the others, the fold lists them."""
    n = FULL_ROWS + HIDDEN_ROWS + 5
    cells = [cell(f"s{i:04d}", "a", 0, i) for i in range(1, n + 1)]
    root = parse(f"<div>{heatmap(cells)}</div>")
    main, folded = root.find("table", "heat")
    shown = [tr.children[0].text for tr in main.find("tbody")[0].find("tr")]
    assert shown == [f"s{n - i:04d}" for i in range(FULL_ROWS)]
    rest = [c.text for c in main.find("tfoot")[0].find("tr")[0].children]
    # 1 + ... + 405 = 405 * 406 / 2
    assert rest == [f"{HIDDEN_ROWS + 5} other slices", "0%", "0%", "82,215"]
    assert len(folded.find("tbody")[0].find("tr")) == HIDDEN_ROWS
    assert "5 more slices are left out here" in root.find("details")[0].text


def test_slices_beside_combinations_are_added_up() -> None:
    """With a section on combinations, more than 60 slices make one row; without it, or up to 60, they stay rows."""
    cells = [cell(f"s{i}", "a", int(i < 5), 2 if i < 10 else 0) for i in range(MANY_SLICES + 1)]
    root = parse(f"<div>{heatmap(cells, combined=True)}</div>")
    # 5 of 20 wanted draws are kept
    assert [[c.text for c in tr.children] for tr in root.find("tfoot")[0].find("tr")] == [
        ["all slices", "25%", "25%", "15"]
    ]
    assert not root.find("tbody")[0].children
    assert "61 slices, of which 10 have a target and 5 hold samples" in root.text
    for rows in (heatmap(cells), heatmap(cells[1:], combined=True)):
        assert len(parse(f"<div>{rows}</div>").find("tbody")[0].find("tr")) == FULL_ROWS


def test_long_slice_names_are_cut_to_what_tells_rows_apart() -> None:
    """Rows of 20 axes show the values that differ, the whole name stands in their title, and a note says which."""
    same = ",".join(["value"] * 18)
    cells = [cell(f"day,{same},{v}", "a", 0, 5) for v in ("wet", "dry")]
    root = parse(f"<div>{heatmap(cells)}</div>")
    heads = [tr.children[0] for tr in root.find("tbody")[0].find("tr")]
    assert [(h.text, h.attrs["title"]) for h in heads] == [("dry", cells[1].slice), ("wet", cells[0].slice)]
    assert "Slices by value 20 of 20, in the order of the axes" in root.text


def test_progress_shows_before_and_after_per_layer() -> None:
    """A layer at 20 of 80, now 60 of 80: a bar of 25% and a gain of 50%."""
    cells = (cell("a", "x", 60, 80, kept_before=20),)
    line = parse(render_report(replace(DATA, cells=cells))).find("ul", "bars")[0].find("li")[0]
    assert [i.attrs["style"] for i in line.find("i")] == ["width:25.0%", "width:50.0%"]
    assert line.text == "core75%was 25%60 of 80"


def test_spend_bars_are_relative_to_the_dearest_row() -> None:
    """$2.00 is the whole bar; $0.50 known and $0.25 in doubt are 25% and 12.5% of it."""
    table = parse(render_report(full_page())).find("table", "list")[1]
    rows = table.find("tbody")[0].find("tr")
    assert [[i.attrs["style"] for i in tr.find("i")] for tr in rows] == [
        ["width:100.0%"],
        ["width:25.0%", "width:12.5%"],
    ]
    assert [c.text for c in rows[1].children[:4]] == ["day,rain/crash", "50", "$0.01", "$0.50+ $0.25"]
    together = [c.text for c in table.find("tfoot")[0].find("tr")[-1].children[:4]]
    assert together == ["together", "1,050", "$0.00238", "$2.50+ $0.25"]  # 2.5 / 1050 = 0.002381


def test_only_the_dearest_cells_are_listed() -> None:
    """Of 20 cells the 15 dearest have rows; the five others are added up: 1 + 2 + 3 + 4 + 5 dollars."""
    rows = tuple(SpendRow(name=f"c{i:02d}", n_draws=1, known_usd=float(i)) for i in range(1, 21))
    table = parse(render_report(replace(DATA, spend_by_cell=rows))).find("table", "list")[0]
    assert [tr.children[0].text for tr in table.find("tbody")[0].find("tr")] == [f"c{i:02d}" for i in range(20, 5, -1)]
    assert [c.text for c in table.find("tfoot")[0].find("tr")[0].children[:4]] == [
        "5 other cells",
        "5",
        "$3.00",
        "$15.00",
    ]


def test_previews_hold_the_samples_own_pixels() -> None:
    """The pictures in the page decode to exactly the strip and the bird's-eye view of the sample."""
    data = full_page()
    images = parse(render_report(data)).find("img")
    pixels = [np.asarray(Image.open(io.BytesIO(base64.b64decode(i.attrs["src"].split(",")[1])))) for i in images]
    sample = data.previews[0]
    assert sample.lidar is not None
    assert sample.camera is not None
    assert np.array_equal(pixels[0], lidar_bev(sample.lidar.xyz, sample.lidar.intensity))
    assert np.array_equal(pixels[1], camera_strip(sample.camera))
    assert all(i.attrs["alt"].endswith("s-1, day,rain/crash, stops") for i in images)


def test_an_outcome_has_one_colour_on_the_whole_page() -> None:
    """The chip of a sample and the path of a future with the same outcome agree: goes first, stops second."""
    root = parse(render_report(full_page()))
    chips = {c.text: c.find("i")[0].attrs["style"] for c in root.find("span", "chip")}
    assert chips == {"stops": f"background:{OUTCOME_COLOURS[1]}", "goes": f"background:{OUTCOME_COLOURS[0]}"}
    paths = {p.attrs["data-outcome"]: p.attrs["stroke"] for p in root.find("path")}
    assert paths == {"stops": OUTCOME_COLOURS[1], "goes": OUTCOME_COLOURS[0]}


def test_sections_without_content_are_left_out() -> None:
    """A catalog with coverage alone has no empty headings; with everything, all six stand in order."""
    assert [h.text for h in parse(render_report(DATA)).find("h2")] == ["Coverage"]
    assert [h.text for h in parse(render_report(full_page())).find("h2")] == [
        "Coverage", "Spend", "Samples", "Futures", "Plan", "Ask next",
    ]  # fmt: skip


def test_headline_numbers_stand_on_the_page() -> None:
    """Samples, plan, money known and in doubt, price, failures and GPU-hours: $2.50 / 1,246 and 14 / 1,260."""
    figures = parse(render_report(DATA)).find("dl", "figures")[0]
    assert {d.children[0].text: d.children[1].text for d in figures.children} == {
        "samples kept": "1,246",
        "draws planned": "1,359",
        "spent": "$2.50and $0.25 in doubt",
        "per sample": "$0.00201",
        "failed draws": "141.1% of all attempted",
        "GPU-hours": "1.2",
    }


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def faded(ink: str, ground: str, opacity: float) -> str:
    mixed = (int(ink[i : i + 2], 16) * opacity + int(ground[i : i + 2], 16) * (1 - opacity) for i in (1, 3, 5))
    return "#" + "".join(f"{round(c):02x}" for c in mixed)


@pytest.mark.parametrize("palette", [LIGHT, DARK])
def test_text_is_readable_in_light_and_dark(palette: dict[str, str]) -> None:
    """Every ink on every ground it is used on has a contrast of 4.5:1 (WCAG AA), the faded targets included."""
    pairs = [(palette[f"s{i}-ink"], palette[f"s{i}"], 0.88) for i in range(6)]
    on_page = ("ink", "quiet", "accent")
    pairs += [(palette[ink], palette[ground], 1.0) for ink in on_page for ground in ("page", "surface")]
    pairs += [(palette["lacks"], palette["surface"], 1.0), (palette["notice-ink"], palette["notice"], 1.0)]
    for ink, ground, opacity in pairs:
        high, low = sorted((luminance(faded(ink, ground, opacity)), luminance(ground)), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, ground)
