"""Byproducts come in from every format, earn credit by the stated rules, and nothing is counted twice."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from distdata.catalogs.check import check_project
from distdata.catalogs.codec import decode_member, encode_member
from distdata.catalogs.errors import DistdataError
from distdata.catalogs.events import list_events
from distdata.catalogs.intake import import_seeds
from distdata.catalogs.project import Project
from distdata.curate.export_hf import export_hf
from distdata.generate.ingest import samples
from distdata.generate.ingest.byproducts import ingest_byproduct, ingest_clean
from distdata.generate.ingest.commands import ingest_app
from distdata.generate.ingest.conditions import Conditions, canonical_params
from distdata.generate.ingest.log import log_byproduct
from distdata.generate.ingest.rows import RowFacts, RowRefusedError
from distdata.projects import init_project


def rows_of(world: Any, seeds: list[str], **more: Any) -> list[dict[str, Any]]:
    """Make good rows, one per seed, each with an answer of its own."""
    return [
        {"seed_id": s, "x": world.answer(i).tolist(), "outcome": "low", "teacher_version": "1", **more}
        for i, s in enumerate(seeds)
    ]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as JSONL."""
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def write_tar(path: Path, entries: dict[str, bytes]) -> Path:
    """Write an archive as somebody else would."""
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for name, data in entries.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def reasons(result: Any) -> dict[str, int]:
    """Return how many rows were refused for which reason."""
    return {g.reason: g.n_rows for g in result.refusals.groups.values()}


def test_a_row_becomes_a_sample_like_a_bought_one(world: Any, project: Project, tmp_path: Path) -> None:
    """Members, facts, number and provenance are those of a bought draw, but for the number's range and the price."""
    world.buy(project, [("s00", 0)])
    path = write_jsonl(tmp_path / "golden.jsonl", rows_of(world, ["s00", "s01"]))
    done = ingest_byproduct(project, [path])
    assert (done.n_rows, done.n_taken, done.n_credit, done.n_refused) == (2, 2, 2, 0)
    query = "SELECT sample_id, k, n_k, split, source, purpose, pi, weight, usd, outcome FROM samples_wide"
    found = world.sql(project, f"{query} WHERE seed_id = 's01'")
    ((sample_id, *facts),) = found
    assert facts == [1000, 2, "train", "golden", "byproduct", 1.0, 0.0, None, "low"]
    bought, taken = world.members(project, "s00-k000-00000000"), world.members(project, sample_id)
    assert list(taken) == list(bought)
    assert taken["x.npy"] == encode_member("x.npy", world.answer(1))
    old, new = decode_member("meta.json", bought["meta.json"]), decode_member("meta.json", taken["meta.json"])
    assert {k: type(v) for k, v in new.items()} == {k: type(v) for k, v in old.items()}
    assert (new["sample_id"], new["k"], new["cell"]) == (sample_id, 1000, "rain,day/cross")
    checked = check_project(project)
    assert (checked.damaged, checked.unreferenced, checked.n_samples) == ([], [], 3)
    world.assert_rebuilds(project)


def test_credit_is_at_most_k_per_seed(world: Any, project: Project, tmp_path: Path) -> None:
    """With K = 2 and one draw bought, the first of three byproducts counts; all three are kept."""
    world.buy(project, [("s00", 0)])
    done = ingest_byproduct(project, [write_jsonl(tmp_path / "a.jsonl", rows_of(world, ["s00"] * 3))])
    assert (done.n_taken, done.n_credit) == (3, 1)
    assert world.sql(project, "SELECT k FROM samples ORDER BY k") == [(0,), (1000,), (1001,), (1002,)]
    closed = rows_of(world, ["new"] * 2, weather="rain", light="day", scenario="cross", decision_point=False)
    done = ingest_byproduct(project, [write_jsonl(tmp_path / "b.jsonl", closed)])
    assert (done.n_taken, done.n_credit) == (2, 1)  # no decision point: one draw shows all there is


