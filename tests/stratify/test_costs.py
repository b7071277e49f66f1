"""The cost model: the reference programme to the digit, what changes it, and which figures are known."""

from pathlib import Path
from typing import Any

import pytest

from distdata.catalogs import store
from distdata.catalogs.config import Costs, TeacherConfig
from distdata.catalogs.cost_table import CostTable, cost_words
from distdata.catalogs.errors import DistdataError
from distdata.catalogs.planning import measured_costs
from distdata.catalogs.project import Project
from distdata.cycle.purchases import plan_purchase, programme_costs, save_purchase
from distdata.generate.ingest.rejects import ingest_rejects
from distdata.stratify.costs import Measured, cost_table


def _values(table: CostTable, *keys: str) -> list[float | None]:
    return [table.row(key).value for key in keys]


def _near(*values: float) -> object:
    return pytest.approx(list(values), rel=1e-12)


def test_reference_programme() -> None:
    """The defaults give the reference programme's table to the digit."""
    table = cost_table(Costs())
    # 50,000 miles x 18 GPU-h = 900,000 GPU-h; x $2 = $1,800,000
    assert _values(table, "generation_gpuh", "generation_usd") == [900_000, 1_800_000]
    # 60e6 frames x 12,000 tokens = 7.2e11; 6 x 3e9 x 7.2e11 x 2 epochs = 2.592e22 FLOPs
    assert _values(table, "tokens", "flops") == _near(7.2e11, 2.592e22)
    # 2.592e22 / (512 x 4e14 per s) = 126,562.5 s = 35.15625 h; x 512 = 18,000 GPU-h; x $2 = $36,000
    assert _values(table, "training_h", "training_gpuh", "training_usd") == _near(35.15625, 18_000, 36_000)
    assert _values(table, "ratio") == _near(50)
    # 900,000 + 18,000; on 512 GPUs 918,000 / 512 / 24 = 74.70703125 days
    assert _values(table, "total_gpuh", "total_usd", "lag_days") == _near(918_000, 1_836_000, 74.70703125)


def test_reference_text_beside_the_digits() -> None:
    """The table shows 35.2 h and $36,000, and beside them the 36 h and $37K that the reference text rounds to."""
    table = cost_table(Costs())
    # hours rounded up first: 36 h x 512 GPUs x $2 = $36,864, told as $37K
    assert [(table.row(k).text, table.row(k).rounded) for k in ("training_h", "training_usd")] == [
        ("35.2 h", "36 h"),
        ("$36,000", "$37K"),
    ]
    shown = {k: table.row(k).text for k in ("generation_gpuh", "generation_usd", "tokens", "flops", "ratio")}
    assert shown == {
        "generation_gpuh": "900,000 GPU-h", "generation_usd": "$1,800,000", "tokens": "7.2e11",
        "flops": "2.592e22 FLOPs", "ratio": "50:1",
    }  # fmt: skip


def test_whole_hours_are_quoted_as_they_are() -> None:
    """A training run of exactly 36 hours is quoted as 36 h, not as 37."""
    # 35.15625 h x 1.024 = 36 h, by 1.024 times the epochs
    row = cost_table(Costs(epochs=2.048)).row("training_h")
    assert (row.value, row.rounded) == (pytest.approx(36.0, rel=1e-12), "36 h")


def test_k_multiplies_generation_only() -> None:
    """K = 8 on 10% of the seeds is 1.7 times the generation, and the same training."""
    table = cost_table(Costs(k=8, k_share=0.1))
    # 0.9 x 1 + 0.1 x 8 = 1.7; 900,000 x 1.7 = 1,530,000 GPU-h = $3,060,000; to $36,000 that is 85:1
    expected = _near(1.7, 85_000, 1_530_000, 3_060_000, 18_000, 85)
    keys = ("draws_per_seed", "draws", "generation_gpuh", "generation_usd", "training_gpuh", "ratio")
    assert _values(table, *keys) == expected


def test_live_labels() -> None:
    """Labels of 30 steps on 1% of the frames are 9,000 GPU-h, at 30 steps to a full draw, which the table says."""
    table = cost_table(Costs(label_steps=30, label_share=0.01))
    # 900,000 GPU-h / 60e6 frames = 0.015 a frame, / 30 steps = 0.0005; 600,000 frames x 30 x 0.0005 = 9,000 = $18,000
    keys = ("frame_step_gpuh", "labels_gpuh", "labels_usd", "total_gpuh")
    assert _values(table, *keys) == _near(0.0005, 9_000, 18_000, 927_000)
    assert (table.row("draw_steps").source, table.row("labels_gpuh").source) == ("reference", "mixed")
    # a teacher that says it takes 60 steps: half the price of a step
    told = cost_table(Costs(label_steps=30, label_share=0.01), Measured(draw_steps=60))
    assert _values(told, "labels_gpuh") == _near(4_500)
    assert told.row("draw_steps").source == "measured"


