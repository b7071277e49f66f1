"""Shares of the corpus by layer (core, failure_mode, long_tail), held to the sample.

Of a total of T samples each layer gets its part by Webster's method, and the cells of a layer share that part. Both
steps give more to nobody's loss when T grows, so a money budget can look for the largest T that it pays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..catalogs.errors import DistdataError
from .allocate import Floats, Ints, allocate
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
    low, high = parts < layers.least, parts > layers.most
    if not (low.any() or high.any()):
        return
    wrong = [
        f"layer {layers.names[i]} has {layers.shares[i]:.4g} of {total:,} samples = {parts[i]:,}, and "
        + (
            f"the floors and pins of its cells need {layers.least[i]:,}"
            if low[i]
            else f"its cells can take {layers.most[i]:,} at most (seeds x K, caps and pins)"
        )
        for i in np.flatnonzero(low | high)
    ]
    smallest, largest = layers.smallest(), layers.largest()
    ways = ["No budget holds these shares"] if smallest > largest else []
    if total < smallest <= largest:
        ways.append(f"Give at least --budget {smallest}samples")
    if total > largest >= smallest:
        ways.append(f"plan at most the {largest:,} samples at which the shares hold")
    at = int(np.clip(total, layers.least.sum(), layers.most.sum()))
    said = ", ".join(f"{name} = {share}" for name, share in zip(layers.names, _working(layers, at), strict=True))
    ways.append(f"set [plan] layers to {said}" + (f" and plan {at:,} samples" if at != total else ""))
    ways.append("lower [plan] floor_seeds and the rules" if low.any() else "import more seeds")
    ways.append("pass --allow-undecidable to come as near as can be and mark the cells")
    text = ", or ".join(ways) if len(ways) < 3 else ", ".join(ways[:-1]) + f", or {ways[-1]}"
    raise DistdataError(f"plan: {'; '.join(wrong)}. {text[0].upper()}{text[1:]}.")


def _working(layers: Layers, total: int) -> list[str]:
    """Return shares near the given ones, as texts that sum to 1, whose parts of `total` every layer's bounds hold."""
    parts = allocate(layers.shares, layers.least, layers.most, total)
    parts = allocate(np.ones(len(parts)), parts, layers.most, total)  # what layers of share 0 must take in their place
    for n_digits in range(1, 12):
        step = 10**n_digits
        whole = allocate(parts.astype(np.float64), np.zeros_like(parts), np.full(len(parts), step), step)
        dealt = allocate(whole / step, np.zeros_like(parts), np.full(len(parts), _MANY), total)
        if np.all((dealt >= layers.least) & (dealt <= layers.most)):
            break
    return [f"{n / step:.{n_digits}f}".rstrip("0").rstrip(".") for n in whole]
