"""Candidate order: the same from scratch, from the cache and by merging; a cache that is not right is never used."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distdata.catalogs import frame_cache, store
from distdata.catalogs.candidates import Candidates, arrange, candidates_of, merge
from distdata.catalogs.config import parse_config
from distdata.catalogs.frame_cache import Batch, read_kept, write_kept
from distdata.catalogs.frames import group_counts, load_candidates
from distdata.catalogs.project import Project

CONFIG = """
[project]
name = "frames"
salt = "s"
[axes.light]
values = ["day", "night"]
[scenarios.cross]
layer = "core"
[bands]
default = 0.1
[teacher]
kind = "python"
"""
SCHEMA = {
    "seed_id": pl.String, "cell_id": pl.Int32, "grp": pl.String, "split": pl.String, "prn": pl.Float64,
    "decision_point": pl.Boolean, "k": pl.Int32, "size": pl.Float64, "origin": pl.String,
}  # fmt: skip


def _project(root: Path) -> Project:
    """Make an empty catalog of five cells in three slices: a (0, 1), b (2, 3), c (4)."""
    project = Project(root, parse_config(CONFIG, "test"))
    cells = pl.DataFrame({"cell_id": pl.Series(range(5), dtype=pl.Int32), "slice": ["a", "a", "b", "b", "c"]})
    with store.write(project.catalog_path) as con:
        con.register("incoming", cells.to_arrow())
        con.execute("CREATE TABLE cells AS SELECT * FROM incoming")
    return project


def _import(project: Project, number: int, seeds: pl.DataFrame) -> None:
    with store.write(project.catalog_path) as con:
        store.insert(con, "seeds", seeds.with_columns(import_id=pl.lit(number, dtype=pl.Int32)).to_arrow())


def _seeds(prefix: str, rows: Sequence[tuple[object, ...]]) -> pl.DataFrame:
    """Make seeds of (cell, group, split, prn, decision point, k, size, origin); ids descend, so that ties show."""
    named = [(f"{prefix}{len(rows) - i:04d}", *row) for i, row in enumerate(rows)]
    return pl.DataFrame(named, schema=SCHEMA, orient="row")


SEED = st.tuples(
    st.integers(0, 4),
    st.sampled_from(["g0", "g1", "g2", "g3"]),
    st.sampled_from(["train", "train", "gate"]),
    st.one_of(st.sampled_from([0.0, 0.25, 0.5]), st.floats(0, 1, exclude_max=True)),
    st.sampled_from([None, True, False]),
    st.sampled_from([None, None, 3, 255]),
    st.sampled_from([None, 1.0, 0.5, 2.0]),
    st.sampled_from(["frame", "frame", "frame", "byproduct", None]),
)
UNSIZED = SEED.map(lambda row: (*row[:6], None, row[7]))
IMPORTS = st.one_of(
    st.lists(st.lists(UNSIZED, max_size=12), min_size=1, max_size=5),
    st.lists(st.lists(SEED, max_size=12), min_size=1, max_size=5),
)


def _rows(candidates: Candidates) -> list[tuple[object, ...]]:
    """List everything about the candidates, in their order."""
    n = len(candidates.prn)
    ids = candidates.ids(np.arange(n)).to_list()
    sizes = np.ones(n) if candidates.size is None else candidates.size
    columns = (candidates.cell_id, candidates.rank, candidates.prn, sizes, candidates.decision, candidates.k)
    assert candidates.find(pl.Series(ids, dtype=pl.String)).tolist() == list(range(n))
    return list(zip(*(c.tolist() for c in columns), ids, strict=True))


def _expected(seeds: pl.DataFrame, split: str) -> list[tuple[object, ...]]:
    """Sort the seeds of a split one by one, by the definition."""
    rows = [
        (
            s["cell_id"], s["prn"] / (s["size"] or 1.0), s["prn"], s["size"] or 1.0,
            -1 if s["decision_point"] is None else int(s["decision_point"]), s["k"] or 0, s["seed_id"],
        )
        for s in seeds.iter_rows(named=True)
        if s["split"] == split and s["origin"] in (None, "frame")
    ]  # fmt: skip
    return sorted(rows, key=lambda r: (r[0], r[1], r[6]))


@given(rows=st.lists(SEED, max_size=40))
@settings(max_examples=150, deadline=None)
def test_candidates_are_in_order_of_cell_rank_and_id(rows: list[tuple[object, ...]]) -> None:
    """Sorting by one packed key gives the order of the definition, ties and sizes included; other origins stay out."""
    seeds = _seeds("s", rows)
    assert _rows(candidates_of(seeds, "train")) == _expected(seeds, "train")


@given(old=st.lists(SEED, max_size=30), fresh=st.lists(SEED, max_size=30))
@settings(max_examples=150, deadline=None)
def test_merging_equals_sorting_everything(old: list[tuple[object, ...]], fresh: list[tuple[object, ...]]) -> None:
    """Two lists merged are the list of all, unless an old and a new rank tie: then merging says that it can't."""
    first, second = _seeds("a", old), _seeds("b", fresh)
    merged = merge(arrange(first), arrange(second))
    ranks = [{(s["cell_id"], s["prn"] / (s["size"] or 1.0)) for s in f.iter_rows(named=True)} for f in (first, second)]
    assert (merged is None) == bool(ranks[0] & ranks[1])
    if merged is not None:
        every = pl.concat([first, second]).with_columns(split=pl.lit("train"), origin=pl.lit("frame"))
        assert _rows(merged) == _expected(every, "train")