REFUSED = [
    ({"teacher_version": "2"}, "another teacher", "teacher_version 2, this project's is 1."),
    ({"teacher_hash": "ff"}, "another teacher", "teacher_hash ff, this project's is 00000000000000aa."),
    ({"teacher_version": None}, "no teacher named", "neither teacher_hash nor teacher_version."),
    ({"seed_id": "s21"}, "held out", "group drive-21 is in the split gate."),
    ({"seed_id": "s22"}, "held out", "group drive-22 is in the split confirm."),
    ({"group": "drive-23"}, "held out", "group drive-23 is in the split confirm."),
    ({"seed_id": "zz"}, "unknown seed", "seed_id 'zz' is not in the catalog"),
    ({"seed_id": None}, "no condition", "neither seed_id nor axes and scenario."),
    ({"weather": "rain"}, "incomplete condition", "no value for light."),
    ({"weather": "fog", "light": "day", "scenario": "cross"}, "unknown weather", "weather = 'fog'."),
    ({"weather": "rain", "light": "day", "scenario": "crss"}, "unknown scenario", "Did you mean 'cross'?"),
    (
        {"seed_id": None, "weather": "clear", "light": "day", "scenario": "cut_in"}, "a cell declared infeasible",
        "clear,day/cut_in: needs a wet road.",
    ),
    (
        {"weather": "rain", "light": "day", "scenario": "cross"}, "another condition than the catalog's",
        "seed s00 is clear,day/cross, not rain,day/cross.",
    ),
    ({"params": {"v": 9}}, "another state than the catalog's", 's00 has {"v": 0}, not {"v": 9}.'),
    ({"params": [1]}, "params are no JSON object", "list, not an object."),
    ({"params": '{"a": "\\ud800"}'}, "params are no JSON object", "half of a surrogate pair"),
    ({"params": '{"a": ' + "[" * 200 + "]" * 200 + "}"}, "params are no JSON object", "nested 201 deep; at most 100"),
    ({"x": [1.0, 2.0]}, "members don't fit", "x.npy: shape (2,), want (5,)."),
    ({"x": None}, "member x.npy is missing", "no 'x.npy'"),
    ({"x": "text"}, "member x.npy can't be read", "x.npy: got str, want an array"),
    ({"x": [1, 2, [3], 4, 5]}, "member x.npy can't be read", "x.npy: no array"),
    ({"outcome": "sideways"}, "an outcome that this teacher doesn't have", "outcome 'sideways' is not one of low"),
    ({"seed_id": "a.b", "weather": "rain", "light": "day", "scenario": "cross"}, "bad seed id", "'a.b' is not 1 to 64"),
]  # fmt: skip


def test_a_refused_row_says_why(world: Any, project: Project, tmp_path: Path) -> None:
    """What can't count is refused with reason, place, the row's own value and what to do; rows beside it are taken."""
    good = rows_of(world, ["s02"])
    files: list[dict[str, tuple[dict[str, Any], str]]] = []  # in each file every reason once, so that each is shown
    for more, reason, example in REFUSED:
        file = next((f for f in files if reason not in f), None)
        if file is None:
            files.append(file := {})
        file[reason] = ({**rows_of(world, ["s00"])[0], **more}, example)
    for file in files:
        rows = [*good, *(row for row, _ in file.values() for _ in range(2))]
        done = ingest_byproduct(project, [write_jsonl(tmp_path / "a.jsonl", rows)], dry_run=True)
        assert (done.n_taken, reasons(done)) == (1, dict.fromkeys(file, 2))
        for i, (reason, (_, example)) in enumerate(file.items()):
            group = done.refusals.groups[reason]
            assert group.first_row == f"a.jsonl line {2 * i + 2}"
            assert example in group.example, group.example
            assert group.advice
            words = f"refused, 2: {reason}. First: {group.first_row}: {group.example}"
            assert any(words in line for line in done.lines()[1:])


