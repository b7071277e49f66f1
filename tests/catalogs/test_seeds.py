"""Seed files in, checked rows out: nothing is lost, changed or guessed on the way."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distdata.catalogs import seeds as seeds_module
from distdata.catalogs.errors import DistdataError
from distdata.catalogs.hashing import unit_interval
from distdata.catalogs.seeds import check_seeds, read_seed_file, with_permanent_numbers

CELLS = pl.DataFrame(
    {
        "cell_id": pl.Series([4, 7, 9], dtype=pl.Int32),
        "cell": ["day/cross", "night/cross", "night/cut_in"],
        "slice": ["day", "night", "night"],
        "light": ["day", "night", "night"],
        "scenario": ["cross", "cross", "cut_in"],
        "feasible": [True, True, False],
        "reason": [None, None, "never seen"],
    }
)
NONE = pl.Series([], dtype=pl.String)
GOOD = {"seed_id": "a1", "light": "day", "scenario": "cross"}


def _check(path: Path, existing: pl.Series = NONE) -> pl.DataFrame:
    return check_seeds(read_seed_file(path), CELLS, ["light"], existing, path.name)


def _jsonl(folder: Path, *records: object) -> Path:
    path = folder / "s.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


def test_all_columns_arrive(tmp_path: Path) -> None:
    """Each column ends where it belongs, in the type it belongs to."""
    full = {**GOOD, "group": "drive-7", "decision_point": True, "k": 4, "control_axis": "steer", "control_value": 0.5}
    full["size"] = 2.5
    seeds = _check(_jsonl(tmp_path, {**full, "params": {"v": [1, 2]}, "speed": 3.5}, {**GOOD, "seed_id": "a2"}))
    assert seeds.to_dicts() == [
        {
            "seed_id": "a1",
            "cell_id": 4,
            "slice": "day",
            "grp": "drive-7",
            "decision_point": True,
            "k": 4,
            "size": 2.5,
            "control_axis": "steer",
            "control_value": 0.5,
            "params": '{"speed": 3.5, "v": [1, 2]}',
        },
        {
            "seed_id": "a2",
            "cell_id": 4,
            "slice": "day",
            "grp": "a2",
            "decision_point": None,
            "k": None,
            "size": None,
            "control_axis": None,
            "control_value": None,
            "params": '{"speed": null}',
        },
    ]
    schema = [seeds.schema[name] for name in ("cell_id", "k", "size", "decision_point")]
    assert schema == [pl.Int32, pl.Int32, pl.Float64, pl.Boolean]


def test_what_a_seed_does_not_say_stays_open(tmp_path: Path) -> None:
    """A decision point is true, false or unsaid; a file without the column, or with empty fields, says nothing."""
    said = "seed_id,light,scenario,decision_point,size\na,day,cross,true,3\nb,day,cross,0,\nc,day,cross,,\n"
    (tmp_path / "s.csv").write_text(said)
    seeds = _check(tmp_path / "s.csv")
    assert seeds["decision_point"].to_list() == [True, False, None]
    assert seeds["size"].to_list() == [3.0, None, None]
    assert _check(_jsonl(tmp_path, GOOD))["decision_point"].to_list() == [None]
    typed = [{**GOOD, "decision_point": None}, {**GOOD, "seed_id": "a2", "decision_point": False}]
    assert _check(_jsonl(tmp_path, *typed))["decision_point"].to_list() == [None, False]


PLAIN = {
    'a "quoted" name': st.text(st.characters(exclude_categories=["Cs"])),
    "flag": st.booleans(),
    "n": st.integers(-(2**63), 2**63 - 1),
    "x": st.floats(allow_nan=False, allow_infinity=False),
    "nothing": st.none(),
}


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.lists(st.fixed_dictionaries({name: st.none() | value for name, value in PLAIN.items()}), min_size=1))
def test_columns_of_plain_values_become_params(rows: list[dict[str, object]]) -> None:
    """Whole columns become JSON objects that hold each row's values exactly, in the order of their names."""
    columns = pl.DataFrame(
        rows, schema=dict(zip(PLAIN, (pl.String, pl.Boolean, pl.Int64, pl.Float64, pl.Null), strict=True))
    )
    raw = columns.with_row_index("i").select(
        pl.all().exclude("i"), seed_id=pl.format("s{}", "i"), light=pl.lit("day"), scenario=pl.lit("cross")
    )
    params = [json.loads(text) for text in check_seeds(raw, CELLS, ["light"], NONE, "x")["params"]]
    assert params == rows
    assert all(list(p) == sorted(PLAIN) for p in params)


