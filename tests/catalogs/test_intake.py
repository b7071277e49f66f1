"""What enters the catalog: the cell table and seeds, all or nothing, and nothing that would orphan what is there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distdata.catalogs import store
from distdata.catalogs.config import parse_config
from distdata.catalogs.errors import DistdataError
from distdata.catalogs.events import list_events
from distdata.catalogs.hashing import unit_interval
from distdata.catalogs.intake import define_cells, import_file, import_seeds
from distdata.catalogs.project import Project

TOML = """
[project]
name = "p"
salt = "s"
[axes.light]
values = ["day", "night"]
[axes.weather]
values = ["clear", "rain"]
[scenarios.cross]
layer = "core"
[bands]
default = 0.1
[teacher]
kind = "crossing"
"""


def _project(root: Path, text: str = TOML) -> Project:
    return Project(root, parse_config(text, "distdata.toml"))


def _assign(seeds: pl.DataFrame, used: pl.DataFrame) -> pl.DataFrame:
    """Put a group where it was, else by the parity of its last character."""
    new = seeds.select("grp").unique().join(used, on="grp", how="anti")
    is_gate = pl.col("grp").str.tail(1).str.to_integer() % 2 == 1
    fresh = new.with_columns(split=pl.when(is_gate).then(pl.lit("gate")).otherwise(pl.lit("train")))
    return pl.concat([used.select("grp", "split"), fresh])


def _seeds(n: int, start: int = 0, **more: object) -> pl.DataFrame:
    ids = range(start, start + n)
    return pl.DataFrame(
        {
            "seed_id": [f"s{i}" for i in ids],
            "light": ["day" if i % 2 else "night" for i in ids],
            "weather": ["clear"] * n,
            "scenario": ["cross"] * n,
            "group": [f"g{i // 2}" for i in ids],
            **more,
        }
    )


def _rows(project: Project, sql: str) -> list[tuple]:
    with store.read(project.catalog_path) as con:
        return con.execute(sql).fetchall()


def _everything(project: Project) -> tuple[list[str], list[tuple]]:
    names = sorted(str(p.relative_to(project.root)) for p in project.root.rglob("*") if not p.name.startswith("."))
    return names, _rows(project, "SELECT * FROM seeds ORDER BY seed_id")


def test_cells_are_defined_once(tmp_path: Path) -> None:
    """The first call writes the cell table, the same configuration again writes nothing."""
    project = _project(tmp_path)
    assert define_cells(project)
    assert not define_cells(project)
    assert [e.kind for e in list_events(project.events_dir)] == ["cells"]
    assert _rows(project, "SELECT count(*), sum(fleet_share) FROM cells") == [(4, 1.0)]
    assert _rows(project, "SELECT axis, value FROM axes ORDER BY position, value_position") == [
        ("light", "day"),
        ("light", "night"),
        ("weather", "clear"),
        ("weather", "rain"),
    ]


def test_a_changed_band_is_a_new_table_with_the_same_ids(tmp_path: Path) -> None:
    """A tightened band and a new value are a second event; known cells keep their ids and their seeds."""
    project = _project(tmp_path)
    import_seeds(project, _seeds(6), "x", "1", _assign)
    before = dict(_rows(project, "SELECT cell, cell_id FROM cells"))
    changed = _project(tmp_path, TOML.replace("0.1", "0.05").replace('"rain"]', '"fog", "rain"]'))
    assert define_cells(changed)
    after = dict(_rows(changed, "SELECT cell, cell_id FROM cells"))
    assert {c: after[c] for c in before} == before
    assert len(set(after.values())) == 6
    assert _rows(changed, "SELECT DISTINCT band FROM cells") == [(0.05,)]
    assert _rows(changed, "SELECT count(*) FROM seeds_wide WHERE cell = 'day,clear/cross'") == [(3,)]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            '[axes.weather]\nvalues = ["clear", "rain"]\n',
            "",
            "the axes are now light; the 4 seeds of this catalog were imported under light, weather. Start a new",
        ),
        (
            "[axes.weather]",
            "[axes.town]\nvalues = ['a']\n[axes.weather]",
            "the axes are now light, town, weather; the 4 seeds",
        ),
        ('["clear", "rain"]', '["rain"]', "2 cell(s) with seeds would vanish (day,clear/cross: 2 seeds"),
        (
            "[scenarios.cross]",
            "[scenarios.crossing]",
            "2 cell(s) with seeds would vanish (day,clear/cross: 2 seeds",
        ),
    ],
)
def test_axes_in_use_can_not_go(tmp_path: Path, old: str, new: str, said: str) -> None:
    """An axis or value that seeds were imported under can't be taken away; the message counts them, nothing changes."""
    project = _project(tmp_path)
    import_seeds(project, _seeds(4), "x", "1", _assign)
    before = _everything(project)
    assert TOML.count(old) == 1
    with pytest.raises(DistdataError) as caught:
        define_cells(_project(tmp_path, TOML.replace(old, new)))
    assert str(caught.value).startswith("distdata.toml: ")
    assert said in str(caught.value)
    assert _everything(project) == before


def test_axes_nobody_uses_may_change(tmp_path: Path) -> None:
    """Before seeds are imported the axes are free, and the views follow them."""
    define_cells(_project(tmp_path))
    project = _project(tmp_path, TOML.replace("weather", "town"))
    assert define_cells(project)
    assert _rows(project, "SELECT DISTINCT town FROM coverage ORDER BY 1") == [("clear",), ("rain",)]


