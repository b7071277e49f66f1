"""What the HTML report shows, as plain records: whoever fills them needs no HTML, whoever draws them no catalog."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .comparison import Comparison
from .report_cover import CoverStatus
from .report_gates import LoopView
from .tables import CoverageCell


@dataclass(frozen=True, slots=True, kw_only=True)
class Headline:
    """The numbers at the top of the page. `in_doubt_usd` is what was in flight when a run was cut off."""

    n_samples: int
    n_planned: int
    known_usd: float = 0.0
    in_doubt_usd: float = 0.0
    n_failures: int = 0
    gpuh: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SpendRow:
    """What one cell or one layer cost so far, and the draws it gave."""

    name: str
    n_draws: int
    known_usd: float
    in_doubt_usd: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One line of a summary, both halves as they should be read."""

    name: str
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Lidar:
    """One scan in the vehicle's frame. xyz: float32 [N, 3], metres; intensity: float32 [N] or None."""

    xyz: NDArray[np.float32]
    intensity: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """One sample to look at. camera: uint8 [T, H, W, 1|3|4]; what a sample doesn't have is None."""

    sample_id: str
    cell: str
    outcome: str | None = None
    camera: NDArray[np.uint8] | None = None
    lidar: Lidar | None = None
    text: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Futures:
    """The draws of one decision point: K trajectories float [T, A, 2] in metres, and K outcomes."""

    seed_id: str
    cell: str
    trajectories: tuple[NDArray[np.floating], ...]
    outcomes: tuple[str, ...]
    agents: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """A command worth trying next, and what it tells."""

    about: str
    command: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportData:
    """Everything on the page. `generated_at` is text from the caller: drawing the page reads no clock."""

    title: str
    project: str
    generated_at: str
    teacher: str
    headline: Headline
    cells: tuple[CoverageCell, ...] = ()
    spend_by_layer: tuple[SpendRow, ...] = ()
    spend_by_cell: tuple[SpendRow, ...] = ()
    plan: tuple[Fact, ...] = ()
    previews: tuple[Preview, ...] = ()
    futures: tuple[Futures, ...] = ()
    queries: tuple[Query, ...] = ()
    comparison: Comparison | None = None
    cover: CoverStatus | None = None
    loop: LoopView | None = None