def test_refusals_are_kept(world: Any, project: Project, tmp_path: Path) -> None:
    """The catalog says what each ingest refused, also when it took nothing."""
    rows = [*rows_of(world, ["s21", "s22"]), *rows_of(world, ["zz"])]
    ingest_byproduct(project, [write_jsonl(tmp_path / "a.jsonl", rows)])
    stored = world.sql(project, "SELECT reason, n_rows, first_row FROM refusals ORDER BY 1")
    assert stored == [("held out", 2, "a.jsonl line 1"), ("unknown seed", 1, "a.jsonl line 3")]
    ingests = world.sql(project, "SELECT kind, source, n_rows, n_taken, n_refused FROM ingests")
    assert ingests == [("golden", "a.jsonl", 3, 0, 3)]
    world.assert_rebuilds(project)


def test_arrays_must_be_finite(world: Any, project: Project, tmp_path: Path) -> None:
    """NaN and infinities in a declared array are refused with their number."""
    frame = pl.DataFrame(rows_of(world, ["s00", "s01"])).with_columns(
        x=pl.Series([[0.0, math.nan, math.inf, 0.0, 0.0], [0.0] * 5])
    )
    frame.write_parquet(tmp_path / "a.parquet")
    done = ingest_byproduct(project, [tmp_path / "a.parquet"])
    (group,) = done.refusals.groups.values()
    assert (done.n_taken, group.reason) == (1, "members don't fit")
    assert group.example == "x.npy: 1 NaN and 1 infinite of 5 values."


def test_quality_rules(world: Any, project: Project, tmp_path: Path) -> None:
    """Rows below, above or outside the mapping's rules, without the column, or known wrong earn nothing."""
    mapping = tmp_path / "mapping.toml"
    mapping.write_text(
        '[quality]\nmin = { score = 0.5 }\nmax = { "check.speed" = 30 }\nallowed = { status = ["ok"] }\nwrong = "bad"\n'
    )
    fine = {"score": 0.5, "check": {"speed": 30}, "status": "ok"}
    spoiled = [{"score": 0.4}, {"score": None}, {"check": {"speed": 31}}, {"status": "redo"}, {"bad": True}]
    rows = [{**rows_of(world, ["s00"])[0], "key": i, **fine, **s} for i, s in enumerate([{}, *spoiled])]
    done = ingest_byproduct(project, [write_jsonl(tmp_path / "a.jsonl", rows)], mapping=mapping)
    assert done.n_taken == 1
    assert reasons(done) == {
        "score below 0.5": 2, "check.speed above 30": 1, "status is not one of ok": 1, "known wrong": 1,
    }  # fmt: skip


def test_the_same_row_counts_once(world: Any, project: Project, tmp_path: Path) -> None:
    """Twice in one file, in two files, in the same file again: counted once; with keys, equal answers are two."""
    a = write_jsonl(tmp_path / "a.jsonl", rows_of(world, ["s00", "s01", "s01"])[:2] + rows_of(world, ["s00"]))
    b = write_jsonl(tmp_path / "b.jsonl", rows_of(world, ["s00", "s02"]))
    done = ingest_byproduct(project, [a, b])
    assert (done.n_rows, done.n_taken, done.n_known) == (5, 3, 2)  # s00 three times, the answers of s01 and s02 differ
    before = world.tables(project)
    n_events = len(list_events(project.events_dir))
    again = ingest_byproduct(project, [a, b], kind="golden")
    assert (again.n_taken, again.n_known) == (0, 5)
    assert world.tables(project) == before
    assert len(list_events(project.events_dir)) == n_events
    keyed = [{**r, "key": key} for key in ("r1", "r2", "r1") for r in rows_of(world, ["s03"])]
    done = ingest_byproduct(project, [write_jsonl(tmp_path / "c.jsonl", keyed)])
    assert (done.n_taken, done.n_known) == (2, 1)


def test_refused_rows_are_taken_once_they_can_be(world: Any, project: Project, tmp_path: Path) -> None:
    """The same file again takes what was put right since: here, a seed that was imported."""
    path = write_jsonl(tmp_path / "a.jsonl", rows_of(world, ["s00", "late"]))
    assert ingest_byproduct(project, [path]).n_taken == 1
    late = {"seed_id": "late", "weather": "rain", "light": "day", "scenario": "cross"}
    import_seeds(project, pl.DataFrame([late]), "late", "late", lambda s, _: s.select("grp", split=pl.lit("train")))
    done = ingest_byproduct(project, [path])
    assert (done.n_taken, done.n_known, done.n_refused) == (1, 1, 0)
    assert "ingested before, byte for byte" in ingest_byproduct(project, [path]).notes[0]
    world.assert_rebuilds(project)


