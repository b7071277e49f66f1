"""A student of latents in the teacher's place: its network makes the latent, the teacher's own code the record.

Every draw starts from the noise that the teacher would start from (`LatentTeacher.noise`) and follows the student's
own flow down its own noise levels: two records of one seed differ by the models alone.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..catalogs.errors import DistdataError
from ..catalogs.protocol import Draw, Failure, LatentTeacher, Request, Teacher, TeacherInfo
from .checkpoint import load_weights, student_weights
from .quantise import dequantised
from .sampler import heun, karras_levels
from .served import served_header, served_info

FAMILIES = ("denoiser", "regressor")


class LatentStudent:
    """Sample a student of family ``denoiser`` or ``regressor``.

    Options:
        path: the student's folder, with ``student.json`` and ``weights.safetensors``.
        decoder: its teacher, a `LatentTeacher`.
        usd_per_gpuh: price of an hour of its time.
        device: cpu or cuda; only the CPU promises equal bytes.

    Raises DistdataError for a decoder that can't decode latents of others.
    """

    def __init__(self, *, path: str, decoder: Teacher, usd_per_gpuh: float = 2.0, device: str = "cpu") -> None:
        if not isinstance(decoder, LatentTeacher):
            raise DistdataError(
                f"student {path}: this teacher can't decode a student's latents; {type(decoder).__name__} lacks "
                "conditions(), noise() or decode()."
            )
        self._folder, self._decoder = Path(path).expanduser(), decoder
        self._usd_per_gpuh, self._device = float(usd_per_gpuh), device
        self._network: Any = None

    @functools.cached_property
    def header(self) -> Mapping[str, Any]:
        """Return ``student.json``; raises DistdataError where no whole student of latents is."""
        return served_header(self._folder, FAMILIES, "latents")

    def describe(self) -> TeacherInfo:
        """Say who this is: records as the teacher's, the artefact as the hash. Reads the files once, loads nothing."""
        return served_info(self.header, self._decoder.describe(), usd_per_gpuh=self._usd_per_gpuh, device=self._device)

    def load(self) -> None:
        """Load network and decoder on first use; raises DistdataError for weights that aren't this network's."""
        if self._network is None:
            load = getattr(self._decoder, "load", None)
            if load is not None:
                load()
            self._network = load_network(self._folder, self.header).to(self._device)

    def sample(self, requests: Sequence[Request]) -> Iterator[Draw | Failure]:
        """Answer one micro-batch together; a request of another world is a Failure that says what is wrong with it."""
        self.load()
        good: list[Request] = []
        told: list[NDArray[np.float32]] = []
        for request in requests:
            try:
                told.append(self._decoder.conditions([request])[0])
            except ValueError as e:
                yield Failure(seed_id=request.seed_id, k=request.k, kind="invalid", reason=str(e))
            else:
                good.append(request)
        if good:
            latents = self.latents(np.stack(told), self._decoder.noise(good))
            yield from self._decoder.decode(good, latents)

    def latents(self, cond: NDArray[np.float32], noise: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return finished latents, float32 [B, *latent], from conditions [B, C] and standard normal noise [B, *latent].

        Raises DistdataError when the student was trained on other conditions or latents than its teacher now has.
        """
        self.load()
        network = self.header["network"]
        wanted = (tuple(network["latent"]), network["n_conditions"])
        if (noise.shape[1:], cond.shape[1]) != wanted:
            raise DistdataError(
                f"{self._folder}: the student takes latents of shape {wanted[0]} and {wanted[1]} conditions; its "
                f"teacher gives {noise.shape[1:]} and {cond.shape[1]}. Train a student of this teacher."
            )
        return draw_latents(self._network, network, cond, noise)


def load_network(folder: Path, header: Mapping[str, Any]) -> Any:
    """Return a finished student's network, ready to be sampled on the CPU; int8 weights are served dequantised."""
    from .denoiser import build_network

    tensors = student_weights(folder)
    if header["precision"] == "int8":
        tensors = dequantised(tensors)
    network = build_network(header["network"])
    load_weights(network, tensors, folder)
    return network.eval().requires_grad_(False)


def draw_latents(
    network: Any, description: Mapping[str, Any], cond: NDArray[np.float32], noise: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Run a network's own sampler: the denoiser's flow from `noise`, or the regressor's one answer per condition.

    `description` is ``network`` of ``student.json``; arrays [B, C] and [B, *latent]; returns float32 [B, *latent].
    """
    import torch

    device = network.std.device
    told = torch.from_numpy(np.ascontiguousarray(cond)).to(device)
    with torch.inference_mode():
        if description["network"] == "regressor":
            flat = network.predict(told)
        else:
            s = description["sampler"]
            levels = karras_levels(s["sigma_min"], s["sigma_max"], s["sampler_steps"], s["rho"])
            start = torch.from_numpy(np.ascontiguousarray(noise)).to(device).reshape(len(noise), -1)

            def denoise(x: torch.Tensor, sigma: float) -> torch.Tensor:
                return network.denoise(x, x.new_full((len(x),), sigma), told)  # type: ignore[no-any-return]

            flat = heun(denoise, start, levels)
    found: NDArray[np.float32] = flat.cpu().numpy().reshape(noise.shape).astype(np.float32)
    return found
