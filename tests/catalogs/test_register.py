"""Registration is idempotent and independent of order and batches; a rebuild from files gives equal tables."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distdata.catalogs import register, store
from distdata.catalogs.config import parse_config
from distdata.catalogs.errors import BusyError, DistdataError
from distdata.catalogs.events import append_json
from distdata.catalogs.files import exclusive_lock
from distdata.catalogs.intake import import_seeds
from distdata.catalogs.manifests import UnitSummary, attempt_order, manifest_name, read_manifest, write_manifest
from distdata.catalogs.plans import save_plan
from distdata.catalogs.project import Project
from distdata.catalogs.register import Registrar, catch_up, catch_up_if_free, rebuild, register_manifests
from distdata.catalogs.storage import Storage

TOML = """
[project]
name = "p"
salt = "s"
[axes.light]
values = ["day", "night"]
[scenarios.cross]
layer = "core"
[bands]
default = 0.1
[teacher]
kind = "crossing"
"""
TABLES = (
    "events",
    "axes",
    "cells",
    "imports",
    "seeds",
    "plans",
    "plan_cells",
    "units",
    "unit_cells",
    "samples",
    "attempts",
    "other_spend",
)
VIEWS = ("coverage_by_purpose", "samples_wide", "failed_attempts", "spend_by_cell", "seeds_wide")
N_UNITS, PER_UNIT = 6, 4
PLAN = "0123456789ab"


def header(plan_id: str = PLAN, supersedes: tuple[str, ...] = ()) -> dict[str, object]:
    return {
        "plan_id": plan_id, "purpose": "train", "policy": "gate", "budget": "24samples", "created": "2026-01-01",
        "teacher": "t", "teacher_version": "1", "teacher_hash": "feed", "usd_per_gpuh": 0.0, "gpu_s_per_draw": 0.0,
        "usd_per_draw": 0.0, "n_draws": N_UNITS * PER_UNIT, "usd": 0.0, "gpu_s": 0.0, "supersedes": list(supersedes),
    }  # fmt: skip


def save(project: Project, head: dict[str, object]) -> None:
    cells = pl.DataFrame(
        {
            "cell_id": pl.Series([0, 1], dtype=pl.Int32), "target": [12, 12], "credit": [0, 0], "fresh": [12, 12],
            "n_seeds_frame": [12, 12], "n_seeds_taken": [12, 12], "weight": [0.5, 0.5], "floor": [0, 0],
            "ceiling": [12, 12], "usd": [0.0, 0.0], "mark": ["", ""],
        }
    )  # fmt: skip
    n = N_UNITS * PER_UNIT
    draws = pl.DataFrame(
        {
            "seed_id": [f"s{i}" for i in range(n)], "cell_id": pl.Series([i % 2 for i in range(n)], dtype=pl.Int32),
            "k": [0] * n, "n_k": [1] * n, "pi": [0.5] * n, "weight": [1 / 32] * n, "decision_point": [False] * n,
        }
    )  # fmt: skip
    save_plan(project, head, cells, draws)


def commit(project: Project, unit: int, attempt: int, ok: str, *, replaces: bool = False, plan_id: str = PLAN) -> str:
    """Commit a manifest of one row per letter of `ok`: o for a sample, f for a failure, - for not asked."""
    asked = [i for i, c in enumerate(ok) if c != "-"]
    good = [ok[i] == "o" for i in asked]
    seeds = [unit * PER_UNIT + i for i in asked]
    name = manifest_name(plan_id, unit, attempt)
    summary = UnitSummary(
        plan_id=plan_id, unit=unit, attempt=attempt, replaces=replaces, manifest=name,
        shard=f"{plan_id}/u{unit}-{attempt}.tar" if any(good) else None, shard_bytes=100 * sum(good), shard_digest="d",
        n_ok=sum(good), n_failed=len(good) - sum(good), gpu_s=1.0 * len(asked), usd=0.25 * len(asked), in_doubt_usd=0.0,
        wall_s=1.0,
    )  # fmt: skip
    columns = {
        "sample_id": [f"s{s}-k000-feed" for s in seeds], "status": ["ok" if g else "failed" for g in good],
        "failure": [None if g else "error" for g in good], "reason": [None if g else "boom" for g in good],
        "tries": 1, "seed_id": [f"s{s}" for s in seeds], "k": 0, "n_k": 1,
        "cell": [f"{'day' if s % 2 == 0 else 'night'}/cross" for s in seeds], "split": "train", "source": "teacher",
        "purpose": "train", "decision_point": False, "pi": 0.5, "weight": 1 / 32, "rng_seed": [s + 1 for s in seeds],
        "control_axis": None, "control_value": None, "kind": "text", "outcome": None, "shard": summary.shard,
        "offset": [512 * i if g else None for i, g in enumerate(good)], "n_bytes": [100 if g else None for g in good],
        "sha256": None, "gpu_s": [1.0] * len(asked), "usd": [0.25] * len(asked), "paid_gpu_s": 1.0, "paid_usd": 0.25,
        "in_doubt_usd": 0.0, "plan_id": plan_id, "teacher_hash": "feed", "schema_version": 1,
    }  # fmt: skip
    write_manifest(project.storage, columns, summary)
    return name


def assign(seeds: pl.DataFrame, used: pl.DataFrame) -> pl.DataFrame:
    return seeds.select("grp").unique().with_columns(split=pl.lit("train"))


def tables(project: Project) -> dict[str, list[tuple]]:
    with store.read(project.catalog_path) as con:
        return {
            name: sorted(con.execute(f"SELECT * FROM {name}").fetchall(), key=repr) for name in (*TABLES, *VIEWS)
        }  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with one plan, whose manifests are on disk and not registered: plain, failed, retried, repaired."""
    project = Project(tmp_path_factory.mktemp("made"), parse_config(TOML, "distdata.toml"))
    n = N_UNITS * PER_UNIT
    raw = pl.DataFrame(
        {
            "seed_id": [f"s{i}" for i in range(n)],
            "light": ["day" if i % 2 == 0 else "night" for i in range(n)],
            "scenario": ["cross"] * n,
        }
    )
    import_seeds(project, raw, "x", "1", assign)
    save(project, header())
    commit(project, 0, 0, "oooo")
    commit(project, 1, 0, "oofo")
    commit(project, 1, 1, "--o-")
    commit(project, 2, 0, "ofof")
    commit(project, 2, 1, "-f-o")
    commit(project, 2, 2, "-o--")
    commit(project, 3, 0, "oooo")
    commit(project, 3, 1, "oooo", replaces=True)
    commit(project, 4, 0, "ffff")
    for attempt in range(1, 11):
        commit(project, 5, attempt - 1, "fooo" if attempt == 1 else "f---")
    commit(project, 5, 10, "oooo", replaces=True)
    return project


