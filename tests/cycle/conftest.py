"""Small projects around the two-mode world: a catalog of four slices, a teacher, students of a second."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distdata.catalogs.files import exclusive_lock
from distdata.catalogs.project import Project
from distdata.cycle.diagnosis import last_gate
from distdata.cycle.loop import CycleResult, refresh, run_cycle
from distdata.projects import import_seed_file, init_project

HERE = Path(__file__).parent
BUILD_WAIT_S = 600.0
CONFIG = """
[project]
name = "two"
salt = "two-1"
[axes.light]
values = ["day", "night"]
fleet = [{day}, {night}]
[axes.road]
values = ["dry", "wet"]
fleet = [{day}, {night}]
[scenarios.turn]
layer = "core"
[bands]
default = {band}
[splits]
gate = 0.2
confirm = 0.2
min_groups = 20
[plan]
k = {k}
policy = "fleet"
[gates]
k = 8
sigma = {sigma}
metrics = ["outcome", "distance"]
{gates}
[gates.bands]
distance = {distance}
[train]
recipe = "capacity"
{train}
[train.settings]
steps = {steps}
width = {width}
depth = 2
batch = 128
lr = 0.005
sampler_steps = 12
{settings}
[loop]
max_cycles = 3
promote_to = "bulk"
{loop}
[teacher]
kind = "python"
batch = 64
gpu_s_per_draw = 0.001
[teacher.options]
class = "two_modes:TwoModes"
{options}
"""


def write_project(
    root: Path, *, n_seeds: int = 480, band: float = 0.2, night: float = 0.5, sigma: float = 0.2, steps: int = 300,
    width: int = 32, k: int = 8, distance: float = 0.2, gates: str = "", train: str = "", settings: str = "",
    loop: str = "", options: str = "",
) -> Project:  # fmt: skip
    """Make a project of `n_seeds` seeds, as many in each of its four slices, each a group of its own."""
    root.mkdir(parents=True, exist_ok=True)
    shutil.copy(HERE / "two_modes.py", root / "two_modes.py")
    text = CONFIG.format(
        band=band,
        day=1 - night,
        night=night,
        sigma=sigma,
        steps=steps,
        width=width,
        k=k,
        distance=distance,
        gates=gates,
        train=train,
        settings=settings,
        loop=loop,
        options=options,
    )
    preset = root / "preset.toml"
    preset.write_text(text)
    init_project(root, str(preset))
    rng = np.random.default_rng(7)
    lines = []
    for i in range(n_seeds):
        light, road = ("day", "night")[i % 2], ("dry", "wet")[i // 2 % 2]
        row: dict[str, Any] = {
            "seed_id": f"s{i:05d}", "light": light, "road": road, "scenario": "turn", "group": f"g{i:05d}",
            "decision_point": True, "params": {"s": round(float(rng.uniform(-1, 1)), 6)},
        }  # fmt: skip
        lines.append(json.dumps(row))
    (root / "seeds.jsonl").write_text("\n".join(lines) + "\n")
    project = Project.open(root)
    import_seed_file(project, root / "seeds.jsonl")
    return project


class Heard:
    """Hears generations, trainings and cycles, and remembers what was drawn, trained and said."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.n_draws = self.n_trainings = 0

    def begin(self, **how: Any) -> None:
        self.n_trainings += "recipe" in how

    def advance(self, *told: Any) -> None:
        if len(told) == 3:  # draws, failures, dollars; a training tells four
            self.n_draws += told[0]

    def note(self, text: str) -> None:
        self.notes.append(text)

    def end(self) -> None: ...

    def __call__(self, text: str) -> None:
        self.notes.append(text)


