"""Shares of the corpus by layer (core, failure_mode, long_tail), held to the sample.

Of a total of T samples each layer gets its part by Webster's method, and the cells of a layer share that part. Both
steps give more to nobody's loss when T grows, so a money budget can look for the largest T that it pays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..catalogs.errors import DistdataError
from .allocate import Floats, Ints, allocate, allocate_groups
from .request import PlanRequest

_MANY = 2**50


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Layers:
    """The layers in play: `names` [L], their `shares` [L], and each cell's layer [H] (infeasible cells: any).

    `least` and `most` [L] are the sums of the cells' bounds, `lower` and `upper` [H] these bounds. A cell of weight 0
    stands at its lower bound.
    """

    names: list[str]
    shares: Floats
    layer: Ints
    weight: Floats
    lower: Ints
    upper: Ints
    least: Ints
    most: Ints

    def parts(self, total: int) -> Ints:
        """Return each layer's part of `total` samples, [L]."""
        return allocate(self.shares, np.zeros(len(self.names), dtype=np.int64), np.full(len(self.names), _MANY), total)

    def targets(self, total: int) -> Ints:
        """Deal `total` samples to the cells, each layer its part, [H]; the bounds must allow it."""
        return allocate_groups(self.weight, self.lower, self.upper, self.layer, self.parts(total))

    def smallest(self) -> int:
        """Return the smallest total whose parts cover the lower bounds; `_MANY` where a layer of share 0 has some."""
        if np.any((self.shares == 0) & (self.least > 0)):
            return _MANY
        return first_true(lambda total: bool(np.all(self.parts(total) >= self.least)), 0, _MANY)

    def largest(self) -> int:
        """Return the largest total whose parts the upper bounds hold."""
        return first_true(lambda total: bool(np.any(self.parts(total) > self.most)), 0, int(self.most.sum()) + 1) - 1


def first_true(holds: Callable[[int], bool], low: int, high: int) -> int:
    """Return the first number in [low, high) from which on `holds`, or `high`; it never turns from True to False."""
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low


def find_layers(request: PlanRequest, layer_names: list[str], weight: Floats, lower: Ints, upper: Ints) -> Layers:
    """Group the cells by layer; `layer_names`, `weight`, `lower` and `upper` are [H], 0 in infeasible cells.

    Raises:
        DistdataError: a layer with a share holds no cell that can get anything.
    """
    given = request.layers or {}
    names = sorted({*given, *layer_names})
    code = {name: i for i, name in enumerate(names)}
    layer = np.array([code[name] for name in layer_names], dtype=np.int64)
    upper = np.where(weight > 0, upper, lower)
    shares = np.array([given.get(name, 0.0) for name in names], dtype=np.float64)  # type: ignore[call-overload]
    least, most = np.zeros(len(names), dtype=np.int64), np.zeros(len(names), dtype=np.int64)
    np.add.at(least, layer, lower)
    np.add.at(most, layer, upper)
    for i in np.flatnonzero((shares > 0) & (most == 0)):
        raise DistdataError(
            f"plan: [plan] layers gives {names[i]} {shares[i]:.4g} of the samples, but no cell of that layer can get "
            "any: none is feasible with seeds and a weight above 0. Import seeds for it, or set its share to 0."
        )
    return Layers(
        names=names, shares=shares, layer=layer, weight=weight, lower=lower, upper=upper, least=least, most=most
    )  # fmt: skip


def refuse_layers(layers: Layers, total: int) -> None:
    """Refuse layers whose part of `total` samples lies below their floors or above their ceilings, with ways out.

    Raises:
        DistdataError: always where there is such a layer.
    """
    parts = layers.parts(total)
    for i in np.flatnonzero(parts < layers.least):
        smallest = layers.smallest()
        way = (
            f"Give at least --budget {smallest}samples"
            if layers.largest() >= smallest
            else "No budget satisfies these shares"
        )
        raise DistdataError(
            f"plan: layer {layers.names[i]} has {layers.shares[i]:.4g} of {total:,} samples = {parts[i]:,}, and the "
            f"floors and pins of its cells need {layers.least[i]:,}. {way}, raise its share under [plan] layers to "
            f"{np.ceil(layers.least[i] / total * 1e4) / 1e4:.4g}, or lower [plan] floor_seeds and the rules."
        )
    for i in np.flatnonzero(parts > layers.most):
        raise DistdataError(
            f"plan: layer {layers.names[i]} has {layers.shares[i]:.4g} of {total:,} samples = {parts[i]:,}, and its "
            f"cells can take {layers.most[i]:,} at most (seeds x K, caps and pins). Lower its share under [plan] "
            f"layers to at most {np.floor(layers.most[i] / total * 1e4) / 1e4:.4g}, import more seeds for it, or plan "
            f"at most the {layers.largest():,} samples at which the shares hold."
        )