def test_labels_need_steps_and_frames() -> None:
    """Without label steps, or on no frame, nothing is asked of the live teacher and the table has no such line."""
    for costs in (Costs(label_steps=30), Costs(label_share=0.01)):
        assert "labels_gpuh" not in [row.key for row in cost_table(costs).rows]


def test_gate_draws_are_priced() -> None:
    """Gate draws cost what draws cost, and join the programme."""
    table = cost_table(Costs(gate_draws=2000))
    # 2,000 draws of a mile x 18 GPU-h = 36,000 GPU-h = $72,000; 918,000 + 36,000
    assert _values(table, "gates_gpuh", "gates_usd", "total_gpuh") == _near(36_000, 72_000, 954_000)
    assert _values(cost_table(Costs(gate_draws=2000), Measured(n_gate_draws=500)), "gates_gpuh") == _near(9_000)


def test_fits_a_terminal() -> None:
    """The longest form of the table fits 80 columns."""
    costs = Costs(k=8, k_share=0.1, label_steps=30, label_share=0.01, gate_draws=2000, served_gpuh_per_day=5000)
    assert max(map(len, cost_words(cost_table(costs), 80, False).split("\n"))) <= 80


@pytest.mark.parametrize("miles", [0.01, 0.5, 1.0, 20.0])
def test_length_of_a_draw_cancels(miles: float) -> None:
    """Generation and labels don't depend on how long a draw is taken to be, nor does the source of generation."""
    said = {"miles": 50_000, "gpuh_per_mile": 18, "usd_per_gpuh": 2, "k": 8, "k_share": 0.1}
    table = cost_table(Costs(**said, label_steps=30, label_share=0.01, draw_miles=miles))  # type: ignore[arg-type]
    assert _values(table, "generation_gpuh", "generation_usd", "labels_gpuh") == _near(1_530_000, 3_060_000, 9_000)
    unsaid = cost_table(Costs(**said))  # type: ignore[arg-type]
    assert [unsaid.row(k).source for k in ("draw_gpuh", "generation_usd")] == ["mixed", "given"]


def test_payback() -> None:
    """Serving pays for the programme by what the student saves of it, in GPU-hours and in days."""
    table = cost_table(Costs(served_gpuh_per_day=5000))
    # saved: 1 - 1/50 = 0.98; 918,000 / 0.98 = 936,734.69 GPU-h of serving; / 5,000 a day = 187.35 days
    assert _values(table, "payback_gpuh", "payback_days") == _near(918_000 / 0.98, 918_000 / 0.98 / 5000)
    # against int8, which saves half already: 1/2 - 1/50 = 0.48 -> 1,912,500; int4: 1/4 - 1/50 = 0.23 -> 3,991,304.3
    assert _values(table, "payback_int8_gpuh", "payback_int4_gpuh") == _near(1_912_500, 918_000 / 0.23)
    assert [table.row(k).source for k in ("payback_int4_gpuh", "payback_int4_days")] == ["reference", "mixed"]
    assert "798 days" in table.notes[0]  # 3,991,304.3 / 5,000 = 798.26


def test_payback_without_serving_has_no_days() -> None:
    """Who doesn't say what is served learns how much serving pays, and how to see days."""
    table = cost_table(Costs())
    assert not any(row.key.endswith("_days") and row.key.startswith("payback") for row in table.rows)
    assert any("served_gpuh_per_day" in note for note in table.notes)


def test_do_not_distil() -> None:
    """A student no faster than the quantised teacher never pays against it, and the first note says to quantise."""
    for speedup in (3.0, 4.0):
        table = cost_table(Costs(student_speedup=speedup))
        assert (table.row("payback_int4_gpuh").value, table.row("payback_int4_gpuh").text) == (None, "never")
        assert table.notes[0].startswith("Do not distil: quantise.")
    assert not cost_table(Costs(student_speedup=4.1)).notes[0].startswith("Do not distil")
    # int8 saves 2x: 1/2 - 1/3 = 1/6; 918,000 x 6
    assert _values(cost_table(Costs(student_speedup=3)), "payback_int8_gpuh") == _near(5_508_000)


def test_slower_student_never_pays() -> None:
    """A student as slow as its teacher saves nothing at all."""
    assert _values(cost_table(Costs(student_speedup=1)), "payback_gpuh", "payback_int8_gpuh") == [None, None]


