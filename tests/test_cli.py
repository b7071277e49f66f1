"""The command line as a person or a program uses it: results on stdout, the rest on stderr, exit codes that mean it."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest

from distdata import __version__
from distdata.cli import main

TEACHER = """
import numpy as np
from distdata.catalogs.protocol import Draw, Failure, TeacherInfo
class Tiny:
    def describe(self):
        return TeacherInfo(id="tiny", version="1", content_hash="feedbeef00000000", kind="rollout")
    def sample(self, requests):
        for r in requests:
            x = np.random.default_rng(r.rng_seed).normal(size=4).astype(np.float32)
            if r.params.get("bad"):
                yield Failure(seed_id=r.seed_id, k=r.k, kind="refused", reason="no")
            else:
                yield Draw(seed_id=r.seed_id, k=r.k, members={"x.npy": x}, outcome="a" if x[0] > 0 else "b", gpu_s=0.01)
"""
TOML = """
[project]
name = "tiny"
salt = "s1"
[axes.light]
values = ["day", "night"]
[scenarios.cross]
layer = "core"
[bands]
default = 0.1
[[bands.rules]]
when = { light = "night" }
band = 0.05
[splits]
gate = 0
confirm = 0
[plan]
k = 4
[teacher]
kind = "python"
batch = 4
gpu_s_per_draw = 0.01
usd_per_gpuh = 36.0
[teacher.options]
class = "cli_teacher:Tiny"
[generate]
engine = "inprocess"
unit_draws = 8
"""


class Done(NamedTuple):
    """What a command wrote."""

    stdout: str
    stderr: str


def run(root: Path, *args: str, code: int = 0) -> Done:
    """Run a command in this process with the folder `root` as the current one, and check its exit code."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr(sys, "argv", ["distdata", *args])
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        with pytest.raises(SystemExit) as caught:
            main()
    done = Done(*(cast(io.BytesIO, stream.buffer).getvalue().decode() for stream in (out, err)))
    assert int(str(caught.value.code)) == code, done.stderr
    return done


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with 40 seeds, a plan of 24 samples that is generated, and one seed that the teacher refuses."""
    root = tmp_path_factory.mktemp("cli")
    (root / "cli_teacher.py").write_text(TEACHER)
    (root / "preset.toml").write_text(TOML)
    rows = [
        {"seed_id": f"s{i}", "light": ("day", "night")[i % 2], "scenario": "cross", "decision_point": i < 4}
        for i in range(40)
    ]
    (root / "seeds.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    run(root, "init", "--preset", "preset.toml")
    run(root, "catalog", "import", "seeds.jsonl")
    run(root, "plan", "--budget", "24samples")
    run(root, "generate")
    return root


def test_version_and_help(tmp_path: Path) -> None:
    """--version prints the version alone, and -h works everywhere."""
    assert run(tmp_path, "--version").stdout == f"distdata {__version__}\n"
    assert "Usage" in run(tmp_path, "-h").stdout
    assert "--budget" in run(tmp_path, "plan", "-h").stdout


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["frobnicate"], "No such command 'frobnicate'"),
        (["plan", "--budgt", "3"], "No such option: --budgt"),
        (["generate", "--workers", "0"], "Invalid value for '--workers'"),
        (["sql"], "Missing argument 'query'"),
        (["init", "--seeds", "-1"], "Invalid value for '--seeds'"),
        (["compact", "--target-mb", "nan"], "Invalid value for '--target-mb'"),
        (["compact", "--target-mb", "inf"], "Invalid value for '--target-mb'"),
        (["compact", "--target-mb", "1e300"], "should be less than or equal to 1000000"),
        (["compact", "--target-mb", "0.5"], "should be greater than or equal to 1"),
    ],
)
def test_wrong_usage_is_exit_code_2(tmp_path: Path, args: list[str], said: str) -> None:
    """A command or option that does not exist, or a value out of range, is exit code 2 with the word that is wrong."""
    assert said.casefold() in " ".join(run(tmp_path, *args, code=2).stderr.split()).casefold()


def test_init_says_what_comes_next(tmp_path: Path) -> None:
    """A new project has its three parts, and the message names the next command."""
    (tmp_path / "preset.toml").write_text(TOML)
    done = run(tmp_path, "init", "--preset", "preset.toml", "--project", "new")
    assert "distdata catalog import FILE" in done.stdout
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["catalog.duckdb", "distdata.toml", "events"]
    assert (tmp_path / "new" / "distdata.toml").read_text() == TOML
    assert "distdata catalog import FILE" in run(tmp_path, "status", "-p", "new").stdout


def test_json_is_one_object_on_stdout(root: Path) -> None:
    """With --json every command prints one JSON value and nothing else on stdout."""
    commands = [
        ["status"], ["catalog", "show"], ["catalog", "check"], ["plan", "--budget", "30samples", "--dry-run"],
        ["plan", "--budget", "30samples", "--explain", "night"], ["generate"], ["generate", "--dry-run"],
        ["sql", "select 1 as one"], ["verify", "--replay", "100%"], ["compact", "--dry-run"],
        ["catalog", "import", "seeds.jsonl"], ["report", "--out", "r.html"],
    ]  # fmt: skip
    answers = {" ".join(c): json.loads(run(root, *c, "--json").stdout) for c in commands}
    assert answers["sql select 1 as one"] == [{"one": 1}]
    assert answers["generate"]["asked"] == 0
    assert answers["generate"]["generated"] == answers["generate"]["total"] == 24
    assert answers["verify --replay 100%"]["equal"] == answers["verify --replay 100%"]["compared"] == 24
    assert answers["catalog import seeds.jsonl"] == {
        "source": "seeds.jsonl",
        "n_seeds": 40,
        "splits": {},
        "known": True,
    }
    assert answers["catalog check"]["damaged"] == []
    assert answers["plan --budget 30samples --dry-run"]["saved"] is False
    assert [d["cell"] for d in answers["plan --budget 30samples --dry-run"]["cells"]] == ["day/cross", "night/cross"]
    assert any("night/cross" in line for line in answers["plan --budget 30samples --explain night"]["explain"])


def test_dry_runs_write_nothing(root: Path) -> None:
    """--dry-run of plan, generate and compact leaves every file as it was."""

    def files() -> dict[str, bytes]:
        return {str(p): p.read_bytes() for p in root.rglob("*") if p.is_file() and p.suffix not in (".lock", ".pyc")}

    run(root, "status")
    before = files()
    for args in (["plan", "--budget", "30samples"], ["generate"], ["compact"]):
        assert run(root, *args, "--dry-run").stdout
    assert files() == before


def test_a_dry_run_is_the_plan_that_is_saved(tmp_path: Path, root: Path) -> None:
    """The dry run names the very plan, cell by cell, that the real run then saves."""
    import shutil

    shutil.copytree(root, tmp_path / "p")
    dry = json.loads(run(tmp_path / "p", "plan", "--budget", "36samples", "--dry-run", "--json").stdout)
    real = json.loads(run(tmp_path / "p", "plan", "--budget", "36samples", "--json").stdout)
    assert (dry["saved"], real["saved"]) == (False, True)
    assert dry["plan_id"] == real["plan_id"]
    assert dry["cells"] == real["cells"]
    assert sum(c["fresh"] for c in real["cells"]) == 36 - 24


def test_sql_forms(root: Path, tmp_path: Path) -> None:
    """Piped output is CSV; json, table and files hold the same numbers; binary forms go through a pipe."""
    query = "select light, kept, target from coverage order by light"
    rows = list(csv.DictReader(io.StringIO(run(root, "sql", query).stdout)))
    assert sum(int(r["kept"]) for r in rows) == 24
    as_json = json.loads(run(root, "sql", query, "-f", "json").stdout)
    assert [{k: str(v) for k, v in r.items()} for r in as_json] == rows
    assert run(root, "sql", query, "-o", str(tmp_path / "a.csv")).stdout == ""
    assert (tmp_path / "a.csv").read_text() == run(root, "sql", query, "-f", "csv").stdout
    assert "night" in run(root, "sql", query, "-f", "table").stdout
    run(root, "sql", query, "-f", "parquet", "-o", str(tmp_path / "a.parquet"))
    import polars as pl

    assert pl.read_parquet(tmp_path / "a.parquet")["kept"].sum() == 24


def test_night_gets_more(root: Path) -> None:
    """A band half as wide gets four times the weight: 24 samples split 1 to 4, to the nearest whole draw."""
    rows = json.loads(run(root, "sql", "select light, target from coverage order by light", "--json").stdout)
    # 24/5 = 4.8 and 19.2
    assert abs(rows[0]["target"] - 4.8) < 1.5
    assert rows[0]["target"] + rows[1]["target"] == 24


def test_why_tells_the_life_of_a_sample(root: Path) -> None:
    """Every station of a sample is told: seed, cell, band, plan, draw, teacher, price, place."""
    found = json.loads(run(root, "sql", "select * from samples_wide order by all limit 1", "--json").stdout)[0]
    facts = json.loads(run(root, "why", found["sample_id"], "--json").stdout)
    assert facts["sample"] == found["sample_id"]
    assert facts["seed"].startswith(found["seed_id"] + " ")
    assert "from seeds.jsonl" in facts["seed"]
    assert found["plan_id"] in facts["plan"]
    assert facts["teacher"] == "tiny 1 (feedbeef00000000)"
    assert facts["price"].startswith("$0.0001")
    assert f"at byte {found['offset']:,}" in facts["stored"]
    assert facts["outcome"] == found["outcome"]


def test_report_is_one_page(root: Path, tmp_path: Path) -> None:
    """The report is one HTML file with the project's name and no reference to another host."""
    run(root, "report", "--out", str(tmp_path / "r.html"))
    text = (tmp_path / "r.html").read_text()
    assert "tiny" in text
    assert 'src="http' not in text


