"""Nothing is bought twice or lost over purposes, races, teacher versions and odd answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distdata.catalogs import store
from distdata.catalogs.check import check_project
from distdata.catalogs.errors import DistdataError
from distdata.catalogs.gather import catalog_facts
from distdata.catalogs.packing import compact_project
from distdata.catalogs.project import Project
from distdata.catalogs.shards import scan
from distdata.cycle.purchases import plan_purchase, save_purchase
from distdata.generate.run import RunResult, generate, outlook
from distdata.generate.verify import replay
from distdata.projects import import_seed_file, init_project

CONFIG = """
[project]
name = "p"
salt = "s"
[axes.weather]
values = ["clear", "rain"]
[scenarios.cross]
layer = "core"
[bands]
default = 0.1
[splits]
gate = 0
confirm = 0
[plan]
k = 4
floor_seeds = 1
[teacher]
kind = "python"
batch = 4
{teacher}
[teacher.options]
class = "odd:Odd"
[generate]
unit_draws = 8
"""
TEACHER = """
import json, time
from pathlib import Path
import numpy as np
from distdata.catalogs.protocol import Draw, Failure, TeacherInfo

SAY = json.loads((Path(__file__).parent / "say.json").read_text())

class Odd:
    def __init__(self):
        self.loads = 0

    def describe(self):
        return TeacherInfo(id="odd", version=SAY["hash"][:2], content_hash=SAY["hash"], kind="rollout",
                           usd_per_gpuh=SAY.get("usd_per_gpuh", 0.0), joint_batches=SAY.get("joint", False))

    def load(self):
        time.sleep(SAY.get("load_s", 0.0))

    def sample(self, requests):
        if len(requests) > 1 and any(f"{r.seed_id} {r.k}" in SAY.get("poison", []) for r in requests):
            raise RuntimeError("poisoned batch")
        with open(Path(__file__).parent / "calls.log", "a") as f:
            f.writelines(f"{r.seed_id} {r.k}\\n" for r in requests)
        for r in requests:
            if SAY.get("fails"):
                yield Failure(seed_id=r.seed_id, k=r.k, kind="refused", reason="no", usd=0.5)
                continue
            x = np.full(3, r.rng_seed % 1000 + (1e-6 * len(requests) if SAY.get("joint") else 0.0))
            more = {key: eval(text) for key, text in SAY.get("draw", {}).items()}
            given = {"members": {"x.npy": x, "c.txt": ",".join(sorted(r.capture))}, "usd": SAY.get("usd"), "gpu_s": 0.5}
            yield Draw(seed_id=r.seed_id, k=r.k, **(given | more))
