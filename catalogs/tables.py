"""What a terminal shows: results of queries, the plan, coverage before and after, and numbers for people.

Pure: rows in, text out. The caller says how wide the terminal is and whether it has colour.
"""

from __future__ import annotations

import datetime
import io
import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple

from .slice_names import short_names

if TYPE_CHECKING:
    from rich.table import Table

EIGHTHS = "▏▎▍▌▋▊▉█"
LEVELS = "▁▂▃▄▅▆▇█"
MAX_TEXT = 200
LEAST_TEXT = 10
GAP = 2
ID_COLUMN = re.compile(r"(^|_)(id|seed|hash|version|year|k)$", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRow:
    """One cell of a plan: what its corpus should hold (`target`), what is there (`have`), what is bought (`buy`)."""

    slice: str
    scenario: str
    band: float
    weight: float
    target: int
    have: int
    buy: int
    usd: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CoverageCell:
    """How far one cell has come, in draws.

    `kept_before` is `kept` at an earlier time, when progress is to be shown. `deficit` None means target
    less kept; a caller that credits byproducts gives its own. `reason` says why a cell is not feasible.
    """

    slice: str
    scenario: str
    layer: str
    target: int
    kept: int
    kept_before: int | None = None
    deficit: int | None = None
    band: float | None = None
    usd: float = 0.0
    feasible: bool = True
    reason: str = ""

    @property
    def missing(self) -> int:
        """Draws still wanted, never negative; 0 where the cell can't occur."""
        if not self.feasible:
            return 0
        return max(0, self.target - self.kept if self.deficit is None else self.deficit)


def count(n: int) -> str:
    """Write a whole number with thousands separators: 12345 is ``12,345``."""
    return f"{n:,}"


def usd(amount: float) -> str:
    """Write dollars: ``$1,234`` from a thousand on, cents from ten cents on, three digits below (``$0.0123``)."""
    if not math.isfinite(amount):
        return "unknown"
    if amount < 0:
        return "-" + usd(-amount)
    if amount == 0:
        return "$0"
    if amount >= 999.995:
        return f"${amount:,.0f}"
    if amount >= 0.09995:
        return f"${amount:.2f}"
    if amount < 0.000001:
        return "<$0.000001"
    n_decimals = 2 - math.floor(math.log10(amount))
    return "$" + f"{amount:.{n_decimals}f}".rstrip("0")


def duration(seconds: float) -> str:
    """Write a time span: ``0.4s``, ``42s``, ``1m35s``, ``3h07m``, ``2d04h``."""
    if not math.isfinite(seconds):
        return "unknown"
    if seconds < 0:
        return "-" + duration(-seconds)
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60}h{minutes % 60:02d}m"
    hours = round(seconds / 3600)
    return f"{hours // 24}d{hours % 24:02d}h"


def size(n_bytes: int) -> str:
    """Write a number of bytes in powers of 1000: ``999 B``, ``1.5 kB``, ``256 MB``."""
    if abs(n_bytes) < 1000:
        return f"{n_bytes} B"
    value = float(n_bytes)
    for unit in ("kB", "MB", "GB", "TB", "PB"):
        value /= 1000
        if abs(value) < 999.5 or unit == "PB":
            break
    return f"{value:,.1f} {unit}" if abs(value) < 9.95 else f"{value:,.0f} {unit}"


def percent(part: float, whole: float) -> str:
    """Write a share so that it never claims more than it is: 100% only when all is there, 0% only when nothing is."""
    if whole <= 0:
        return "–"
    share = 100 * part / whole
    if 0 < share < 1:
        return "<1%"
    return f"{math.floor(share + 1e-9)}%"


