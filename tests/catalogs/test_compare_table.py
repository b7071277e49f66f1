"""The comparison on a terminal."""

import re
from dataclasses import replace

import pytest

from distdata.catalogs.compare_table import compare_table
from distdata.catalogs.comparison import ComparedCell, Comparison, PolicyFigures

FIGURES = PolicyFigures(
    policy="fleet", n_target=1100, n_credit=0, n_fresh=1100, usd=55.0, gpu_h=2.5, layer_share=(1.0,), n_gate_worth=None,
    effective_n=640.4, unseen_share=0.0, smallest_cell="b", smallest_n=10, n_at_floor=2, n_at_ceiling=3, shortfall=0.0,
)  # fmt: skip


def _comparison(n_cells: int, name: str = "rain,night/pedestrian_crossing") -> Comparison:
    cells = tuple(
        ComparedCell(
            cell=f"{i}:{name}", slice=f"s{i}", scenario="x", layer="core", fleet_share=1 / n_cells,
            target=(1000 + i, 2000 + i), fresh=(0, 0),
        )
        for i in range(n_cells)
    )  # fmt: skip
    policies = (FIGURES, replace(FIGURES, policy="uniform", usd=56.0))
    return Comparison(
        budget="1,100 samples", policies=policies, layers=("core",), fleet_by_layer=(1.0,), cells=cells, slices=()
    )  # fmt: skip


def test_columns_line_up() -> None:
    """A policy's figures, layers and cells stand under its name, right-aligned, with the fleet's share before them."""
    lines = compare_table(_comparison(3), 80, False).split("\n")
    ends = [lines[0].index("fleet") + len("fleet"), len(lines[0])]
    assert lines[0].split() == ["fleet", "uniform"]
    assert next(line for line in lines if line.startswith("cost")).split() == ["cost", "$55.00", "$56.00"]
    assert next(line for line in lines if line.startswith("core")).split() == ["core", "100%", "100%", "100%"]
    for i in range(3):
        line = next(line for line in lines if line.startswith(f"{i}:"))
        assert line.split()[1:] == ["33%", f"1,00{i}", f"2,00{i}"]
        assert (line[: ends[0]].endswith(f"1,00{i}"), len(line)) == (True, ends[1])


def test_both_ends_of_many_cells() -> None:
    """Of 100 cells the 8 most and the 8 least frequent are listed, and the 84 between are counted."""
    lines = compare_table(_comparison(100), 80, False).split("\n")
    listed = [int(found[1]) for line in lines if (found := re.match(r"(\d+):", line))]
    assert listed == [*range(8), *range(92, 100)]
    assert lines.index("… 84 cells between") == lines.index(next(x for x in lines if x.startswith("92:"))) - 1
    assert "between" not in compare_table(_comparison(16), 80, False)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_fits_the_width(width: int) -> None:
    """No line is wider than the terminal; long names are cut, numbers are not."""
    text = compare_table(_comparison(3, name="rain,night,city,winter/" + "x" * 120), width, False)
    assert max(map(len, text.split("\n"))) <= width
    assert "…" in text
    assert "2,002" in text


def test_colour_changes_no_letter_and_names_steer_nothing() -> None:
    """In colour the text is the same; control characters of a name don't reach the terminal."""
    c = _comparison(2, name="\x1b[31mred")
    plain = compare_table(c, 80, False)
    assert "\x1b" not in plain
    assert re.sub(r"\x1b\[[0-9;]*m", "", compare_table(c, 80, True)) == plain