def test_measured_rates_replace_given_ones() -> None:
    """Seconds and dollars of the catalog, draws and seeds of the plan stand in for the rates, and say so."""
    measured = Measured(gpu_s_per_draw=7.2, usd_per_draw=0.01, n_draws=20_000, n_seeds=8_000, n_gate_draws=4_000)
    table = cost_table(Costs(k=8, k_share=0.1, gate_draws=9), measured)
    # 7.2 s = 0.002 GPU-h; x 20,000 = 40 GPU-h; 20,000 x $0.01 = $200; 20,000 / 8,000 = 2.5; gates 4,000 x 0.002 = 8
    keys = ("draw_gpuh", "generation_gpuh", "generation_usd", "draws_per_seed", "gates_gpuh", "gates_usd")
    assert _values(table, *keys) == _near(0.002, 40, 200, 2.5, 8, 40)
    assert {table.row(key).source for key in keys} == {"measured"}
    assert [table.row(k).source for k in ("training_usd", "ratio", "total_usd")] == ["reference", "mixed", "mixed"]
    assert any("20,000 draws" in note and "60M frames" in note for note in table.notes)


def test_measured_price_on_the_given_programme() -> None:
    """With a measured price and no plan the given number of draws stays, and the product counts as mixed."""
    table = cost_table(Costs(), Measured(gpu_s_per_draw=3600.0))
    # 50,000 draws x 1 GPU-h at the $2 of the reference
    assert _values(table, "generation_gpuh", "generation_usd") == _near(50_000, 100_000)
    keys = ("draws", "draw_gpuh", "generation_gpuh")
    assert [table.row(k).source for k in keys] == ["reference", "measured", "mixed"]


def test_teacher_that_bills_without_gpu_time() -> None:
    """An endpoint costs dollars and no GPU-hours; its labels are priced by the given GPU-hour, its total is money."""
    table = cost_table(Costs(), Measured(gpu_s_per_draw=0.0, usd_per_draw=0.5, n_draws=1000))
    assert _values(table, "generation_gpuh", "generation_usd", "total_usd") == _near(0, 500, 36_500)
    # 36,500 / $2 / 0.98
    assert _values(table, "payback_gpuh") == _near(36_500 / 2 / 0.98)


def test_free_teacher_pays_at_once() -> None:
    """A teacher that costs nothing leaves the training alone to be paid."""
    table = cost_table(Costs(), Measured(gpu_s_per_draw=0.0, usd_per_draw=0.0, n_draws=1000))
    assert _values(table, "ratio", "total_usd") == [0.0, _values(table, "training_usd")[0]]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"gpu_s_per_draw": -1.0}, "gpu_s_per_draw = -1 must be a number of at least 0"),
        ({"usd_per_draw": float("nan")}, "usd_per_draw = nan must be a number of at least 0"),
        ({"usd_per_draw": float("inf")}, "usd_per_draw = inf"),
        ({"n_draws": 0}, "n_draws = 0 must be a number above 0"),
        ({"draw_steps": 0.0}, "draw_steps = 0 must be a number above 0"),
        ({"n_draws": 5, "n_seeds": 8}, "8 seeds with 5 draws"),
        ({"n_seeds": 8}, "8 seeds with 0 draws"),
    ],
)
def test_bad_measurements_are_refused(fields: dict[str, float], message: str) -> None:
    """A measured rate that can't be is named with its value and what it must be."""
    with pytest.raises(DistdataError, match=message):
        Measured(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "costs",
    [
        Costs(frames=1e300, tokens_per_frame=1e300),
        Costs(miles=1e200, gpuh_per_mile=1e200),
        Costs(student_params=1e-320, frames=1e-10),
        Costs(frames=1e-200, miles=1e200, label_steps=1, label_share=1),
    ],
)
def test_rates_beyond_numbers_are_refused(costs: Costs) -> None:
    """Rates whose product overflows or vanishes end in a message that sends the reader to [costs]."""
    with pytest.raises(DistdataError, match=r"costs: .*\[costs\]"):
        cost_table(costs)


def test_defaults_are_called_the_references() -> None:
    """What [costs] doesn't say is the reference programme's, what it says is given, a product of both is mixed."""
    bare = cost_table(Costs())
    assert {row.source for row in bare.rows} == {"reference"}
    assert any(note.startswith("reference: ") for note in bare.notes)
    table = cost_table(Costs(frames=60e6, tokens_per_frame=12_000))  # said, though it is the default
    assert [table.row(k).source for k in ("tokens", "flops", "generation_usd")] == ["given", "mixed", "reference"]
    every = {name: field.default for name, field in Costs.model_fields.items()}
    told = cost_table(Costs(**{**every, "served_gpuh_per_day": 5000}))
    assert {row.source for row in told.rows} == {"given"}
    assert not any(note.startswith("reference") for note in told.notes)


