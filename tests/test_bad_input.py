"""Every bad input ends in one message that says what, where and what to do, in exit code 1, and in nothing lost."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import duckdb
import pytest

from distdata.cli import main

TEACHER = """
import numpy as np
from distdata.catalogs.protocol import Draw, TeacherInfo
class Tiny:
    def __init__(self, version="1"): self.version = version
    def describe(self):
        return TeacherInfo(id="tiny", version=self.version, content_hash=f"feed{self.version:0>12}", kind="rollout")
    def sample(self, requests):
        for r in requests:
            x = np.random.default_rng(r.rng_seed).normal(size=4).astype(np.float32)
            yield Draw(seed_id=r.seed_id, k=r.k, members={"x.npy": x}, outcome="a" if x[0] > 0 else "b", gpu_s=0.01)
"""
TOML = """
[project]
name = "tiny"
salt = "s1"
[axes.weather]
values = ["clear", "rain"]
[axes.light]
values = ["day", "night"]
[scenarios.cross]
layer = "core"
[scenarios.cut_in]
layer = "long_tail"
k = 4
[[infeasible]]
when = { weather = "rain", light = "night", scenario = "cut_in" }
reason = "never seen"
[bands]
default = 0.1
[[bands.rules]]
when = { light = "night" }
band = 0.05
[splits]
min_groups = 2
[plan]
k = 2
[teacher]
kind = "python"
gpu_s_per_draw = 0.01
usd_per_gpuh = 36.0
[teacher.options]
class = "bad_input_teacher:Tiny"
[generate]
engine = "inprocess"
unit_draws = 8
"""
CELLS = [
    ("clear", "day", "cross"),
    ("clear", "day", "cut_in"),
    ("clear", "night", "cross"),
    ("clear", "night", "cut_in"),
    ("rain", "day", "cross"),
    ("rain", "day", "cut_in"),
    ("rain", "night", "cross"),
]


def seed(name: str, cell: int = 0, **more: object) -> dict[str, object]:
    weather, light, scenario = CELLS[cell]
    return {"seed_id": name, "weather": weather, "light": light, "scenario": scenario, **more}


def jsonl(*records: object) -> str:
    return "".join(json.dumps(r) + "\n" for r in records)


def run(root: Path, *args: str) -> int:
    """Run one command of the command line in this process; return its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["distdata", *args, "--project", str(root)])
        with pytest.raises(SystemExit) as caught:
            main()
    return int(str(caught.value.code))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with 140 seeds, a superseded plan, and a plan that is generated."""
    root = tmp_path_factory.mktemp("base") / "p"
    root.mkdir()
    (root / "bad_input_teacher.py").write_text(TEACHER)
    (root / "preset.toml").write_text(TOML)
    (root / "seeds.jsonl").write_text(
        jsonl(*(seed(f"s{c}-{i}", c, group=f"g{c}-{i}") for c in range(7) for i in range(20)))
    )
    assert run(root, "init", "--preset", str(root / "preset.toml")) == 0
    assert run(root, "catalog", "import", str(root / "seeds.jsonl")) == 0
    assert run(root, "plan", "--budget", "40samples") == 0
    assert run(root, "plan", "--budget", "48samples") == 0
    assert run(root, "generate") == 0
    return root


@pytest.fixture
def root(base: Path, tmp_path: Path) -> Path:
    shutil.copytree(base, tmp_path / "p")
    return tmp_path / "p"


def snapshot(root: Path) -> dict[str, bytes]:
    """Return the bytes of every file below `root` that is no lock and can't be made again from the others."""
    files = (p for p in root.rglob("*") if p.is_file() and not {"__pycache__", "cache"} & set(p.parts))
    return {str(p.relative_to(root)): p.read_bytes() for p in files if p.suffix != ".lock" and p.name[0] != "."}


def refused(root: Path, capfd: pytest.CaptureFixture[str], args: list[str], *said: str) -> None:
    """Assert that a command fails with one message holding all of `said`, and leaves every file as it was."""
    before = snapshot(root)
    capfd.readouterr()
    code = run(root, *args)
    out, err = capfd.readouterr()
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert "Traceback" not in err
    for words in said:
        assert words in err
    assert snapshot(root) == before


