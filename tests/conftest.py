"""What several test files share: tiny projects with an exact teacher, and what must be true of them when done."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distdata.catalogs import store
from distdata.catalogs.check import check_project
from distdata.catalogs.manifests import read_manifest
from distdata.catalogs.plans import SavedPlan, find_plan, load_plan
from distdata.catalogs.project import Project
from distdata.catalogs.register import catch_up
from distdata.cycle.purchases import plan_purchase, save_purchase
from distdata.generate.run import RunResult, generate
from distdata.projects import import_seed_file, init_project

GENERATE_TESTS = Path(__file__).parent / "generate"
PRICE = 0.25
"""Dollars per draw of the tiny teacher: a power of two, so that sums are exact in any order."""

CONFIG = """
[project]
name = "tiny"
salt = "s1"
storage = {storage}
[axes.weather]
values = ["clear", "rain"]
[scenarios.cross]
layer = "core"
[scenarios.cut_in]
layer = "long_tail"
[bands]
default = 0.1
[splits]
gate = 0
confirm = 0
[plan]
k = 2
floor_seeds = 1
[teacher]
kind = "python"
batch = {batch}
timeout_s = {timeout_s}
gpu_s_per_draw = 900.0
[teacher.options]
class = "tiny_teacher:Tiny"
{options}
[generate]
{rules}
"""


class Silent:
    """Shows no progress, and remembers what it heard."""

    def __init__(self) -> None:
        self.n_draws = self.n_failed = 0
        self.usd = 0.0

    def begin(self, **_: Any) -> None: ...

    def advance(self, n_draws: int, n_failed: int, usd: float) -> None:
        self.n_draws += n_draws
        self.n_failed += n_failed
        self.usd += usd

    def note(self, text: str) -> None: ...

    def end(self) -> None: ...


class Tiny:
    """Builds tiny projects, runs them in this process, and looks at what came of them."""

    PRICE = PRICE

    def __init__(self, built: Path) -> None:
        self._built = built
        self._names: dict[str, str] = {}

    def build(self, root: Path, **options: Any) -> Project:
        """Make a project with seeds and a saved plan (see `_build`); the same one a second time is a copy."""
        key = json.dumps(options, sort_keys=True)
        if key not in self._names:
            self._names[key] = f"{len(self._names)}"
            self._build(self._built / self._names[key], **options)
        shutil.copytree(self._built / self._names[key], root)
        return Project.open(root)

    def _build(
        self, root: Path, *, n_draws: int = 14, batch: int = 3, unit_draws: int | None = 6, timeout_s: float = 60.0,
        storage: str = "data", spool: str = "auto", max_attempts: int = 3, plan: bool = True, **options: Any,
    ) -> None:  # fmt: skip
        """Make a project with seeds and a saved plan of `n_draws`; `options` go to the tiny teacher."""
        root.mkdir(parents=True)
        rules = {"spool": spool, "max_attempts": max_attempts}
        if unit_draws is not None:
            rules["unit_draws"] = unit_draws
        text = CONFIG.format(
            storage=json.dumps(storage), batch=batch, timeout_s=timeout_s, options=_toml(options), rules=_toml(rules)
        )  # fmt: skip
        preset = root / "preset.toml"
        preset.write_text(text)
        init_project(root, str(preset))
        shutil.copy(GENERATE_TESTS / "tiny_teacher.py", root / "tiny_teacher.py")
        with open(root / "seeds.jsonl", "w") as f:
            for i in range(n_draws + 4):  # every other seed is a decision point with two draws: more than enough
                cell = {"weather": ("clear", "rain")[i % 2], "scenario": ("cross", "cut_in")[i // 2 % 2]}
                f.write(json.dumps({"seed_id": f"s{i:05d}", "decision_point": i % 3 == 0, "params": {}, **cell}) + "\n")
        project = Project.open(root)
        import_seed_file(project, root / "seeds.jsonl")
        if plan:
            save_purchase(project, plan_purchase(project, budget=f"{n_draws}samples"))

    def copy(self, project: Project, root: Path) -> Project:
        """Copy a project as it is on disk."""
        shutil.copytree(project.root, root)
        return Project.open(root)

    def run(self, project: Project, **how: Any) -> RunResult:
        """Run `generate` in this process."""
        return generate(project, Silent(), engine="inprocess", **how)

    def command(self, project: Project, *arguments: str, **how: Any) -> subprocess.CompletedProcess[str]:
        """Run the command line in a process of its own, as a user does."""
        line = self.command_line(project, *arguments)
        return subprocess.run(line, capture_output=True, text=True, check=False, **how)

    def command_line(self, project: Project, *arguments: str) -> list[str]:
        """Return the command that `command` runs."""
        main = "from distdata.cli import run; run()"
        return [sys.executable, "-c", main, *arguments, "--project", str(project.root)]

    def break_teacher(self, project: Project, faults: dict[str, list[tuple[str, int]] | None]) -> None:
        """Let the teacher fail: kind of fault (see tiny_teacher) -> the draws it befalls, None for all."""
        (project.root / "fault.json").write_text(json.dumps(faults))

    def heal_teacher(self, project: Project) -> None:
        """Let the teacher answer well again."""
        (project.root / "fault.json").unlink()

    def calls(self, project: Project) -> list[tuple[str, int]]:
        """List every request that the teacher was truly given, in order."""
        path = project.root / "calls.log"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(seed, int(k)) for seed, k in (line.split() for line in lines)]

    def plan(self, project: Project) -> SavedPlan:
        """Read the newest plan."""
        saved = [p.name for p in project.plans_dir.iterdir()]
        return load_plan(project, saved[0] if len(saved) == 1 else find_plan(project, None))

    def draws(self, project: Project) -> list[tuple[str, int]]:
        """List the planned draws in order."""
        table = self.plan(project).draws
        return list(zip(table["seed_id"].to_pylist(), table["k"].to_pylist(), strict=True))

    def manifest_rows(self, project: Project) -> list[dict[str, Any]]:
        """Return the rows of all manifests, straight from the files."""
        folder = self.plan(project).plan_id
        names = [f.name for f in project.storage.list(folder) if f.name.endswith(".parquet")]
        return [row for name in names for row in read_manifest(project.storage, name)[0].to_pylist()]

    def shards(self, project: Project) -> dict[str, str]:
        """Return the SHA-256 of every stored shard, by its name without the plan's folder."""
        files = [f.name for f in project.storage.list(self.plan(project).plan_id) if f.name.endswith(".tar")]
        return {name.partition("/")[2]: project.storage.sha256(name) for name in files}

    def payloads(self, project: Project) -> dict[str, str]:
        """Return the digest of every delivered sample's bytes, wherever they lie."""
        return {r["sample_id"]: r["sha256"] for r in self.manifest_rows(project) if r["status"] == "ok"}

    def sql(self, project: Project, query: str) -> list[tuple[Any, ...]]:
        """Ask the catalog."""
        with store.read(project.catalog_path) as con:
            return con.sql(query).fetchall()

    def spend(self, project: Project) -> tuple[float, float]:
        """Return the dollars known and in doubt, as the catalog has them."""
        return self.sql(project, "SELECT coalesce(sum(usd), 0), coalesce(sum(in_doubt_usd), 0) FROM units")[0]

    def tables(self, project: Project) -> dict[str, list[str]]:
        """Return every table of the catalog, its rows sorted."""
        with store.read(project.catalog_path) as con:
            names = [r[0] for r in con.execute("SELECT table_name FROM duckdb_tables() ORDER BY 1").fetchall()]
            return {n: sorted(map(repr, con.execute(f'SELECT * FROM "{n}"').fetchall())) for n in names}

    def rebuilt_tables(self, project: Project) -> dict[str, list[str]]:
        """Return what `tables` gives for a catalog made anew beside the present one."""
        again = dataclasses.replace(project, catalog_name="again.duckdb")
        catch_up(again)
        tables = self.tables(again)
        again.catalog_path.unlink()
        return tables

    def assert_whole(
        self, project: Project, shards: dict[str, str] | None, n_crashes: int, n_in_flight: int, *, light: bool = False
    ) -> None:
        """Hold a finished project against "exactly once": see the messages for what is asserted.

        `shards` are those of an uninterrupted run (None: any); `n_in_flight` bounds the draws asked for and
        not yet answered at one moment; `light` leaves out the check of every sample and the rebuild.
        """
        planned = sorted(self.plan(project).draws["sample_id"].to_pylist())
        committed = [r["sample_id"] for r in self.manifest_rows(project) if r["status"] == "ok"]
        assert sorted(committed) == planned, "manifests hold every planned draw exactly once"
        if shards is not None:
            assert self.shards(project) == shards, "shards have the bytes of an uninterrupted run; no others lie about"
        self.assert_tidy(project)
        with store.read(project.catalog_path) as con:
            registered = con.execute("SELECT sample_id FROM samples ORDER BY 1").fetchall()
            sums = "SELECT sum(u.usd), sum(u.in_doubt_usd), (SELECT max(usd) FROM samples) FROM units u"
            known, doubt, price = con.execute(sums).fetchall()[0]
        assert [r[0] for r in registered] == planned, "the catalog holds every planned draw exactly once"
        true = price * len(self.calls(project))
        assert known <= true <= known + doubt or price == 0, f"{known} <= {true} <= {known} + {doubt}"
        assert doubt <= price * n_in_flight * n_crashes, "in doubt is at most what was in flight"
        assert n_crashes or known == true or price == 0, "without a crash the spend is known"
        if not light:
            found = check_project(project)
            assert (found.damaged, found.unreferenced, found.n_samples) == ([], [], len(planned)), "the check is clean"
            assert self.rebuilt_tables(project) == self.tables(project), "a rebuilt catalog has equal tables"

    def assert_tidy(self, project: Project) -> None:
        """Assert that no half-built file and no spool is left.

        In events/ a half-written event may stay: it is never read, and several commands write there.
        """
        folders = [project.plans_dir, project.spool_dir, Path(str(project.storage.root))]
        left = {str(p) for folder in folders for p in folder.rglob("*") if p.name.startswith(".tmp-")}
        assert left == set(), "no temporary file is left"
        spooled = {p.name for p in project.spool_dir.iterdir()}
        assert spooled <= {"generate.lock", "ray.log"}, "no spool and no lock of a unit is left"


