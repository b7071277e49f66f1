"""A latent world in which each cause of a red slice can be planted: four towns, each with a law of its own.

x = m + 0.3 z in four dimensions. m is a trigonometric polynomial in the seed's state s, with coefficients of the town's
own: only a town's own draws teach its curves, and a student must carry all dimensions side by side, for which a narrow
one has no room. s lies on a circle, so no seed lies beyond those that were trained on. Given s the law is Gaussian,
whose probability flow from noise z is this map itself, so a perfect diffusion student meets the teacher draw for draw
under common noise.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distdata.catalogs.hashing import content_hash
from distdata.catalogs.protocol import Draw, Failure, MemberSpec, Request, TeacherInfo

SPREAD = 0.3
DIMS = 4
TOWNS = ("a", "b", "c", "d")
WAVES = 3
N_FEATURES = 1 + 2 * WAVES


class FourCauses:
    """Options: `law` (where the randomness of the towns' coefficients starts), `wrong` (town -> share of wrong draws).

    A wrong draw has the other sign. Whether a draw is wrong depends on its random seed alone and not on its noise, so
    the right ones of a town still follow its law.
    """

    def __init__(self, *, law: int, wrong: Mapping[str, float] | None = None) -> None:
        self._law, self._wrong = law, dict(wrong or {})
        weights = np.random.default_rng(law).normal(size=(len(TOWNS), N_FEATURES, DIMS))
        self._weights = weights / np.sqrt((weights**2).sum(axis=1, keepdims=True) / 2)

    def describe(self) -> TeacherInfo:
        decides = [self._law, self._wrong, SPREAD, DIMS, WAVES]
        return TeacherInfo(
            id="four_causes", version="1", content_hash=content_hash(decides), kind="kd_pair", usd_per_gpuh=3600.0,
            members={
                "latent.npy": MemberSpec(dtype="float32", shape=(DIMS,)),
                "cond.npy": MemberSpec(dtype="float32", shape=(len(TOWNS) * N_FEATURES,)),
            }, outcomes=("left", "right"),
        )  # fmt: skip

    def conditions(self, requests: Sequence[Request]) -> NDArray[np.float32]:
        """Return the town's waves in s, in places of the town's own, [n, 4 x 7]."""
        here = np.array([[r.axes["town"] == t for t in TOWNS] for r in requests], np.float32)
        s = np.array([float(r.params["s"]) for r in requests])
        angles = np.pi * np.outer(s, np.arange(1, WAVES + 1))
        waves = np.concatenate([np.ones((len(s), 1)), np.sin(angles), np.cos(angles)], axis=1)
        return (here[:, :, None] * waves[:, None, :]).reshape(len(s), -1).astype(np.float32)

    def noise(self, requests: Sequence[Request]) -> NDArray[np.float32]:
        rngs = (np.random.Generator(np.random.Philox(r.rng_seed)) for r in requests)
        return np.asarray([rng.standard_normal(DIMS) for rng in rngs], np.float32)

    def truth(self, requests: Sequence[Request]) -> NDArray[np.float32]:
        """Return what a teacher without fault would answer, [n, 4]."""
        mean = self.conditions(requests) @ self._weights.reshape(-1, DIMS)
        return (mean + SPREAD * self.noise(requests)).astype(np.float32)

    def wrong(self, requests: Sequence[Request]) -> NDArray[np.bool_]:
        """Tell which answers are wrong, [n]."""
        u = [np.random.default_rng((r.rng_seed, 1)).random() for r in requests]
        return np.array([v < self._wrong.get(r.axes["town"], 0.0) for v, r in zip(u, requests, strict=True)], np.bool_)

    def sample(self, requests: Sequence[Request]) -> Iterable[Draw | Failure]:
        return self.decode(requests, np.where(self.wrong(requests)[:, None], -1, 1) * self.truth(requests))

    def decode(self, requests: Sequence[Request], latents: NDArray[np.float32]) -> Iterable[Draw | Failure]:
        for r, x, c in zip(requests, latents, self.conditions(requests), strict=True):
            members: dict[str, Any] = {
                "latent.npy": np.asarray(x, np.float32), "cond.npy": c, "meta.json": {"axes": dict(r.axes)},
            }  # fmt: skip
            outcome = "right" if float(x[0]) > 0 else "left"
            yield Draw(seed_id=r.seed_id, k=r.k, members=members, outcome=outcome, gpu_s=0.001)