def old_plan(root: Path) -> str:
    return next(p.name for p in (root / "plans").iterdir() if not (root / "data" / p.name).exists())


def new_plan(root: Path) -> str:
    return next(p.name for p in (root / "data").iterdir())


# --- seeds ---------------------------------------------------------------------------------------

SEEDS: list[tuple[str, str, list[str]]] = [
    (
        "a.jsonl",
        jsonl(seed("n1", weather="rainy")),
        [
            "a.jsonl: 1 seed(s): has an unknown weather: row 1 n1 ('rainy')",
            "Did you mean 'rain'?",
            "Nothing was imported.",
        ],
    ),
    (
        "a.jsonl",
        jsonl(seed("n1", scenario="crosss")),
        ["has an unknown scenario: row 1 n1 ('crosss')", "Did you mean 'cross'?"],
    ),
    (
        "a.jsonl",
        jsonl(seed("n1"), seed("n2"), seed("n1")),
        ["2 seed(s): has an id that comes twice: row 1 n1 ('n1'), row 3 n1 ('n1')"],
    ),
    (
        "a.jsonl",
        jsonl(seed("n1"), seed("s0-3")),
        ["has an id that the catalog already holds: row 2 s0-3", "Give new seeds new ids"],
    ),
    (
        "a.jsonl",
        jsonl(seed("n.1")),
        ["has an id that can't be a sample key: row 1 ('n.1')", "a dot or slash would merge samples"],
    ),
    ("a.jsonl", jsonl(seed("n/1")), ["has an id that can't be a sample key: row 1 ('n/1')"]),
    (
        "a.jsonl",
        jsonl({"seed_id": "n1", "weather": "rain", "light": "night", "scenario": "cut_in"}),
        ["lies in a cell declared infeasible: row 1 n1 (rain,night/cut_in: never seen)", "[[infeasible]] rule"],
    ),
    ("a.jsonl", jsonl(seed("n1", k=0)), ["has a bad k: row 1 n1 (0)", "a whole number from 1 to 255"]),
    ("a.jsonl", jsonl(seed("n1", k="x")), ["has a bad k: row 1 n1 ('x')"]),
    (
        "a.jsonl",
        jsonl(seed("n1", decision_point="perhaps")),
        ["has a bad decision_point: row 1 n1 ('perhaps')", "Allowed: true, false."],
    ),
    ("a.jsonl", jsonl(seed("n1", params=[1])), ["1 of 1 seeds have bad params (row 1: not an object)"]),
    ("a.jsonl", jsonl(seed("n1")) + "{oops\n", ["a.jsonl: line 2: not valid JSON"]),
    ("a.jsonl", "", ["a.jsonl: holds no seed."]),
    ("a.csv", "", ["a.csv: can't be read"]),
    ("a.csv", "seed_id,weather,light\n", ["a.csv: holds no seed."]),
    (
        "a.csv",
        "seed_id,weather,ligth,scenario\nn1,rain,day,cross\n",
        ["column 'light' is missing. Did you mean 'ligth'?"],
    ),
    ("a.parquet", "PAR1 not", ["a.parquet: can't be read"]),
    ("a.xlsx", "x", ["a.xlsx: unknown ending '.xlsx'", "Seeds are read from .parquet, .jsonl and .csv."]),
]


@pytest.mark.parametrize(("name", "text", "said"), SEEDS, ids=[said[0][:60] for _, _, said in SEEDS])
def test_bad_seeds(root: Path, capfd: pytest.CaptureFixture[str], name: str, text: str, said: list[str]) -> None:
    """A seed file that can't be used is refused by name, row and value; the catalog and its events stay as they are."""
    (root / name).write_text(text)
    refused(root, capfd, ["catalog", "import", str(root / name)], name, *said)


