"""The commands of the loop as a person or a program uses them: text, JSON, exit codes, one line for what is wrong."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from distdata.catalogs.loop_events import gates, students
from distdata.catalogs.project import Project
from distdata.cli import main

Cli = Callable[..., tuple[int, str, str]]


def cli(root: Path, *args: str) -> tuple[int, str, str]:
    """Run a command in this process; return its exit code, stdout and stderr."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["distdata", *args, "--project", str(root)])
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        with pytest.raises(SystemExit) as caught:
            main()
    texts = [cast(io.BytesIO, stream.buffer).getvalue().decode() for stream in (out, err)]
    return int(str(caught.value.code or 0)), *texts  # type: ignore[return-value]


def data(root: Path, *args: str, code: int = 0) -> Any:
    """Run a command with --json, check its exit code, and parse all of stdout."""
    got, out, err = cli(root, *args, "--json")
    assert got == code, err
    return json.loads(out)


def test_curate(still: Project) -> None:
    """It names the snapshot, its size and what comes next; as JSON the same and the cells."""
    code, out, _ = cli(still.root, "curate")
    assert code == 0
    assert "snapshot v1 (" in out
    assert "800 samples of 4 cells, 0 dropped" in out
    assert "Next: distdata train" in out
    said = data(still.root, "curate")
    assert (said["name"], said["n_samples"], said["n_dropped"], said["dropped"]) == ("v1", 800, 0, {})
    assert sum(said["cells"].values()) == 800


def test_train_twice_is_one_student(easy: Project) -> None:
    """The student's id comes back, the second time for nothing; both artefacts are named."""
    args = ("train", "--set", "steps=20", "--set", "width=8")
    first, second = data(easy.root, *args), data(easy.root, *args)
    assert first == second
    assert set(first["artefacts"]) == {"float32", "int8"}
    assert first["student"] == first["artefacts"]["float32"]["student"]
    code, out, _ = cli(easy.root, *args)
    assert code == 0
    assert f"student {first['student']} (float32, ships)" in out
    assert "Next: distdata gate" in out


def test_a_sweep_is_a_table(easy: Project) -> None:
    """--sweep gives one row per combination, as text and as JSON; a name given twice has the values of both."""
    args = ("train", "--set", "steps=10", "--sweep", "width=4,8")
    said = data(easy.root, *args)
    assert sorted(s["settings"]["width"] for s in said) == [4, 8]
    assert all(isinstance(s["validation_loss"], float) for s in said)
    code, out, _ = cli(easy.root, *args)
    assert code == 0
    assert "width" in out
    twice = data(easy.root, "train", "--set", "steps=10", "--sweep", "width=4,8", "--sweep", "width=4")
    assert [s["student"] for s in twice] == [s["student"] for s in said]


def test_a_green_gate_is_exit_code_0(still: Project) -> None:
    """A gate that was judged before is shown again: all rows, its verdict, and the command that follows."""
    code, out, _ = cli(still.root, "gate")
    assert code == 0
    assert "verdict: pass" in out
    assert "Next: nothing: this student has the bulk of the traffic" in out
    said = data(still.root, "gate", "--confirm")
    assert (said["verdict"], said["split"], said["candidate"]) == ("pass", "confirm", 1)
    assert {r["slice"] for r in said["rows"]} == {"day,dry", "day,wet", "night,dry", "night,wet"}
    assert said["gate"] == gates(still)[1].gate_id
    assert "Next: nothing: this student has the bulk of the traffic" in cli(still.root, "gate", "--confirm")[1]


def test_a_red_gate_is_exit_code_3(worlds: Any, tmp_path: Path) -> None:
    """A red gate exits 3 and points to diagnose, whose causes come as text and as JSON; refresh then buys nothing."""
    project, _ = worlds.hopeless(tmp_path / "p")
    code, out, _ = cli(project.root, "gate")
    assert code == 3
    assert "Next: distdata diagnose" in out
    assert data(project.root, "gate", code=3)["verdict"] != "pass"
    code, out, _ = cli(project.root, "diagnose")
    assert code == 0
    assert "day,dry: unknown. A person has to look" in out
    said = data(project.root, "diagnose")
    assert {c["cause"] for c in said["causes"]} == {"unknown"}
    assert all(c["evidence"] for c in said["causes"])
    code, out, _ = cli(project.root, "refresh")
    assert code == 0
    assert "Nothing is bought" in out
    assert "plan" not in data(project.root, "refresh", "--dry-run")
    code, out, _ = cli(project.root, "promote")
    assert code == 1
    code, out, _ = cli(project.root, "cycle")
    assert code == 3
    assert "a person is needed" in out
    assert data(project.root, "cycle", code=3)["ended"] == "paged"