def test_an_unknown_condition_is_a_new_seed_outside_the_frame(world: Any, project: Project, tmp_path: Path) -> None:
    """It gets an id by its content, its group goes to the training split, and its seed is met again by its content."""
    place = {"weather": "rain", "light": "night", "scenario": "cut_in", "params": {"b": 1, "a": {"c": 2}}}
    row = {**rows_of(world, ["s00"])[0], **place, "seed_id": None, "group": "drive-99"}
    done = ingest_byproduct(project, [write_jsonl(tmp_path / "a.jsonl", [row, {**row, "key": "2"}])])
    assert (done.n_taken, done.n_credit, done.n_new_seeds) == (2, 2, 1)
    query = "SELECT seed_id, cell, \"group\", split, origin, params, source FROM seeds_wide WHERE origin <> 'frame'"
    ((seed_id, *facts),) = world.sql(project, query)
    assert facts == [
        "rain,night/cut_in", "drive-99", "train", "byproduct", '{"a": {"c": 2}, "b": 1}', "a.jsonl",
    ]  # fmt: skip
    assert world.sql(project, "SELECT DISTINCT pi FROM samples") == [(0.0,)]
    later = ingest_byproduct(project, [write_jsonl(tmp_path / "b.jsonl", [{**row, "key": "3"}])])
    assert (later.n_new_seeds, later.n_taken, later.n_credit) == (0, 1, 0)
    assert world.sql(project, "SELECT DISTINCT seed_id FROM samples") == [(seed_id,)]
    world.assert_rebuilds(project)


def test_a_held_out_condition_is_recognised_without_its_id(world: Any, project: Project, tmp_path: Path) -> None:
    """A row without an id but with the very condition of a gate seed is contamination."""
    place = {"weather": "rain", "light": "day", "scenario": "cross"}  # of s01, s05, ..., s21
    base = {**rows_of(world, ["s00"])[0], **place, "seed_id": None}
    path = write_jsonl(tmp_path / "a.jsonl", [{**base, "params": {"v": 21}}, {**base, "params": {"v": 5}}])
    done = ingest_byproduct(project, [path])
    assert reasons(done) == {"held out": 1}
    assert world.sql(project, "SELECT seed_id, pi FROM samples") == [("s05", 1.0)]


def test_a_generated_held_out_condition_is_recognised_without_its_id(world: Any, tmp_path: Path) -> None:
    """Params are compared as values: the driving world's seeds are recognised, whatever order their keys come in."""
    init_project(tmp_path / "p", "driving", 60)
    project = Project.open(tmp_path / "p")
    columns = "seed_id, split, cell, params"
    by_split = {s: (i, c, p) for i, s, c, p in world.sql(project, f"SELECT {columns} FROM seeds_wide ORDER BY 1 DESC")}
    assert {"train", "gate"} <= set(by_split)
    rows = []
    for split in ("train", "gate"):
        _, cell, text = by_split[split]
        axes, scenario = cell.split("/")
        params = dict(reversed(json.loads(text).items()))
        assert len(params) > 1
        assert json.dumps(params, sort_keys=True) != text
        rows.append(RowFacts(
            key=None, seed_id=None, axes=tuple(axes.split(",")), scenario=scenario, params=json.dumps(params),
            group=None, decision_point=None, control_axis=None, control_value=None, outcome=None, case_id=None,
        ))  # fmt: skip
    conditions = Conditions(project, None, "byproduct")
    train, gate = rows
    unknown = dataclasses.replace(gate, seed_id="somebodys-own")
    known = conditions.look_up([train, gate, unknown])
    assert conditions.find(train, known).seed_id == by_split["train"][0]
    for row in (gate, unknown):
        with pytest.raises(RowRefusedError, match="held out"):
            conditions.find(row, known)


