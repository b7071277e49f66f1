"""A latent world on the line whose law and whose flow are exact: two modes, at -1 and 1, and a probability per seed.

x = Q(Phi(z)), Q the quantile function of p N(1, s^2) + (1 - p) N(-1, s^2): in one dimension the probability flow from
noise z to the data is this monotone map whatever the schedule (the flow preserves order and transports the law), so a
perfect diffusion student meets the teacher draw for draw under common noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distdata.catalogs.hashing import content_hash
from distdata.catalogs.protocol import Draw, Failure, MemberSpec, Request, TeacherInfo

SPREAD = 0.15
SWING = 8.0
"""Height of the waves in logits: P(right) is near 0 or near 1, and where it turns only draws near there can tell."""
REFUSED: frozenset[tuple[str, int]] = frozenset()
"""Seeds and draws that are answered by a refusal."""
LIGHTS, ROADS = ("day", "night"), ("dry", "wet")
_NORMAL = NormalDist()


class TwoModes:
    """Options: `right` (slice light,road -> logit added there), `waves` (slice -> how fast p changes with s).

    Every slice's waves begin at a phase of their own, so that none can be learned from another.
    """

    def __init__(
        self, *, right: Mapping[str, float] | None = None, waves: Mapping[str, float] | None = None, version: str = "1",
    ) -> None:  # fmt: skip
        self._right, self._waves, self._version = dict(right or {}), dict(waves or {}), version

    def describe(self) -> TeacherInfo:
        decides = [self._right, self._waves, self._version, SPREAD, SWING]
        return TeacherInfo(
            id="two_modes", version=self._version, content_hash=content_hash(decides), kind="kd_pair",
            usd_per_gpuh=3600.0, members={
                "latent.npy": MemberSpec(dtype="float32", shape=(1,)),
                "cond.npy": MemberSpec(dtype="float32", shape=(6,)),
            }, outcomes=("left", "right"),
        )  # fmt: skip

    def conditions(self, requests: Sequence[Request]) -> NDArray[np.float32]:
        rows = []
        for r in requests:
            hot = [float(r.axes["light"] == v) for v in LIGHTS] + [float(r.axes["road"] == v) for v in ROADS]
            both = float(r.axes["light"] == "night" and r.axes["road"] == "wet")
            rows.append([*hot, both, float(r.params["s"])])
        return np.asarray(rows, np.float32)

    def noise(self, requests: Sequence[Request]) -> NDArray[np.float32]:
        return np.asarray(
            [[np.random.Generator(np.random.Philox(r.rng_seed)).standard_normal()] for r in requests], np.float32
        )

    def probability(self, axes: Mapping[str, str], s: float) -> float:
        """Return P(right): logistic in the cell's logit and the seed's s in [-1, 1]."""
        where = f"{axes['light']},{axes['road']}"
        logit = self._right.get(where, 0.0) + 0.5 * s
        if where in self._waves:
            phase = math.pi * (LIGHTS.index(axes["light"]) + 2 * ROADS.index(axes["road"])) / 2
            logit += SWING * math.sin(self._waves[where] * s + phase)
        return 1 / (1 + math.exp(-logit))

    def sample(self, requests: Sequence[Request]) -> Iterable[Draw | Failure]:
        noise = self.noise(requests)[:, 0]
        p = [self.probability(r.axes, float(r.params["s"])) for r in requests]
        x = np.array([[quantile(_NORMAL.cdf(float(z)), q)] for z, q in zip(noise, p, strict=True)], np.float32)
        return self.decode(requests, x)

    def decode(self, requests: Sequence[Request], latents: NDArray[np.float32]) -> Iterable[Draw | Failure]:
        conditions = self.conditions(requests)
        for r, x, c in zip(requests, latents, conditions, strict=True):
            if (r.seed_id, r.k) in REFUSED:
                yield Failure(seed_id=r.seed_id, k=r.k, kind="refused", reason="one of REFUSED")
                continue
            members: dict[str, Any] = {
                "latent.npy": np.asarray(x, np.float32), "cond.npy": c, "meta.json": {"axes": dict(r.axes)},
            }  # fmt: skip
            outcome = "right" if float(x[0]) > 0 else "left"
            yield Draw(seed_id=r.seed_id, k=r.k, members=members, outcome=outcome, gpu_s=0.001)


def quantile(u: float, p: float) -> float:
    """Return Q(u) of p N(1, SPREAD^2) + (1 - p) N(-1, SPREAD^2) by bisection, to 1e-9."""
    low, high = -3.0, 3.0
    for _ in range(34):
        middle = (low + high) / 2
        below = p * _NORMAL.cdf((middle - 1) / SPREAD) + (1 - p) * _NORMAL.cdf((middle + 1) / SPREAD)
        low, high = (middle, high) if below < u else (low, middle)
    return (low + high) / 2
