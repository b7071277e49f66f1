"""Verdicts: what a verifier rejects is dropped, what it saw and didn't reject is kept, the rest is unverified."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from distdata.catalogs.errors import DistdataError
from distdata.catalogs.project import Project
from distdata.generate.ingest.rejects import ingest_rejects


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows in the format that the path's ending says."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    elif path.suffix == ".csv":
        pl.DataFrame(rows).write_csv(path)
    else:
        pl.DataFrame(rows).write_parquet(path)
    return path


def verified(world: Any, project: Project) -> list[tuple[Any, ...]]:
    """Return the units that a verifier has seen, by its stage."""
    return world.sql(project, "SELECT stage, plan_no, unit FROM verified_units ORDER BY ALL")


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
def test_rejects_are_dropped_and_the_units_verified(world: Any, bought: Project, tmp_path: Path, ending: str) -> None:
    """Every format says the same: two rejected with their reasons, both units seen; unknown ids refused by row."""
    rows = [
        {"sample_id": "s00-k000-00000000", "reason": "blurred"}, {"sample_id": "s04-k001-00000000", "reason": None},
        {"sample_id": "s99-k000-00000000", "reason": "x"}, {"sample_id": "s00-k000-00000000", "reason": "blurred"},
    ]  # fmt: skip
    done = ingest_rejects(bought, write(tmp_path / f"r{ending}", rows), all_seen=True)
    assert (done.n_rows, done.n_taken, done.n_known, done.n_refused) == (4, 2, 1, 1)
    (group,) = done.refusals.groups.values()
    assert (group.reason, group.example) == ("unknown sample", "sample_id 's99-k000-00000000'.")
    assert group.first_row.endswith(("row 3", "line 3"))
    assert done.notes == ["2 units count as verified from now on: what was not rejected in them is kept."]
    assert world.sql(bought, "SELECT sample_id, stage, reason FROM drops ORDER BY 1") == [
        ("s00-k000-00000000", "verify", "blurred"), ("s04-k001-00000000", "verify", "rejected"),
    ]  # fmt: skip
    assert [row[2] for row in verified(world, bought)] == [0, 1]
    assert world.sql(bought, "SELECT sum(generated), sum(kept) FROM coverage") == [(6, 4)]
    world.assert_rebuilds(bought)


def test_the_same_file_again_verifies_nothing_new(world: Any, bought: Project, tmp_path: Path) -> None:
    """What was made since, this verifier's file knows nothing of; a new file of the same verifier does."""
    path = write(tmp_path / "r.jsonl", [{"sample_id": "s00-k000-00000000"}])
    ingest_rejects(bought, path)
    world.buy(bought, [("s06", 0)])
    before = world.tables(bought)
    assert ingest_rejects(bought, path).notes == ["Ingested before, byte for byte: nothing to do."]
    assert world.tables(bought) == before
    later = write(tmp_path / "r2.jsonl", [{"sample_id": "s00-k000-00000000"}, {"sample_id": "s06-k000-00000000"}])
    done = ingest_rejects(bought, later)
    assert (done.n_taken, done.n_known) == (1, 1)
    assert len(verified(world, bought)) == 3


def test_a_file_with_unknown_ids_is_asked_again_for_them_alone(world: Any, bought: Project, tmp_path: Path) -> None:
    """Once the sample is there its rejection counts; but the units made since are not verified by an older file."""
    path = write(tmp_path / "r.jsonl", [{"sample_id": "s06-k000-00000000"}])
    assert ingest_rejects(bought, path).n_refused == 1
    world.buy(bought, [("s06", 0)])
    done = ingest_rejects(bought, path)
    assert (done.n_taken, done.n_refused) == (1, 0)
    assert len(verified(world, bought)) == 0
    assert len(world.sql(bought, "FROM drops")) == 1
    world.assert_rebuilds(bought)


