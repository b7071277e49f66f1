"""The law of the 32-step chain itself, by brute force and independently of torch and diffusers.

A discrete chain is not the continuous mixture: its last step, from noise level 0.01 to 0 in one Euler step,
narrows a mode of standard deviation s to s^2 / sqrt(s^2 + 0.01^2), and its steps bend the rest. So the
reference is a high count of draws of the same chain, written a second time in numpy, float64. It is
committed as reference.json; ``python -m distdata.generate.teachers.crossing.reference`` makes it again.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .law import LATENT_SHAPE, Floats, Mixture, mixture
from .world import N_INFERENCE_STEPS, SCHEDULER_CONFIG, WORLD

REFERENCE = Path(__file__).with_name("reference.json")
N_DRAWS = 1_000_000
_CHUNK = 1000
_SLOW = [24 * c + k for c in range(6) for k in (0, 1)]
"""The first two modes of the six agent coordinates: their whole covariance is kept; it shows who moves with whom."""

CASES: Mapping[str, Mapping[str, Any]] = {
    "pedestrian_crossing": {
        "axes": {"weather": "rain", "light": "night", "district": "downtown"},
        "scenario": "pedestrian_crossing",
        "params": {
            "ego_speed": 9.0,
            "actor_x": 26.0,
            "actor_y": -3.2,
            "actor_vx": 0.0,
            "actor_vy": 0.3,
            "other_x": 45.0,
            "other_y": 3.5,
            "other_vx": -8.0,
            "pace": 1.4,
            "side": 1.0,
            "ego_accel": -0.6,
        },
    },
    "animal_on_road": {
        "axes": {"weather": "snow", "light": "dusk", "district": "residential"},
        "scenario": "animal_on_road",
        "params": {
            "ego_speed": 9.5,
            "actor_x": 27.0,
            "actor_y": 6.5,
            "actor_vx": 0.0,
            "actor_vy": -0.3,
            "other_x": 50.0,
            "other_y": 3.5,
            "other_vx": -7.5,
            "pace": 1.4,
            "side": -1.0,
            "ego_accel": 0.6,
        },
    },
}
"""The seeds whose law is kept: one with three outcomes, one in the tail with four."""


def karras_levels(n_steps: int, rho: float = 7.0) -> Floats:
    """Return the noise levels of the chain, float64 [n_steps + 1], falling, the last one 0.

    Ends: the noise levels of the linear beta schedule; between them Karras et al. 2022, equation 5.
    """
    c = SCHEDULER_CONFIG
    kept = np.cumprod(1 - np.linspace(c["beta_start"], c["beta_end"], c["num_train_timesteps"]))
    levels = np.sqrt((1 - kept) / kept)
    ramp = np.linspace(0, 1, n_steps)
    low, high = levels[0] ** (1 / rho), levels[-1] ** (1 / rho)
    return np.append((high + ramp * (low - high)) ** rho, 0.0)


def heun_chain(law: Mixture, noise: Floats, levels: Floats) -> Floats:
    """Return the ends of the chains that start at `noise` [n, 144], float64 [n, 144] (Karras et al., algorithm 1)."""
    x: Floats = noise * levels[0]
    for now, then in itertools.pairwise(levels.tolist()):
        slope = _slope(law, x, now)
        ahead = x + (then - now) * slope
        x = ahead if then == 0 else x + (then - now) * (slope + _slope(law, ahead, then)) / 2
    return x


def _slope(law: Mixture, x: Floats, level: float) -> Floats:
    """Return dx / d sigma = -sigma * score, one component after the other."""
    n_parts = len(law.names)
    log_weight = np.empty((n_parts, len(x)))
    pulls = []
    for j in range(n_parts):
        total = law.std[j].ravel() ** 2 + level**2
        delta = x - law.mean[j].ravel()
        pull = delta / total
        log_weight[j] = np.log(law.probs[j]) - (np.einsum("nd,nd->n", delta, pull) + np.log(total).sum()) / 2
        pulls.append(pull)
    weight = np.exp(log_weight - log_weight.max(0))
    weight /= weight.sum(0)
    return np.asarray(level * sum(w[:, None] * p for w, p in zip(weight, pulls, strict=True)))


def outcome_of(law: Mixture, x: Floats) -> NDArray[np.int64]:
    """Return the component most responsible for each finished latent [n, 144], int64 [n]."""
    score = [
        np.log(p) - (((x - m.ravel()) / s.ravel()) ** 2).sum(1) / 2 - np.log(s).sum()
        for p, m, s in zip(law.probs, law.mean, law.std, strict=True)
    ]
    return np.asarray(np.argmax(score, axis=0))


def summary(law: Mixture, draws: Iterator[Floats]) -> dict[str, Any]:
    """Return what is compared of a law, from draws float64 [n, 144] in chunks.

    `shares` by outcome; per latent coordinate `mean`, `var`; `cov` of the slow modes (upper triangle, row by
    row); `mean_sd`, `var_sd`, `cov_sd`: standard deviation per draw, so the standard error is sd / sqrt(n).
    Second moments are about the mixture's own mean, which both sides of a comparison share.
    """
    centre = np.einsum("j,jd->d", law.probs, law.mean.reshape(len(law.names), -1))
    rows, columns = np.triu_indices(len(_SLOW), 1)
    n, counts = 0, np.zeros(len(law.names), np.int64)
    sizes = {"mean": centre.size, "var": centre.size, "cov": len(rows)}
    sums = {name: np.zeros((2, size)) for name, size in sizes.items()}
    for x in draws:
        n += len(x)
        counts += np.bincount(outcome_of(law, x), minlength=len(counts))
        d = x - centre
        slow = d[:, _SLOW]
        for name, values in (("mean", d), ("var", d**2), ("cov", slow[:, rows] * slow[:, columns])):
            sums[name] += values.sum(0), (values**2).sum(0)
    found: dict[str, Any] = {"n": n, "shares": dict(zip(law.names, (counts / n).tolist(), strict=True))}
    for name, (first, second) in sums.items():
        found[name] = _short(first / n)
        found[f"{name}_sd"] = _short(np.sqrt(np.maximum(second / n - (first / n) ** 2, 0)))
    return found


def chain_draws(law: Mixture, n: int, seed: int, n_steps: int = N_INFERENCE_STEPS) -> Iterator[Floats]:
    """Yield `n` draws of the chain in chunks, float64 [<= 1000, 144]."""
    levels = karras_levels(n_steps)
    dims = int(np.prod(LATENT_SHAPE))
    for start in range(0, n, _CHUNK):
        rng = np.random.Generator(np.random.Philox(key=[seed, start]))
        yield heun_chain(law, rng.standard_normal((min(_CHUNK, n - start), dims)), levels)


def mixture_draws(law: Mixture, n: int, seed: int) -> Iterator[Floats]:
    """Yield `n` draws straight from the mixture: the shortcut that is not the teacher's law."""
    rng = np.random.Generator(np.random.Philox(seed))
    dims = int(np.prod(LATENT_SHAPE))
    for start in range(0, n, _CHUNK):
        size = min(_CHUNK, n - start)
        j = rng.choice(len(law.names), size, p=law.probs)
        mean, std = law.mean.reshape(-1, dims), law.std.reshape(-1, dims)
        yield mean[j] + std[j] * rng.standard_normal((size, dims))


def law_of(case: str) -> Mixture:
    """Return the mixture of a kept case."""
    c = CASES[case]
    return mixture(c["axes"], c["scenario"], c["params"], WORLD)


def load_reference() -> dict[str, Any]:
    """Return the committed reference: case -> `summary` of the chain's law."""
    found: dict[str, Any] = json.loads(REFERENCE.read_text(encoding="utf-8"))
    return found


def _short(values: Floats) -> list[float]:
    return [float(f"{v:.7g}") for v in values]


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the reference again and write it."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--draws", type=int, default=N_DRAWS, help="draws per case")
    parser.add_argument("--out", type=Path, default=REFERENCE)
    args = parser.parse_args(argv)
    found = {}
    for i, case in enumerate(CASES):
        law = law_of(case)
        found[case] = {"probs": dict(zip(law.names, law.probs.tolist(), strict=True))}
        found[case] |= summary(law, chain_draws(law, args.draws, seed=20_000_000 + i))
        print(case, found[case]["probs"], found[case]["shares"], flush=True)
    args.out.write_text(json.dumps(found, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