@given(imports=IMPORTS, forget=st.sets(st.integers(0, 4)))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_sequence_of_imports_gives_the_order_from_scratch(
    tmp_path_factory: pytest.TempPathFactory, imports: list[list[tuple[object, ...]]], forget: set[int]
) -> None:
    """After each import, with the cache as it came to be or deleted in between, candidates and groups are right."""
    project = _project(tmp_path_factory.mktemp("imports"))
    every = pl.DataFrame(schema=SCHEMA)
    for number, rows in enumerate(imports):
        seeds = _seeds(f"i{number}-", rows)
        every = pl.concat([every, seeds])
        _import(project, number, seeds)
        if number in forget:
            shutil.rmtree(project.root / "cache", ignore_errors=True)
        for _ in range(2):  # the second time from the cache
            for split in ("train", "gate"):
                assert _rows(load_candidates(project, split)) == _expected(every, split)
            assert group_counts(project).rows() == _groups(every)


def _groups(seeds: pl.DataFrame) -> list[tuple[str, str, int]]:
    """Count groups as sets."""
    found: dict[tuple[str, str], set[str]] = {}
    for s in seeds.iter_rows(named=True):
        if s["origin"] in (None, "frame"):
            found.setdefault(("aabbc"[s["cell_id"]], s["split"]), set()).add(s["grp"])
    return sorted((*key, len(groups)) for key, groups in found.items())


def _filled(root: Path, n_imports: int = 2) -> tuple[Project, pl.DataFrame]:
    """Make a catalog of imports of 50 seeds, planned with after each, and return it with all its seeds."""
    project = _project(root)
    rng = np.random.default_rng(7)
    every = []
    for number in range(n_imports):
        rows = [(int(c), f"g{c}", "train", u, None, None, None, "frame") for c, u in
                zip(rng.integers(0, 5, 50), rng.random(50), strict=True)]  # fmt: skip
        every.append(_seeds(f"i{number}-", rows))
        _import(project, number, every[-1])
        load_candidates(project, "train")
    return project, pl.concat(every)


def _batches(folder: Path) -> list[Batch]:
    (header,) = folder.glob("*/header.json")
    return [Batch(*b) for b in json.loads(header.read_text())["batches"]]


MORE = _seeds("x", [(1, "g", "train", u, True, 4, None, "frame") for u in (0.5, 0.1, 0.7)])