def test_failed_draws_are_told_and_asked_again(tmp_path: Path) -> None:
    """A refused draw is counted with its reason, the run ends well, and the next step is named."""
    (tmp_path / "cli_teacher.py").write_text(TEACHER)
    (tmp_path / "preset.toml").write_text(TOML)
    rows = [
        {"seed_id": f"s{i}", "light": ("day", "night")[i % 2], "scenario": "cross", "params": {"bad": i == 3}}
        for i in range(12)
    ]
    (tmp_path / "seeds.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    run(tmp_path, "init", "--preset", "preset.toml")
    run(tmp_path, "catalog", "import", "seeds.jsonl")
    run(tmp_path, "plan", "--budget", "12samples")
    done = run(tmp_path, "generate")
    assert "11 of 12 draws are there" in done.stdout
    assert "failed: 1 x refused: no" in done.stdout
    assert "distdata generate --retry-failed" in done.stderr
    failed = json.loads(run(tmp_path, "sql", "select seed_id, failure, reason from failed_attempts", "--json").stdout)
    assert failed == [{"seed_id": "s3", "failure": "refused", "reason": "no"}]
    assert "distdata generate --retry-failed" in run(tmp_path, "status").stdout


def test_a_broken_pipe_is_no_error(root: Path) -> None:
    """A reader that stops early, as `head` does, ends the command quietly."""
    code = "from distdata.cli import run; import sys; sys.argv = ['d', 'sql', 'select * from range(300000)']; run()"
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as p:
        assert p.stdout is not None
        assert p.stderr is not None
        p.stdout.readline()
        p.stdout.close()
        assert "Traceback" not in p.stderr.read()


def test_ctrl_c_says_that_the_state_is_safe(root: Path) -> None:
    """An interrupt is exit code 130 and one line, no traceback."""
    code = "import sys\nfrom distdata import cli\nsys.argv = ['distdata', 'boom']\n" + (
        "@cli.app.command()\ndef boom():\n    raise KeyboardInterrupt\ncli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 130
    assert done.stderr.strip().splitlines()[-1].startswith("Stopped.")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        ("OSError(5, 'Input/output error', '/far/disk')", 1, "error: /far/disk: Input/output error (errno 5)"),
        ("OSError('the bucket is gone')", 1, "error: the bucket is gone."),
        ("ValueError('a bug')", 1, "Traceback"),
    ],
)
def test_the_systems_refusals_are_told_and_bugs_are_shown(raised: str, code: int, said: str) -> None:
    """What no part of the program has put into words is one sentence if the system said it; a bug is a traceback."""
    script = "import sys\nfrom distdata import cli\nsys.argv = ['distdata', 'boom']\n" + (
        f"@cli.app.command()\ndef boom():\n    raise {raised}\ncli.main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert said in done.stderr
    assert ("Traceback" in done.stderr) == (said == "Traceback")


def test_exit_codes_of_commands_pass_through() -> None:
    """A command that exits with 3, as a red gate will, ends the program with 3."""
    code = "import sys, typer\nfrom distdata import cli\nsys.argv = ['distdata', 'red']\n" + (
        "@cli.app.command()\ndef red():\n    raise typer.Exit(3)\ncli.main()"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 3


@pytest.mark.parametrize(
    ("words", "code"), [(["--version"], 0), (["status", "--project", "nowhere"], 1), (["nope"], 2)]
)
def test_the_process_leaves_with_the_commands_code_and_all_its_output(words: list[str], code: int) -> None:
    """`run`, the installed command, skips the libraries' teardown and loses neither exit code nor a byte."""
    start = "import sys; sys.argv = ['distdata', *sys.argv[1:]]; print('x' * 300_000); "
    call = [sys.executable, "-c", start + "from distdata.cli import run; run()", *words]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert done.stdout.startswith("x" * 300_000 + "\n")
    assert "Traceback" not in done.stderr
    assert bool(done.stderr) == (code != 0)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--cost", "--budget", "9samples"], "--cost takes no --budget"),
        (["--compare", "fleet,gate", "--boost", "a=2"], "--compare takes no --boost"),
        (["--top-up", "--policy", "fleet"], "--top-up takes no --policy"),
    ],
)
def test_options_without_effect_are_refused(
    args: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An option that would do nothing beside another is wrong usage: exit code 2, with both named."""
    monkeypatch.setattr(sys, "argv", ["distdata", "plan", *args, "--project", str(tmp_path)])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_no_help_text_is_eaten_as_markup() -> None:
    """Brackets in help texts are markup to the help screen and would vanish: there are none."""
    import typer

    from distdata.cli import app

    def texts(command: Any) -> Iterator[str]:
        for child in getattr(command, "commands", {}).values():
            yield from texts(child)
        yield from (getattr(p, "help", None) or "" for p in command.params)

    found = [text for text in texts(typer.main.get_command(app)) if "[" in text]
    assert found == []