"""


class _Silent:
    def begin(self, **_: Any) -> None: ...

    def advance(self, n_draws: int, n_failed: int, usd: float) -> None: ...

    def note(self, text: str) -> None: ...

    def end(self) -> None: ...


def _project(root: Path, teacher: str = "", n_seeds: int = 20, **say: Any) -> Project:
    root.mkdir(parents=True, exist_ok=True)
    (root / "preset.toml").write_text(CONFIG.format(teacher=teacher))
    (root / "odd.py").write_text(TEACHER)
    _say(root, **say)
    init_project(root, str(root / "preset.toml"))
    with open(root / "seeds.jsonl", "w") as f:
        for i in range(n_seeds):
            row = {"seed_id": f"s{i:03d}", "weather": ("clear", "rain")[i % 2], "scenario": "cross"}
            f.write(json.dumps({**row, "decision_point": True}) + "\n")
    project = Project.open(root)
    import_seed_file(project, root / "seeds.jsonl")
    return project


def _say(root: Path, **say: Any) -> None:
    (root / "say.json").write_text(json.dumps({"hash": "0" * 16, **say}))


def _buy(project: Project, budget: int, purpose: Any = "train") -> str:
    purchase = plan_purchase(project, budget=f"{budget}samples", purpose=purpose)
    save_purchase(project, purchase)
    return purchase.plan_id


def _make(project: Project, **how: Any) -> RunResult:
    return generate(project, _Silent(), engine="inprocess", **how)


def _calls(project: Project) -> list[str]:
    path = project.root / "calls.log"
    return path.read_text().splitlines() if path.exists() else []


def _sql(project: Project, query: str) -> list[tuple[Any, ...]]:
    with store.read(project.catalog_path) as con:
        return con.sql(query).fetchall()


def test_plans_for_two_purposes_never_buy_the_same_draw(tmp_path: Path) -> None:
    """A train plan beside an open pilot plan buys only what the pilot does not; together they fill the target."""
    project = _project(tmp_path / "p")
    pilot = _buy(project, 40, "pilot")
    _buy(project, 64)
    _make(project, plan_id=pilot)
    _make(project)
    ids = [r[0] for r in _sql(project, "SELECT sample_id FROM samples")]
    assert len(ids) == len(set(ids)) == 64
    assert len(_calls(project)) == 64, "the teacher was asked for each draw once"
    # the pilot's draws come from training seeds: the training corpus is complete with them
    assert _sql(project, "SELECT sum(kept), sum(target), sum(deficit) FROM coverage") == [(64, 64, 0)]


def test_a_plan_computed_before_the_catalog_changed_is_not_saved(tmp_path: Path) -> None:
    """Generation between computing and saving a plan is noticed: saving would buy draws again."""
    project = _project(tmp_path / "p")
    _buy(project, 16)
    late = plan_purchase(project, budget="24samples")
    _make(project)
    with pytest.raises(DistdataError, match=r"the catalog changed while this plan was computed.*run the same command"):
        save_purchase(project, late)
    _buy(project, 24)
    _make(project)
    assert len(_calls(project)) == 24
    assert _sql(project, "SELECT count(*), count(DISTINCT sample_id) FROM samples") == [(24, 24)]


def test_a_teacher_fixed_after_it_failed_is_not_stuck(tmp_path: Path) -> None:
    """When the first draws fail and the fix gives another content hash, planning goes on; the books keep the cost."""
    project = _project(tmp_path / "p", fails=True)
    _buy(project, 16)
    with pytest.raises(DistdataError, match=r"the first 8 draws all failed; the first one: refused: no"):
        _make(project)
    paid = 0.5 * len(_calls(project))
    _say(tmp_path / "p", hash="1" * 16)
    _forget_module()
    with pytest.raises(DistdataError, match="was made for teacher odd 00"):
        _make(project)
    _buy(project, 16)
    assert _make(project).generated == 16
    assert _sql(project, "SELECT sum(known_usd) FROM other_spend") == [(paid,)]
    assert f"${paid:g}" in catalog_facts(project)["spend"], "what was thrown away was still spent"


def test_usable_answers_block_a_new_plan_until_they_are_brought_home(tmp_path: Path) -> None:
    """Paid answers of the same teacher are never written off: the message names the plan and what finishes it."""
    project = _project(tmp_path / "p", usd=0.5)
    first = _buy(project, 16)
    stop = KeyboardInterrupt()

    class Stop(_Silent):
        def advance(self, n_draws: int, n_failed: int, usd: float) -> None:
            raise stop

    with pytest.raises(KeyboardInterrupt):
        generate(project, Stop(), engine="inprocess")
    with pytest.raises(DistdataError, match=rf"paid answers.*generate --plan {first} --only-started"):
        _buy(project, 24)
    n_asked = len(_calls(project))
    done = _make(project, mode="only-started", plan_id=first)
    assert done.units == 1
    assert len(_calls(project)) == 8 >= n_asked, "one unit of eight draws, and no answer asked for twice"
    _buy(project, 24)
    _make(project)
    assert len(_calls(project)) == 24


def test_a_teacher_that_bills_by_the_draw_is_spooled_and_doubted(tmp_path: Path) -> None:
    """Dollars per draw without an hourly price: the unit is spooled, and the probe's price values what is in doubt."""
    project = _project(tmp_path / "p", usd=0.5)
    plan_id = _buy(project, 16)
    units = json.loads((project.plans_dir / plan_id / "units.json").read_text()) if _make(project) else {}
    assert units["usd"] == 0.5
    assert _sql(project, "SELECT sum(usd), sum(in_doubt_usd) FROM units") == [(8.0, 0.0)]
    from distdata.catalogs.plans import load_plan
    from distdata.generate.pending import PendingUnits
    from distdata.generate.run import check_teacher
    from distdata.generate.tasks import load_units, task_rows

    plan = load_plan(project, plan_id)
    frozen = load_units(project, plan_id)
    assert frozen is not None
    task = PendingUnits(project, plan, frozen, check_teacher(project, plan)).task(task_rows(plan, 0, 8), 0)
    assert (task.spool, task.usd_per_draw) == (True, 0.5)


