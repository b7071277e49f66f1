"""A mapping says what columns mean; what it can't mean is refused with the nearest that it could."""

from __future__ import annotations

from pathlib import Path

import pytest

from distdata.catalogs.errors import DistdataError
from distdata.generate.ingest.mapping import IngestMapping, load_mapping

TEXT = """
kind = "human"
[columns]
seed_id = "uuid"
[axes]
weather = "wx"
[values.weather]
1 = "rain"
[constants]
teacher_version = "7"
[members]
"x.npy" = { from = "lat", dtype = "float32" }
"t.txt" = "caption"
[quality]
min = { score = 0.5 }
allowed = { status = ["ok"] }
"""


def test_options_say_what_a_file_says(tmp_path: Path) -> None:
    """Every line of a mapping file has its `--map` form, and both give the same mapping."""
    path = tmp_path / "m.toml"
    path.write_text(TEXT)
    options = [
        "kind=human", "seed_id=uuid", "axes.weather=wx", "values.weather.1=rain", 'constants.teacher_version="7"',
        'x.npy={"from": "lat", "dtype": "float32"}', "members.t.txt=caption", "quality.min.score=0.5",
        'quality.allowed.status=["ok"]',
    ]  # fmt: skip
    assert load_mapping(None, options) == load_mapping(path)
    assert load_mapping(path, ["seed_id=other"]).columns == {"seed_id": "other"}, "an option wins over the file"
    rule = load_mapping(path).rule("t.txt")
    assert rule is not None
    assert rule.source == "caption"


def test_the_fingerprint_follows_what_is_said(tmp_path: Path) -> None:
    """Equal mappings have one fingerprint, however they were written; another rule gives another."""
    path = tmp_path / "m.toml"
    path.write_text('[columns]\nseed_id = "uuid"')
    assert load_mapping(path).fingerprint == load_mapping(None, ["seed_id=uuid"]).fingerprint
    assert load_mapping(path).fingerprint != IngestMapping().fingerprint


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["seed_id"], "--map seed_id: write OURS=THEIRS"),
        (["seedid=x"], "columns.seedid: no such column. Did you mean 'seed_id'"),
        (["quality.mn.score=1"], "unknown key 'quality.mn'. Did you mean 'min'"),
        (["quality.min.score=high"], "quality.min.score = 'high': input should be a valid number"),
        (["members.x=lat"], "members.x: not of the form name.ending"),
        (["kind=9 lives"], "kind = '9 lives': string should match pattern"),
        (["quality=1"], "write TABLE.NAME=THEIRS"),
    ],
)
def test_what_it_cannot_mean(options: list[str], words: str) -> None:
    """Each mistake is named with its key and value."""
    with pytest.raises(DistdataError) as caught:
        load_mapping(None, options)
    assert words in str(caught.value)


def test_axes_of_this_project_only() -> None:
    """A mapping for an axis that is not in distdata.toml is refused with the nearest."""
    with pytest.raises(DistdataError, match=r"axes\.wether: no such column. Did you mean 'weather'"):
        load_mapping(None, ["axes.wether=wx"]).check_axes(["weather", "light"])


def test_files_that_are_none(tmp_path: Path) -> None:
    """A missing file and one that is no TOML are named."""
    with pytest.raises(DistdataError, match=r"m\.toml: not found"):
        load_mapping(tmp_path / "m.toml")
    (tmp_path / "m.toml").write_text("[columns\n")
    with pytest.raises(DistdataError, match=r"m\.toml: not a mapping that can be read"):
        load_mapping(tmp_path / "m.toml")
