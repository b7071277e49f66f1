"""The report's section on combinations: which pairs or triples of values have samples, and which have none."""

from __future__ import annotations

import html
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .cells import codes_of_names, cover_factors
from .config import Config
from .cover import Coverage, uncovered
from .possible import varying
from .report_heatmap import breakable
from .tables import count

N_SHOWN = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class CoverStatus:
    """Combinations held by cells with kept samples (`kept`), and by any feasible cell of the table (`table`).

    `has_cell` goes with ``kept.missing``: whether a cell of the table could fill the gap.
    """

    kept: Coverage
    table: Coverage
    has_cell: tuple[bool, ...]


def cover_status(
    config: Config, root: Path, cells: Iterable[str], kept: Iterable[str], limit: int | None = N_SHOWN
) -> CoverStatus | None:
    """Measure what the catalog covers; None without ``[cover]``.

    `root` is the project's folder (for a fleet table), `cells` are the names of the feasible cells, `kept` of those
    with at least one kept sample. At most `limit` uncovered combinations are named, the most frequent first. Axes with
    one value are left out: they combine with everything.
    """
    if config.cover is None:
        return None
    factors, columns = varying(cover_factors(config, root))
    strength = config.cover.strength
    table = codes_of_names(config, cells)[:, columns]
    now = uncovered(factors, codes_of_names(config, kept)[:, columns], strength, limit)
    has_cell = []
    for combination in now.missing:
        hit = table[:, 0] >= 0
        for name, value in combination.values:
            f = factors.names.index(name)
            hit &= table[:, f] == factors.values[f].index(value)
        has_cell.append(bool(hit.any()))
    return CoverStatus(kept=now, table=uncovered(factors, table, strength, 0), has_cell=tuple(has_cell))


def cover_section(status: CoverStatus | None) -> str:
    """Draw the section; empty without a status. Every text is escaped."""
    if status is None:
        return ""
    now, table = status.kept, status.table
    what = {2: "pair", 3: "triple"}.get(now.strength, "combination")
    head = f'<section><h2>Combinations</h2><p class="about">Which {what}s of values the kept samples hold together. '
    head += f"What an [[infeasible]] rule forbids is not counted. {_tally(now, what)}"
    n_missing = now.n_possible - now.n_covered
    if table.n_covered < table.n_possible:
        head += (
            f" {count(table.n_possible - table.n_covered)} have no cell: the table was cut at cover.max_cells "
            f"({_percent(table.share_covered)} of the fleet's {what}s have one)."
        )
    if not n_missing:
        return f"{head}</p></section>"
    rows = "".join(
        f'<tr><th scope="row">{_values(c.values)}</th><td class="num">{_percent(c.share)}</td>'
        f"<td>{'no sample yet' if has_cell else 'no cell: raise cover.max_cells'}</td></tr>"
        for c, has_cell in zip(now.missing, status.has_cell, strict=True)
    )
    more = n_missing - len(now.missing)
    tail = f'<p class="note">… and {count(more)} rarer ones.</p>' if more else ""
    return (
        f'{head}</p><table class="list"><thead><tr><th scope="col">Uncovered {what}</th>'
        '<th scope="col" class="num">Share of the fleet</th><th scope="col">Why</th></tr></thead>'
        f"<tbody>{rows}</tbody></table>{tail}</section>"
    )


def _tally(now: Coverage, what: str) -> str:
    if now.n_covered == now.n_possible:
        return f"All {count(now.n_possible)} possible {what}s are covered."
    return (
        f"{count(now.n_covered)} of {count(now.n_possible)} possible {what}s are covered, "
        f"{_percent(now.share_covered)} by fleet share; the most frequent of the others:"
    )


def _percent(share: float) -> str:
    """Write a share that is never rounded up to all or down to nothing."""
    if 0 < share < 0.0001:
        return "&lt;0.01%"
    return f"{min(share, 0.9999 if share < 1 else 1) * 100:.{0 if share in (0, 1) else 2}f}%"


def _values(values: Iterable[tuple[str, str]]) -> str:
    return ", ".join(f"{html.escape(name)} {breakable(value)}" for name, value in values)