def bar(value: float, maximum: float, width: int) -> str:
    """Draw `value` as a bar of at most `width` characters, to an eighth of a character.

    Rounds to the nearest eighth, but a positive value always shows. Empty for zero, NaN or maximum <= 0.
    """
    if not (value > 0 and maximum > 0) or width <= 0:
        return ""
    n_eighths = min(8 * width, max(1, round(8 * width * value / maximum)))
    return "█" * (n_eighths // 8) + (EIGHTHS[n_eighths % 8 - 1] if n_eighths % 8 else "")


def level(part: float, whole: float) -> str:
    """Draw a share as one character: ``·`` for nothing, ``▁`` to ``▇`` for some, ``█`` only for all of it."""
    if whole <= 0 or part <= 0:
        return "·"
    return LEVELS[min(7, math.floor(part / whole * 7 + 1e-9))]


def render_rows(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, width: int, color: bool, max_rows: int = 200
) -> str:
    """Lay out the result of a query as a table that fits `width`.

    Numbers stand right with thousands separators (identifiers, seeds and versions without), None is blank,
    text is cut with … where there is no room. Numbers are never cut: columns that don't fit are left out,
    and the last lines say how many rows and columns that were.
    """
    source = iter(rows)
    shown = [list(row) for row in itertools.islice(source, max_rows)]
    n_more = sum(1 for _ in source)
    cells = [[_text(value, grouped=not ID_COLUMN.search(columns[i])) for i, value in enumerate(r)] for r in shown]
    numeric = [
        any(_is_number(r[i]) for r in shown) and all(r[i] is None or _is_number(r[i]) for r in shown)
        for i in range(len(columns))
    ]
    heads = [_clean(name) for name in columns]
    widths = _fit([_widest(heads[i], cells, i) for i in range(len(columns))], numeric, width)
    table = _table()
    for name, is_number, w in zip(heads, numeric, widths, strict=False):
        _column(table, name, right=is_number, width=w)
    for r in cells:
        table.add_row(*(_styled(text) for text in r[: len(widths)]))
    notes = [f"… {count(n_more)} more {_plural('row', n_more)}"] if n_more else []
    n_hidden = len(columns) - len(widths)
    if n_hidden:
        names = ", ".join(heads[len(widths) :])
        notes.append(
            _cut(f"… {n_hidden} more {_plural('column', n_hidden)}, too wide for this terminal: {names}", width)
        )
    return _finish(table, notes, width, color)


def plan_table(rows: Sequence[PlanRow], *, width: int, color: bool, max_lines: int = 24) -> str:
    """Show what a plan buys: a line per cell when they are few, else a line per slice, heaviest slice first.

    The bar is what is bought, relative to the longest; a narrow terminal gets none. A band that differs
    inside a slice shows as a range.
    """
    if not rows:
        return "the plan has no cells"
    by_cell = len(rows) <= max_lines
    groups = _plan_groups(rows, by_cell)
    shown, rest = groups[:max_lines], groups[max_lines:]
    heads = ("slice", "scenario" if by_cell else "scenarios", "band", "target", "have", "buy", "cost")
    lines: list[list[str]] = []
    for i, group in enumerate(shown):
        repeated = by_cell and i > 0 and shown[i - 1][0].slice == group[0].slice
        what = _clean(group[0].scenario) if by_cell else count(len(group))
        lines.append(["" if repeated else _clean(group[0].slice), what, _bands(group), *_sums(group)])
    total = ["total", "" if by_cell else count(len(rows)), "", *_sums(rows)]
    numeric = [False, not by_cell, True, True, True, True, True]
    widths, left_out = _plan_widths(heads, lines, total, numeric, width), ""
    named = [line for line in lines if line[0]]
    if widths[0] < max(_cells_wide(line[0]) for line in named):
        labels, left_out = short_names([line[0] for line in named], widths[0])
        for line, label in zip(named, labels, strict=True):
            line[0] = label
        widths = _plan_widths(heads, lines, total, numeric, width)
    n_bar = min(28, width - sum(widths) - GAP * len(widths))
    table = _table(footer=True)
    for i, w in enumerate(widths):
        _column(table, heads[i], right=numeric[i], width=w, foot=total[i])
    if n_bar >= 4:
        _column(table, "", right=False, width=n_bar)
    n_bought = [sum(r.buy for r in group) for group in shown]
    for line, n_buy in zip(lines, n_bought, strict=True):
        bars = [_styled(bar(n_buy, max(n_bought), n_bar), "cyan")] if n_bar >= 4 else []
        table.add_row(*map(_styled, line[: len(widths)]), *bars)
    notes = [left_out] if left_out else []
    if rest:
        n_buy = sum(r.buy for group in rest for r in group)
        notes.append(f"… and {count(len(rest))} more {_plural('slice', len(rest))}, buying {count(n_buy)}")
    if len(widths) < len(heads):
        notes.append("… too narrow for: " + ", ".join(heads[len(widths) :]))
    return _finish(table, notes, width, color)


def _plan_widths(
    heads: Sequence[str], lines: Sequence[Sequence[str]], total: Sequence[str], numeric: Sequence[bool], width: int
) -> list[int]:
    """Return how wide the columns are, with room for bars if there is any; columns that don't fit have none."""
    needed = [_widest(heads[i], [*lines, total], i) for i in range(len(heads))]
    widths = _fit(needed, numeric, width - 8 - GAP)
    return widths if len(widths) == len(heads) else _fit(needed, numeric, width)


def _plan_groups(rows: Sequence[PlanRow], by_cell: bool) -> list[list[PlanRow]]:
    """Group rows into lines: slices by falling weight (last: those that want nothing), in them cells alike."""
    slices: dict[str, list[PlanRow]] = {}
    for row in rows:
        slices.setdefault(row.slice, []).append(row)
    ordered = sorted(slices.values(), key=_rank)
    if not by_cell:
        return ordered
    return [[r] for group in ordered for r in sorted(group, key=lambda r: (-r.weight, r.scenario))]


def _rank(group: Sequence[PlanRow]) -> tuple[bool, float, str]:
    return not any(r.target or r.buy for r in group), -math.fsum(r.weight for r in group), group[0].slice


def coverage_table(cells: Sequence[CoverageCell], title: str, *, width: int, color: bool, max_lines: int = 24) -> str:
    """Show kept / target of every cell as a grid, slice x scenario type, the slice that lacks most first.

    A block and a percentage per cell; two blocks, before and now, where `kept_before` is given. ``×`` marks
    a cell that can't occur, ``–`` one that nothing is wanted in. What doesn't fit `width` gives way in this
    order: scenario names become letters with a key, percentages go, scenarios are left out and counted.
    """
    if not cells:
        return f"{_clean(title)}\nno cells yet: run `distdata plan`"
    grid: dict[str, dict[str, CoverageCell]] = {}
    for cell in cells:
        grid.setdefault(cell.slice, {})[cell.scenario] = cell
    scenarios = list(dict.fromkeys(cell.scenario for cell in cells))
    missing = {name: sum(c.missing for c in row.values()) for name, row in grid.items()}
    order = sorted(grid, key=lambda name: (-missing[name], name))
    shown, rest = order[:max_lines], order[max_lines:]
    before = any(cell.kept_before is not None for cell in cells)
    n_missing = max(len("missing"), len(count(sum(missing.values()))))
    labels, left_out = [_clean(name) for name in shown], ""
    heads = [_clean(s) for s in scenarios]
    frame = _grid_frame(heads, max(len("missing"), *map(_cells_wide, labels)), n_missing, before, width)
    if frame.n_name < max(map(_cells_wide, labels)):
        labels, left_out = short_names(labels, frame.n_name)
        frame = _grid_frame(heads, max(len("missing"), *map(_cells_wide, labels)), n_missing, before, width)
    table = _table(footer=True)
    _column(table, "slice", right=False, width=frame.n_name, foot="all")
    for scenario, head in zip(scenarios, frame.heads, strict=False):
        mine = [cell for cell in cells if cell.scenario == scenario and cell.feasible]
        part, whole = sum(min(c.kept, c.target) for c in mine), sum(c.target for c in mine)
        foot = percent(part, whole) if frame.n_cell > 2 else level(part, whole)
        _column(table, head, right=True, width=max(frame.n_cell, *map(_cells_wide, head.split("\n"))), foot=foot)
    _column(table, "missing", right=True, width=n_missing, foot=count(sum(missing.values())))
    for name, label in zip(shown, labels, strict=True):
        marks = [_mark(grid[name].get(s), before, frame.n_cell > 2) for s in scenarios[: len(frame.heads)]]
        table.add_row(_styled(label), *marks, _styled(count(missing[name])))
    notes = [*frame.key, *([left_out] if left_out else [])]
    if rest:
        n_rest = sum(missing[name] for name in rest)
        notes.append(f"… and {count(len(rest))} more {_plural('slice', len(rest))}, missing {count(n_rest)}")
    n_out = len(scenarios) - len(frame.heads)
    if n_out:
        notes.append(f"… and {n_out} more scenario {_plural('type', n_out)}, too wide for this terminal")
    notes.append(("blocks: before, now   " if before else "") + "× can't occur   – nothing wanted")
    return _clean(title) + "\n" + _finish(table, notes, width, color)


class _Frame(NamedTuple):
    n_name: int
    n_cell: int
    heads: list[str]
    key: list[str]


def _grid_frame(names: Sequence[str], n_name: int, n_missing: int, before: bool, width: int) -> _Frame:
    """Decide how wide the grid's columns are and how they are headed."""
    n_blocks = 2 if before else 1
    free = width - n_missing - GAP
    stacked = [name.replace("_", "\n").replace("-", "\n") for name in names]
    n_heads = [max(map(_cells_wide, head.split("\n"))) for head in stacked]
    n_full = n_blocks + 5
    if sum(max(n, n_full) + GAP for n in n_heads) <= free - min(n_name, 16):
        return _Frame(min(n_name, free - sum(max(n, n_full) + GAP for n in n_heads)), n_full, stacked, [])
    n_cell = n_full if len(names) * (n_full + GAP) <= free - min(n_name, LEAST_TEXT) else max(2, n_blocks)
    n_shown = max(1, min(len(names), (free - min(n_name, LEAST_TEXT)) // (n_cell + GAP)))
    letters = [_letter(i) for i in range(n_shown)]
    key = _packed([f"{letter} {name}" for letter, name in zip(letters, names, strict=False)], width)
    return _Frame(max(1, min(n_name, free - n_shown * (n_cell + GAP))), n_cell, letters, key)


def _mark(cell: CoverageCell | None, before: bool, with_share: bool) -> Any:
    if cell is None:
        return _styled("")
    if not cell.feasible:
        return _styled("×", "dim")
    if cell.target <= 0:
        return _styled("–", "dim")
    blocks = level(cell.kept, cell.target)
    if before:
        blocks = level(cell.kept if cell.kept_before is None else cell.kept_before, cell.target) + blocks
    share = cell.kept / cell.target
    style = "green" if share >= 1 else "yellow" if share >= 0.5 else "red"
    return _styled(f"{blocks} {percent(min(cell.kept, cell.target), cell.target):>4}" if with_share else blocks, style)


def _packed(items: Sequence[str], width: int) -> list[str]:
    """Put as many items on a line as fit, never breaking one."""
    lines = [""]
    for item in items:
        joined = f"{lines[-1]}   {item}" if lines[-1] else item
        if lines[-1] and _cells_wide(joined) > width:
            lines.append(item)
        else:
            lines[-1] = joined
    return lines


def _letter(i: int) -> str:
    return (_letter(i // 26 - 1) if i >= 26 else "") + chr(ord("A") + i % 26)


def _bands(group: Sequence[PlanRow]) -> str:
    low, high = min(r.band for r in group), max(r.band for r in group)
    return f"{low:g}" if low == high else f"{low:g}–{high:g}"


def _sums(rows: Sequence[PlanRow]) -> list[str]:
    totals = (sum(r.target for r in rows), sum(r.have for r in rows), sum(r.buy for r in rows))
    return [*map(count, totals), usd(math.fsum(r.usd for r in rows))]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | Decimal) and not isinstance(value, bool)


def _text(value: object, *, grouped: bool) -> str:
    """Write one value of a query's result on one line."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return f"{value:,}" if grouped else str(value)
    if isinstance(value, float | Decimal):
        return _number(value)
    if isinstance(value, datetime.datetime):
        return value.isoformat(sep=" ", timespec="seconds")
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{size(len(value))}>"
    if isinstance(value, Mapping | list | tuple):
        value = json.dumps(value, default=str, ensure_ascii=False)
    return _cut(_clean(str(value)), MAX_TEXT)


def _number(value: float | Decimal) -> str:
    """Write a number that is not whole: six significant digits, no exponent between 1e-4 and 1e15."""
    if value != value:
        return "NaN"
    if 1000 <= abs(float(value)) < 1e15:
        return f"{value:,.2f}"
    return f"{float(value):.6g}"


def _clean(text: str) -> str:
    """Keep one line and nothing that steers a terminal: a name can't move the cursor or set colours."""
    text = text.replace("\r\n", "↵").replace("\n", "↵").replace("\t", " ")
    return "".join(c if c.isprintable() else "�" for c in text)


def _cells_wide(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(text)


def _cut(text: str, width: int) -> str:
    if _cells_wide(text) <= width:
        return text
    from rich.cells import set_cell_size

    return set_cell_size(text, max(0, width - 1)).rstrip() + "…"


def _widest(head: str, lines: Sequence[Sequence[str]], i: int) -> int:
    return max(_cells_wide(head), *(_cells_wide(line[i]) for line in lines), 1) if lines else max(1, _cells_wide(head))


def _fit(needed: Sequence[int], numeric: Sequence[bool], width: int) -> list[int]:
    """Shrink the text columns until the table fits `width`; when that is not enough, leave out the last columns."""
    for n_kept in range(len(needed), 0, -1):
        widths = list(needed[:n_kept])
        over = sum(widths) + GAP * (n_kept - 1) - width
        while over > 0:
            i = max((i for i in range(n_kept) if not numeric[i]), key=lambda i: widths[i], default=None)
            if i is None or widths[i] <= LEAST_TEXT:
                break
            widths[i] -= 1
            over -= 1
        if over <= 0:
            return widths
    return [width] if needed else []


def _table(*, footer: bool = False) -> Table:
    from rich import box
    from rich.table import Table

    lines = box.Box("    \n    \n ── \n    \n    \n ── \n    \n    \n")
    return Table(
        box=lines,
        show_footer=footer,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1),
        header_style="bold",
        footer_style="bold",
        border_style="dim",
        collapse_padding=True,
    )


def _column(table: Table, name: str, *, right: bool, width: int, foot: str = "") -> None:
    head = "\n".join(_cut(part, width) for part in name.split("\n"))
    table.add_column(
        _styled(head),
        _styled(foot),
        justify="right" if right else "left",
        width=width,
        no_wrap=True,
        overflow="ellipsis",
        vertical="bottom",
    )


def _styled(text: str, style: str = "") -> Any:
    from rich.text import Text

    return Text(text, style=style)  # never markup: a name like [red] stays what it is


def _plural(word: str, n: int) -> str:
    return word if n == 1 else word + "s"


def _finish(table: Table, notes: Sequence[str], width: int, color: bool) -> str:
    from rich.console import Console

    out = io.StringIO()
    console = Console(
        file=out,
        width=width,
        color_system="standard" if color else None,
        force_terminal=color,
        highlight=False,
        legacy_windows=False,
        _environ={},
    )
    console.print(table)
    for note in notes:
        console.print(_styled(note, "dim"))
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip("\n").split("\n"))