def test_promote_and_roll_back(easy: Project) -> None:
    """The bulk is reached; a rollback says why and leaves the teacher in every slice."""
    code, _, err = cli(easy.root, "promote")
    assert code == 1
    assert "has the bulk of the traffic already" in err
    said = data(easy.root, "promote", "--rollback", "too cautious")
    assert said["stage"] == "rollback"
    assert {r["student_id"] for r in said["routes"]} == {None}
    code, out, _ = cli(easy.root, "promote")
    assert code == 0
    assert "shadow" in out


def test_a_cycle_with_nothing_to_do(still: Project) -> None:
    """It says that the student serves already; as JSON how it ended, its turns and its dollars."""
    code, out, _ = cli(still.root, "cycle")
    assert code == 0
    assert "serves already; nothing changed since." in out
    said = data(still.root, "cycle")
    assert (said["ended"], said["turns"], said["usd"]) == ("promoted", 0, 0.0)
    assert said["student"] == gates(still)[0].student_id


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["train", "--set", "steps"], 1, "train: 'steps': write NAME=VALUE, for example width=512."),
        (["train", "--set", "stepz=3"], 1, "no setting 'stepz'"),
        (["train", "--recipe", "capacty"], 1, "recipe 'capacty' is not known"),
        (["train", "--snapshot", "v7"], 1, "snapshot 'v7': there is none"),
        (["train", "--parent", "zzz"], 1, "no student begins with 'zzz'"),
        (["train", "--sweep", "width"], 1, "write NAME=VALUE"),
        (["gate", "--student", "zzz"], 1, "no student begins with 'zzz'"),
        (["diagnose"], 1, "nothing is to be explained"),
        (["refresh"], 1, "nothing is to be explained"),
        (["refresh", "--max-usd", "-1"], 2, "Invalid value for '--max-usd'"),
        (["promote", "--stage", "bulkk"], 1, "bulk"),
        (["promote", "--student", "zzz"], 1, "no student begins with 'zzz'"),
        (["promote", "--rollback", " "], 1, "why? The reason is kept"),
        (["promote", "--rollback", "x", "--partial"], 2, "takes no --student, --stage or --partial"),
        (["cycle", "--max-cycles", "0"], 2, "Invalid value for '--max-cycles'"),
        (["cycle", "--bugdet", "3"], 2, "No such option: --bugdet"),
    ],
)
def test_wrong_words_are_one_message(still: Project, args: list[str], code: int, said: str) -> None:
    """What is wrong is said once on stderr, without a traceback, nothing on stdout; 1 for content, 2 for usage."""
    got, out, err = cli(still.root, *args)
    assert (got, out) == (code, "")
    plain = " ".join(err.replace("│", " ").split())
    assert said.casefold() in plain.casefold()
    assert "Traceback" not in err
    if code == 1:
        assert len(err.strip().splitlines()) == 1


def test_before_anything_is_there(worlds: Any, tmp_path: Path) -> None:
    """In a project of seeds alone each command says which one comes first."""
    project = worlds.raw(tmp_path / "p", n_seeds=320)
    for args, said in {
        ("curate",): "distdata plan --budget",
        ("train",): "distdata plan --budget",
        ("gate",): "Train one: distdata train",
        ("diagnose",): "There is no gate yet: distdata gate",
        ("refresh",): "There is no gate yet: distdata gate",
        ("promote",): "Train one: distdata train",
        ("cycle",): "distdata cycle --budget 2000samples",
    }.items():
        code, out, err = cli(project.root, *args)
        assert (code, out) == (1, "")
        assert said in err
    assert students(project) == []
