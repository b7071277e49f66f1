"""Match a student's inner layers with features that the teacher stored (FitNets, Romero et al. 2015).

A map names a teacher's feature for some of the student's layers: ``{"block1": "mid"}`` asks the layer ``block1`` to
predict, through a learned linear projection, what ``feat_mid.npy`` holds. The projection is trained along and not used
when the student is served. A feature with one row per captured state (``traj.npy``) belongs to those states and their
noise levels; any other belongs to the finished latent, which the student sees at its lowest noise level.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..catalogs.errors import DistdataError, nearest

if TYPE_CHECKING:
    from torch import Tensor


def member(layer: str) -> str:
    """Return the name of the member that holds a teacher's layer."""
    return f"feat_{layer}.npy"


def check_map(feature_map: Mapping[str, Any], layers: tuple[str, ...], sample: Mapping[str, Any]) -> dict[str, int]:
    """Return the size of the teacher's feature for each of the student's mapped layers.

    `sample` is one decoded sample: its features must be there.

    Raises:
        DistdataError: the map names a layer that the student hasn't, or a feature that the samples haven't.
    """
    sizes: dict[str, int] = {}
    for layer, feature in feature_map.items():
        if layer not in layers:
            raise DistdataError(
                f"feature_map: the student has no layer {layer!r}; it has {', '.join(layers)}.{nearest(layer, layers)}"
            )
        name = member(str(feature))
        if name not in sample:
            stored = [m[5:-4] for m in sample if m.startswith("feat_") and m.endswith(".npy")]
            known = f"stored are {', '.join(stored)}" if stored else "no feature is stored"
            raise DistdataError(
                f"feature_map: the samples have no {name} for layer {layer!r}; {known}. Capture it when drawing, or "
                f"leave {layer!r} out of the map."
            )
        array = np.asarray(sample[name])
        sizes[layer] = int(array[0].size if per_state(array, sample) else array.size)
    return sizes


def per_state(feature: Any, sample: Mapping[str, Any]) -> bool:
    """Tell whether a feature has one row per captured state of its sample."""
    levels = sample.get("traj_sigma.npy")
    return levels is not None and np.ndim(feature) > 1 and len(feature) == len(levels)


def feature_loss(taps: Mapping[str, Tensor], wanted: Mapping[str, Tensor], projections: Any) -> Tensor:
    """Return each row's mean squared error of the projected layers, averaged over them, float [B].

    `taps` [B, width] and `wanted` [B, size] by the student's layer; `projections` a module per layer.
    """
    losses: list[Tensor] = [((projections[name](taps[name]) - target) ** 2).mean(1) for name, target in wanted.items()]
    total = losses[0]
    for loss in losses[1:]:
        total = total + loss
    return total / len(losses)
