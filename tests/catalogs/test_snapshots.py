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


def add_clean(tiny: Any, project: Project, n: int = 1) -> str:
    """Take in `n` clean samples of the first training seed, and return its id."""
    seed = str(tiny.sql(project, "SELECT seed_id FROM seeds WHERE split = 'train' ORDER BY 1 LIMIT 1")[0][0])
    row = {"seed_id": seed, "x": [0.0] * 5, "outcome": "low"}
    path = project.root / "clean.jsonl"
    path.write_text("".join(json.dumps({**row, "key": f"clean-{i}"}) + "\n" for i in range(n)))
    members = project.root / "map.toml"
    members.write_text('[members]\n"x.npy" = "x"\n')
    assert ingest_clean(project, [path], mapping=members).n_taken == n
    return seed


def edit(project: Project, *changes: tuple[str, str]) -> Project:
    """Replace texts that are in distdata.toml once, and open the project again."""
    path = project.root / "distdata.toml"
    text = path.read_text()
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    path.write_text(text)
    return Project.open(project.root)


def by_cell(frame: pl.DataFrame) -> dict[str, float]:
    """Add the fleet weights up by cell."""
    return dict(frame.group_by("cell").agg(pl.col("fleet_weight").sum()).iter_rows())


def test_clean_samples_take_nothing_from_their_cells_draws(tiny: Any, bought: Project, info: TeacherInfo) -> None:
    """However many clean samples a cell has, its draws weigh its share of the fleet together, and so do they."""
    before = make_snapshot(bought, info).frame
    shares = {cell: s for cell, s in tiny.sql(bought, "SELECT cell, fleet_share FROM cells") if s > 0}
    assert by_cell(before) == pytest.approx(shares)
    seed = add_clean(tiny, bought, 9)
    after = make_snapshot(bought, info).frame
    clean = after.filter(pl.col("source") == "clean")
    assert by_cell(after.filter(pl.col("source") != "clean")) == pytest.approx(shares)
    (cell,) = set(clean["cell"])
    assert clean["fleet_weight"].to_list() == pytest.approx([shares[cell] / 9] * 9)
    assert set(clean["seed_id"]) == {seed}


def test_new_shares_of_the_fleet_are_a_new_snapshot_where_they_train(
    tiny: Any, bought: Project, info: TeacherInfo
) -> None:
    """With weights = "fleet" other shares give another snapshot, and the old one stays as it was.

    Back to the old shares it is the old one again. With "plan" they decide nothing: the same samples are one snapshot.
    """
    fleet = edit(bought, ("[generate]", '[train]\nweights = "fleet"\n[generate]'))
    first = make_snapshot(fleet, info)
    even, other = 'values = ["clear", "rain"]', 'values = ["clear", "rain"]\nfleet = [0.8, 0.2]'
    moved = edit(fleet, (even, other))
    second = make_snapshot(moved, info)
    assert (first.name, second.name) == ("v1", "v2")
    assert second.frame["sample_id"].equals(first.frame["sample_id"])
    rain = [sum(w for cell, w in by_cell(s.frame).items() if cell.startswith("rain")) for s in (first, second)]
    assert rain == pytest.approx([0.5, 0.2])
    assert load_snapshot(moved, "v1").frame.equals(first.frame)
    assert make_snapshot(moved, info).name == "v2"
    plan = edit(moved, ('weights = "fleet"', 'weights = "plan"'))
    third = make_snapshot(plan, info)
    assert third.name == "v3"
    back = edit(plan, (other, even))
    assert make_snapshot(back, info).name == "v3"
    assert make_snapshot(edit(back, ('weights = "plan"', 'weights = "fleet"')), info).name == "v1"


def test_curate_writes_a_lost_or_damaged_file_again(tiny: Any, bought: Project, info: TeacherInfo) -> None:
    """While what is kept is the same, the file comes back as it was, under the same name and without an event."""
    frame = make_snapshot(bought, info).frame
    path = bought.snapshots_dir / "v1" / FILE
    whole, events = path.read_bytes(), sorted(p.name for p in bought.events_dir.iterdir())
    for damage in (path.unlink, lambda: path.write_bytes(whole[:200]), lambda: path.write_bytes(b"")):
        damage()
        with pytest.raises(DistdataError, match="or curate again"):
            load_snapshot(bought)
        again = make_snapshot(bought, info)
        assert (again.name, path.read_bytes()) == ("v1", whole)
        assert again.frame.equals(frame)
    assert sorted(p.name for p in bought.events_dir.iterdir()) == events


def test_curate_writes_no_other_samples_into_a_lost_file(tiny: Any, bought: Project, info: TeacherInfo) -> None:
    """Where a sample was rejected since, the lost snapshot stays lost and what is kept now is the next one."""
    make_snapshot(bought, info)
    (bought.snapshots_dir / "v1" / FILE).unlink()
    reject(bought, (ids(tiny, bought)[0], "blurred"))
    assert make_snapshot(bought, info).name == "v2"
    with pytest.raises(DistdataError, match="damaged"):
        load_snapshot(bought, "v1")


def test_clean_samples_are_in_it(tiny: Any, bought: Project, info: TeacherInfo) -> None:
    """A sample that no teacher made joins every snapshot of the project, marked as clean and of weight 1."""
    seed = add_clean(tiny, bought)
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