def test_loading_is_nobodys_draw(tmp_path: Path) -> None:
    """The time a teacher's `load` takes is not in the cost of any draw."""
    project = _project(tmp_path / "p", load_s=1.0, draw={"gpu_s": "None"}, usd_per_gpuh=1.0)
    _buy(project, 8)
    _make(project)
    assert _sql(project, "SELECT max(gpu_s) < 0.5 FROM samples") == [(True,)]


ODD = {
    "nan dollars": ({"usd": "float('nan')"}, "usd is nan, want a number of at least 0"),
    "negative dollars": ({"usd": "-5"}, "usd is -5, want a number of at least 0"),
    "text dollars": ({"usd": "'0.5'"}, "usd is '0.5', want a number of at least 0"),
    "infinite seconds": ({"gpu_s": "float('inf')"}, "gpu_s is inf, want a number of at least 0"),
    "a number for an outcome": ({"outcome": "3"}, "outcome is a int, want text or None"),
    "no members": ({"members": "{}"}, "members is a dict, want a mapping with at least one member"),
    "a list of members": ({"members": "[1]"}, "members is a list, want a mapping with at least one member"),
    "members None": ({"members": "None"}, "members is a NoneType, want a mapping with at least one member"),
}


@pytest.mark.parametrize("name", ODD)
def test_an_unsound_answer_is_a_failure_that_says_why(name: str, tmp_path: Path) -> None:
    """Odd bookkeeping of a teacher never reaches the ledger: the draw fails as invalid, with what was given."""
    draw, reason = ODD[name]
    project = _project(tmp_path / "p", draw=draw)
    _buy(project, 8)
    with pytest.raises(DistdataError, match="draws all failed") as caught:
        _make(project)
    assert f"invalid: {reason}" in str(caught.value)
    assert _sql(project, "SELECT count(*) FROM samples") == [(0,)]


def test_numpy_numbers_are_numbers(tmp_path: Path) -> None:
    """A cost given as a numpy scalar is taken as the float it is."""
    project = _project(tmp_path / "p", draw={"gpu_s": "np.float32(0.5)", "usd": "np.float64(0.25)"})
    _buy(project, 8)
    assert _make(project).usd == 2.0


@pytest.mark.parametrize("bad", ["v1.0", "a/b", "", "ABCDEF0123456789", "0" * 15])
def test_a_content_hash_that_is_none_is_refused_before_anything_is_paid(bad: str, tmp_path: Path) -> None:
    """The hash is part of every sample's key, so it is checked when the teacher is described."""
    project = _project(tmp_path / "p", hash=bad)
    with pytest.raises(DistdataError, match=r"content_hash = .* must be 16 to 64 of 0-9 a-f"):
        plan_purchase(project, budget="8samples")


