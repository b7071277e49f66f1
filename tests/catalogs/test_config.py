"""distdata.toml is checked as a whole; every problem names its key, its value and what would be right."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from distdata.catalogs.config import AXIS_COLUMNS_TAKEN, Config, load_config, parse_config
from distdata.catalogs.errors import DistdataError
from distdata.catalogs.views import LOOP_TABLES, LOOP_VIEWS, VIEW_NAMES, view_statements

GOOD = """
[project]
name = "p"
salt = "s"
[axes.weather]
values = ["clear", "rain"]
fleet = [0.9, 0.1]
[axes.light]
values = ["day", "night"]
[scenarios.cross]
layer = "core"
[scenarios.cut_in]
layer = "long_tail"
fleet = 0.2
k = 4
[[infeasible]]
when = { weather = "rain", light = ["night"], scenario = "cut_in" }
reason = "never seen"
[bands]
default = 0.1
[[bands.rules]]
when = { light = "night" }
band = 0.05
[teacher]
kind = "crossing"
"""


def _edit(old: str, new: str) -> str:
    assert GOOD.count(old) == 1, old
    return GOOD.replace(old, new)


def _error(text: str) -> str:
    with pytest.raises(DistdataError) as caught:
        parse_config(text, "distdata.toml")
    assert str(caught.value).startswith("distdata.toml: ")
    return str(caught.value)


def test_a_good_file_and_its_defaults(tmp_path: Path) -> None:
    """Everything written is read, and what is left out has the documented default."""
    path = tmp_path / "distdata.toml"
    path.write_text(GOOD)
    config = load_config(path)
    assert config.axes["weather"].fleet == [0.9, 0.1]
    assert config.scenarios["cut_in"].k == 4
    assert config.infeasible[0].when == {"weather": "rain", "light": ["night"], "scenario": "cut_in"}
    assert (config.plan.k, config.plan.policy, config.splits.min_groups, config.generate.engine) == (
        8,
        "gate",
        20,
        "auto",
    )
    assert config.project.storage == "data"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (_edit('salt = "s"', 'salt = "s"\nsalts = 1'), "unknown key 'project.salts'. Did you mean 'salt'?"),
        (GOOD + "[plans]\nk = 2", "unknown key 'plans'. Did you mean 'plan'?"),
        (
            _edit('layer = "core"', 'layer = "core"\nfleat = 0.1'),
            "unknown key 'scenarios.cross.fleat'. Did you mean 'fleet'?",
        ),
        (_edit("band = 0.05", "bands = 0.05"), "unknown key 'bands.rules[0].bands'. Did you mean 'band'?"),
        (
            _edit("fleet = 0.2", "fleet = -0.2"),
            "scenarios.cut_in.fleet = -0.2: input should be greater than or equal to 0",
        ),
        (_edit("band = 0.05", "band = 0"), "bands.rules[0].band = 0: input should be greater than 0"),
        (_edit("default = 0.1", "default = -1"), "bands.default = -1: input should be greater than 0"),
        (_edit("default = 0.1", "default = nan"), "bands.default = nan: input should be"),
        (_edit("band = 0.05", "band = nan"), "bands.rules[0].band = nan: input should be"),
        (_edit("band = 0.05", "band = inf"), "bands.rules[0].band = inf: input should be a finite number"),
        (
            _edit('layer = "core"', 'layer = "main"'),
            "scenarios.cross.layer = 'main': input should be 'core', 'failure_mode' or 'long_tail'",
        ),
        (_edit('kind = "crossing"', ""), "'teacher.kind' is missing"),
        (_edit("[bands]\ndefault = 0.1", "[bands]"), "'bands.default' is missing"),
        (
            GOOD + '[plan]\npolicy = "best"',
            "plan.policy = 'best': input should be 'gate', 'uniform', 'fleet' or 'neyman'",
        ),
        (GOOD + "[plan]\nk = 0", "plan.k = 0: input should be a whole number from 1 to 255, or 'auto'"),
        (GOOD + "[plan]\ngamma = nan", "plan.gamma = nan: input should be"),
        (GOOD + "[plan]\nk = 2.5", "plan.k = 2.5: input should be a whole number from 1 to 255, or 'auto'"),
        (GOOD + "[splits]\ngate = 0.9", "splits.gate = 0.9: input should be less than or equal to 0.45"),
        (
            GOOD + '[generate]\nengine = "spark"',
            "generate.engine = 'spark': input should be 'auto', 'inprocess' or 'ray'",
        ),
        (GOOD + "[generate]\nunit_s = inf", "generate.unit_s = inf: input should be a finite number"),
        (_edit('values = ["day", "night"]', "values = []"), "axes.light.values = []: list should have at least 1 item"),
        (
            _edit('values = ["day", "night"]', 'values = ["a/b"]'),
            "axes.light.values[0] = 'a/b': string should match pattern",
        ),
        (
            _edit('values = ["day", "night"]', 'values = ["a,b"]'),
            "axes.light.values[0] = 'a,b': string should match pattern",
        ),
        (_edit("[axes.light]", '[axes."li.ght"]'), "string should match pattern"),
        (_edit('values = ["day", "night"]', 'values = ["day", "day"]'), "axes.light: values holds a value twice"),
        (_edit("[0.9, 0.1]", "[0.9]"), "axes.weather: fleet has 1 shares for 2 values"),
        (_edit("[0.9, 0.1]", "[0.9, 0.2]"), "axes.weather: fleet sums to 1.1; the shares of an axis must sum to 1"),
        (
            _edit("[axes.light]", "[axes.Cell]"),
            "axes.Cell: 'Cell' is a column of the catalog; call the axis something else",
        ),
        (_edit("[axes.light]", "[axes.source]"), "axes.source: 'source' is a column of the catalog"),
        (_edit("[axes.light]", "[axes.Weather]"), "axes.Weather: differs from axes.weather in case only"),
        (
            _edit('when = { light = "night" }', 'when = { lihgt = "night" }'),
            "bands.rules[0].when: no axis 'lihgt'. Did you mean 'light'?",
        ),
        (
            _edit('when = { light = "night" }', 'when = { light = "nihgt" }'),
            "bands.rules[0].when.light: no value 'nihgt'. Did you mean 'night'?",
        ),
        (
            _edit('scenario = "cut_in"', 'scenario = "cutin"'),
            "infeasible[0].when.scenario: no value 'cutin'. Did you mean 'cut_in'?",
        ),
        (
            _edit('when = { light = "night" }', "when = {}"),
            "bands.rules[0].when = {}: dictionary should have at least 1 item",
        ),
        (GOOD + '[fleet]\nsource = "table"', "fleet: table goes with source = 'table', and only with it"),
        (GOOD + '[fleet]\ntable = "f.csv"', "fleet: table goes with source = 'table', and only with it"),
        (GOOD + "[plan\nk = 1", "not valid TOML: "),
        (
            "",
            "'project' is missing; 'axes' is missing; 'scenarios' is missing; 'bands' is missing; 'teacher' is missing",
        ),
    ],
)
def test_every_problem_is_explained(text: str, said: str) -> None:
    """A wrong key or value is answered with the file, the key, the value and what is allowed."""
    assert said in _error(text)


def test_invalid_toml_names_the_line() -> None:
    """A syntax error is located."""
    assert re.search(r"not valid TOML: .*line 3", _error("[project]\nname = 'p'\nsalt = \n"))


def test_all_problems_are_told_at_once() -> None:
    """Two mistakes are one message, so that a person edits once."""
    text = _error(_edit("default = 0.1", "default = 0") + "[plan]\nk = 0")
    assert "bands.default = 0" in text
    assert "plan.k = 0" in text


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    """A missing file says how to make one; bytes that are no text are refused."""
    path = tmp_path / "distdata.toml"
    with pytest.raises(DistdataError, match=r"distdata.toml: not found\. Run `distdata init --preset driving` here"):
        load_config(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DistdataError, match=r"distdata.toml: can't be read"):
        load_config(path)


def test_every_column_of_the_catalog_is_taken() -> None:
    """No axis can be named like a column of a table or view, where SQL would take one for the other."""
    import duckdb

    from distdata.catalogs.store import migrations

    con = duckdb.connect()
    for _, sql in migrations():
        con.execute(sql)
    axis = "an_axis_of_no_other_name"
    con.execute(
        f"""CREATE TABLE cells AS SELECT 0 AS cell_id, '' AS cell, '' AS slice, '' AS scenario, '' AS layer,
        true AS feasible, '' AS reason, 0.1::DOUBLE AS band, '' AS band_source, 0.1::DOUBLE AS fleet_share, 1 AS k,
        '' AS {axis}"""
    )
    for statement in view_statements([axis]):
        con.execute(statement)
    tables = [row[0] for row in con.execute("SELECT table_name FROM duckdb_tables()").fetchall()]
    assert {"seeds", "plans", "units", "attempts", "cells"} <= set(tables)
    for name in {*tables, *VIEW_NAMES} - {*LOOP_TABLES, *LOOP_VIEWS}:  # those have no axes beside their columns
        columns = [row[0] for row in con.execute(f'DESCRIBE "{name}"').fetchall()]
        assert len(columns) == len(set(columns)), name
        assert set(columns) - {axis} <= AXIS_COLUMNS_TAKEN, name


def test_every_fact_of_a_sample_is_taken() -> None:
    """No axis can be named like a fact in a sample's meta.json, where one value would replace the other."""
    import numpy as np

    from distdata.catalogs.protocol import Draw, TeacherInfo
    from distdata.generate.run_unit import encode_draw

    row = {"sample_id": "s-k000-aa", "seed_id": "s", "k": 0, "rng_seed": 1, "cell": "day/cross", "scenario": "cross",
           "axes": '{"an_axis": "day"}'}  # fmt: skip
    info = TeacherInfo(id="t", version="1", content_hash="aa", kind="rollout")
    members, reason = encode_draw(Draw(seed_id="s", k=0, members={"x.npy": np.zeros(2)}), row, {}, info)
    assert members is not None, reason
    facts = json.loads(dict(members)["meta.json"])
    assert facts["an_axis"] == "day"
    assert set(facts) - {"an_axis"} <= AXIS_COLUMNS_TAKEN


@pytest.mark.parametrize("name", ["plan_no", "grp", "n_ok", "rng_seed", "axes", "Attempt"])
def test_an_axis_can_not_take_such_a_name(name: str) -> None:
    """A name that is taken is refused in any case of its letters, before anything is written."""
    said = _error(_edit("[axes.weather]", f"[axes.{name}]"))
    assert f"axes.{name}: '{name}' is a column of the catalog; call the axis something else" in said


def test_config_can_not_be_changed() -> None:
    """A checked configuration is frozen: what was validated is what runs."""
    config = parse_config(GOOD, "here")
    assert isinstance(config, Config)
    with pytest.raises(ValueError, match=r"frozen"):
        config.plan.k = 0