def test_an_extension_shares_the_ids_it_was_made_from(tmp_path: Path) -> None:
    """An import that adds 6% adds a file of its own ids, and only the new order is left."""
    project, _ = _filled(tmp_path, n_imports=1)
    folder = project.root / "cache" / "seeds-train"
    (before,) = folder.glob("*/ids-000.arrow")
    inode = before.stat().st_ino
    _import(project, 9, MORE)
    load_candidates(project, "train")
    (state,) = folder.iterdir()
    assert sorted(p.name for p in state.glob("ids-*")) == ["ids-000.arrow", "ids-001.arrow"]
    assert (state / "ids-000.arrow").stat().st_ino == inode


def test_a_few_seeds_more_are_merged_and_not_written(tmp_path: Path) -> None:
    """Imports of 2% leave the order on disk as it is until they sum up to a thirty-second; each plan is right."""
    project, seeds = _filled(tmp_path, n_imports=1)
    folder = project.root / "cache" / "seeds-train"
    (state,) = folder.iterdir()
    states = []
    for number in range(2, 5):
        one = MORE[number - 2 : number - 1]
        seeds = pl.concat([seeds, one])
        _import(project, number, one)
        assert _rows(load_candidates(project, "train")) == _expected(seeds, "train")
        states.append([p.name for p in folder.iterdir()] == [state.name])
    assert states == [True, False, False]  # 50, and 51 of 50 x 33/32 = 51.6; 52 are written


def test_many_imports_end_in_one_file_of_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ids are joined into one file when there are too many files of them."""
    monkeypatch.setattr(frame_cache, "MAX_ID_FILES", 3)
    project, seeds = _filled(tmp_path, n_imports=4)  # files: 1, 2, 3, then one again
    (state,) = (project.root / "cache" / "seeds-train").iterdir()
    assert [p.name for p in state.glob("ids-*")] == ["ids-000.arrow"]
    assert _rows(load_candidates(project, "train")) == _expected(seeds, "train")


@pytest.mark.parametrize("name", ["header.json", "order.arrow", "index.arrow", "ids-000.arrow", "ids-001.arrow"])
@pytest.mark.parametrize("how", ["first", "middle", "last", "cut", "gone", "empty"])
def test_a_damaged_cache_is_not_used(tmp_path: Path, name: str, how: str) -> None:
    """A flipped bit, a cut or missing file is noticed, the order is made anew, and the cache is whole again."""
    project, seeds = _filled(tmp_path)
    folder = project.root / "cache" / "seeds-train"
    batches = _batches(folder)
    assert read_kept(folder, batches) is not None
    (path,) = folder.glob(f"*/{name}")
    data = bytearray(path.read_bytes())
    at = {"first": 0, "middle": len(data) // 2, "last": len(data) - 1}.get(how)
    path.unlink()  # a new file: the old bytes may be mapped
    if at is not None:
        data[at] ^= 1
        path.write_bytes(data)
    elif how != "gone":
        path.write_bytes(data[: len(data) // 2] if how == "cut" else b"")
    assert read_kept(folder, batches) is None
    assert _rows(load_candidates(project, "train")) == _expected(seeds, "train")
    assert read_kept(folder, batches) is not None


def test_an_order_of_other_seeds_is_not_used(tmp_path: Path) -> None:
    """Seeds that changed under the same import and in the same number get an order of their own."""
    project, seeds = _filled(tmp_path)
    load_candidates(project, "train")
    with store.write(project.catalog_path) as con:
        con.execute("UPDATE seeds SET prn = 1 - prn WHERE seed_id = 'i1-0007'")
        con.execute("UPDATE seeds SET grp = 'another' WHERE seed_id = 'i1-0008'")
    changed = seeds.with_columns(
        prn=pl.when(pl.col("seed_id") == "i1-0007").then(1 - pl.col("prn")).otherwise("prn"),
        grp=pl.when(pl.col("seed_id") == "i1-0008").then(pl.lit("another")).otherwise("grp"),
    )
    assert _rows(load_candidates(project, "train")) == _expected(changed, "train")
    assert group_counts(project).rows() == _groups(changed)


def test_ids_hashed_by_another_version_are_not_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index whose hash this installation doesn't compute is made anew instead of finding nothing."""
    project, seeds = _filled(tmp_path)
    monkeypatch.setattr(frame_cache, "hash_probe", lambda _: ["1", "2", "3"])
    assert read_kept(project.root / "cache" / "seeds-train", _batches(project.root / "cache" / "seeds-train")) is None
    assert _rows(load_candidates(project, "train")) == _expected(seeds, "train")