def test_what_is_to_be_captured_reaches_the_teacher(tmp_path: Path) -> None:
    """`teacher.capture` is frozen with the units and is in every request."""
    project = _project(tmp_path / "p", teacher='capture = ["trajectory", "features"]')
    _buy(project, 8)
    _make(project)
    [shard] = [
        f.name for f in project.storage.list(_sql(project, "SELECT plan_id FROM plans")[0][0]) if ".tar" in f.name
    ]
    with project.storage.open(shard) as f:
        assert f.read().count(b"features,trajectory") == 8


def test_a_draw_asked_again_alone_is_replayed_within_tolerance(tmp_path: Path) -> None:
    """Bits may depend on the batch; a draw that succeeded alone after its batch failed is not called damaged."""
    project = _project(tmp_path / "p", joint=True)
    _buy(project, 16)
    table = json.loads(json.dumps(_sql(project, "SELECT seed_id FROM seeds ORDER BY prn LIMIT 1")))
    _say(project.root, joint=True, poison=[f"{table[0][0]} 2"])
    _forget_module()
    assert _make(project).generated == 16
    result = replay(project, 1.0)
    # the three siblings and the poison itself were made alone, the twelve others in their batches of four
    assert (result.n_compared, result.different[:0]) == (16, [])
    assert all("now fails" in reason for _, reason in result.different), "only the poisoned batch is refused again"


def test_a_repair_in_a_joined_shard_leaves_no_key_twice(tmp_path: Path) -> None:
    """A damaged joined shard is replaced whole: what lies in the folder is what the catalog holds."""
    project = _project(tmp_path / "p")
    plan_id = _buy(project, 32)
    _make(project)
    compact_project(project)
    [pack] = [f.name for f in project.storage.list(plan_id) if f.name.endswith(".tar")]
    path = Path(str(project.storage.root)) / pack
    data = bytearray(path.read_bytes())
    data[700] ^= 0xFF
    path.write_bytes(data)
    n_before = len(_calls(project))
    done = _make(project, mode="repair")
    assert len(done.damaged) >= 1
    assert len(_calls(project)) == n_before + 1, "only the damaged sample was asked for"
    tars = [Path(str(project.storage.root)) / f.name for f in project.storage.list(plan_id) if f.name.endswith(".tar")]
    keys = [e.key for tar in tars for e in scan(tar).entries]
    assert len(keys) == len(set(keys)) == 32
    found = check_project(project)
    assert (found.damaged, found.unreferenced, found.n_samples) == ([], [], 32)


def test_a_dry_run_says_what_the_same_call_would_do(tmp_path: Path) -> None:
    """`generate --dry-run` counts the draws of the mode asked for, and asks the teacher nothing."""
    project = _project(tmp_path / "p")
    _buy(project, 16)
    assert outlook(project)["draws"] == 16
    assert outlook(project, engine="ray", workers=3)["engine"] == "ray, 3 workers"
    assert _calls(project) == []
    _make(project)
    assert outlook(project)["draws"] == 0
    assert outlook(project, mode="retry-failed")["draws"] == 0


def test_a_dry_plan_writes_nothing(tmp_path: Path) -> None:
    """Changed bands show in a dry run's plan while the cell table in force stays."""
    project = _project(tmp_path / "p")
    toml = project.root / "distdata.toml"
    toml.write_text(toml.read_text().replace("default = 0.1", "default = 0.02"))
    changed = Project.open(project.root)
    before = sorted(p.name for p in project.events_dir.iterdir())
    dry = plan_purchase(changed, budget="16samples", dry_run=True)
    assert dry.plan.cells["band"].to_list() == [0.02, 0.02]
    assert sorted(p.name for p in project.events_dir.iterdir()) == before
    assert _sql(project, "SELECT DISTINCT band FROM cells") == [(0.1,)]


def _forget_module() -> None:
    """Let the next teacher be imported from its file again, as another process would."""
    import sys

    sys.modules.pop("odd", None)