def test_csv_and_parquet_hold_the_same(tmp_path: Path) -> None:
    """A CSV of text and a Parquet of typed columns with a struct give the same seeds as JSONL."""
    records = [
        {**GOOD, "k": 4, "decision_point": True, "params": {"v": 1}},
        {**GOOD, "seed_id": "a2", "params": {"v": 2}},
    ]
    want = _check(_jsonl(tmp_path, *records))
    frame = pl.DataFrame(records)
    frame.write_parquet(tmp_path / "s.parquet")
    (tmp_path / "s.csv").write_text(
        "seed_id,light,scenario,k,decision_point,params\n"
        'a1,day,cross,4,TRUE,"{""v"": 1}"\na2,day,cross,,,"{""v"": 2}"\n'
    )
    for name in ("s.csv", "s.parquet"):
        got = _check(tmp_path / name)
        assert got.drop("params").equals(want.drop("params")), name
        assert [json.loads(p) for p in got["params"]] == [{"v": 1}, {"v": 2}], name


def test_short_floats_are_widened_as_python_widens_them(tmp_path: Path) -> None:
    """A float32 of 0.1 is 0.10000000149011612 in the params, whichever way it went there."""
    frame = pl.DataFrame({**GOOD, "v": [0.1]}, schema_overrides={"v": pl.Float32})
    frame.write_parquet(tmp_path / "s.parquet")
    frame.with_columns(params=pl.lit("{}")).write_parquet(tmp_path / "t.parquet")
    for name in ("s.parquet", "t.parquet"):
        assert json.loads(_check(tmp_path / name)["params"][0]) == {"v": 0.10000000149011612}


def test_extra_keys_stay_what_they_are(tmp_path: Path) -> None:
    """Keys without a meaning join the params: nested ones as objects, and whatever the catalog calls its columns."""
    extra = {"ego": {"x": 1}, "way": [1, "a"], "row": 3, "cell": "c", "slice": 1, "prn": 2}
    seeds = _check(_jsonl(tmp_path, {**GOOD, **extra}))
    assert json.loads(seeds["params"][0]) == extra


def test_params_win_over_extra_keys(tmp_path: Path) -> None:
    """A name that is both a key of its own and in the params keeps the params' value."""
    seeds = _check(_jsonl(tmp_path, {**GOOD, "v": 1, "w": {"a": 1}, "params": {"v": 2, "w": {"a": 2}}}))
    assert json.loads(seeds["params"][0]) == {"v": 2, "w": {"a": 2}}


