import json
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from distdata.catalogs.cells import build_cells
from distdata.catalogs.codec import check_member
from distdata.catalogs.config import TeacherConfig, load_config
from distdata.catalogs.errors import DistdataError
from distdata.catalogs.protocol import Request, TeacherInfo
from distdata.catalogs.seeds import check_seeds, read_seed_file
from distdata.generate.teachers.highway import HighwayTeacher
from distdata.generate.teachers.registry import SEEDS, TEACHERS, make_seeds, make_teacher, teacher_info

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def leave_imports_alone():
    """Undo what loading does to this process: its path and its modules."""
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name in ("mine", "my_teacher"):
            del sys.modules[name]


def config(kind, **options):
    return TeacherConfig(kind=kind, options=options)


def write_module(tmp_path, text):
    (tmp_path / "mine.py").write_text(text)
    return tmp_path


def test_bundled_kinds_are_made_by_name(tmp_path):
    """`highway` gives its class with the options passed on; nothing is simulated yet."""
    teacher = make_teacher(config("highway", n_frames=4), tmp_path)
    assert isinstance(teacher, HighwayTeacher)
    assert teacher.describe().members["pose.npy"].shape == (4, 7)


@pytest.mark.parametrize("path", [*TEACHERS.values(), *SEEDS.values()])
def test_every_registered_name_exists(path):
    """The registry's strings point at modules and names that are there."""
    import importlib

    module, _, name = path.partition(":")
    assert callable(getattr(importlib.import_module(f"distdata.generate.teachers.{module}"), name))


def test_an_unknown_kind_names_the_nearest(tmp_path):
    """A typo in teacher.kind is answered with the kind that was meant."""
    with pytest.raises(DistdataError, match=r"teacher.kind = 'higway': unknown\. Did you mean 'highway'\?"):
        make_teacher(config("higway"), tmp_path)
    with pytest.raises(
        DistdataError, match="Known: crossing, diffusers, highway, markov, transformers, python, student"
    ):
        make_teacher(config("gpt"), tmp_path)


def test_a_wrong_option_names_the_allowed_ones(tmp_path):
    """An option that the class does not take never reaches it as a traceback."""
    with pytest.raises(DistdataError, match=r"options\.frames: HighwayTeacher has no such option\. Did you mean"):
        make_teacher(config("highway", frames=4), tmp_path)


def test_a_python_class_gets_every_other_option(tmp_path):
    """`class` names it; the rest are its keyword arguments, a **kwargs class takes any."""
    write_module(
        tmp_path,
        "class A:\n    def __init__(self, *, rate, n=1): self.got = (rate, n)\n"
        "    def describe(self): ...\n    def sample(self, requests): ...\n"
        "class B(A):\n    def __init__(self, **options): self.got = options\n"
        "class C(A):\n    def __init__(self, rate): raise ValueError('rate must be positive')\n"
        "class D(A):\n    def __init__(self): ...\n",
    )
    assert make_teacher(config("python", **{"class": "mine:A"}, rate=0.5), tmp_path).got == (0.5, 1)
    assert make_teacher(config("python", **{"class": "mine:B"}, x=1, y="z"), tmp_path).got == {"x": 1, "y": "z"}
    for name, options, message in (
        ("A", {}, "teacher.options: A needs rate"),
        ("A", {"rat": 1, "rate": 1}, r"teacher\.options\.rat: A has no such option\. Did you mean 'rate'\?"),
        ("C", {"rate": -1}, r"C refused its options \(rate = -1\): rate must be positive"),
        ("D", {"rate": 1}, r"D has no such option\. It takes no options"),
    ):
        with pytest.raises(DistdataError, match=message):
            make_teacher(config("python", **{"class": f"mine:{name}"}, **options), tmp_path)
    with pytest.raises(DistdataError, match=r"kind = 'python' needs teacher\.options\.class"):
        make_teacher(config("python", rate=1), tmp_path)