def test_the_teachers_own_rates_come_first() -> None:
    """[teacher] prices its draws, over [costs] and under what was measured; training stays at the price of [costs]."""
    teacher = TeacherConfig(kind="x", gpu_s_per_draw=7.2, usd_per_gpuh=5)
    table = cost_table(Costs(gpuh_per_mile=1, usd_per_gpuh=3), None, teacher)
    # 7.2 s = 0.002 GPU-h at $5 = $0.01; x 50,000 draws = 100 GPU-h = $500; training 18,000 GPU-h at $3
    keys = ("draw_gpuh", "usd_per_gpuh", "draw_usd", "generation_gpuh", "generation_usd", "training_usd")
    assert _values(table, *keys) == _near(0.002, 5, 0.01, 100, 500, 54_000)
    assert [table.row(k).source for k in keys] == ["given"] * 3 + ["mixed"] * 3
    # the hours that serving saves are the teacher's: (500 + 54,000) / $5 / 0.98
    assert _values(table, "payback_gpuh") == _near(54_500 / 5 / 0.98)
    measured = cost_table(Costs(), Measured(gpu_s_per_draw=3.6, usd_per_draw=0.5), teacher)
    assert _values(measured, "draw_gpuh", "draw_usd") == _near(0.001, 0.5)
    assert [measured.row(k).formula for k in ("draw_gpuh", "draw_usd")] == [
        "3.6 s a draw in the catalog; given: 0.002 GPU-h", "billed a draw in the catalog; given: $0.01",
    ]  # fmt: skip
    # a teacher that says nothing leaves both to [costs]; a free one costs nothing, and its training is paid back in
    # hours of [costs]
    assert cost_table(Costs(), None, TeacherConfig(kind="x")) == cost_table(Costs())
    free = cost_table(Costs(), None, TeacherConfig(kind="x", usd_per_gpuh=0))
    assert _values(free, "generation_usd", "payback_gpuh") == _near(0, 36_000 / 2 / 0.98)


def test_draws_to_make_are_planned() -> None:
    """Draws that nobody made yet are not called measured, on training seeds and on held-out ones."""
    known = Measured(gpu_s_per_draw=3.6, usd_per_draw=0.5, n_draws=100, n_draws_to_make=40, n_draws_rejected=7,
                     n_seeds=50, n_gate_draws=30, n_gate_draws_to_make=30)  # fmt: skip
    table = cost_table(Costs(), known)
    keys = ("seeds", "draws_per_seed", "draws", "generation_usd", "gate_draws", "gates_usd")
    assert {table.row(k).source for k in keys} == {"planned"}
    assert table.row("draws").formula == "60 made (7 rejected), 40 to make"
    assert table.row("gate_draws").formula == "on held-out seeds: 0 made, 30 to make"
    assert table.row("draw_usd").source == "measured"


def test_draws_are_counted_where_they_are(tiny: Any, tmp_path: Path) -> None:
    """The table's draws are those in the catalog, rejected ones too, and those of open plans that are still to make."""
    project = tiny.build(tmp_path / "p", n_draws=60, plan=False)

    def row() -> tuple[float | None, str, str]:
        found = programme_costs(project).row("draws")
        return found.value, found.source, found.formula

    assert programme_costs(project).row("draw_gpuh").formula == "900 s, [teacher] gpu_s_per_draw"
    save_purchase(project, plan_purchase(project, budget="20samples"))
    assert row() == (20, "planned", "0 made, 20 to make")
    tiny.run(project)
    assert row() == (20, "measured", "20 made, 0 to make")
    with store.read(project.catalog_path) as con:
        ids = [r[0] for r in con.execute("SELECT sample_id FROM samples ORDER BY 1 LIMIT 6").fetchall()]
    (tmp_path / "bad.csv").write_text("sample_id\n" + "\n".join(ids) + "\n")
    ingest_rejects(project, tmp_path / "bad.csv")
    # 6 of 20 are rejected: 14 count, and the 26 short of 40 are bought at the yield that the verdicts measured
    more = plan_purchase(project, budget="40samples")
    assert more.plan.n_fresh >= 26
    save_purchase(project, more)
    assert row() == (20 + more.plan.n_fresh, "planned", f"20 made (6 rejected), {more.plan.n_fresh} to make")
    seeds = _seeds_of(project, more.plan.draws["seed_id"].to_list())
    assert programme_costs(project).row("seeds").value == seeds
    assert measured_costs(project, "0" * 16)["n_draws"] is None  # another teacher's draws are not this one's


def _seeds_of(project: Project, planned: list[str]) -> int:
    with store.read(project.catalog_path) as con:
        return len({r[0] for r in con.execute("SELECT seed_id FROM samples").fetchall()} | set(planned))
