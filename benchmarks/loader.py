"""Feed a training from shards of rollouts, in random order, against webdataset's own loader on the same shards.

The bar is on what training reads: two small members (latent.npy and cond.npy) of rollouts that also hold camera
and lidar, decoded and stacked into batches. webdataset is told to decode and keep only those two (`select_files`), but
an archive that is read as a stream has to be passed whole. Reading whole samples is reported beside it, without a bar:
there both move the same bytes. Every sample comes once, from a warm page cache; nothing is kept in memory between
epochs. Each side has its own shuffle (ours over the whole corpus, webdataset's in a buffer of 1,000), and no workers
or two, whichever serves it better.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from distdata.catalogs.codec import encode_members
from distdata.catalogs.shards import write_shard
from distdata.catalogs.storage import Storage
from distdata.train_min.loader import Batches, StoredSamples, read_ahead

from .report import emit, paired, small, versions

BAR = 2.0
BATCH = 64
SMALL = ("latent.npy", "cond.npy")
WHOLE = (
    "meta.json", "action.npy", "agents.npy", "calib.json", "cam_front.npy", "cond.npy", "latent.npy", "lidar.npz",
    "pose.npy",
)  # fmt: skip
KINDS: dict[str, tuple[str, ...]] = {"latent and condition": SMALL, "whole samples": WHOLE}


def main() -> None:
    n_shards, per_shard = (4, 128) if small() else (8, 256)
    sizes: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        frame = _write(Path(folder), n_shards, per_shard)
        urls = [str(Path(folder, name)) for name in frame["shard"].unique().sort()]
        storage = Storage(folder, Path(folder), Path(folder))
        for what, members in KINDS.items():
            ours, rival = (
                {n: functools.partial(side, members, n) for n in (0, 2)}
                for side in (functools.partial(_ours, storage, frame), functools.partial(_rival, urls))
            )
            sizes[what] = _measured(frame.height, ours, rival)
    first = sizes["latent and condition"]
    emit(
        "loader",
        figure=first["ours_per_s"],
        unit=f"samples/s, latent and condition of rollouts of {sizes['whole samples']['bytes']:,} bytes, decoded, "
        f"batches of {BATCH}",
        rival="webdataset WebLoader, select_files, the better of 0 and 2 workers",
        rival_figure=first["rival_per_s"],
        ratio=first["ratio"],
        bar="2x webdataset for latent and condition; whole samples are reported only",
        met=first["ratio"] >= BAR,
        sizes=sizes,
        versions=versions("webdataset", "torch"),
    )


def _measured(
    n: int, ours: dict[int, Callable[[], tuple[int, int]]], rival: dict[int, Callable[[], tuple[int, int]]]
) -> dict[str, Any]:
    """Check that both sides deliver the same, and time each pair of worker numbers."""
    read = {side(): None for sides in (ours, rival) for side in sides.values()}
    if len(read) != 1 or next(iter(read))[0] != n:
        raise RuntimeError(f"ours and webdataset delivered (samples, bytes) {list(read)} of {n} samples")
    tried = {w: paired(ours[w], rival[w], 1) for w in ours}
    best_ours = min(tried, key=lambda w: tried[w].ours_s)
    best_rival = min(tried, key=lambda w: tried[w].rival_s)
    pair = paired(ours[best_ours], rival[best_rival], 3 if small() else 7)
    return {
        "n_samples": n,
        "bytes": next(iter(read))[1] // n,
        "ours_per_s": n / pair.ours_s,
        "rival_per_s": n / pair.rival_s,
        "ratio": pair.ratio,
        "ratio_low_high": [pair.low, pair.high],
        "workers": {"ours": best_ours, "rival": best_rival},
        "one_try_ours_per_s_by_workers": {str(w): n / p.ours_s for w, p in tried.items()},
        "one_try_rival_per_s_by_workers": {str(w): n / p.rival_s for w, p in tried.items()},
    }


def _write(folder: Path, n_shards: int, per_shard: int) -> pl.DataFrame:
    """Write shards of samples with the members, shapes and dtypes of a crossing rollout."""
    rng = np.random.default_rng(1)
    pool = [_rollout(rng) for _ in range(16)]
    rows: list[dict[str, Any]] = []
    for i in range(n_shards):
        name = f"{i:02d}.tar"
        first = i * per_shard
        parts = ((f"seed{first + j:07d}-k000", encode_members(pool[j % 16])) for j in range(per_shard))
        shard = write_shard(folder / name, parts)
        rows += [{"sample_id": e.key, "shard": name, "offset": e.offset, "n_bytes": e.n_bytes} for e in shard.entries]
    columns = {"source": "planned", "weight": 1.0, "fleet_weight": 1.0}
    return pl.DataFrame(rows).with_columns(**{name: pl.lit(value) for name, value in columns.items()})


def _rollout(rng: np.random.Generator) -> dict[str, Any]:
    def numbers(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    return {
        "meta.json": {"scenario": "crossing", "axes": {"light": "night", "weather": "rain"}, "outcome": "yield"},
        "calib.json": {"camera": {"width": 96, "height": 64, "focal_px": 60.0}, "frame": "ego"},
        "action.npy": numbers(24, 2),
        "agents.npy": numbers(24, 3, 4),
        "cam_front.npy": rng.integers(0, 255, (6, 64, 96, 3), np.uint8),
        "cond.npy": numbers(32),
        "latent.npy": numbers(3, 2, 24),
        "lidar.npz": {f"points_{i}": numbers(int(rng.integers(200, 260)), 4) for i in range(6)},
        "pose.npy": numbers(24, 7),
    }


def _stack(samples: list[dict[str, Any]], members: tuple[str, ...]) -> dict[str, Any]:
    """Make a batch: arrays of one shape stacked to tensors, everything else listed."""
    import torch

    return {
        m: torch.from_numpy(np.stack([s[m] for s in samples])) if m.endswith(".npy") else [s[m] for s in samples]
        for m in members
    }


def _counted(batches: Any, members: tuple[str, ...]) -> tuple[int, int]:
    """Return how many samples came, and how many bytes of arrays (all of them are touched by the stacking)."""
    n = n_bytes = 0
    for batch in batches:
        n += len(batch[members[0]])
        for member in members:
            values = batch[member]
            if member.endswith(".npy"):
                n_bytes += values.numel() * values.element_size()
            elif member.endswith(".npz"):
                n_bytes += sum(array.nbytes for value in values for array in value.values())
    return n, n_bytes


def _ours(storage: Storage, frame: pl.DataFrame, members: tuple[str, ...], workers: int) -> tuple[int, int]:
    samples = StoredSamples(storage, frame, members, cache_bytes=0)
    batches = Batches(frame, batch=BATCH, seed=0)
    ahead = read_ahead(
        samples, batches.rows, functools.partial(_stack, members=members), 0, frame.height // BATCH, workers
    )
    return _counted(ahead, members)


def _rival(urls: list[str], members: tuple[str, ...], workers: int) -> tuple[int, int]:
    from webdataset import WebDataset, WebLoader

    data = WebDataset(
        urls, shardshuffle=len(urls), select_files=lambda name: name.partition(".")[2] in members, empty_check=False
    )
    data = data.shuffle(1000).decode().batched(BATCH, collation_fn=lambda part: _stack(part, members))
    return _counted(WebLoader(data, batch_size=None, num_workers=workers), members)
