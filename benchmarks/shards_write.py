"""Write samples of one member to a shard: ours against webdataset's TarWriter as it comes.

TarWriter computes no digest, so the bar is judged like for like, twice: with digests off on both sides, and
with the SHA-256 of every sample and of the whole file on both. Shown beside it: ours with digests against
TarWriter without, and TarWriter with a fixed mtime (which saves it a 1 KB PAX header per member). Neither
side syncs to the disk.
"""

from __future__ import annotations

import functools
import hashlib
import random
import tempfile
from pathlib import Path
from typing import Any, BinaryIO

from distdata.catalogs.shards import Digests, ShardWriter

from .report import emit, paired, small, versions

BARS = {1024: 3.0, 16_384: 2.0, 1_048_576: 1.2}
N_SAMPLES = {1024: 20_000, 16_384: 4_000, 1_048_576: 150}


def main() -> None:
    sizes: dict[str, dict[str, Any]] = {}
    repeats = 3 if small() else 9
    with tempfile.TemporaryDirectory() as folder:
        for size, bar in BARS.items():
            n = N_SAMPLES[size] // (4 if small() else 1)
            samples = _samples(size, n)
            shard, rival_shard = Path(folder, "ours.tar"), Path(folder, "rival.tar")
            rival = functools.partial(_write_rival, rival_shard, samples, None)
            rows = {
                digests: paired(functools.partial(_write_ours, shard, samples, digests), rival, repeats)
                for digests in ("none", "samples", "both")
            }
            fixed_mtime = paired(
                functools.partial(_write_ours, shard, samples, "none"),
                functools.partial(_write_rival, rival_shard, samples, 0),
                repeats,
            )
            equal = paired(
                functools.partial(_write_ours, shard, samples, "both"),
                functools.partial(_write_rival_hashed, rival_shard, samples),
                repeats,
            )
            bare = rows["none"]
            sizes[f"{size}B"] = {
                "n_samples": n,
                "ours_per_s": n / bare.ours_s,
                "rival_per_s": n / bare.rival_s,
                "ratio": bare.ratio,
                "ratio_low_high": [bare.low, bare.high],
                "bar": bar,
                "met": min(bare.ratio, equal.ratio) >= bar,
                "ratio_ours_with_sample_digests_only": rows["samples"].ratio,
                "ratio_ours_with_both_digests_only": rows["both"].ratio,
                "ours_with_both_digests_per_s": n / rows["both"].ours_s,
                "ratio_with_digests_on_both_sides": equal.ratio,
                "ratio_to_rival_with_fixed_mtime": fixed_mtime.ratio,
            }
    first = sizes["1024B"]
    emit(
        "shards_write",
        figure=first["ours_per_s"],
        unit="samples/s of one 1 KB member, no digests on either side",
        rival="webdataset TarWriter, default mtime",
        rival_figure=first["rival_per_s"],
        ratio=first["ratio"],
        bar="3x at 1 KB, 2x at 16 KB, 1.2x at 1 MB, with digests on neither side and on both",
        met=all(row["met"] for row in sizes.values()),
        sizes=sizes,
        versions=versions("webdataset"),
    )


def _samples(size: int, n: int) -> list[tuple[str, bytes]]:
    rng = random.Random(1)
    pool = [rng.randbytes(size) for _ in range(16)]
    return [(f"sample-{i:09d}", pool[i % 16]) for i in range(n)]


def _write_ours(path: Path, samples: list[tuple[str, bytes]], digests: Digests) -> None:
    path.unlink(missing_ok=True)
    with open(path, "wb") as f:
        writer = ShardWriter(f, digests=digests)
        for key, data in samples:
            writer.add(key, [("data.bin", data)])
        writer.finish()


def _write_rival(path: Path, samples: list[tuple[str, bytes]], mtime: int | None) -> None:
    from webdataset import TarWriter

    path.unlink(missing_ok=True)
    with open(path, "wb") as f:
        writer = TarWriter(f, encoder=False, mtime=mtime)
        for key, data in samples:
            writer.write({"__key__": key, "data.bin": data})
        writer.close()


def _write_rival_hashed(path: Path, samples: list[tuple[str, bytes]]) -> None:
    from webdataset import TarWriter

    path.unlink(missing_ok=True)
    with open(path, "wb") as f:
        hashed = _HashedFile(f)
        writer = TarWriter(hashed, encoder=False)
        for key, data in samples:
            hashlib.sha256(data).hexdigest()
            writer.write({"__key__": key, "data.bin": data})
        writer.close()
        hashed.digest.hexdigest()


class _HashedFile:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self._file.write(data)
