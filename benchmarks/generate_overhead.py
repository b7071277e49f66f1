"""What generation costs beside the teacher: 4 KB draws of a no-op teacher, against a bare webdataset loop.

Ours is a whole in-process `generate`: requests, checks, encoding, digests, shards, fsync, manifests and the
registration in DuckDB. The rival is what a user would write by hand: a loop that gives the same arrays and the
same meta data to webdataset's TarWriter, which computes no digest, syncs nothing and registers nothing.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distdata.catalogs.project import Project
from distdata.catalogs.protocol import Draw, MemberSpec, Request, TeacherInfo
from distdata.cycle.purchases import plan_purchase, save_purchase
from distdata.generate.run import generate
from distdata.projects import import_seed_file, init_project

from .report import emit, paired, small, versions

BAR = 1.5
PAYLOAD = np.arange(1024, dtype=np.float32)
CONFIG = """
[project]
name = "overhead"
salt = "overhead"
[axes.part]
values = ["a", "b", "c", "d"]
[scenarios.one]
layer = "core"
[bands]
default = 0.1
[splits]
gate = 0
confirm = 0
[teacher]
kind = "python"
batch = 64
gpu_s_per_draw = 1e-6
[teacher.options]
class = "distdata.benchmarks.generate_overhead:NoOp"
"""


class NoOp:
    """Answers every request with the same 4 KB array."""

    def describe(self) -> TeacherInfo:
        spec = MemberSpec(dtype="float32", shape=(1024,))
        return TeacherInfo(id="no-op", version="1", content_hash="0" * 16, kind="array", members={"x.npy": spec})

    def sample(self, requests: Sequence[Request]) -> Iterable[Draw]:
        return [Draw(seed_id=r.seed_id, k=r.k, members={"x.npy": PAYLOAD}, outcome="ok") for r in requests]


class Silent:
    """Shows no progress."""

    def begin(self, **_: Any) -> None: ...

    def advance(self, n_draws: int, n_failed: int, usd: float) -> None: ...

    def note(self, text: str) -> None: ...

    def end(self) -> None: ...


def main() -> None:
    n = 5_000 if small() else 20_000
    repeats = 3 if small() else 7
    with tempfile.TemporaryDirectory() as folder:
        prepared = _project(Path(folder, "prepared"), n)
        copies = [shutil.copytree(prepared, Path(folder, f"run{i}")) for i in range(repeats + 1)]
        metas = _metas(prepared)

        def ours() -> None:
            done = generate(Project.open(copies.pop()), Silent(), engine="inprocess")
            assert done.generated == n, f"{done.generated} of {n} draws"

        figures = paired(ours, lambda: _bare_loop(Path(folder, "rival.tar"), metas), repeats)
    emit(
        "generate_overhead",
        figure=n / figures.ours_s,
        unit="draws/s",
        rival="loop over webdataset.TarWriter, same members, no digests, no fsync, no catalog",
        rival_figure=n / figures.rival_s,
        ratio=figures.ratio,
        bar=f"at least {BAR}x",
        met=figures.ratio >= BAR,
        sizes={"n_draws": n, "array_bytes": PAYLOAD.nbytes, "ratio_low_high": [figures.low, figures.high]},
        versions=versions("webdataset", "duckdb", "pyarrow"),
    )


def _project(root: Path, n: int) -> Path:
    root.mkdir()
    preset = root / "preset.toml"
    preset.write_text(CONFIG)
    init_project(root, str(preset))
    with open(root / "seeds.jsonl", "w") as f:
        for i in range(n):
            f.write(json.dumps({"seed_id": f"s{i:06d}", "part": "abcd"[i % 4], "scenario": "one"}) + "\n")
    project = Project.open(root)
    import_seed_file(project, root / "seeds.jsonl")
    save_purchase(project, plan_purchase(project, budget=f"{n}samples"))
    return root


def _metas(root: Path) -> list[dict[str, Any]]:
    """Return the meta data that our samples carry, for the rival to write."""
    project = Project.open(root)
    plan = next(project.plans_dir.iterdir())
    import pyarrow as pa

    draws = pa.ipc.open_file(str(plan / "draws.arrow")).read_all().to_pylist()
    return [
        {
            "sample_id": d["sample_id"], "seed_id": d["seed_id"], "k": d["k"], "rng_seed": d["rng_seed"],
            "cell": d["cell"], "scenario": "one", "part": d["cell"][0], "outcome": "ok", "teacher": "no-op",
            "teacher_hash": "0" * 16,
        }
        for d in draws
    ]  # fmt: skip


def _bare_loop(path: Path, metas: list[dict[str, Any]]) -> None:
    import webdataset as wds

    with wds.TarWriter(str(path)) as out:
        for meta in metas:
            out.write({"__key__": meta["sample_id"], "x.npy": PAYLOAD, "meta.json": meta})


if __name__ == "__main__":
    main()