def test_missing_seed_file(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A file that is not there is named."""
    refused(root, capfd, ["catalog", "import", str(root / "no.jsonl")], "no.jsonl: not found.")


@pytest.mark.parametrize(
    ("generator", "said"),
    [("crosing", "Did you mean 'crossing'?"), ("no_such_module:seeds", "no module 'no_such_module'")],
)
def test_unknown_generator(root: Path, capfd: pytest.CaptureFixture[str], generator: str, said: str) -> None:
    """A generator nobody knows is refused with the nearest, and no seeds appear."""
    refused(root, capfd, ["catalog", "import", generator, "--n", "5"], said)


# --- distdata.toml ---------------------------------------------------------------------------------

CONFIGS: list[tuple[str, str, list[str]]] = [
    ("default = 0.1", "default = 0", ["bands.default = 0: input should be greater than 0"]),
    ("default = 0.1", "default = -0.1", ["bands.default = -0.1: input should be greater than 0"]),
    ("default = 0.1", "default = nan", ["bands.default = nan"]),
    ("band = 0.05", "band = 0", ["bands.rules[0].band = 0: input should be greater than 0"]),
    ("band = 0.05", "band = -1", ["bands.rules[0].band = -1: input should be greater than 0"]),
    ("band = 0.05", "band = nan", ["bands.rules[0].band = nan"]),
    ("min_groups = 2", "min_group = 2", ["unknown key 'splits.min_group'. Did you mean 'min_groups'?"]),
    ("unit_draws = 8", "unit_draws = 0", ["generate.unit_draws = 0: input should be greater than or equal to 1"]),
    (
        'engine = "inprocess"',
        'engine = "spark"',
        ["generate.engine = 'spark': input should be 'auto', 'inprocess' or 'ray'"],
    ),
    ("[bands]", "[bands", ["not valid TOML: ", "at line"]),
    ('kind = "python"', 'kind = "pyhton"', ["teacher.kind = 'pyhton': unknown. Did you mean 'python'?"]),
    ("bad_input_teacher:Tiny", "bad_input_teacher:Tinny", ["has no 'Tinny'. Did you mean 'Tiny'?"]),
    (
        "bad_input_teacher:Tiny",
        "bad_input_teecher:Tiny",
        ["no module 'bad_input_teecher'", "Did you mean 'bad_input_teacher'?"],
    ),
    ("[teacher.options]", "[teacher.options]\nverison = '2'", ["teacher.options.verison", "Did you mean 'version'?"]),
    (
        "[axes.weather]",
        "[axes.town]\nvalues = ['a']\n[axes.weather]",
        ["the axes are now town, weather, light", "the 140 seeds of this catalog", "Start a new project"],
    ),
    ('["clear", "rain"]', '["clear", "rain", "rain"]', ["axes.weather: values holds a value twice"]),
    ('["day", "night"]', '["night"]', ["bands.rules", "cell(s) with seeds would vanish", "Keep the value"][1:]),
]


@pytest.mark.parametrize(("old", "new", "said"), CONFIGS, ids=[new[:50] for _, new, _ in CONFIGS])
def test_bad_configuration(root: Path, capfd: pytest.CaptureFixture[str], old: str, new: str, said: list[str]) -> None:
    """A wrong distdata.toml is refused with file, key, value and what is allowed, before anything is planned."""
    path = root / "distdata.toml"
    assert path.read_text().count(old) == 1
    path.write_text(path.read_text().replace(old, new))
    refused(root, capfd, ["plan", "--budget", "60samples"], *said)


def test_missing_project(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Where no project is, every command says so and how to make one, and makes no file."""
    for args in (
        ["status"],
        ["plan", "--budget", "10samples"],
        ["sql", "select 1"],
        ["catalog", "rebuild"],
        ["generate"],
    ):
        refused(tmp_path, capfd, args, f"{tmp_path / 'distdata.toml'}: not found.", "distdata init --preset driving")
    assert not list(tmp_path.iterdir())


def test_project_that_is_a_file(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A file given as the project's folder is refused."""
    before = snapshot(root)
    assert run(root / "distdata.toml", "status") == 1
    assert "distdata.toml: can't be read" in capfd.readouterr().err
    assert snapshot(root) == before


def test_init_where_a_project_is(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A second init is refused and the first project stays."""
    refused(
        root, capfd, ["init", "--preset", "driving"], "distdata.toml: a project is here already. Use another folder"
    )


@pytest.mark.parametrize(
    ("preset", "said"),
    [("drivin", "--preset drivin: neither a preset nor a file. Did you mean 'driving'?"),
     ("bad.toml", "bad.toml: 'project' is missing; unknown key 'projekt'. Did you mean 'project'?")],
)  # fmt: skip
def test_bad_preset(tmp_path: Path, capfd: pytest.CaptureFixture[str], preset: str, said: str) -> None:
    """A preset that is unknown or wrong is refused, and no half-made project is left."""
    (tmp_path / "bad.toml").write_text(TOML.replace("[project]", "[projekt]"))
    name = str(tmp_path / preset) if preset.endswith(".toml") else preset
    refused(tmp_path, capfd, ["init", "--preset", name], said)
    assert [p.name for p in tmp_path.iterdir()] == ["bad.toml"]


# --- plans -------------------------------------------------------------------------------------------

PLANS: list[tuple[list[str], list[str]]] = [
    (["--budget", "0samples"], ["budget '0samples': the amount must be a number above 0", "Write it as 20000samples"]),
    (["--budget", "nansamples"], ["budget 'nansamples': the amount must be a number above 0"]),
    (["--budget=-5samples"], ["budget '-5samples': the amount must be a number above 0"]),
    (["--budget=-$5"], ["budget '-$5': the amount must be a number above 0"]),
    (["--budget", "infgpuh"], ["budget 'infgpuh': the amount must be a number above 0"]),
    (["--budget", "5apples"], ["budget '5apples': unknown unit 'apples'", "Write it as"]),
    (["--budget", "5"], ["budget '5': 5 of what?"]),
    (["--budget", "much"], ["budget 'much': no amount found"]),
    (["--budget", "2.5samples"], ["2.5 samples is no whole number"]),
    ([], ["plan train: how much? Give a budget, such as --budget 2000samples or --budget 800usd."]),
    (
        ["--budget", "7samples"],
        [
            "plan train: the floors of 7 cells (2 seeds each) need 14 samples",
            "Give at least --budget 14samples",
            "floor_seeds",
            "--allow-undecidable",
        ],
    ),
    (["--budget", "60samples", "--policy", "neymann"], ["plan: no policy 'neymann'. Did you mean 'neyman'?"]),
    (["--budget", "60samples", "--purpose", "trian"], ["plan: no purpose 'trian'. Did you mean 'train'?"]),
    (
        ["--budget", "60samples", "--explain", "nihgt"],
        ["--explain nihgt: no axis value 'nihgt'. Did you mean 'night'?"],
    ),
    (["--budget", "60samples", "--explain", "night/cutin"], ["no scenario type 'cutin'. Did you mean 'cut_in'?"]),
    (["--budget", "60samples", "--explain", "day,night"], ["no cell has all of these values together"]),
    (
        ["--budget", "60samples", "--boost", "clear,day"],
        ["--boost clear,day: write CELL_OR_SLICE=FACTOR, for example night,rain=2"],
    ),
    (["--budget", "60samples", "--boost", "clear,day=much"], ["--boost clear,day=much: write CELL_OR_SLICE=FACTOR"]),
    (["--budget", "60samples", "--boost", "=2"], ["--boost =2: write CELL_OR_SLICE=FACTOR"]),
    (["--budget", "60samples", "--boost", "clear,day=0"], ["boost of clear,day = 0 must be a number above 0"]),
    (["--budget", "60samples", "--boost", "clear,day=nan"], ["boost of clear,day = nan must be a number above 0"]),
    (
        ["--budget", "60samples", "--boost", "clear,dya=2"],
        ["--boost clear,dya: no axis value 'dya'. Did you mean 'day'?"],
    ),
]


@pytest.mark.parametrize(("args", "said"), PLANS, ids=[" ".join(args) or "nothing" for args, _ in PLANS])
def test_bad_plan_requests(root: Path, capfd: pytest.CaptureFixture[str], args: list[str], said: list[str]) -> None:
    """A budget, policy, purpose, boost or question that makes no sense is refused with its value and the way out."""
    refused(root, capfd, ["plan", *args], *said)


def test_cells_without_seeds(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A feasible cell without seeds is named, with three ways out; --allow-undecidable is one that works."""
    root = small_project(tmp_path, [seed(f"s{c}-{i}", c) for c in range(6) for i in range(12)])
    said = ["plan train: 1 feasible cell has no train seeds: rain,night/cross", "Import seeds", "[[infeasible]]"]
    refused(root, capfd, ["plan", "--budget", "60samples"], *said, "--allow-undecidable")
    assert run(root, "plan", "--budget", "40samples", "--allow-undecidable") == 0


def test_money_below_the_floors(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Money that can't pay every cell's floor is refused with what would be enough, and that much is enough."""
    root = small_project(tmp_path, [seed(f"s{c}-{i}", c, group=f"g{c}-{i}") for c in range(7) for i in range(20)])
    # 2 seeds in each of 7 cells, one draw each as none is a decision point: 14 draws of 0.01 s at $36 an hour
    said = ["plan train: the floors of 7 cells (2 seeds each) cost $0.0014; the budget is 0.0011usd."]
    refused(root, capfd, ["plan", "--budget", "$0.0011"], *said, "Give at least --budget 0.01usd")
    assert run(root, "plan", "--budget", "0.01usd") == 0


def test_slices_without_gate_groups(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A slice with too few groups for its gate is named with its counts and how many groups would be enough."""
    seeds = [seed(f"s{c}-{i}", c, group=f"g{c}-{i}" if c != 6 else "one") for c in range(7) for i in range(12)]
    root = small_project(tmp_path, seeds)
    # 2 held-out splits x 2 groups and a training reserve of 2 are 6 groups
    said = [
        "plan: 1 slice has too few gate groups: rain,night has",
        "of 2",
        "a new slice of 6 has enough",
    ]
    refused(
        root, capfd, ["plan", "--budget", "60samples", "--purpose", "gate"], *said, "min_groups", "--allow-undecidable"
    )


def small_project(folder: Path, seeds: list[dict[str, object]]) -> Path:
    root = folder / "p"
    root.mkdir()
    (root / "bad_input_teacher.py").write_text(TEACHER)
    (folder / "preset.toml").write_text(TOML)
    (root / "seeds.jsonl").write_text(jsonl(*seeds))
    assert run(root, "init", "--preset", str(folder / "preset.toml")) == 0
    assert run(root, "catalog", "import", str(root / "seeds.jsonl")) == 0
    return root


# --- generate, verify, why, export ----------------------------------------------------------------------


def test_unknown_plan(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A plan id nobody knows is refused with the nearest, also in a dry run."""
    wrong = new_plan(root)[:-1] + "x"
    for more in ([], ["--dry-run"]):
        refused(
            root,
            capfd,
            ["generate", "--plan", wrong, *more],
            f"no plan begins with '{wrong}'. Did you mean '{new_plan(root)}'?",
        )


def test_superseded_plan(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A superseded plan is not run; the message names what replaced it."""
    said = f"plan {old_plan(root)} was superseded by {new_plan(root)}: what it had bought counts there as credit."
    refused(root, capfd, ["generate", "--plan", old_plan(root)], said, "Run `distdata generate` without --plan")


def test_teacher_changed_after_the_plan(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Another teacher version is noticed before a single draw; the message names both and the way out."""
    path = root / "distdata.toml"
    path.write_text(path.read_text().replace("[teacher.options]", '[teacher.options]\nversion = "2"'))
    now = "distdata.toml now gives tiny 2 (feed000000000002)"
    said = f"plan {new_plan(root)} was made for teacher tiny 1 (feed000000000001); {now}"
    refused(
        root, capfd, ["generate"], said, "Restore that teacher, or make a plan for this one: distdata plan --budget"
    )
    refused(root, capfd, ["verify", "--replay", "100%"], said)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["generate", "--engine", "rya"], "--engine rya: unknown. Did you mean 'ray'?"),
        (["generate", "--engine", "inprocess", "--address", "auto"], "--address goes with the ray engine"),
        (["generate", "--repair", "--retry-failed"], "--retry-failed and --repair are two jobs"),
        (["verify", "--replay", "0"], "--replay 0: give a share above 0 and at most 100%"),
        (["verify", "--replay", "101%"], "--replay 101%: give a share above 0 and at most 100%"),
        (["verify", "--replay", "nan"], "--replay nan: give a share above 0"),
        (["verify", "--replay", "some"], "--replay some: give a share above 0"),
        (["why", ""], "why: the catalog has no sample ''"),
        (["sql", "select 1", "--format", "cvs"], "--format cvs: unknown. Did you mean 'csv'?"),
        (["export", "hf", "new", "--layout", "parket"], "unknown layout 'parket'. Did you mean 'parquet'?"),
    ],
)
def test_unknown_choices(root: Path, capfd: pytest.CaptureFixture[str], args: list[str], said: str) -> None:
    """An option's value nobody knows, or two options that exclude each other, are refused with what is known."""
    refused(root, capfd, args, said)


def test_unknown_sample(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A sample id with a slip of the pen is answered with the one that is meant, and with how to list some."""
    run(root, "sql", "select sample_id from samples limit 1", "--json")
    known = json.loads(capfd.readouterr().out)[0]["sample_id"]
    said = f"why: the catalog has no sample '{known[:-1]}x'. Did you mean '{known}'?"
    refused(root, capfd, ["why", known[:-1] + "x"], said, "distdata sql 'from samples_wide limit 5'")


@pytest.mark.parametrize("args", [["sql", "select 1", "--out"], ["report", "--out"]])
def test_outputs_that_can_not_be_written(root: Path, capfd: pytest.CaptureFixture[str], args: list[str]) -> None:
    """A folder as the output file, or a file as its folder, is refused by name, and stays what it is."""
    refused(root, capfd, [*args, str(root / "data")], f"{root / 'data'}: can't be written", "Name another file")
    below = root / "seeds.jsonl" / "x"
    refused(root, capfd, [*args, str(below)], f"{below}: can't be written", "Name another file")


@pytest.mark.parametrize("place", ["", ".", "/", "/proc/x", "/proc/x/y", "a" * 300])
@pytest.mark.parametrize("args", [["sql", "select 1", "--out"], ["report", "--out"], ["export", "hf"]])
def test_places_where_nothing_can_be_written(
    root: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, args: list[str], place: str
) -> None:
    """An empty name, the folder itself, a folder of the system and an endless name are one message, no traceback."""
    monkeypatch.chdir(root)
    refused(root, capfd, [*args, place], place[:100] if place.strip("./") else "error: ")


@pytest.mark.parametrize("command", [["status"], ["plan", "--budget", "5samples"], ["generate"], ["init"], ["report"]])
@pytest.mark.parametrize("below", ["", "sub"])
def test_a_file_as_the_project(root: Path, capfd: pytest.CaptureFixture[str], command: list[str], below: str) -> None:
    """A project in the place of a file, or below one, is refused with the path of its distdata.toml."""
    place = root / "seeds.jsonl" / below
    assert run(place, *command) == 1
    said = capfd.readouterr().err
    assert said.startswith(f"error: {place / 'distdata.toml'}: can't be ")
    assert "Not a directory" in said
    assert "Traceback" not in said


def test_export_into_a_folder_in_use(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A folder that holds something else is not exported into, with --overwrite either."""
    target = root / "data"
    for more in ([], ["--overwrite"]):
        refused(
            root,
            capfd,
            ["export", "hf", str(target), *more],
            f"{target}: holds 1 file(s) that no export wrote",
            "new or empty",
        )


# --- SQL -------------------------------------------------------------------------------------------------

SQL: list[tuple[str, list[str]]] = [
    ("copy seeds to '{out}'", ["COPY is not a query", "To keep a result, use --format"]),
    ("create table t as select 1", ["CREATE is not a query", "The catalog is read-only here"]),
    ("attach '{out}'", ["ATTACH is not a query"]),
    ("select * from read_csv('{secret}')", ["Queries reach the catalog's tables only, no files"]),
    ("select * from read_text('{secret}')", ["Queries reach the catalog's tables only, no files"]),
    ("select * from '{secret}'", ["Queries reach the catalog's tables only, no files"]),
    ("set enable_external_access = true", ["SET is not a query"]),
    ("install httpfs", ["is not a query"]),
    ("load httpfs", ["is not a query"]),
    ("export database '{out}'", ["EXPORT is not a query"]),
    ("delete from seeds", ["DELETE is not a query"]),
    ("select 1; select 2", ["one statement at a time, got 2. Run them one by one."]),
    ("selct 1", ["Parser Error: syntax error", "selct 1"]),
    ("select * from seedz", ["Table with name seedz does not exist", 'Did you mean "seeds']),
    ("select * from coverage where lihgt = 'day'", ['"lihgt" not found', "light"]),
    ("", ["the query is empty", "show tables"]),
    (";", ["the query is empty"]),
]


@pytest.mark.parametrize(("sql", "said"), SQL, ids=[sql or "empty" for sql, _ in SQL])
def test_bad_sql(root: Path, capfd: pytest.CaptureFixture[str], sql: str, said: list[str]) -> None:
    """SQL that writes, reads files, is several statements or is wrong is refused, and no file is made or shown."""
    secret = root / "secret.csv"
    secret.write_text("word\nxyzzy\n")
    refused(root, capfd, ["sql", sql.format(out=root / "out", secret=secret)], "sql: ", *said)


# --- damage ------------------------------------------------------------------------------------------------


def test_catalog_of_a_newer_version(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A catalog from the future is refused by every command that would touch it."""
    with duckdb.connect(str(root / "catalog.duckdb")) as con:
        con.execute("INSERT INTO schema_version VALUES (99)")
    for args in (
        ["status"],
        ["sql", "select 1"],
        ["plan", "--budget", "60samples"],
        ["generate"],
        ["catalog", "rebuild"],
    ):
        refused(
            root,
            capfd,
            args,
            "catalog.duckdb: written by a newer distdata (schema 99;",
            "Upgrade distdata; nothing was changed.",
        )


def test_damaged_catalog(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A broken catalog file is named with the way out, and the way out works: nothing was lost."""
    run(root, "sql", "from samples order by all", "--json")
    want = json.loads(capfd.readouterr().out)
    assert len(want) == 48
    (root / "catalog.duckdb").write_bytes(b"xyzzy" * 4000)
    said = ["catalog.duckdb: can't be used as a catalog", "Nothing is lost: `distdata catalog rebuild` makes it anew"]
    refused(root, capfd, ["status"], *said)
    refused(root, capfd, ["sql", "select 1"], *said)
    assert run(root, "catalog", "rebuild") == 0
    capfd.readouterr()
    run(root, "sql", "from samples order by all", "--json")
    assert json.loads(capfd.readouterr().out) == want


@pytest.mark.parametrize("name", ["00000001-cells.parquet", "00000002-import.parquet", "00000003-plan.json"])
def test_damaged_event(root: Path, capfd: pytest.CaptureFixture[str], name: str) -> None:
    """A damaged event stops a rebuild by name; the catalog that is there stays and answers."""
    path = root / "events" / name
    path.write_bytes(path.read_bytes()[:-30])
    refused(root, capfd, ["catalog", "rebuild"], f"{path}: damaged", "Restore this file from a backup.")


@pytest.mark.parametrize("name", ["plan.json", "draws.arrow", "seeds.arrow", "units.json"])
def test_damaged_plan(root: Path, capfd: pytest.CaptureFixture[str], name: str) -> None:
    """A damaged file of a plan stops `generate` before any draw, by name, with the way out."""
    path = root / "plans" / new_plan(root) / name
    path.write_bytes(path.read_bytes()[:-30])
    refused(root, capfd, ["generate"], str(path.parent), "damaged", "Restore it from a backup")


def test_damaged_plan_cells(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A plan's cell table that is damaged stops a rebuild by name."""
    path = root / "plans" / new_plan(root) / "cells.parquet"
    path.write_bytes(path.read_bytes()[:-30])
    refused(root, capfd, ["catalog", "rebuild"], f"{path}: damaged", "Restore this file from a backup.")


def test_damaged_manifest(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A damaged manifest is named with the way out, and the way out makes its unit again, the same."""
    run(root, "sql", "select sample_id, outcome, n_bytes from samples order by all", "--json")
    want = json.loads(capfd.readouterr().out)
    path = root / "data" / new_plan(root) / "unit-000001.parquet"
    path.write_bytes(path.read_bytes()[:-30])
    said = [f"{path}: this manifest is damaged", "Delete it if it is there and run `distdata generate`"]
    refused(root, capfd, ["catalog", "rebuild"], *said)
    refused(root, capfd, ["catalog", "check"], *said)
    path.unlink()
    assert run(root, "catalog", "rebuild") == 0
    assert run(root, "generate") == 0
    capfd.readouterr()
    run(root, "sql", "select sample_id, outcome, n_bytes from samples order by all", "--json")
    assert json.loads(capfd.readouterr().out) == want