def test_the_configured_price_wins(tmp_path):
    """teacher.usd_per_gpuh replaces the teacher's own price and nothing else, zero included."""
    teacher = HighwayTeacher(usd_per_gpuh=0.5)
    own = teacher.describe()
    assert teacher_info(teacher, TeacherConfig(kind="highway")) == own
    for price in (0.0, 3.5):
        info = teacher_info(teacher, TeacherConfig(kind="highway", usd_per_gpuh=price))
        assert info.usd_per_gpuh == price
        assert (info.id, info.content_hash, info.members) == (own.id, own.content_hash, own.members)


def test_a_describe_that_returns_something_else_is_refused(tmp_path):
    """A class that describes itself with a dict is told what is wanted."""
    write_module(tmp_path, "class A:\n    def describe(self): return {}\n    def sample(self, requests): ...\n")
    cfg = config("python", **{"class": "mine:A"})
    with pytest.raises(DistdataError, match=r"A\.describe\(\) returned a dict; it must return"):
        teacher_info(make_teacher(cfg, tmp_path), cfg)


def test_seed_generators_by_name_and_by_path(tmp_path):
    """Bundled generators go by name, a user's own by module:function; all return an Arrow table."""
    assert len(make_seeds("highway", 300, "s")) == 300
    write_module(
        tmp_path,
        "import pyarrow as pa\n"
        "def seeds(n, salt, step=1): return pa.table({'seed_id': [f'{salt}{i * step}' for i in range(n)]})\n"
        "def wrong(n, salt): return [1]\n",
    )
    table = make_seeds("mine:seeds", 3, "s", {"step": 5}, tmp_path)
    assert isinstance(table, pa.Table)
    assert table["seed_id"].to_pylist() == ["s0", "s5", "s10"]
    for generator, n, options, message in (
        ("highwy", 5, {}, r"unknown\. Did you mean 'highway'\?"),
        ("highway", 0, {}, "n = 0: ask for at least 1"),
        ("mine:seeds", 3, {"stp": 1}, r"seeds options\.stp: seeds has no such option\. Did you mean 'step'\?"),
        ("mine:wrong", 3, {}, r"returned a list, not a pyarrow\.Table"),
    ):
        with pytest.raises(DistdataError, match=message):
            make_seeds(generator, n, "s", options, tmp_path)


def test_the_example_teacher_runs(tmp_path):
    """examples/: its distdata.toml names the class, its seeds fit the cells, and its draws are as declared.

    Waits grow with the arrival rate: the longest wait at 1.72 customers a minute (a trainee serves 1.25) must
    exceed that at 0.4 by far, for every draw.
    """
    conf = load_config(EXAMPLES / "distdata.toml")
    teacher = make_teacher(conf.teacher, EXAMPLES)
    info = teacher_info(teacher, conf.teacher)
    assert isinstance(info, TeacherInfo)
    raw = read_seed_file(EXAMPLES / "seeds.jsonl")
    cells = build_cells(conf, {}, {}, tmp_path)
    checked = check_seeds(raw, cells, list(conf.axes), pl.Series([], dtype=pl.String), "seeds.jsonl")
    assert checked["cell_id"].n_unique() == len(cells) == 4
    seeds = {r["seed_id"]: r for r in raw.to_dicts()}
    requests = [
        Request(
            seed_id=name, k=k, rng_seed=k, axes={"staff": seeds[name]["staff"]}, scenario=seeds[name]["scenario"],
            params=json.loads(seeds[name]["params"]),
        )
        for name in ("trainee-quiet-00", "trainee-rush-09")
        for k in range(5)
    ]  # fmt: skip
    draws = list(teacher.sample(requests))
    assert [(d.seed_id, d.k) for d in draws] == [(r.seed_id, r.k) for r in requests]
    for draw, again in zip(draws, teacher.sample(requests), strict=True):
        assert check_member("wait_min.npy", draw.members["wait_min.npy"], info.members["wait_min.npy"]) is None
        np.testing.assert_array_equal(draw.members["wait_min.npy"], again.members["wait_min.npy"])
        assert draw.outcome == ("long_wait" if draw.members["wait_min.npy"].max() > 3 else "calm")
    longest = [float(d.members["wait_min.npy"].max()) for d in draws]
    assert min(longest[5:]) > max(longest[:5])
    assert len(set(longest)) == 10
    code = [line for line in (EXAMPLES / "my_teacher.py").read_text().splitlines() if line.strip()]
    assert len(code) <= 36