def test_import_gives_numbers_and_splits(tmp_path: Path) -> None:
    """Every seed gets its permanent random number and its group's split; the source and count are recorded."""
    project = _project(tmp_path)
    done = import_seeds(project, _seeds(6), "drives.csv", "abc", _assign)
    assert (done.n_seeds, done.per_split, done.known) == (6, {"gate": 2, "train": 4}, False)
    for seed_id, prn, split in _rows(project, "SELECT seed_id, prn, split FROM seeds"):
        assert prn == unit_interval("prn", "s", seed_id)
        assert split == ("gate" if seed_id in ("s2", "s3") else "train")
    assert _rows(project, "SELECT source, sha256, n_seeds FROM imports") == [("drives.csv", "abc", 6)]


def test_the_same_file_twice_changes_nothing(tmp_path: Path) -> None:
    """Importing the same bytes again is a no-op that says so, even under another name."""
    project = _project(tmp_path)
    for name in ("a.jsonl", "b.jsonl"):
        _seeds(4).write_ndjson(tmp_path / name)
    assert not import_file(project, tmp_path / "a.jsonl", _assign).known
    before = _everything(project)
    again = import_file(project, tmp_path / "b.jsonl", _assign)
    assert (again.known, again.n_seeds) == (True, 4)
    assert _everything(project) == before


def test_a_refused_import_loses_and_changes_nothing(tmp_path: Path) -> None:
    """One id of the catalog among new ones refuses all of them: no event, no row."""
    project = _project(tmp_path)
    import_seeds(project, _seeds(4), "x", "1", _assign)
    before = _everything(project)
    with pytest.raises(DistdataError, match=r"y: 1 seed\(s\): has an id that the catalog already holds: row 1 s3"):
        import_seeds(project, _seeds(5, start=3), "y", "2", _assign)
    assert _everything(project) == before


def test_later_seeds_join_their_group(tmp_path: Path) -> None:
    """A group that was split before keeps its split when more of its seeds arrive."""
    project = _project(tmp_path)
    import_seeds(project, _seeds(2, group=["g8", "g9"]), "x", "1", _assign)
    import_seeds(project, _seeds(2, start=2, group=["g9", "g9"]), "y", "2", lambda _, used: used)
    assert _rows(project, "SELECT DISTINCT grp, split FROM seeds ORDER BY 1") == [("g8", "train"), ("g9", "gate")]


@settings(deadline=None, derandomize=True, max_examples=4)
@given(st.permutations(range(10)), st.integers(1, 9))
def test_order_and_batches_do_not_matter(tmp_path_factory: pytest.TempPathFactory, order: list[int], cut: int) -> None:
    """Permuted rows in one import or two give every seed the same permanent number and split."""
    whole, parts = _project(tmp_path_factory.mktemp("a")), _project(tmp_path_factory.mktemp("b"))
    import_seeds(whole, _seeds(10), "x", "1", _assign)
    mixed = _seeds(10)[order]
    import_seeds(parts, mixed[:cut], "x", "1", _assign)
    import_seeds(parts, mixed[cut:], "x", "2", _assign)
    sql = "SELECT * EXCLUDE (import_id) FROM seeds ORDER BY seed_id"
    assert _rows(parts, sql) == _rows(whole, sql)


def test_shares_follow_the_seeds(tmp_path: Path) -> None:
    """With fleet.source = seeds, shares are equal at first and the share of seeds after an import."""
    project = _project(tmp_path, TOML + '[fleet]\nsource = "seeds"\n')
    define_cells(project)
    assert _rows(project, "SELECT DISTINCT fleet_share FROM cells") == [(0.25,)]
    import_seeds(project, _seeds(4, light=["day", "day", "day", "night"]), "x", "1", _assign)
    assert _rows(project, "SELECT cell, fleet_share FROM cells WHERE fleet_share > 0 ORDER BY 1") == [
        ("day,clear/cross", 0.75),
        ("night,clear/cross", 0.25),
    ]


def test_two_processes_import_at_once(tmp_path: Path) -> None:
    """Two imports of the same ids at the same time: the one that comes second is refused, and no id is there twice."""
    code = """
import sys
from pathlib import Path
import polars as pl
from distdata.catalogs.config import parse_config
from distdata.catalogs.errors import DistdataError
from distdata.catalogs.intake import import_seeds
from distdata.catalogs.project import Project
root, name, toml = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
n = 200
raw = pl.DataFrame({"seed_id": [f"s{i}" for i in range(n)], "light": ["day"] * n, "weather": ["clear"] * n,
                    "scenario": ["cross"] * n})
def assign(seeds, used):
    return seeds.select("grp").unique().with_columns(split=pl.lit("train"))
try:
    import_seeds(Project(root, parse_config(toml, "t")), raw, name, name, assign)
except DistdataError as e:
    print(e)
"""
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), name, TOML],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("a", "b")
    ]
    said = [p.communicate() for p in both]
    assert [err for _, err in said] == ["", ""]
    project = _project(tmp_path)
    assert _rows(project, "SELECT count(*), count(DISTINCT seed_id) FROM seeds") == [(200, 200)]
    refused = [out for out, _ in said if out]
    assert len(refused) == 1
    assert "the catalog already holds" in refused[0] or "is importing seeds; wait for it" in refused[0]


def test_a_generator_table_is_a_seed_source(tmp_path: Path) -> None:
    """JSON params of a frame arrive as they were written."""
    project = _project(tmp_path)
    import_seeds(project, _seeds(2, params=[json.dumps({"v": 1}), None]), "x", "1", _assign)
    assert _rows(project, "SELECT params FROM seeds_wide ORDER BY seed_id") == [('{"v": 1}',), ("{}",)]