def test_leftovers_of_a_crash_are_ignored_and_removed(tmp_path: Path) -> None:
    """A folder that was being written is never read; an hour later the next writer removes it."""
    project, _ = _filled(tmp_path, n_imports=1)
    folder = project.root / "cache" / "seeds-train"
    (state,) = folder.iterdir()
    batches = _batches(folder)
    young, old = folder / ".tmp-1-young", folder / ".tmp-1-old"
    shutil.copytree(state, young)
    state.rename(old)
    os.utime(old, (0, 0))
    assert read_kept(folder, batches) is None
    load_candidates(project, "train")
    assert {p.name for p in folder.iterdir()} == {state.name, young.name}


def test_without_a_place_for_the_cache_planning_goes_on(tmp_path: Path) -> None:
    """Where the cache can't be written, candidates and groups come from the catalog."""
    project, seeds = _filled(tmp_path, n_imports=1)
    shutil.rmtree(project.root / "cache")
    (project.root / "cache").write_text("in the way")
    assert _rows(load_candidates(project, "train")) == _expected(seeds, "train")
    assert group_counts(project).rows() == _groups(seeds)


def test_planners_at_once_leave_one_whole_cache(tmp_path: Path) -> None:
    """Eight planners that extend the cache at the same time all get the right order, and one of it is left."""
    project, seeds = _filled(tmp_path, n_imports=1)
    _import(project, 9, MORE)
    every = pl.concat([seeds, MORE])
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: _rows(load_candidates(project, "train")), range(8)))
    assert all(rows == _expected(every, "train") for rows in found)
    folder = project.root / "cache" / "seeds-train"
    assert len(list(folder.iterdir())) == 1
    assert read_kept(folder, _batches(folder)) is not None


def test_a_larger_order_of_other_imports_is_not_extended(tmp_path: Path) -> None:
    """Only an order whose imports are all still there is extended."""
    seeds = _seeds("s", [(0, "g", "train", u, None, None, None, "frame") for u in (0.3, 0.1)])
    mine, other = Batch(1, 2, "11"), Batch(2, 5, "22")
    write_kept(tmp_path, candidates_of(seeds, "train"), [mine, other])
    assert read_kept(tmp_path, [mine, Batch(2, 5, "23")]) is None
    found = read_kept(tmp_path, [mine, other, Batch(3, 1, "33")])
    assert found is not None
    assert found.batches == [mine, other]


def test_unknown_ids_are_not_found() -> None:
    """Ids that are no candidates get -1, whichever else is asked for and however often."""
    seeds = _seeds("s", [(0, "g", "train", u, None, None, None, "frame") for u in (0.3, 0.1, 0.2)])
    candidates = candidates_of(seeds, "train")  # s0003 at 0.3, s0002 at 0.1, s0001 at 0.2
    assert candidates.find(pl.Series(["s0003", "nobody", "s0002", "s0003", ""])).tolist() == [2, -1, 0, 2, -1]
    assert candidates.find(pl.Series([], dtype=pl.String)).tolist() == []
    nobody = candidates_of(seeds, "gate")
    assert nobody.find(pl.Series(["s0001"])).tolist() == [-1]
    assert candidates.ids(np.array([1, 1, 0])).to_list() == ["s0001", "s0001", "s0002"]