class Crashes:
    """Runs commands in processes that are killed at their n-th effect (see generate/crash_server.py)."""

    def __init__(self) -> None:
        script = GENERATE_TESTS / "crash_server.py"
        env = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
        self._server = subprocess.Popen(
            [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )  # fmt: skip
        assert self._server.stdin is not None, "a pipe was asked for"
        assert self._server.stdout is not None, "a pipe was asked for"
        self._jobs, self._answers = self._server.stdin, self._server.stdout

    def run(
        self, project: Project, stop_at: int | None = None, *, do: str = "generate", mode: str = "missing",
        target_bytes: int = 0,
    ) -> dict[str, Any]:  # fmt: skip
        """Run until the `stop_at`-th effect, or to the end: killed, code, effects seen, error."""
        job = {"root": str(project.root), "do": do, "mode": mode, "stop_at": stop_at, "target_bytes": target_bytes}
        self._jobs.write(json.dumps(job) + "\n")
        self._jobs.flush()
        answer: dict[str, Any] = json.loads(self._answers.readline())
        return answer

    def finish(self, project: Project, **how: Any) -> list[str]:
        """Run to the end and return the effects; anything but success fails the test."""
        done = self.run(project, None, **how)
        assert done["code"] == 0, f"did not finish: {done}"
        return list(done["effects"])

    def close(self) -> None:
        """Stop the server."""
        self._jobs.close()
        self._server.wait(timeout=30)
        self._answers.close()


def _toml(values: dict[str, Any]) -> str:
    return "\n".join(f"{k} = {json.dumps(v)}" for k, v in values.items())


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Hand out the builder of tiny projects."""
    return Tiny(tmp_path_factory.mktemp("built"))


@pytest.fixture(scope="module")
def crashes() -> Iterator[Crashes]:
    """Hand out a server of processes that get killed at a named effect."""
    server = Crashes()
    yield server
    server.close()
