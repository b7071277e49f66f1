"""The wheel holds all that runs, and what is installed from it works far from the checkout."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ("catalogs", "stratify", "generate", "curate", "train_min", "cycle")
SHIPPED = (".py", ".sql", ".toml", ".json")


def _run(*command: str | Path, cwd: Path) -> str:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PIP_REQUIRE", "VIRTUAL_ENV"))}
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _isolation() -> list[str]:
    """Build with the setuptools that is here when it knows the project's metadata, else let pip fetch one."""
    try:
        new_enough = int(importlib.metadata.version("setuptools").partition(".")[0]) >= 77
    except importlib.metadata.PackageNotFoundError:
        new_enough = False
    return ["--no-build-isolation"] if new_enough else []


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a clean copy of the checkout."""
    copy, out = tmp_path_factory.mktemp("source") / "distdata", tmp_path_factory.mktemp("wheel")
    skip = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "demo", "tests", "benchmarks")
    shutil.copytree(ROOT, copy, ignore=skip)
    _run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", *_isolation(), "-w", out, copy, cwd=out)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of an environment that holds the wheel, and sees this one's libraries only."""
    home = tmp_path_factory.mktemp("venv")
    venv.create(home, with_pip=False)
    site = home / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    # a folder named in a .pth file is searched, but its own .pth files are not run: the editable install stays out
    (site / "libraries.pth").write_text(
        sysconfig.get_paths()["purelib"] + "\n" + sysconfig.get_paths()["platlib"] + "\n"
    )
    python = home / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]
    # pip must not take the checkout's editable install, which it sees as well, for an older version to replace
    _run(*pip, "install", "--quiet", "--no-deps", "--no-index", "--ignore-installed", wheel, cwd=home)
    return home / "bin"


def test_the_wheel_holds_every_file(wheel: Path) -> None:
    """Each module and data file of the package is in the wheel, and no test, benchmark or stray file is."""
    want = {"distdata/" + p.name for p in ROOT.glob("*.py")}
    for layer in LAYERS:
        files = (p for p in (ROOT / layer).rglob("*") if p.suffix in SHIPPED and "__pycache__" not in p.parts)
        want |= {"distdata/" + p.relative_to(ROOT).as_posix() for p in files}
    with zipfile.ZipFile(wheel) as archive:
        names = {n for n in archive.namelist() if ".dist-info/" not in n}
        metadata = next(n for n in archive.namelist() if n.endswith("/METADATA"))
        text = archive.read(metadata).decode()
    assert names == want
    assert "License-Expression: Apache-2.0" in text
    assert "Requires-Python: >=3.11" in text


def test_the_checkout_is_not_seen(installed: Path, tmp_path: Path) -> None:
    """The environment imports the installed copy, so that the tests below prove something."""
    found = _run(installed / "python", "-c", "import distdata; print(distdata.__file__)", cwd=tmp_path).strip()
    assert Path(found).is_relative_to(installed.parent)
    assert not Path(found).is_relative_to(ROOT)


def test_the_program_says_its_version(installed: Path, tmp_path: Path) -> None:
    """`distdata --version` runs and gives the version of the wheel."""
    from distdata import __version__

    assert _run(installed / "distdata", "--version", cwd=tmp_path) == f"distdata {__version__}\n"


@pytest.mark.parametrize("preset", ["driving", "highway"])
def test_a_preset_makes_a_project(installed: Path, tmp_path: Path, preset: str) -> None:
    """Schema and presets travel in the wheel: a first project is made, and answers a query."""
    _run(installed / "distdata", "init", "--preset", preset, "--seeds", "0", cwd=tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["catalog.duckdb", "distdata.toml", "events"]
    query = "select count(*) n, sum(fleet_share) share from cells"
    (row,) = json.loads(_run(installed / "distdata", "sql", query, "--json", cwd=tmp_path))
    assert row["n"] > 10
    assert row["share"] == pytest.approx(1)