def test_params_are_compared_as_values() -> None:
    """Order, spaces, escapes and 1.0 for 1 say nothing; another number does."""
    same = ['{"a": {"c": 1, "b": [2.0, 1e3]}, "é": true}', '{"\\u00e9":true,"a":{"b":[2,1000],"c":1.0}}']
    assert canonical_params(same[0]) == canonical_params(same[1])
    assert canonical_params('{"a": 1.5}') != canonical_params('{"a": 1.25}')
    assert canonical_params('{"a": 1e300}') == '{"a":1e+300}'
    assert canonical_params(None) == "{}"


def test_a_group_that_is_not_the_seeds_is_refused(world: Any, project: Project, tmp_path: Path) -> None:
    """A row that names a seed and another group contradicts itself; its own group, or none, does not."""
    rows = [{**r, "group": g} for r, g in zip(rows_of(world, ["s00"] * 3), ("drive-01", "drive-00", None), strict=True)]
    done = ingest_byproduct(project, [write_jsonl(tmp_path / "a.jsonl", rows)])
    assert (done.n_taken, reasons(done)) == (2, {"another group than the catalog's": 1})


def test_a_key_is_one_answer(world: Any, project: Project, tmp_path: Path) -> None:
    """Another content under a known key of a seed is refused with the key, in the same file and in a later one."""
    (row,) = rows_of(world, ["s00"], key="r1")
    other = {**row, "outcome": "high"}
    done = ingest_byproduct(project, [write_jsonl(tmp_path / "a.jsonl", [row, other, row])])
    assert (done.n_taken, done.n_known, reasons(done)) == (1, 1, {"another answer under a known key": 1})
    later = [other, {**other, "key": "r2"}, {**other, "seed_id": "s01"}]
    done = ingest_byproduct(project, [write_jsonl(tmp_path / "b.jsonl", later)])
    assert (done.n_taken, reasons(done)) == (2, {"another answer under a known key": 1})
    (group,) = done.refusals.groups.values()
    assert group.example == "key 'r1' of seed s00 has another content here."
    assert world.sql(project, "SELECT seed_id, outcome FROM samples ORDER BY ALL") == [
        ("s00", "high"), ("s00", "low"), ("s01", "high"),
    ]  # fmt: skip


def test_a_file_of_which_all_is_refused_is_an_error(world: Any, project: Project, tmp_path: Path) -> None:
    """The command fails when it could take nothing, and only then."""
    path = write_jsonl(tmp_path / "a.jsonl", rows_of(world, ["zz", "s21"]))
    run = lambda: CliRunner().invoke(ingest_app, ["byproduct", str(path), "--project", str(project.root)])  # noqa: E731
    ran = run()
    assert "refused, 1: unknown seed" in ran.stdout
    assert str(ran.exception) == "ingest: every row was refused (2); nothing was taken."
    write_jsonl(path, rows_of(world, ["zz", "s00"]))
    assert run().exit_code == 0


def test_clean_samples_of_a_log_are_asked_for_themselves(world: Any, project: Project, tmp_path: Path) -> None:
    """That the clean samples of a folder came in does not hide its byproducts."""
    log_byproduct(
        tmp_path / "log", seed_id="s00", members={"x.npy": world.answer(0)}, outcome="low", teacher_version="1"
    )
    assert ingest_clean(project, [tmp_path / "log"]).n_taken == 1
    assert ingest_byproduct(project, [tmp_path / "log"]).n_taken == 1
    assert ingest_byproduct(project, [tmp_path / "log"]).n_rows == 0


def test_one_id_is_one_condition(world: Any, project: Project, tmp_path: Path) -> None:
    """An unknown id that means two conditions is refused where it says the second."""
    row = {**rows_of(world, ["mine"])[0], "weather": "rain", "light": "day", "scenario": "cross"}
    path = write_jsonl(tmp_path / "a.jsonl", [row, {**row, "light": "night", "outcome": "high"}])
    done = ingest_byproduct(project, [path])
    assert (done.n_taken, reasons(done)) == (1, {"one seed id for two conditions": 1})