NAMES = [
    manifest_name(PLAN, u, a)
    for u, last in ((0, 0), (1, 1), (2, 2), (3, 1), (4, 0), (5, 10))
    for a in range(last + 1)
]  # fmt: skip


@pytest.fixture(scope="module")
def want(made: Project, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple]]:
    project = _copy(made, tmp_path_factory)
    catch_up(project)
    return tables(project)


def _copy(made: Project, factory: pytest.TempPathFactory) -> Project:
    root = factory.mktemp("copy") / "p"
    shutil.copytree(made.root, root)
    return Project(root, made.config)


def test_counts_by_hand(want: dict[str, list[tuple]]) -> None:
    """Each draw that ended well is one sample, each failed attempt one row, and all attempts are paid."""
    # ok in the end: unit 0: 4, 1: 3 + 1, 2: 2 + 0 + 1 (third draw never asked again successfully: "-f-o" gave one more)
    # unit 2: "ofof" 2, "-f-o" 1, "-o--" 1 -> 4; unit 3: 4 (repair); unit 4: 0; unit 5: 4 (repair)
    assert len(want["samples"]) == 4 + 4 + 4 + 4 + 0 + 4
    assert len({row[0] for row in want["samples"]}) == 20
    # failed: unit 1: 1; unit 2: 2 + 1; unit 4: 4; unit 5: 1 + 9
    assert len(want["attempts"]) == 1 + 3 + 4 + 10
    assert len(want["units"]) == len(NAMES) == 1 + 2 + 3 + 2 + 1 + 11
    asked = 4 + (4 + 1) + (4 + 2 + 1) + (4 + 4) + 4 + (4 + 9 + 4)
    known_usd = sum(row[-2] for row in want["spend_by_cell"])
    assert known_usd == pytest.approx(0.25 * asked)


@settings(deadline=None, derandomize=True, max_examples=5)
@given(st.randoms(use_true_random=False), st.integers(3, 9))
def test_any_order_in_any_batches_gives_equal_tables(
    made: Project,
    want: dict[str, list[tuple]],
    tmp_path_factory: pytest.TempPathFactory,
    order: random.Random,
    size: int,
) -> None:
    """Units in any order, their attempts in order, in batches of any size, some twice: the tables are the same.

    The weights are powers of two, so that sums don't depend on the order of their terms.
    """
    project = _copy(made, tmp_path_factory)
    units = [[n for n in NAMES if f"unit-{u:06d}" in n] for u in range(N_UNITS)]
    names: list[str] = []
    while any(units):
        names.append(order.choice([u for u in units if u]).pop(0))
    n_new = 0
    for start in range(0, len(names), size):
        n_new += register_manifests(project, names[max(0, start - 1) : start + size], wait_s=1.0)
    assert n_new == len(names)
    assert tables(project) == want


