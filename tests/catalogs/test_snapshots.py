"""A snapshot is what was kept, no more and no less, of one teacher version, and it never changes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from distdata.catalogs.errors import DistdataError
from distdata.catalogs.events import list_events
from distdata.catalogs.packing import compact_project
from distdata.catalogs.project import Project
from distdata.catalogs.protocol import TeacherInfo
from distdata.catalogs.shards import read_sample
from distdata.catalogs.snapshots import COLUMNS, FILE, load_snapshot, make_snapshot
from distdata.cycle.training import current_teacher
from distdata.generate.ingest.byproducts import ingest_clean
from distdata.generate.ingest.rejects import ingest_rejects

N_DRAWS = 14


@pytest.fixture
def bought(tiny: Any, tmp_path: Path) -> Project:
    """A project with 14 samples of the tiny teacher, in three shards."""
    project: Project = tiny.build(tmp_path / "p", n_draws=N_DRAWS)
    tiny.run(project)
    return project


@pytest.fixture
def info(bought: Project) -> TeacherInfo:
    """Describe the tiny teacher."""
    return current_teacher(bought)


def reject(project: Project, *pairs: tuple[str, str]) -> None:
    path = project.root / f"rejects-{len(list_events(project.events_dir))}.csv"
    path.write_text("sample_id,reason\n" + "".join(f"{s},{why}\n" for s, why in pairs))
    ingest_rejects(project, path)


def ids(tiny: Any, project: Project) -> list[str]:
    return [r[0] for r in tiny.sql(project, "SELECT sample_id FROM samples ORDER BY 1")]


def test_it_holds_every_kept_sample_with_its_bytes(tiny: Any, bought: Project, info: TeacherInfo) -> None:
    """All 14 samples are in it, each with the digest and the place of its bytes; the header counts them by cell."""
    taken = make_snapshot(bought, info)
    assert taken.frame.columns == [*COLUMNS, "shard", "offset", "n_bytes"]
    assert taken.frame["sample_id"].to_list() == ids(tiny, bought)
    assert (taken.name, taken.header["n_samples"], taken.header["n_dropped"]) == ("v1", N_DRAWS, 0)
    assert sum(taken.header["cells"].values()) == N_DRAWS
    assert taken.frame["weight"].to_list() == [1.0] * N_DRAWS
    sums = tiny.payloads(bought)
    for row in taken.frame.iter_rows(named=True):
        assert row["sha256"] == sums[row["sample_id"]]
        with bought.storage.open(row["shard"]) as file:
            assert "x.npy" in read_sample(file, row["offset"], row["n_bytes"])


def test_drops_stay_out_and_are_counted_by_reason(tiny: Any, bought: Project, info: TeacherInfo) -> None:
    """What a verifier rejected is not in it; the header says how many for which reason."""
    every = ids(tiny, bought)
    reject(bought, (every[0], "blurred"), (every[1], "blurred"), (every[2], "wrong"))
    taken = make_snapshot(bought, info)
    assert taken.frame["sample_id"].to_list() == every[3:]
    assert taken.header["dropped"] == {"blurred": 2, "wrong": 1}
    assert (taken.header["n_samples"], taken.header["n_dropped"]) == (N_DRAWS - 3, 3)


def test_the_same_set_is_the_same_snapshot(tiny: Any, bought: Project, info: TeacherInfo) -> None:
    """Freezing twice writes nothing; another set is another version, and the old one is still there by name and id."""
    first = make_snapshot(bought, info)
    files = sorted(p.name for p in bought.events_dir.iterdir())
    again = make_snapshot(bought, info)
    assert (again.name, again.header) == (first.name, first.header)
    assert sorted(p.name for p in bought.events_dir.iterdir()) == files
    reject(bought, (ids(tiny, bought)[0], "blurred"))
    second = make_snapshot(bought, info)
    assert (second.name, second.frame.height) == ("v2", N_DRAWS - 1)
    assert second.header["snapshot_id"] != first.header["snapshot_id"]
    for name in ("v1", first.header["snapshot_id"]):
        assert load_snapshot(bought, name).frame.equals(first.frame)
    assert load_snapshot(bought).name == "v2"


def test_joined_shards_change_no_snapshot(tiny: Any, bought: Project, info: TeacherInfo) -> None:
    """After `compact` it is the same snapshot, its samples are found where they lie now, byte for byte."""
    before = make_snapshot(bought, info)
    n_shards = len(tiny.shards(bought))
    assert n_shards > 1
    assert before.frame["shard"].n_unique() == n_shards
    compact_project(bought)
    after = make_snapshot(bought, info)
    assert after.name == "v1"
    assert after.frame["shard"].n_unique() == 1
    assert after.frame.select(COLUMNS).equals(before.frame.select(COLUMNS))
    for row in after.frame.iter_rows(named=True):
        with bought.storage.open(row["shard"]) as file:
            assert (
                json.loads(read_sample(file, row["offset"], row["n_bytes"])["meta.json"])["seed_id"] == row["seed_id"]
            )


def test_two_teacher_versions_are_never_in_one(tiny: Any, bought: Project, info: TeacherInfo) -> None:
    """Of another version nothing is taken, and where there is nothing the message says how to buy some."""
    other = dataclasses.replace(info, version="2", content_hash="00000000000000bb")
    with pytest.raises(DistdataError, match=r"curate: no kept training sample of teacher tiny 2 \(00000000000000bb\)"):
        make_snapshot(bought, other)
    assert not list(bought.events_dir.glob("*-snapshot.json"))


def test_clean_samples_are_in_it(tiny: Any, bought: Project, info: TeacherInfo) -> None:
    """A sample that no teacher made joins every snapshot of the project, marked as clean and of weight 1."""
    import numpy as np

    seed = tiny.sql(bought, "SELECT seed_id FROM seeds WHERE split = 'train' ORDER BY 1 LIMIT 1")[0][0]
    row = {"seed_id": seed, "x": np.zeros(5, np.float32).tolist(), "outcome": "low"}
    path = bought.root / "clean.jsonl"
    path.write_text(json.dumps(row) + "\n")
    members = bought.root / "map.toml"
    members.write_text('[members]\n"x.npy" = "x"\n')
    assert ingest_clean(bought, [path], mapping=members).n_taken == 1
    taken = make_snapshot(bought, info)
    assert taken.frame.height == N_DRAWS + 1
    clean = taken.frame.filter(pl.col("source") == "clean")
    assert (clean["seed_id"].to_list(), clean["weight"].to_list()) == ([seed], [1.0])


def test_a_damaged_or_exchanged_file_is_refused(tiny: Any, bought: Project, info: TeacherInfo) -> None:
    """A flipped byte that matters, a missing file and another snapshot's are each told by the path, with what to do."""
    make_snapshot(bought, info)
    reject(bought, (ids(tiny, bought)[0], "blurred"))
    make_snapshot(bought, info)
    first, second = (bought.snapshots_dir / v / FILE for v in ("v1", "v2"))
    whole, frame = first.read_bytes(), load_snapshot(bought, "v1").frame
    n_refused = 0
    for at in range(0, len(whole), len(whole) // 40):
        first.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        try:
            read = load_snapshot(bought, "v1").frame
        except DistdataError as e:
            told = str(e)
        else:
            assert read.equals(frame), f"byte {at} is one that nobody reads"
            continue
        assert "v1/samples.parquet: " in told
        assert "backup" in told
        n_refused += 1
    assert n_refused > 10
    first.write_bytes(second.read_bytes())
    with pytest.raises(DistdataError, match="is not the file of snapshot v1"):
        load_snapshot(bought, "v1")
    first.unlink()
    with pytest.raises(DistdataError, match="damaged"):
        load_snapshot(bought, "v1")
    first.write_bytes(whole)
    assert load_snapshot(bought, "v1").frame.height == N_DRAWS


def test_no_snapshot_and_unknown_names(tiny: Any, bought: Project, info: TeacherInfo) -> None:
    """Without any, the command is named; an unknown name gets the nearest."""
    with pytest.raises(DistdataError, match=r"no snapshot yet.*distdata curate"):
        load_snapshot(bought)
    make_snapshot(bought, info)
    with pytest.raises(DistdataError, match=r"snapshot 'v11': there is none\..*v1"):
        load_snapshot(bought, "v11")


def test_a_rebuilt_catalog_has_it(tiny: Any, bought: Project, info: TeacherInfo) -> None:
    """The table of snapshots is the same in a catalog made anew from the files."""
    make_snapshot(bought, info)
    assert len(tiny.tables(bought)["snapshots"]) == 1
    assert tiny.rebuilt_tables(bought) == tiny.tables(bought)