BAD = [
    ({"light": "dayy"}, "1 seed(s): has an unknown light: row 2 b ('dayy'). Did you mean 'day'? Nothing was imported."),
    ({"light": None}, "has an unknown light: row 2 b (None). Known: day, night."),
    ({"scenario": "cros"}, "has an unknown scenario: row 2 b ('cros'). Did you mean 'cross'?"),
    ({"seed_id": "a.b"}, "has an id that can't be a sample key: row 2 ('a.b'). An id is 1 to 64 of A-Z a-z 0-9 _ -"),
    ({"seed_id": "a/b"}, "has an id that can't be a sample key: row 2 ('a/b')"),
    ({"seed_id": ""}, "has an id that can't be a sample key: row 2 ('')"),
    ({"seed_id": None}, "has an id that can't be a sample key: row 2 "),
    ({"seed_id": "x" * 65}, "has an id that can't be a sample key: row 2 "),
    ({"seed_id": "a1"}, "2 seed(s): has an id that comes twice: row 1 a1 ('a1'), row 2 a1 ('a1'). Ids must be unique."),
    ({"seed_id": "old"}, "has an id that the catalog already holds: row 2 old ('old'). Give new seeds new ids"),
    (
        {"light": "night", "scenario": "cut_in"},
        "lies in a cell declared infeasible: row 2 b (night/cut_in: never seen). Remove these seeds, or the "
        "[[infeasible]] rule.",
    ),
    ({"k": 0}, "has a bad k: row 2 b (0). It must be a whole number from 1 to 255."),
    ({"k": 256}, "has a bad k: row 2 b (256)"),
    ({"k": 1.5}, "has a bad k: row 2 b (1.5)"),
    ({"k": "many"}, "has a bad k: row 2 b ('many')"),
    ({"size": 0}, "has a bad size: row 2 b (0). It must be a finite number above 0."),
    ({"size": -1.5}, "has a bad size: row 2 b (-1.5)"),
    ({"size": float("inf")}, "has a bad size: row 2 b (inf)"),
    ({"size": float("nan")}, "has a bad size: row 2 b (nan)"),
    ({"size": "big"}, "has a bad size: row 2 b ('big')"),
    ({"v": float("nan")}, "1 of 2 seeds have bad params (row 2: Out of range float values are not JSON compliant"),
    ({"decision_point": "maybe"}, "has a bad decision_point: row 2 b ('maybe'). Allowed: true, false."),
    ({"control_value": "fast"}, "has a bad control_value: row 2 b ('fast'). It must be a finite number."),
    ({"params": "{"}, "1 of 2 seeds have bad params (row 2: "),
    ({"params": "[1]"}, "1 of 2 seeds have bad params (row 2: not an object)"),
    ({"params": '{"x": NaN}'}, "1 of 2 seeds have bad params (row 2: NaN is no JSON number)"),
]


@pytest.mark.parametrize(("change", "said"), BAD, ids=[said[:50] for _, said in BAD])
def test_bad_seeds_are_refused_with_their_row(tmp_path: Path, change: dict[str, object], said: str) -> None:
    """A seed that can't be planned with is named by file, row and value, with what would be right."""
    path = _jsonl(tmp_path, GOOD, {**GOOD, "seed_id": "b", **change})
    with pytest.raises(DistdataError) as caught:
        _check(path, pl.Series(["old"]))
    assert str(caught.value).startswith("s.jsonl: ")
    assert said in str(caught.value)