@pytest.mark.parametrize("batch", [1, 3])
def test_a_rebuild_gives_equal_tables(
    made: Project, want: dict[str, list[tuple]], tmp_path_factory: pytest.TempPathFactory, batch: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A rebuild, with a unit's attempts in different transactions, equals the catalog that grew; twice is the same."""
    project = _copy(made, tmp_path_factory)
    monkeypatch.setattr(register, "BATCH", batch)
    for _ in range(2):
        rebuild(project)
        assert tables(project) == want
    assert sorted(p.name for p in project.root.iterdir()) == sorted(p.name for p in made.root.iterdir())


def test_a_deleted_catalog_comes_back(
    made: Project, want: dict[str, list[tuple]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The catalog file may be deleted: the next command makes it again, with equal tables."""
    project = _copy(made, tmp_path_factory)
    project.catalog_path.unlink()
    catch_up_if_free(project)
    assert tables(project) == want


def test_catching_up_twice_adds_nothing(made: Project, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The second call finds nothing new."""
    project = _copy(made, tmp_path_factory)
    assert catch_up(project) == len(NAMES)
    before = tables(project)
    assert catch_up(project) == 0
    assert tables(project) == before


def test_attempts_sort_by_number() -> None:
    """The tenth retry comes after the second, and the first attempt before all, whatever a folder listing says."""
    names = [manifest_name("p", 1, a) for a in (10, 2, 0, 1)] + [manifest_name("p", 0, 3)]
    assert sorted(names, key=attempt_order) == [
        manifest_name("p", 0, 3),
        *(manifest_name("p", 1, a) for a in (0, 1, 2, 10)),
    ]


def test_a_plan_chosen_again_is_one_plan(made: Project, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A superseded plan that is saved again is in force once more, with what was made for it, and a rebuild agrees."""
    project = _copy(made, tmp_path_factory)
    catch_up(project)
    n_samples = len(tables(project)["samples"])
    save(project, header("bbbbbbbbbbbb", supersedes=(PLAN,)))
    lost = {"plan_id": PLAN, "known_usd": 0.5, "in_doubt_usd": 0.0, "gpu_s": 2.0, "note": "superseded"}
    append_json(project.events_dir, "spend", lost)
    save(project, header(PLAN, supersedes=("bbbbbbbbbbbb",)))
    with store.read(project.catalog_path) as con:
        plans = con.execute("SELECT plan_id, superseded_by FROM plans ORDER BY plan_no").fetchall()
        kept = con.execute("SELECT sum(kept), sum(planned), sum(target) FROM coverage").fetchall()
    assert plans == [("bbbbbbbbbbbb", PLAN), (PLAN, None)]
    assert kept == [(n_samples, 24, 24)]
    before = tables(project)
    assert [row[1:] for row in before["other_spend"]] == [(0.5, 0.0, 2.0, "superseded")]
    rebuild(project)
    assert tables(project) == before


def test_a_damaged_manifest_stops_only_itself(made: Project, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A manifest cut short is named with the way out; deleting it as told lets everything else in."""
    project = _copy(made, tmp_path_factory)
    path = project.root / "data" / manifest_name(PLAN, 4, 0)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(
        DistdataError, match=r"unit-000004.parquet: this manifest is damaged .*Delete it .*distdata generate"
    ):
        catch_up(project)
    path.unlink()
    catch_up(project)
    assert len(tables(project)["units"]) == len(NAMES) - 1


@settings(deadline=None, derandomize=True, max_examples=150)
@given(where=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_no_altered_byte_of_a_manifest_goes_unnoticed(
    made: Project, tmp_path_factory: pytest.TempPathFactory, where: float, flip: int
) -> None:
    """Any changed byte is an error that names the file, or changes nothing that is read."""
    name = manifest_name(PLAN, 0, 0)
    storage = Storage("data", tmp_path_factory.mktemp("altered"), made.root / "scratch")
    data = bytearray((made.root / "data" / name).read_bytes())
    data[int(where * len(data))] ^= flip
    path = storage.build_path(name).parent / name.rpartition("/")[2]
    path.write_bytes(data)
    try:
        seen: object = read_manifest(storage, name)
    except DistdataError as e:
        seen = str(e)
    assert seen == read_manifest(made.storage, name) or "unit-000000.parquet: this manifest is damaged" in str(seen)


def test_a_manifest_of_no_plan_is_named(made: Project, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A manifest whose plan has no event is refused with what to do, not silently counted."""
    project = _copy(made, tmp_path_factory)
    name = commit(project, 0, 0, "oooo", plan_id="ffffffffffff")
    with pytest.raises(DistdataError, match=r"belongs to plan ffffffffffff, which is not in .*Move it away"):
        register_manifests(project, [name], wait_s=1.0)


def test_a_failed_rebuild_keeps_the_catalog(made: Project, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A damaged event stops a rebuild, and the catalog is still the old one, to the byte."""
    project = _copy(made, tmp_path_factory)
    catch_up(project)
    before, names = tables(project), sorted(p.name for p in project.root.iterdir())
    event = project.events_dir / "00000002-import.parquet"
    event.write_bytes(event.read_bytes()[:-20])
    with pytest.raises(DistdataError, match=r"00000002-import.parquet: damaged .*Restore this file from a backup"):
        rebuild(project)
    assert tables(project) == before
    assert sorted(p.name for p in project.root.iterdir()) == names


def test_a_damaged_plan_stops_a_rebuild(made: Project, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A plan's cell table that was altered or is gone is named, and the catalog stays."""
    project = _copy(made, tmp_path_factory)
    catch_up(project)
    before = tables(project)
    path = project.plans_dir / PLAN / "cells.parquet"
    data = bytearray(path.read_bytes())
    data[20] ^= 1
    path.write_bytes(data)
    with pytest.raises(DistdataError, match=r"cells.parquet: damaged \(cells.parquet does not match its digest\)"):
        rebuild(project)
    path.unlink()
    with pytest.raises(DistdataError, match=r"cells.parquet: damaged .*No such file.* Restore this file from a backup"):
        rebuild(project)
    assert tables(project) == before


@pytest.mark.parametrize("damage", [b"", b"xyzzy" * 4000])
def test_a_damaged_catalog_is_rebuilt(
    made: Project, want: dict[str, list[tuple]], tmp_path_factory: pytest.TempPathFactory, damage: bytes
) -> None:
    """The rebuild that a damaged catalog's message asks for works on a damaged catalog."""
    project = _copy(made, tmp_path_factory)
    project.catalog_path.write_bytes(damage)
    rebuild(project)
    assert tables(project) == want


def test_a_newer_catalog_is_not_rebuilt(made: Project, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A catalog that a newer version wrote is refused, not replaced."""
    project = _copy(made, tmp_path_factory)
    with store.write(project.catalog_path) as con:
        con.execute("INSERT INTO schema_version VALUES (99)")
    before = project.catalog_path.read_bytes()
    with pytest.raises(DistdataError, match="written by a newer distdata"):
        rebuild(project)
    assert project.catalog_path.read_bytes() == before


def test_queries_leave_registration_to_a_running_generate(
    made: Project, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """While the generate lock is held nothing is registered by others; afterwards the next query catches up."""
    project = _copy(made, tmp_path_factory)
    with exclusive_lock(project.spool_dir / "generate.lock", "busy"):
        catch_up_if_free(project)
        assert tables(project)["units"] == []
    catch_up_if_free(project)
    assert len(tables(project)["units"]) == len(NAMES)


def test_a_busy_catalog_only_delays(made: Project, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A registrar that can't write keeps its manifests and registers them all when the catalog is free."""
    project = _copy(made, tmp_path_factory)
    registrar = Registrar(project)
    for name in NAMES:
        registrar.add(name)
    # a lock of this process would be shared, so another one holds the file
    import subprocess
    import sys

    code = "import sys, duckdb; c = duckdb.connect(sys.argv[1]); print('open', flush=True); sys.stdin.readline()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(project.catalog_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        assert registrar.flush(wait_s=0.05) == len(NAMES)
        catch_up_if_free(project)
        with pytest.raises(BusyError, match=f"held by process {holder.pid}"):
            rebuild_soon(project)
        holder.communicate("go\n")
    assert registrar.flush(wait_s=1.0) == 0
    assert len(tables(project)["units"]) == len(NAMES)


def rebuild_soon(project: Project) -> None:
    catch_up(project, wait_s=0.1)


def test_an_event_without_a_plan_id(made: Project, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A plan event that lost its fields is named as damaged."""
    project = _copy(made, tmp_path_factory)
    append_json(project.events_dir, "plan", {"purpose": "train"})
    with pytest.raises(DistdataError, match=r"00000004-plan.json: damaged .*plan_id"):
        catch_up(project)


def test_catalog_name_is_the_only_difference(made: Project) -> None:
    """A project under another catalog name shares events, plans and storage: what a rebuild relies on."""
    aside = replace(made, catalog_name="other.duckdb")
    assert aside.catalog_path == made.root / "other.duckdb"
    assert (aside.events_dir, aside.plans_dir) == (made.events_dir, made.plans_dir)
