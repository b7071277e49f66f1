"""What one call of `log_byproduct` costs a service: against `json.dumps` and a write of the same bytes.

The bar is the time of a call with next to no payload, since what a payload adds is its copy (and its checksum) on both
sides; the larger payloads are shown beside it. Nothing is synced on either side, as in the default of the log.
"""

from __future__ import annotations

import functools
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from distdata import log_byproduct

from .report import Paired, emit, paired, small, versions

BAR_US = 50.0
SIZES = (16, 4096, 65_536, 1_048_576)
FACTS: dict[str, Any] = {"seed_id": "s00042", "outcome": "braked", "teacher_hash": "00000000000000aa", "score": 0.93}


def main() -> None:
    rows: dict[str, dict[str, float]] = {}
    for size in SIZES:
        n = (400 if size < 100_000 else 40) * (1 if small() else 10)
        payload = np.random.default_rng(0).integers(0, 255, size, np.uint8)
        forms: tuple[tuple[str, dict[str, Any]], ...] = (
            ("bytes", {"x.bin": payload.tobytes()}),
            ("array", {"x.npy": payload}),
        )
        for form, members in forms:
            timed = _time(members, payload.tobytes(), n)
            rows[f"{form} {size}"] = {
                "us": timed.ours_s / n * 1e6, "rival_us": timed.rival_s / n * 1e6, "ratio": timed.ratio,
            }  # fmt: skip
    least = rows[f"bytes {SIZES[0]}"]
    emit(
        "log_byproduct",
        figure=least["us"],
        unit="us per call with 16 bytes of payload",
        rival="json.dumps of the same facts and one write of the same bytes",
        rival_figure=least["rival_us"],
        ratio=least["ratio"],
        bar=f"at most {BAR_US:g} us per call plus the payload's copy",
        met=least["us"] <= BAR_US,
        sizes=rows,
        versions=versions("numpy"),
    )


def _time(members: dict[str, Any], payload: bytes, n: int) -> Paired:
    with tempfile.TemporaryDirectory() as folder:
        logs = Path(folder, "logs")
        return paired(
            functools.partial(_ours, logs, members, n), functools.partial(_rival, Path(folder, "rival"), payload, n), 5
        )


def _ours(folder: Path, members: dict[str, Any], n: int) -> None:
    for path in folder.glob("*"):
        path.unlink()  # so that the disk does not fill; the next call begins a new file
    for _ in range(n):
        log_byproduct(folder, members=members, **FACTS)


def _rival(path: Path, payload: bytes, n: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        for _ in range(n):
            os.write(fd, json.dumps(FACTS).encode() + payload)
    finally:
        os.close(fd)