def test_webdataset_with_a_mapping(world: Any, project: Project, tmp_path: Path) -> None:
    """Somebody else's archive: facts from its JSON, names and values translated, members under other names."""
    entries: dict[str, bytes] = {}
    for i in range(3):
        facts = {"who": f"s{i:02d}", "label": {"text": "L"}, "wx": 1, "when": "day", "model": "v1"}
        entries |= {f"{i:04d}.json": json.dumps(facts).encode(), f"{i:04d}.latent.npy": _npy(world.answer(i))}
        entries[f"{i:04d}.jpg"] = b"not wanted"
    (tmp_path / "mapping.toml").write_text(
        """
        [columns]
        seed_id = "who"
        outcome = "label.text"
        teacher_version = "model"
        [values.outcome]
        L = "low"
        [values.teacher_version]
        v1 = "1"
        """
    )
    for name in ("a.tar", "b.tar.gz"):
        done = ingest_byproduct(
            project, [write_tar(tmp_path / name, entries)], mapping=tmp_path / "mapping.toml",
            options=["x.npy=latent.npy"],
        )  # fmt: skip
        assert done.refusals.groups == {}
        assert (done.n_rows, done.n_taken, done.n_known) == ((3, 3, 0) if name == "a.tar" else (3, 0, 3))
    assert world.sql(project, "SELECT seed_id, outcome FROM samples ORDER BY 1") == [
        ("s00", "low"), ("s01", "low"), ("s02", "low"),
    ]  # fmt: skip