def test_many_bad_seeds_are_counted(tmp_path: Path) -> None:
    """Three rows are shown and the rest is counted."""
    path = _jsonl(tmp_path, *({**GOOD, "seed_id": f"s{i}", "light": "dusk"} for i in range(1500)))
    with pytest.raises(DistdataError, match=r"1,500 seed\(s\): .*row 3 s2 \('dusk'\) and 1,497 more\."):
        _check(path)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("s.xlsx", b"", "unknown ending '.xlsx'. Seeds are read from .parquet, .jsonl and .csv."),
        ("s.jsonl", b"", "s.jsonl: holds no seed."),
        ("s.jsonl", b"\n\n", "s.jsonl: holds no seed."),
        ("s.csv", b"", "s.csv: can't be read"),
        ("s.csv", b"seed_id,light,scenario\n", "s.csv: holds no seed."),
        ("s.csv", b"seed,light,scenario\na,day,cross\n", "s.csv: column 'seed_id' is missing."),
        ("s.jsonl", b'{"seed_id": "a"}\n{"seed_id": \n', "line 2: not valid JSON"),
        ("s.jsonl", b"[1]\n", "line 1: a seed must be an object, got list."),
        ("s.jsonl", b'{"seed_id": "a"}\n{"note": "\\ud800"}\n', r"line 2: \ud800 is half of a surrogate pair"),
        ("s.jsonl", b'{"seed_id": "a"}\n\n{"params": {"x": ["\\uDc00"]}}\n', r"line 3: \udc00 is half of a surrogate"),
        ("s.jsonl", b'{"seed_id": "a"}\n{"\\udfff": 1}\n', r"line 2: \udfff is half of a surrogate pair"),
        (
            "s.jsonl",
            b'{"seed_id": "a"}\n{"x": ' + b"[" * 9999 + b"]" * 9999 + b"}\n",
            "line 2: objects and lists are nested 10,000 deep; at most 100 are read.",
        ),
        ("s.jsonl", b'{"a":' * 9999, "line 1: objects and lists are nested 9,999 deep"),
        (
            "s.csv",
            b'seed_id,light,scenario,params\na,day,cross,"{""x"": ' + b"[" * 9999 + b"]" * 9999 + b'}"\n',
            "1 of 1 seeds have bad params (row 1: objects and lists are nested 10,000 deep",
        ),
        (
            "s.csv",
            b'seed_id,light,scenario,params\na,day,cross,"{""x"": ""\\ud800""}"\n',
            r"1 of 1 seeds have bad params (row 1: \ud800 is half of a surrogate pair",
        ),
        ("s.jsonl", b'{"seed_id": "a", "v": ' + b"9" * 5000 + b"}\n", "line 1: Exceeds the limit"),
        ("s.jsonl", b"\xff\xfe", "can't be read"),
        ("s.parquet", b"PAR1", "can't be read"),
        (
            "s.jsonl",
            b'{"seed_id": "a", "light": "day", "scenario": "cross", "v": 1}\n{"seed_id": "b", "v": "x"}',
            "'v' is a number in one line and str in another. Give it one type, or put it into params.",
        ),
    ],
)
def test_unreadable_files_are_explained(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    """A file that holds no seeds, or can't be read, is named with its line where it has one."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DistdataError) as caught:
        _check(tmp_path / name)
    assert said in str(caught.value)


def test_deep_and_escaped_is_still_read(tmp_path: Path) -> None:
    """Nesting up to 100, brackets inside text, and whole surrogate pairs arrive as they are."""
    deep: object = "x"
    for _ in range(97):  # with the record, its params and their list: 100
        deep = [deep]
    params = {"deep": [deep], "text": "[" * 500 + '"' + "{" * 500, "face": "\U0001f600"}
    seeds = _check(_jsonl(tmp_path, {**GOOD, "params": params}))
    assert json.loads(seeds["params"][0]) == params


def test_missing_file(tmp_path: Path) -> None:
    """A file that is not there is named."""
    for name in ("no.csv", "no.jsonl", "no.parquet"):
        with pytest.raises(DistdataError, match=f"{name}: not found"):
            read_seed_file(tmp_path / name)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.permutations(range(8)))
def test_order_of_rows_does_not_matter(order: list[int]) -> None:
    """Permuted rows give the same seeds with the same permanent random numbers."""
    raw = pl.DataFrame(
        {
            "seed_id": [f"s{i}" for i in range(8)],
            "light": ["day", "night"] * 4,
            "scenario": ["cross"] * 8,
            "group": [f"g{i // 3}" for i in range(8)],
            "k": [None, 1, 2, 3, 4, 5, 6, 7],
            "v": list(range(8)),
        }
    )
    straight = with_permanent_numbers(check_seeds(raw, CELLS, ["light"], NONE, "x"), "salt")
    permuted = with_permanent_numbers(check_seeds(raw[order], CELLS, ["light"], NONE, "x"), "salt")
    assert permuted.sort("seed_id").equals(straight.sort("seed_id"))
    assert straight["prn"].to_list() == [unit_interval("prn", "salt", f"s{i}") for i in range(8)]


def test_numbers_of_whole_columns_are_those_of_single_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashing a column in pieces gives what hashing each name gives."""
    monkeypatch.setattr(seeds_module, "HASHED_AT_ONCE", 3)
    names = ["a", "b-1", "ü", "x" * 64, "7", "8", "9"]
    expected = [unit_interval("prn", "ß", name) for name in names]
    assert with_permanent_numbers(pl.DataFrame({"seed_id": names}), "ß")["prn"].to_list() == expected
    assert with_permanent_numbers(pl.DataFrame({"seed_id": NONE}), "ß")["prn"].to_list() == []
