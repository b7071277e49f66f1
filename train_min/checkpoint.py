"""Write and read students and the state of a training, each file whole or not at all.

A student is two files: ``weights.safetensors`` and ``student.json``, whose `artefact` hashes both. ``student.json``
comes last, so that a folder with one is finished. ``resume.safetensors`` is a training's whole state in one file,
numbers and curve in its header, so that no crash can leave two halves of different steps; ``resume.json`` only tells
people of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..catalogs.errors import DistdataError
from ..catalogs.files import sync_folder, write_atomic
from ..catalogs.hashing import bytes_hash

if TYPE_CHECKING:
    import torch

FORMAT = 1
WEIGHTS, STUDENT, CURVE = "weights.safetensors", "student.json", "curve.parquet"
RESUME, RESUME_JSON = "resume.safetensors", "resume.json"
_STATE = "state"  # the header's one key: with more, safetensors would write them in any order


def network_weights(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return a network's parameters and buffers by name, on the CPU, those that share memory once."""
    found: dict[str, torch.Tensor] = {}
    seen: set[tuple[int, tuple[int, ...]]] = set()
    for name, tensor in network.state_dict().items():
        memory = (tensor.data_ptr(), tuple(tensor.shape))
        if tensor.numel() and memory in seen:
            continue
        seen.add(memory)
        found[name] = tensor.detach().cpu().contiguous().clone()
    return found


def load_weights(network: torch.nn.Module, tensors: Mapping[str, torch.Tensor], source: object) -> None:
    """Give a network the weights that `network_weights` returned of one like it.

    Raises DistdataError naming `source` when names or shapes are not the network's.
    """
    own = network.state_dict()
    unknown = sorted(set(tensors) - set(own))
    loaded = {own[name].data_ptr() for name in tensors if name in own}
    missing = sorted(n for n, t in own.items() if n not in tensors and t.numel() and t.data_ptr() not in loaded)
    shapes = [n for n in tensors if n in own and tensors[n].shape != own[n].shape]
    if unknown or missing or shapes:
        parts = [
            f"{what} {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"
            for what, names in (("no place for", unknown), ("nothing for", missing), ("another shape of", shapes))
            if names
        ]
        raise DistdataError(
            f"{source}: the weights are not of this network: {'; '.join(parts)}. It was made with other settings."
        )
    network.load_state_dict(dict(tensors), strict=False)


def write_student(folder: Path, tensors: Mapping[str, torch.Tensor], header: Mapping[str, Any]) -> dict[str, Any]:
    """Write a student durably and return its header with `format` and `artefact`.

    The artefact is 16 hex digits over the bytes of the weights' file and the header without `artefact` as compact JSON
    with sorted keys. Raises TypeError for a header that JSON can't hold.
    """
    from safetensors.torch import save

    data = save(dict(tensors))
    whole = {"format": FORMAT, **header}
    whole["artefact"] = _artefact(data, whole)
    write_atomic(folder / WEIGHTS, data, "train.weights")
    text = json.dumps(whole, indent=2, sort_keys=True, allow_nan=False) + "\n"
    write_atomic(folder / STUDENT, text.encode(), "train.student")
    return whole


def read_student(folder: Path) -> dict[str, Any] | None:
    """Return a student's header, or None where no finished one is.

    Raises DistdataError when the files don't give the artefact that the header names, or are of another format.
    """
    try:
        text = (folder / STUDENT).read_text()
    except (FileNotFoundError, NotADirectoryError):
        return None
    again = "Train it again in another folder, or restore the file."
    try:
        header: dict[str, Any] = json.loads(text)
        data = (folder / WEIGHTS).read_bytes()
        version, artefact = header["format"], header["artefact"]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise DistdataError(f"{folder}: no whole student ({type(e).__name__}: {e}). {again}") from None
    if version != FORMAT:
        raise DistdataError(
            f"{folder / STUDENT}: format {version}; this version reads format {FORMAT}. Update distdata."
        )
    if _artefact(data, header) != artefact:
        raise DistdataError(
            f"{folder}: {WEIGHTS} and {STUDENT} are not artefact {artefact}: one of them was altered. {again}"
        )
    return header


def student_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return a finished student's tensors by name, on the CPU (see `load_weights`)."""
    from safetensors.torch import load

    found: dict[str, torch.Tensor] = load((folder / WEIGHTS).read_bytes())
    return found


def _artefact(weights: bytes, header: Mapping[str, Any]) -> str:
    rest = {k: v for k, v in header.items() if k != "artefact"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return bytes_hash([weights, text.encode()])


def write_resume(folder: Path, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> None:
    """Replace a training's saved state durably; `state` is JSON-able and holds at least `job`, `step` and `steps`."""
    from safetensors.torch import save

    write_atomic(folder / RESUME, save(dict(tensors), {_STATE: json.dumps(state)}), "train.resume")
    told = {key: state[key] for key in ("job", "step", "steps")}
    write_atomic(
        folder / RESUME_JSON, (json.dumps(told, indent=2, sort_keys=True) + "\n").encode(), "train.resume_json"
    )


def read_resume(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
    """Return the tensors and the state that `write_resume` wrote last, or None.

    Raises DistdataError for a file that is not whole.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = folder / RESUME
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        tensors: dict[str, torch.Tensor] = load(data)
        size = int.from_bytes(data[:8], "little")
        state: dict[str, Any] = json.loads(json.loads(data[8 : 8 + size])["__metadata__"][_STATE])
    except (SafetensorError, ValueError, KeyError) as e:
        raise DistdataError(f"{path}: damaged ({e}). Delete it to train from the start.") from None
    return tensors, state


def remove_resume(folder: Path) -> None:
    """Delete a training's saved state, as a finished student needs none."""
    for name in (RESUME_JSON, RESUME):
        (folder / name).unlink(missing_ok=True)
    sync_folder(folder)
