"""How far a draw lies from what its seed can become: the geometry behind `density` and `outcome`.

Draws are points (`feature`). Of one scenario type the teacher's labelled draws give, in this order:

1. a scale per dimension, the spread within one seed and outcome, so that a dimension of pure noise counts as much as
   any other and not more;
2. the few directions in which one seed's draws still spread wider than noise alone would make them: eigenvalues of the
   scaled covariance within seeds above the Marchenko-Pastur edge (1 + sqrt(d / n))^2. In them the outcomes differ.
   Where there are none (one outcome, or no labels to tell noise by), the eight of widest spread before scaling: those
   of scaled noise would be the ones along which these very draws happen to lie far out;
3. for each outcome a ridge regression of the place in these directions on the seed's own numbers (its state) and its
   cell, the penalty chosen by leaving one out. A number with only two values (a side of the road) turns the slopes of
   the others. What is left is the residual, in units of the outcome's own spread.

Two things are measured. How far a draw is on the way between outcomes (`between`): with y - m_a its residual under a,

    t(y) = min over a of max over b of (y - m_a).(m_b - m_a) / |m_b - m_a|^2    in units of the outcomes' common spread,

only pairs at least `SEPARATE` apart. It is 0 at an outcome, 1/2 half way between two, p where two are averaged by p
and 1 - p; being off to the side, or too wide, moves it no more than as seen along the way. A draw that is farther from
every outcome than any two are apart has that ratio instead (above 1).

A draw's distance to an outcome is the root mean square of those from its residual under this outcome to the `NEAREST`
nearest of the teacher's own residuals in the same cell (the last alone would tie for mutual neighbours; a cell of fewer
than 20 borrows the scenario type's). A draw of the teacher is never its own neighbour, and the prediction that makes
its residual is made without it (in closed form, by its leverage): so all its distances are those of a new draw.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

NEAREST = 2
MAX_DIRECTIONS = 8
SEPARATE = 5.0
"""Outcomes nearer than this many spreads overlap: a normal law puts 0.6% of one's draws past the middle."""
MIN_DRAWS = 3
"""An outcome that fewer of the teacher's draws show has no place of its own."""
MIN_CELL = 20
PENALTY = 0.3
MIN_GAIN = 0.02
DRAWS_PER_REGRESSOR = 4
_SHRINK_DRAWS = 10  # an outcome's own spread counts against the common one as its draws against this
_MIN_FREEDOM = 10
_MAX_ROWS = 2000  # of the decomposition; more rows don't sharpen eight directions
_SCALE_FLOOR = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Points:
    """Draws of one scenario type.

    `x` [n, d] features; `state` [n, p] numbers of their seeds (p may be 0); `seed`, `cell`, `outcome` [n] names.
    """

    x: Floats
    state: Floats
    seed: NDArray[np.str_]
    cell: NDArray[np.str_]
    outcome: NDArray[np.str_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """How a seed's numbers become regressors: standardised, `turns` also times every other, and the cells' own."""

    keep: Ints
    mean: Floats
    std: Floats
    turns: Ints
    cells: tuple[str, ...]

    def rows(self, state: Floats, cell: NDArray[np.str_]) -> Floats:
        """Return the regressors [n, r]; the first is 1."""
        z = (state[:, self.keep] - self.mean) / self.std
        parts = [np.ones((len(z), 1)), z]
        parts += [np.sign(z[:, [t]]) * np.delete(z, self.turns, axis=1) for t in self.turns]
        if len(self.cells) > 1:
            parts.append((cell[:, None] == np.array(self.cells)).astype(np.float64))
        return np.concatenate(parts, axis=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Modes:
    """What was learnt of one scenario type from the teacher's draws.

    `directions` [d, q]; `design`; per outcome with enough draws its name, `weights` [J, r, q] and `scale` [J, q]. Of
    the draws themselves: `own` [n] which of these outcomes they show (-1 none), `residual` [n, q] scaled, made without
    the draw itself, `shift` [n, q] by how much that moved it, and `cell` [n].
    """

    directions: Floats
    design: Design
    names: tuple[str, ...]
    weights: Floats
    scale: Floats
    own: Ints
    residual: Floats
    shift: Floats
    cell: NDArray[np.str_]

    def distances(self, points: Points, match: Ints) -> Floats:
        """Return the distance to each outcome, float64 [n, J]; infinite where the teacher has no other draw.

        `match` [n]: which of the teacher's draws answers the same question (seed and k), -1 none. It is left out.
        """
        z = self._residuals(points, match)
        found = np.full(z.shape[:2], math.inf)
        for cell in np.unique(points.cell):
            pool = peers(self.cell, cell)
            for i in np.flatnonzero(points.cell == cell):
                others = pool[pool != match[i]]
                if len(others):
                    square = ((z[i][:, None] - self.residual[others]) ** 2).sum(-1)
                    m = min(NEAREST, len(others))
                    found[i] = np.sqrt(np.partition(square, m - 1, axis=1)[:, :m].mean(1))
        return found

    def between(self, points: Points, match: Ints) -> Floats:
        """Return how far each draw is on the way from one outcome to another, float64 [n] (module text): 0 at one.

        `match` as for `distances`. All 0 where one outcome is known.
        """
        spread = np.sqrt((self.scale**2).mean(axis=0))
        place = self._residuals(points, match) * (self.scale / spread)
        share = np.full(len(place), math.inf)
        widest = np.full(len(place), SEPARATE**2)
        for j in range(place.shape[1]):
            way = place[:, [j]] - place
            length = (way**2).sum(-1)
            apart = length > SEPARATE**2
            gone = np.einsum("nq,nbq->nb", place[:, j], way) / np.where(apart, length, 1.0)
            share = np.minimum(share, np.where(apart, gone, 0.0).max(axis=1))
            widest = np.maximum(widest, length.max(axis=1))
        off = np.sqrt((place**2).sum(-1).min(axis=1) / widest)
        return np.asarray(np.where(off > 1, off, np.maximum(share, 0.0)))

    def _residuals(self, points: Points, match: Ints) -> Floats:
        """Return each draw's residual under each outcome, float64 [n, J, q], the matching teacher draw left out."""
        z = _under(points.x @ self.directions, self.design.rows(points.state, points.cell), self.weights, self.scale)
        same = np.flatnonzero(match >= 0)
        same = same[self.own[match[same]] >= 0]
        # leaving the teacher's draw out moves the prediction, for the teacher's and the student's draw alike
        z[same, self.own[match[same]]] += self.shift[match[same]]
        return z


def fit_modes(points: Points) -> Modes:
    """Learn the modes from at least 2 of the teacher's draws. An empty outcome is none; with none all are one mode."""
    directions = find_directions(points)
    place = points.x @ directions
    design = _design(points)
    rows = design.rows(points.state, points.cell)
    found, counts = np.unique(points.outcome, return_counts=True)
    names = [str(n) for n, c in zip(found, counts, strict=True) if n and c >= MIN_DRAWS]
    members = [np.flatnonzero(points.outcome == n) for n in names] or [np.arange(len(place))]
    own = np.full(len(place), -1)
    left, full = np.zeros_like(place), np.zeros_like(place)
    weights = []
    for j, at in enumerate(members):
        weight, left[at] = _regress(rows[at], place[at])
        own[at], full[at] = j, place[at] - rows[at] @ weight
        weights.append(weight)
    scale = _scales(left, own, len(members))
    residual, shift = left / scale[own], (left - full) / scale[own]
    lone = np.flatnonzero(own < 0)
    if len(lone):
        z = _under(place[lone], rows[lone], np.stack(weights), scale)
        nearest = (z**2).sum(-1).argmin(1)
        residual[lone], shift[lone] = z[np.arange(len(lone)), nearest], 0.0
    return Modes(
        directions=directions,
        design=design,
        names=tuple(names) or ("",),
        weights=np.stack(weights),
        scale=scale,
        own=own,
        residual=residual,
        shift=shift,
        cell=points.cell,
    )


def peers(cells: NDArray[np.str_], cell: str) -> Ints:
    """Return who of the teacher's draws stand for a cell: its own, or all of the scenario type if they are too few."""
    own = np.flatnonzero(cells == cell)
    return own if len(own) >= MIN_CELL else np.arange(len(cells))


def find_directions(points: Points) -> Floats:
    """Return the directions in which outcomes differ (module text, 1 and 2), float64 [d, q], 1 <= q <= 8."""
    pair = np.char.add(np.char.add(points.seed, "\n"), points.outcome)
    spread, freedom = _within(points.x, pair)
    if freedom < _MIN_FREEDOM:
        spread, freedom = _within(points.x, points.outcome)
    std = np.sqrt((spread**2).sum(0) / max(freedom, 1))
    usual = np.median(std[std > 0]) if (std > 0).any() else 1.0
    std = np.maximum(std, _SCALE_FLOOR * usual)
    apart, freedom = _within(points.x, points.seed)
    if freedom < _MIN_FREEDOM:
        apart, freedom = _within(points.x, np.zeros(len(points.x), np.str_))
    if len(apart) > _MAX_ROWS:
        chosen = np.linspace(0, len(apart) - 1, _MAX_ROWS).astype(np.int64)
        freedom = max(1, freedom * _MAX_ROWS // len(apart))
        apart = apart[chosen]
    _, root, axes = np.linalg.svd(apart / std / math.sqrt(max(freedom, 1)), full_matrices=False)
    edge = (1 + math.sqrt(points.x.shape[1] / max(freedom, 1))) ** 2
    n = min(MAX_DIRECTIONS, int((root**2 > edge).sum()))
    if n == 0:
        return np.asarray(np.linalg.svd(apart, full_matrices=False)[2][:MAX_DIRECTIONS].T)
    return np.asarray(axes[:n].T / std[:, None])


def _within(x: Floats, group: NDArray[np.str_]) -> tuple[Floats, int]:
    """Return the departures from the groups' means and their degrees of freedom."""
    names, at = np.unique(group, return_inverse=True)
    sums = np.zeros((len(names), x.shape[1]))
    np.add.at(sums, at, x)
    return np.asarray(x - (sums / np.bincount(at)[:, None])[at]), len(x) - len(names)


def _design(points: Points) -> Design:
    std = points.state.std(axis=0) if points.state.size else np.zeros(points.state.shape[1])
    keep = np.flatnonzero(std > 1e-9 * np.maximum(1.0, np.abs(points.state).max(axis=0, initial=0.0)))
    mean, std = points.state[:, keep].mean(axis=0), std[keep]
    z = (points.state[:, keep] - mean) / std
    turns: list[int] = []
    for i in range(z.shape[1]):
        # two columns that say the same turn the slopes once
        if len(np.unique(z[:, i])) == 2 and not any(abs(z[:, i] @ z[:, t]) > 0.999 * len(z) for t in turns):
            turns.append(i)
    cells = tuple(str(c) for c in np.unique(points.cell))
    return Design(keep=keep, mean=mean, std=std, turns=np.array(turns, np.int64), cells=cells)


def _regress(rows: Floats, place: Floats) -> tuple[Floats, Floats]:
    """Return weights [r, q] and the residuals made without their own draw, [n, q].

    Regressors join one by one, each time the one that lowers the error of leaving one out most, as long as it does so
    by `MIN_GAIN` and every one has `DRAWS_PER_REGRESSOR` draws: where seeds are few, one that says nothing would make
    a draw stand alone.
    """
    chosen = [0]
    weight, left = _ridge(rows[:, chosen], place)
    while len(chosen) < min(rows.shape[1], 1 + len(rows) // DRAWS_PER_REGRESSOR):
        rest = [c for c in range(1, rows.shape[1]) if c not in chosen]
        tried = [_ridge(rows[:, [*chosen, c]], place) for c in rest]
        errors = [float((t[1] ** 2).sum()) for t in tried]
        best = int(np.argmin(errors))
        if errors[best] > (1 - MIN_GAIN) * float((left**2).sum()):
            break
        chosen.append(rest[best])
        weight, left = tried[best]
    full = np.zeros((rows.shape[1], place.shape[1]))
    full[chosen] = weight
    return full, left


def _ridge(rows: Floats, place: Floats) -> tuple[Floats, Floats]:
    """Return the ridge weights (the first column, the mean, is free) and the leave-one-out residuals."""
    ridge = np.diag(np.r_[1e-9, np.full(rows.shape[1] - 1, PENALTY)])
    solved = np.linalg.solve(rows.T @ rows + ridge, rows.T)
    leverage = np.clip(np.einsum("nr,rn->n", rows, solved), 0.0, 0.999)
    fitted = solved @ place
    return fitted, (place - rows @ fitted) / (1 - leverage)[:, None]


def _scales(residual: Floats, own: Ints, n_outcomes: int) -> Floats:
    """Return each outcome's spread, float64 [J, q]: by the median, so that a few odd draws don't widen it."""

    def spread(part: Floats) -> Floats:
        return np.asarray(1.4826 * np.median(np.abs(part), axis=0))

    common = spread(residual[own >= 0])
    rows = []
    for j in range(n_outcomes):
        part = residual[own == j]
        rows.append((len(part) * spread(part) + _SHRINK_DRAWS * common) / (len(part) + _SHRINK_DRAWS))
    found = np.stack(rows)
    return np.where(found > 0, found, 1.0)


def _under(place: Floats, rows: Floats, weights: Floats, scale: Floats) -> Floats:
    """Return each place's scaled residual under each outcome, float64 [n, J, q]."""
    return np.asarray((place[:, None] - np.einsum("nr,jrq->njq", rows, weights)) / scale)