class Worlds:
    """Builds each project once, runs it once, and hands out copies of what is on disk."""

    def __init__(self, built: Path) -> None:
        self._built = built

    @property
    def WORLDS(self) -> dict[str, dict[str, Any]]:
        """What each world is made of."""
        return WORLDS

    def raw(self, root: Path, **how: Any) -> Project:
        """Make a project with seeds only (see `write_project`)."""
        return write_project(root, **how)

    def easy(self, root: Path) -> Project:
        """Copy a project in which the first student was green, confirmed and promoted to the bulk."""
        return self._after(
            root, "easy", lambda project, heard: run_cycle(project, heard, heard, heard, budget="800samples")
        )[0]

    def easy_story(self) -> CycleResult:
        """Return how the easy project's cycle went."""
        return self._story("easy")

    def red(self, root: Path) -> tuple[Project, CycleResult]:
        """Copy a project after its first gate, red in night,wet for lack of coverage, which nobody explained yet."""
        return self._after(
            root, "starved",
            lambda project, heard: run_cycle(project, heard, heard, heard, budget="384samples", max_cycles=1),
        )  # fmt: skip

    def explained(self, root: Path) -> tuple[Project, CycleResult]:
        """Copy that project after its diagnosis; nothing is bought yet."""

        def explain(project: Project, heard: Heard) -> CycleResult:
            refresh(project, heard, heard, last_gate(project), dry_run=True)
            return self._story("starved")

        return self._after(root, "explained", explain, of=self.red)

    def starved(self, root: Path) -> tuple[Project, CycleResult]:
        """Copy that project after its whole cycle."""
        return self._after(
            root, "refreshed", lambda project, heard: run_cycle(project, heard, heard, heard), of=self.explained
        )

    def hopeless(self, root: Path) -> tuple[Project, CycleResult]:
        """Copy a project whose students are too poor for any remedy, after its cycle called ``on_red``."""
        return self._after(
            root, "hopeless", lambda project, heard: run_cycle(project, heard, heard, heard, budget="800samples")
        )

    def _after(
        self, root: Path, name: str, run: Run, of: Callable[..., Any] | None = None
    ) -> tuple[Project, CycleResult]:
        there, told = self._built / name, self._built / f"{name}.pickle"
        # the workers of one test run share what is built
        with exclusive_lock(self._built / f"{name}.lock", "{holder} builds this world", BUILD_WAIT_S):
            if not told.exists():
                project = write_project(there, **WORLDS[name]) if of is None else of(there)[0]
                told.write_bytes(pickle.dumps(run(project, Heard())))
        shutil.copytree(there, root)
        return Project.open(root), self._story(name)

    def _story(self, name: str) -> CycleResult:
        story: CycleResult = pickle.loads((self._built / f"{name}.pickle").read_bytes())
        return story

    def edit(self, project: Project, old: str, new: str) -> Project:
        """Replace a text in distdata.toml that is there once, and open the project again."""
        path = project.root / "distdata.toml"
        text = path.read_text()
        assert text.count(old) == 1, f"{old!r} is there {text.count(old)} times"
        path.write_text(text.replace(old, new))
        return Project.open(project.root)

    def new_teacher(self, project: Project, released: str | None = None) -> Project:
        """Let distdata.toml name the teacher's next version."""
        path = project.root / "distdata.toml"
        path.write_text(path.read_text().rstrip() + '\nversion = "2"\n')
        if released is None:
            return Project.open(project.root)
        return self.edit(project, "gpu_s_per_draw", f"released = {released}\ngpu_s_per_draw")


Run = Callable[[Project, Heard], CycleResult]
WORLDS: dict[str, dict[str, Any]] = {
    # P(right) near a half everywhere: a student of a second learns it well
    "easy": {"n_seeds": 320, "band": 0.3, "steps": 200},
    # 12 seeds of night,wet are too few to learn where P(right) turns, and four times as many will do
    "starved": {
        "n_seeds": 400, "band": 0.3, "distance": 0.15, "width": 64, "steps": 400,
        "settings": "int8 = false", "options": 'waves = { "night,wet" = 4.0 }',
    },
    # waves everywhere, of which three steps teach nobody anything
    "hopeless": {
        "n_seeds": 320, "band": 0.3, "distance": 0.1, "width": 4, "steps": 3, "settings": "int8 = false",
        "loop": 'on_red = ["sh", "-c", "cat > red.json"]',
        "options": 'waves = { "day,dry" = 9.0, "day,wet" = 9.0, "night,dry" = 9.0, "night,wet" = 9.0 }',
    },
}  # fmt: skip


@pytest.fixture(scope="session")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Worlds:
    """Hand out the builder of two-mode projects."""
    base = tmp_path_factory.getbasetemp()
    built = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "worlds"
    built.mkdir(exist_ok=True)
    return Worlds(built)


@pytest.fixture
def easy(worlds: Worlds, tmp_path: Path) -> Project:
    """Return the promoted project, a copy of the test's own."""
    return worlds.easy(tmp_path / "easy")


@pytest.fixture(scope="module")
def still(worlds: Worlds, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Return the promoted project, for tests that only read."""
    return worlds.easy(tmp_path_factory.mktemp("still") / "easy")


@pytest.fixture
def heard() -> Heard:
    """Hear what is drawn, trained and said."""
    return Heard()
