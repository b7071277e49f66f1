"""README: what it shows can be typed."""

from __future__ import annotations

import itertools
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"```console\n(.*?)```", re.DOTALL)
STABLE = ("light  weather", "day    clear", "total   ", "Next: ", "value  ")
"""Beginnings of shown lines that must come out to the letter; others hold paths, times or version-bound ids."""


def test_every_command_of_the_first_run_works_as_shown(tmp_path: Path) -> None:
    """The commands of README's first run succeed in an empty folder, in order, and print the stable lines shown."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = [part for block in BLOCK.findall(text) for part in re.split(r"^\$ ", block, flags=re.MULTILINE) if part]
    assert len(shown) >= 8, "README lost its first run"
    for part in shown:
        command, *lines = part.rstrip().split("\n")
        words = shlex.split(command)
        assert words[0] == "distdata", command
        run = subprocess.run(
            [sys.executable, "-c", "from distdata.cli import run; run()", *words[1:]],
            cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert run.returncode == 0, f"{command}\n{run.stdout}\n{run.stderr}"
        assert "Traceback" not in run.stderr, run.stderr
        printed = {line.rstrip() for line in run.stdout.split("\n")}
        for line in lines:
            if line.startswith(STABLE):
                assert line.rstrip() in printed, f"{command}\nno longer prints {line!r}:\n{run.stdout}"


def test_the_loop_shows_slices_that_its_preset_has() -> None:
    """The gate shown for `driving-mini` is of exactly the slices that the preset makes."""
    axes = tomllib.loads((ROOT / "generate" / "presets" / "driving-mini.toml").read_text(encoding="utf-8"))["axes"]
    made = {",".join(values) for values in itertools.product(*(axis["values"] for axis in axes.values()))}
    loop = (ROOT / "README.md").read_text(encoding="utf-8").partition("## The loop")[2]
    shown = re.findall(r"^(\S+) +[✓✗?] [0-9.]+", loop, flags=re.MULTILINE)
    assert set(shown) == made