def _npy(array: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


@pytest.mark.parametrize("layout", ["parquet", "webdataset"])
def test_our_own_export_needs_no_mapping(world: Any, project: Project, tmp_path: Path, layout: str) -> None:
    """What one project exports another takes in byte for byte; the project that made it knows it already."""
    world.buy(project, [("s00", 0), ("s00", 1), ("s03", 0)])
    export_hf(project, tmp_path / "out", layout=layout)  # type: ignore[arg-type]
    files = [p for p in (tmp_path / "out" / "data").rglob("*") if p.suffix in (".parquet", ".tar")]
    other = world.build(tmp_path / "other")
    done = ingest_byproduct(other, [tmp_path / "out"])
    assert (done.n_taken, reasons(done)) == (3, {})
    arrays = [
        sorted(world.members(p, s)["x.npy"] for (s,) in world.sql(p, "SELECT sample_id FROM samples"))
        for p in (project, other)
    ]
    assert arrays[0] == arrays[1]
    again = ingest_byproduct(project, files)
    assert (again.n_taken, again.n_known) == (0, 3)


def test_members_are_those_of_what_is_there(world: Any, project: Project, tmp_path: Path) -> None:
    """Once samples are stored, a mapping can't add a member: all samples of a kind have the same."""
    world.buy(project, [("s00", 0)])
    path = write_jsonl(tmp_path / "a.jsonl", rows_of(world, ["s01"]))
    with pytest.raises(DistdataError, match=r"members\.y\.txt: samples of kind rollout here have x\.npy, and all"):
        ingest_byproduct(project, [path], options=["y.txt=note"])
    with pytest.raises(DistdataError, match=r"kind = 'human'.*a byproduct has its teacher's kind"):
        ingest_byproduct(project, [path], options=["kind=human"])


def test_a_dry_run_says_the_same_and_changes_nothing(world: Any, project: Project, tmp_path: Path) -> None:
    """Numbers and refusals are those of the run that follows; no file and no row appear."""
    path = write_jsonl(tmp_path / "a.jsonl", rows_of(world, ["s00", "s21", "s00"]))
    before, files = world.tables(project), sorted(p for p in project.root.rglob("*") if "lock" not in p.name)
    dry = ingest_byproduct(project, [path], dry_run=True)
    assert sorted(p for p in project.root.rglob("*") if "lock" not in p.name) == files
    assert world.tables(project) == before
    assert dry.lines()[0].startswith("a.jsonl: 2 of 3 samples would be taken; 2 count as credit; 1 refused")
    real = ingest_byproduct(project, [path])
    assert {**dry.as_dict(), "dry_run": False} == real.as_dict()


def test_large_inputs_come_in_units(
    world: Any, project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are taken a batch at a time, each a unit; numbers and duplicates go on over the batches."""
    monkeypatch.setattr(samples, "BATCH_ROWS", 4)
    rows = [{**r, "key": i} for i, r in enumerate(rows_of(world, ["s00", "s01"] * 7))]
    done = ingest_byproduct(project, [write_jsonl(tmp_path / "a.jsonl", [*rows, *rows[:3]])])
    assert (done.n_taken, done.n_known) == (14, 3)
    assert world.sql(project, "SELECT unit, n_ok FROM units ORDER BY 1") == [(0, 4), (1, 4), (2, 4), (3, 2)]
    query = "SELECT seed_id, min(k), max(k), count(DISTINCT k) FROM samples GROUP BY ALL ORDER BY 1"
    assert world.sql(project, query) == [("s00", 1000, 1006, 7), ("s01", 1000, 1006, 7)]
    world.assert_rebuilds(project)


def test_the_last_number_of_a_seed(
    world: Any, project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A seed holds no more draws than can be counted, k < 32,767; the row beyond is refused."""
    assert samples.LAST_K == 32_766
    monkeypatch.setattr(samples, "FIRST_K", samples.LAST_K)
    monkeypatch.setattr(samples._Counts.__init__, "__defaults__", (0, samples.LAST_K))
    done = ingest_byproduct(project, [write_jsonl(tmp_path / "a.jsonl", rows_of(world, ["s00", "s00"]))])
    assert (done.n_taken, reasons(done)) == (1, {"too many of one seed": 1})
    assert world.sql(project, "SELECT k FROM samples") == [(32_766,)]


def test_seeds_that_change_meanwhile_stop_it(
    world: Any, project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An import during the ingest may hold a checked group out: nothing counts, and the next call goes on."""
    path = write_jsonl(tmp_path / "a.jsonl", rows_of(world, ["s00"]))
    real = samples.write_unit

    def importing(*arguments: Any) -> None:
        seed = {"seed_id": "late", "weather": "rain", "light": "day", "scenario": "cross"}
        import_seeds(project, pl.DataFrame([seed]), "x", "x", lambda s, _: s.select("grp", split=pl.lit("gate")))
        real(*arguments)

    monkeypatch.setattr(samples, "write_unit", importing)
    with pytest.raises(
        DistdataError, match=r"seeds or cells of .* changed while a.jsonl was read. Nothing was ingested"
    ):
        ingest_byproduct(project, [path])
    monkeypatch.setattr(samples, "write_unit", real)
    assert world.sql(project, "SELECT count(*) FROM samples") == [(0,)]
    assert ingest_byproduct(project, [path]).n_taken == 1
    assert check_project(project).unreferenced == []


def test_logs_are_taken_up_where_they_were_left(world: Any, project: Project, tmp_path: Path) -> None:
    """Only new records are read again; a refused one is asked again until it can be taken."""
    folder = tmp_path / "log"
    for i, seed in enumerate(["s00", "late", "s01"]):
        log_byproduct(folder, seed_id=seed, members={"x.npy": world.answer(i)}, outcome="low", teacher_version="1")
    first = ingest_byproduct(project, [folder])
    assert (first.n_rows, first.n_taken, reasons(first)) == (3, 2, {"unknown seed": 1})
    late = {"seed_id": "late", "weather": "rain", "light": "day", "scenario": "cross"}
    import_seeds(project, pl.DataFrame([late]), "late", "late", lambda s, _: s.select("grp", split=pl.lit("train")))
    log_byproduct(folder, seed_id="s02", members={"x.npy": world.answer(3)}, outcome="low", teacher_version="1")
    second = ingest_byproduct(project, [folder])
    assert (second.n_rows, second.n_taken, second.n_known) == (3, 2, 1)
    third = ingest_byproduct(project, [folder])
    assert (third.n_rows, third.notes) == (0, ["No record that was not taken before."])
    world.assert_rebuilds(project)


def test_an_unknown_kind_is_named(project: Project, tmp_path: Path) -> None:
    """The kinds are golden, audit and arbitration."""
    with pytest.raises(DistdataError, match=r"no kind 'gold'. Did you mean 'golden'\?"):
        ingest_byproduct(project, [tmp_path], kind="gold")
