"""Write and read int8 copies of students: the artefact that ships is the one that gates judge, so it has its own hash.

The weights of linear layers become int8, symmetric, with one scale per output channel: w = scale * q with
scale = max |w| / 127 over the channel's inputs and q in -127..127, so that no weight moves by more than half a scale.
Biases, norms, embeddings and buffers stay as they are. Weights are served dequantised.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..catalogs.errors import DistdataError
from .checkpoint import read_student, student_weights, write_student

if TYPE_CHECKING:
    from torch import Tensor, nn

INT8 = "int8"
"""The copy's folder within its student's."""
_SCALE = ".scale"


def write_int8(folder: Path) -> dict[str, Any]:
    """Write the int8 copy of the finished student in `folder` into its subfolder ``int8`` and return its header.

    Raises:
        DistdataError: no finished student there, or one that is a quantised copy itself.
    """
    header = read_student(folder)
    if header is None:
        raise DistdataError(f"{folder}: no student.json, so nothing to quantise. Train a student there first.")
    if header["precision"] != "float32":
        raise DistdataError(f"{folder}: its precision is {header['precision']} already; quantise the float32 student.")
    tensors = student_weights(folder)
    kept = {key: value for key, value in header.items() if key not in ("artefact", "format")}
    target = folder / INT8
    target.mkdir(exist_ok=True)
    names = [name for name in linear_weights(_network(header)) if name in tensors]
    return write_student(
        target, quantised(tensors, names), {**kept, "precision": INT8, "quantised_from": header["artefact"]}
    )


def linear_weights(network: nn.Module) -> list[str]:
    """Return the names of the weights of a network's linear layers."""
    from torch import nn

    return [f"{name}.weight" for name, module in network.named_modules() if isinstance(module, nn.Linear)]


def quantised(tensors: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """Return `tensors` with those of `names`, [out, in], as int8 and their scales, float32 [out], beside them."""
    import torch

    found = dict(tensors)
    for name in names:
        weight = tensors[name].float()
        scale = weight.abs().amax(1) / 127
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))  # a channel of zeros stays zero
        found[name] = torch.round(weight / scale[:, None]).clamp(-127, 127).to(torch.int8)
        found[name + _SCALE] = scale
    return found


def dequantised(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors that `quantised` was given, each weight to within half its channel's scale."""
    scales = {name.removesuffix(_SCALE): t for name, t in tensors.items() if name.endswith(_SCALE)}
    return {
        name: tensor.float() * scales[name][:, None] if name in scales else tensor
        for name, tensor in tensors.items()
        if not (name.endswith(_SCALE) and name.removesuffix(_SCALE) in tensors)
    }


def _network(header: Mapping[str, Any]) -> nn.Module:
    if header["family"] == "causal_lm":
        from .language_learner import language_network

        return language_network(header["network"])
    from .denoiser import build_network

    return build_network(header["network"])