def test_partial_verdicts_verify_no_unit(world: Any, bought: Project, tmp_path: Path) -> None:
    """A spot check drops what it names and says nothing of the rest."""
    done = ingest_rejects(bought, write(tmp_path / "r.jsonl", [{"sample_id": "s00-k000-00000000"}]), partial=True)
    assert (done.n_taken, verified(world, bought)) == (1, [])
    assert done.notes == ["Partial: what this file doesn't name stays unverified."]


def test_a_verifier_that_rejects_nothing(world: Any, bought: Project, tmp_path: Path) -> None:
    """A header without rows is a verdict too: everything made so far is kept. No bytes at all are none."""
    for name in ("r.jsonl", "r.csv"):
        (tmp_path / name).write_text("")
        with pytest.raises(DistdataError, match=rf"{name}: is empty.*header sample_id.*--all-seen"):
            ingest_rejects(bought, tmp_path / name)
    assert verified(world, bought) == []
    (tmp_path / "r.csv").write_text("sample_id,reason\n")
    done = ingest_rejects(bought, tmp_path / "r.csv")
    assert (done.n_taken, len(verified(world, bought))) == (0, 2)
    assert done.notes[0] == "r.csv has no row: this verifier rejects nothing."


def test_a_file_of_another_project_verifies_nothing(world: Any, bought: Project, tmp_path: Path) -> None:
    """Where a sample is not known here, what the file doesn't name is not kept by it, unless somebody says so."""
    path = write(tmp_path / "r.jsonl", [{"sample_id": "x00-k000-00000000"}, {"sample_id": "s00-k000-00000000"}])
    done = ingest_rejects(bought, path)
    assert (done.n_taken, done.n_refused, verified(world, bought)) == (1, 1, [])
    assert "No unit counts as verified" in done.notes[0]
    assert "--all-seen" in done.notes[0]
    ingest_rejects(bought, path, all_seen=True)
    assert len(verified(world, bought)) == 2
    with pytest.raises(DistdataError, match="--partial and --all-seen contradict"):
        ingest_rejects(bought, path, all_seen=True, partial=True)
    world.assert_rebuilds(bought)


def test_stages_are_kept_apart(world: Any, bought: Project, tmp_path: Path) -> None:
    """Two verifiers may reject one sample, each for its reason; the queue's own stage is not theirs to use."""
    rows = [{"sample_id": "s00-k000-00000000", "stage": s} for s in ("physics", "style", "divergence")]
    done = ingest_rejects(bought, write(tmp_path / "r.csv", rows), stage="physics")
    assert (done.n_taken, set(done.refusals.groups)) == (2, {"reserved stage"})
    assert world.sql(bought, "SELECT stage FROM drops ORDER BY 1") == [("physics",), ("style",)]
    assert {row[0] for row in verified(world, bought)} == {"physics", "style"}
    assert world.sql(bought, "SELECT sum(generated) - sum(kept) FROM coverage") == [(1,)]


def test_a_dry_run_changes_nothing(world: Any, bought: Project, tmp_path: Path) -> None:
    """It counts and refuses like the real one."""
    before = world.tables(bought)
    done = ingest_rejects(bought, write(tmp_path / "r.csv", [{"sample_id": "s00-k000-00000000"}]), dry_run=True)
    assert done.lines()[0] == "r.csv: 1 of 1 verdicts would be taken."
    assert world.tables(bought) == before


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("r.csv", b"sampleid,reason\na,b\n", "column 'sample_id' is missing. Did you mean 'sampleid'"),
        ("r.jsonl", b'{"sample_id": "a"}\n{"sam', "line 2: not valid JSON"),
        ("r.jsonl", b"[1]", "line 1: must be an object, got list"),
        ("r.parquet", b"PAR1", "can't be read"),
        ("r.txt", b"", "unknown ending '.txt'. Read are .parquet, .jsonl and .csv"),
        ("none.csv", None, "not found"),
    ],
)
def test_files_that_are_none(project: Project, tmp_path: Path, name: str, data: bytes | None, words: str) -> None:
    """Each is named with what is wrong."""
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(DistdataError) as caught:
        ingest_rejects(project, tmp_path / name)
    assert words in str(caught.value)
    assert name in str(caught.value)
