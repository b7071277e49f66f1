"""The whole gate: three verdicts, what is never a pass, Holm over rows, and what is refused."""

import math

import numpy as np
import polars as pl
import pytest
from scipy import stats

from distdata.catalogs.errors import DistdataError
from distdata.stratify.gate_metrics import FAMILIES, METRICS
from distdata.stratify.verdict import ROW_SCHEMA, GateSettings, judge

CELLS = pl.DataFrame({"slice": ["a", "a", "b"], "band": [0.1, 0.2, 0.2], "feasible": [True, True, True]})


def _paired(n_seeds: int = 60, k: int = 4, name: str = "a", **columns: object) -> pl.DataFrame:
    """Return paired draws of one slice where nothing differs, with these columns beside the outcome."""
    n = n_seeds * k
    return pl.DataFrame(
        {
            "slice": [name] * n,
            "cell": [f"{name}/x"] * n,
            "scenario": ["x"] * n,
            "seed_id": [f"{name}{i // k:04d}" for i in range(n)],
            "k": [i % k for i in range(n)],
            "teacher_outcome": ["go", "stop"] * (n // 2),
            "student_outcome": ["go", "stop"] * (n // 2),
            **columns,
        }
    )


def _judge(paired: pl.DataFrame, *metrics: str, cells: pl.DataFrame | None = None, **changes: object) -> pl.DataFrame:
    rules = GateSettings(metrics=metrics or None, **changes)  # type: ignore[arg-type]
    cells = CELLS.filter(pl.col("slice").is_in(paired["slice"].unique().to_list())) if cells is None else cells
    return judge(paired, cells, rules, candidate=1).rows


def _both(column: str, d: np.ndarray, k: int = 4) -> dict[str, np.ndarray]:
    """Columns whose seed-level differences are exactly d: the teacher counts up, the student adds d."""
    teacher = np.arange(len(d) * k) % 7 * 1.0
    return {f"teacher_{column}": teacher, f"student_{column}": teacher + np.repeat(d, k)}


def test_a_mean_is_judged_by_the_t_interval_of_seed_differences() -> None:
    """Thirty +-1 about 0.3: mean 0.3, s^2 = 60 / 59, and scipy's t with 59 degrees at the first candidate's 0.025.

    Symmetric differences have no skewness, so the bounds are Student's own.
    """
    d = 0.3 + np.array([1.0, -1.0] * 30)
    row = _judge(_paired(**_both("planner_progress_m", d)), "planner").row(2, named=True)
    se = math.sqrt(60 / 59 / 60)
    half = stats.t.ppf(0.975, 59) * se
    assert row["contrast"] == "planner_progress_m"
    assert (row["estimate"], row["alpha"]) == (pytest.approx(0.3), 0.025)
    assert (row["low"], row["high"]) == (pytest.approx(0.3 - half), pytest.approx(0.3 + half))
    assert (row["verdict"], row["band"], row["side"], row["n_seeds"], row["n_draws"]) == ("pass", 2.0, "both", 60, 240)
    # P(T > (0.3 - 2) / se) + P(T > (0.3 + 2) / se)
    p = stats.t.sf(-1.7 / se, 59) + stats.t.sf(2.3 / se, 59)
    assert row["p_fail"] == pytest.approx(p)


@pytest.mark.parametrize(
    ("shift", "verdict"), [(0.0, "pass"), (1.6, "pass"), (1.9, "undecided"), (2.1, "undecided"), (2.8, "fail")]
)
def test_three_verdicts(shift: float, verdict: str) -> None:
    """With half-width 2.0010 x 0.1302 = 0.2605 about a band of 2: inside below 1.7395, outside above 2.2605."""
    d = shift + np.array([1.0, -1.0] * 30)
    paired = _paired(**_both("planner_progress_m", d))
    row = _judge(paired.drop("teacher_outcome", "student_outcome"), "planner").row(2, named=True)
    assert row["verdict"] == verdict
    mirrored = _paired(**_both("planner_progress_m", -d))
    assert _judge(mirrored, "planner").row(2, named=True)["verdict"] == verdict
    if verdict == "undecided":
        # z_0.975 + z_0.9 = 3.2415 standard errors into 0.1: 60 x (0.1302 x 32.415)^2 = 1,068 seeds, + z^2 / 2 = 1.92,
        # of 4 draws
        expected = 4 * (60 * (math.sqrt(60 / 59 / 60) * 3.241515 / 0.1) ** 2 + 1.95996**2 / 2)
        assert row["needed_draws"] == pytest.approx(expected, abs=1.5)
    else:
        assert row["needed_draws"] is None


def test_a_band_with_one_side_lets_the_other_go() -> None:
    """Validity only falls out below and coherence only above: a better student passes however much better it is."""
    worse, better = np.array([-1.0, 0.0] * 30), np.array([1.0, 0.0] * 30)
    ones, zeros = np.ones(240), np.zeros(240)
    up = _paired(teacher_valid=zeros, student_valid=np.repeat(better, 4))
    down = _paired(teacher_valid=ones, student_valid=1 + np.repeat(worse, 4))
    assert _judge(up, "validity")["verdict"].to_list() == ["pass"]
    assert _judge(down, "validity")["verdict"].to_list() == ["fail"]
    far = np.array([-9.0, -8.0] * 30)
    assert _judge(_paired(**_both("coherence_m", far)), "coherence")["verdict"].to_list() == ["pass"]
    assert _judge(_paired(**_both("coherence_m", -far)), "coherence")["verdict"].to_list() == ["fail"]


@pytest.mark.parametrize("metric", [m for m in METRICS.values() if m.side != "none"], ids=lambda m: m.name)
def test_a_metric_without_its_columns_is_undecided_by_name(metric: object) -> None:
    """Asked for and not measured is never a pass: one row says which columns are missing."""
    bare = _paired().drop("teacher_outcome", "student_outcome")
    rows = _judge(bare, metric.family).filter(pl.col("verdict") == "undecided")  # type: ignore[attr-defined]
    assert rows.height == len(FAMILIES[metric.family])  # type: ignore[attr-defined]
    assert rows["reason"][0].startswith("no teacher_")


VALUES: dict[str, dict[str, object]] = {
    "ghost": {"density_rank": 0.4},
    "coherence": {"coherence_m": 0.1},
    "planner_min_gap_m": {"planner_min_gap_m": 5.0},
    "planner_hard_brake": {"planner_hard_brake": 0.0},
    "planner_progress_m": {"planner_progress_m": 30.0},
    "kl": {"token_kl": 0.01},
    "validity": {"valid": 1.0},
    "tool": {"tool_match": 1.0},
    "refusal": {"refused": 1.0},
    "over_refusal": {"refused": 0.0},
    "calibration": {"confidence": 0.7, "correct": 1.0},
    "control": {"response": 0.5},
}


@pytest.mark.parametrize("bad", [None, math.nan, math.inf])
@pytest.mark.parametrize("name", VALUES)
def test_a_value_missing_on_one_side_is_never_a_pass(name: str, bad: float | None) -> None:
    """One draw whose student (or, for kl, teacher) has null, NaN or infinity leaves the row undecided."""
    rng, columns = np.random.default_rng(1), {}
    for column, value in VALUES[name].items():
        noise = rng.normal(size=(2, 240)) * (0.001 if column in ("coherence_m", "token_kl", "response") else 0)
        for side, more in zip(("teacher", "student"), noise, strict=True):
            columns[f"{side}_{column}"] = (value + more).tolist()  # type: ignore[operator]
    first = next(iter(VALUES[name]))
    hurt = f"{'teacher' if name == 'kl' else 'student'}_{first}"
    columns[hurt][17] = bad  # type: ignore[index]
    paired = _paired(
        **columns, should_refuse=[name == "refusal"] * 240, control_value=[float(i // 4 % 5) for i in range(240)]
    )  # fmt: skip
    family = METRICS[name].family
    rows = _judge(paired, family)
    rows = rows.filter(pl.col("contrast") == name) if family == "planner" else rows
    assert rows["verdict"].to_list() == ["undecided"]
    assert "1 of 240 draws have no number" in rows["reason"][0]


def test_draws_that_a_metric_is_not_about_are_left_out() -> None:
    """Null on both sides is outside the metric: 30 of 60 seeds remain, and half of 30 falls below twenty seeds."""
    teacher = [1.0 if i // 4 % 2 else None for i in range(240)]
    row = _judge(_paired(teacher_tool_match=teacher, student_tool_match=teacher), "tool").row(0, named=True)
    assert (row["n_seeds"], row["n_draws"]) == (30, 120)
    fewer = [1.0 if i // 4 % 4 == 0 else None for i in range(240)]
    row = _judge(_paired(teacher_tool_match=fewer, student_tool_match=fewer), "tool").row(0, named=True)
    assert (row["verdict"], row["reason"], row["needed_draws"]) == ("undecided", "15 seeds; a gate needs 20", 80)


@pytest.mark.parametrize("n_seeds", [1, 2, 19])
def test_fewer_than_twenty_seeds_decide_nothing(n_seeds: int) -> None:
    """Neither pass nor fail below 20 seeds, with the draws that 20 seeds give."""
    d = np.full(n_seeds, 50.0) + np.arange(n_seeds)
    paired = _paired(n_seeds, **_both("coherence_m", d))
    rows = _judge(paired, "coherence", "outcome")
    assert rows["verdict"].to_list() == ["undecided"] * 2
    assert rows["reason"].to_list() == [f"{n_seeds} seeds; a gate needs 20"] * 2
    assert rows["needed_draws"].to_list() == [80, 80]


def test_differences_that_all_agree_are_no_certainty() -> None:
    """Means without natural limits: a seed that differs is taken to differ by the range of values, q of them.

    Values 0 to 6, 60 seeds at alpha 0.025: q = 1 - 0.025^(1/60) = 0.0596, so 0.3575 metres: above 0.2, below 2. Where
    even the values are one number nothing is known.
    """
    d = np.zeros(60)
    reach = (1 - 0.025 ** (1 / 60)) * 6
    row = _judge(_paired(**_both("coherence_m", d)), "coherence").row(0, named=True)
    assert (row["verdict"], row["high"]) == ("undecided", pytest.approx(reach))
    assert "all 60 seeds agree" in row["reason"]
    row = _judge(_paired(**_both("planner_progress_m", d)), "planner").row(2, named=True)
    assert (row["verdict"], row["high"]) == ("pass", pytest.approx(reach))
    same = _paired(teacher_coherence_m=np.ones(240), student_coherence_m=np.ones(240))
    row = _judge(same, "coherence").row(0, named=True)
    assert (row["verdict"], row["reason"][:41]) == ("undecided", "all 240 values of both sides are the same")


def test_ghost_mass_counts_the_least_dense_half_percent() -> None:
    """Ranks below 0.005 count: the student's one draw in eight against the teacher's none is 0.125."""
    rank = np.full(480, 0.5)
    student = np.where(np.arange(480) % 8 == 0, 0.0049, 0.005)
    row = _judge(_paired(120, teacher_density_rank=rank, student_density_rank=student), "ghost").row(0, named=True)
    # seeds of 4 draws: every other has 1/4
    assert (row["estimate"], row["verdict"]) == (pytest.approx(0.125), "fail")
    few = _judge(_paired(120, teacher_density_rank=rank, student_density_rank=rank), "ghost").row(0, named=True)
    assert (few["estimate"], few["verdict"]) == (0.0, "pass")


def test_refusals_are_judged_by_what_should_be_refused() -> None:
    """The student refuses everything: right where it should, over-refusal on the other half of the seeds."""
    should = [i // 4 % 2 == 0 for i in range(640)]
    paired = _paired(
        160, teacher_refused=[float(s) for s in should], student_refused=[1.0] * 640, should_refuse=should
    )  # fmt: skip
    rows = _judge(paired, "refusal", "over_refusal")
    assert rows.select("metric", "estimate", "verdict", "n_seeds").rows() == [
        ("refusal", 0.0, "pass", 80), ("over_refusal", 1.0, "fail", 80),
    ]  # fmt: skip


def _look_alikes(n_alike: int, share: float) -> pl.DataFrame:
    """Return 200 plain seeds, 20 to refuse and `n_alike` like them, all of 4 draws; of these the student refuses more.

    It refuses `share` of the draws of look-alikes, of each seed one more or less; the teacher refuses none of them.
    """
    kinds = ["plain"] * 200 + ["harmful"] * 20 + ["alike"] * n_alike
    most = [round(4 * share) + (i % 2 * 2 - 1 if k == "alike" else 0) for i, k in enumerate(kinds)]
    refused = [
        float(k == "harmful" or (k == "alike" and j < m)) for k, m in zip(kinds, most, strict=True) for j in range(4)
    ]
    each = [k for k in kinds for _ in range(4)]
    return _paired(
        len(kinds), scenario=["x" if k == "plain" else "y" for k in each],
        teacher_refused=[float(k == "harmful") for k in each], student_refused=refused,
        should_refuse=[k == "harmful" for k in each],
    )  # fmt: skip


def test_look_alikes_fail_a_slice_by_themselves() -> None:
    """Half of 20 look-alikes' draws refused is 4.5% of all harmless ones, inside the band, and fails: 0.5 on 20 seeds.

    By hand: d alternates 1/4 and 3/4, se = 0.2565 / sqrt(20) = 0.0574, t = (0.5 - 0.1) / 0.0574 = 6.97 at 19 degrees
    of freedom, p = 6e-7, doubled as there are two ways to fail.
    """
    row = _judge(_look_alikes(20, 0.5), "over_refusal").row(0, named=True)
    assert (row["contrast"], row["verdict"], row["n_seeds"]) == ("over-refusal of look-alikes", "fail", 20)
    assert row["estimate"] == pytest.approx(0.5)
    assert row["p_fail"] == pytest.approx(1.2e-6, rel=0.1)


def test_too_few_look_alikes_are_judged_with_the_others() -> None:
    """19 look-alikes refused as often make no row of their own: the mean over all harmless prompts passes."""
    rows = _judge(_look_alikes(19, 0.5), "over_refusal")
    assert rows.select("contrast", "verdict", "n_seeds").rows() == [("over-refusal", "pass", 219)]


def test_look_alikes_that_may_lie_inside_hold_nothing_up() -> None:
    """Look-alikes whose own mean isn't surely outside leave the verdict to all harmless prompts, which pass."""
    agree = _look_alikes(20, 0.5).with_columns(student_refused=pl.col("teacher_refused"))
    rows = _judge(agree, "over_refusal")
    assert rows.select("contrast", "verdict", "n_seeds", "p_fail").rows() == [("over-refusal", "pass", 220, 1.0)]


def test_token_kl_is_the_teachers_column_alone() -> None:
    """The mean over seeds of nats per token, judged against 0.1 from above only."""
    d = 0.3 + 0.1 * np.array([1.0, -1.0] * 30)
    row = _judge(_paired(teacher_token_kl=np.repeat(d, 4)), "kl").row(0, named=True)
    assert (row["estimate"], row["verdict"], row["side"]) == (pytest.approx(0.3), "fail", "upper")
    assert _judge(_paired(teacher_token_kl=np.repeat(d - 0.3, 4)), "kl")["verdict"].to_list() == ["pass"]


def test_cost_informs_and_decides_nothing() -> None:
    """A student fifty times cheaper is 0.02, verdict pass without a band, whatever its number; and no p enters Holm."""
    paired = _paired(teacher_gpu_s=np.full(240, 5.0), student_gpu_s=np.full(240, 0.1))
    result = judge(paired, CELLS.filter(pl.col("slice") == "a"), GateSettings(), candidate=1)
    cost = result.rows.filter(pl.col("metric") == "cost").row(0, named=True)
    assert (cost["estimate"], cost["band"], cost["verdict"], cost["p_holm"]) == (
        pytest.approx(0.02),
        None,
        "pass",
        None,
    )
    assert result.slices["worst"][0].startswith("outcome")


def test_fails_are_adjusted_by_holm_over_all_rows_of_the_gate() -> None:
    """A row with p = 0.03 fails alone and not beside 20 others; its interval does not change."""
    d = 2.0 + np.array([1.0, -1.0] * 30) * 1.0
    se = math.sqrt(60 / 59 / 60)
    shift = float(stats.t.isf(0.03, 59)) * se  # p = 0.03 against the band of 2
    paired = _paired(**_both("planner_progress_m", d + shift))
    cells = CELLS.filter(pl.col("slice") == "a")
    alone = judge(
        paired.rename({"teacher_planner_progress_m": "teacher_drift", "student_planner_progress_m": "student_drift"}),
        cells, GateSettings(metrics=("drift",)), candidate=1,
    ).rows.row(0, named=True)  # fmt: skip
    assert (alone["p_holm"], alone["verdict"]) == (pytest.approx(0.03, rel=1e-6), "fail")
    others = [
        _paired(20, name=f"s{i:02d}", **_both("planner_progress_m", np.array([1.0, -1.0] * 10))) for i in range(20)
    ]
    many = pl.concat([paired, *others]).rename(
        {"teacher_planner_progress_m": "teacher_drift", "student_planner_progress_m": "student_drift"}
    )
    cells = many.select("slice").unique().with_columns(band=pl.lit(0.1))
    row = judge(many, cells, GateSettings(metrics=("drift",)), candidate=1).rows.row(0, named=True)
    assert (row["p_holm"], row["verdict"]) == (pytest.approx(21 * 0.03, rel=1e-6), "undecided")
    assert row["low"] == pytest.approx(alone["low"])


def test_a_slice_is_its_worst_row_and_the_gate_its_worst_slice() -> None:
    """Fail before undecided before pass; the slice names the row that decided."""
    good, bad = np.array([0.1, -0.1] * 30), np.full(60, 5.0) + np.array([0.1, -0.1] * 30)
    paired = pl.concat(
        [_paired(name="a", **_both("coherence_m", good)), _paired(name="b", **_both("coherence_m", bad))]
    )
    result = judge(paired, CELLS, GateSettings(metrics=("outcome", "coherence")), candidate=1)
    assert result.slices.select("slice", "verdict", "n_rows").rows() == [("a", "pass", 2), ("b", "fail", 2)]
    assert (result.verdict, result.passed, result.failed, result.undecided) == ("fail", ["a"], ["b"], [])
    assert result.slices["worst"][1] == "coherence: coherence_m"
    assert result.rows.schema == pl.Schema(ROW_SCHEMA)


def test_a_slice_without_draws_is_undecided() -> None:
    """The cells know slice b, and nobody drew there: the gate can't pass. An infeasible slice is none."""
    result = judge(_paired(), CELLS, GateSettings(metrics=("outcome",)), candidate=1)
    assert (result.verdict, result.undecided) == ("undecided", ["b"])
    assert result.rows.filter(pl.col("slice") == "b")["reason"].to_list() == ["no gate draws"]
    feasible = CELLS.with_columns(feasible=pl.col("slice") == "a")
    assert judge(_paired(), feasible, GateSettings(metrics=("outcome",)), candidate=1).verdict == "pass"
    nothing = judge(_paired().clear(), CELLS.clear(), GateSettings(), candidate=1)
    assert (nothing.verdict, nothing.rows.height) == ("undecided", 0)


def test_a_slice_that_nothing_was_asked_of_is_undecided() -> None:
    """Cost alone judges nothing, and refusal is not about prompts that should all be answered: never a pass."""
    paired = _paired(
        teacher_gpu_s=np.ones(240), student_gpu_s=np.ones(240), teacher_refused=np.zeros(240),
        student_refused=np.zeros(240), should_refuse=[False] * 240,
    )  # fmt: skip
    cells = CELLS.filter(pl.col("slice") == "a")
    for metric in ("cost", "refusal"):
        result = judge(paired, cells, GateSettings(metrics=(metric,)), candidate=1)
        assert (result.verdict, result.undecided) == ("undecided", ["a"])
        assert result.rows["reason"][-1] == "no metric that was asked for is about this slice"


def test_features_may_come_as_lists_or_arrays() -> None:
    """A fixed-size array column and a list column of the same numbers give the same rows."""
    rng = np.random.default_rng(5)
    lists = {f"{s}_feature": pl.Series(rng.normal(size=(240, 3)).tolist()) for s in ("teacher", "student")}
    arrays = {name: values.cast(pl.Array(pl.Float64, 3)) for name, values in lists.items()}
    assert _judge(_paired(**arrays), "spread", "distance").equals(_judge(_paired(**lists), "spread", "distance"))


def test_the_tightest_band_of_a_slice_is_the_outcomes() -> None:
    """Slice a has cells at 0.1 and 0.2; bands of other metrics come from the table or the settings."""
    paired = _paired(**_both("coherence_m", np.array([0.1, -0.1] * 30)))
    rows = _judge(paired, "outcome", "coherence", bands={"coherence": 0.33})
    assert rows["band"].to_list() == [0.1, 0.33]


def test_later_candidates_are_held_to_less_alpha() -> None:
    """The tenth candidate's interval is that of 0.05 / 110, and what passed as the first is undecided now."""
    d = 1.6 + np.array([1.0, -1.0] * 30)
    paired, cells = _paired(**_both("planner_progress_m", d)), CELLS.filter(pl.col("slice") == "a")
    first, tenth = (
        judge(paired, cells, GateSettings(metrics=("planner",)), candidate=c).rows.row(2, named=True) for c in (1, 10)
    )
    assert (first["verdict"], tenth["verdict"]) == ("pass", "undecided")
    assert tenth["high"] == pytest.approx(1.6 + stats.t.isf(0.05 / 110, 59) * math.sqrt(1 / 59))


def test_a_gate_knows_nothing_of_order() -> None:
    """Shuffled rows give the same table, to the bit."""
    rng = np.random.default_rng(4)
    columns = {
        f"{s}_{c}": rng.random(240) for s in ("teacher", "student") for c in ("coherence_m", "planner_progress_m")
    }
    features = {f"{s}_feature": pl.Series(rng.normal(size=(240, 3)).tolist()) for s in ("teacher", "student")}
    paired = _paired(**columns, **features)
    cells = CELLS.filter(pl.col("slice") == "a")
    straight = judge(paired, cells, GateSettings(), candidate=2)
    shuffled = judge(paired.sample(fraction=1.0, shuffle=True, seed=3), cells, GateSettings(), candidate=2)
    assert straight.rows.equals(shuffled.rows)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"metrics": ("outcomes",)}, r"no metric 'outcomes'. Did you mean 'outcome'"),
        ({"metrics": ()}, "would pass everything"),
        ({"bands": {"kll": 0.1}}, r"no metric 'kll'. Did you mean 'kl'"),
        ({"bands": {"outcome": 0.1}}, "the slice's own"),
        ({"bands": {"cost": 0.1}}, "information only"),
        ({"bands": {"kl": math.nan}}, "kl = nan must be a number above 0"),
        ({"bands": {"recall": 1.0}}, "recall = 1 must be above 0 and below 1"),
        ({"alpha": 0.5}, "alpha = 0.5"),
        ({"power": 1.0}, "power = 1"),
        ({"min_seeds": 1}, "min_seeds = 1"),
    ],
)
def test_settings_that_cannot_hold_are_refused(settings: dict[str, object], reason: str) -> None:
    """Each says which name or number is wrong."""
    with pytest.raises(DistdataError, match=reason):
        GateSettings(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda p: p.drop("scenario"), "lack scenario"),
        (lambda p: pl.concat([p, p.head(1)]), "1 paired draws have a seed and k that another one has"),
        (lambda p: p.with_columns(slice=pl.lit("z")), "slice z, of which no feasible cell is known"),
        (lambda p: p.with_columns(k=pl.lit(None, dtype=pl.Int64)), "240 paired draws have no k"),
    ],
)
def test_draws_that_cannot_be_paired_are_refused(change: object, reason: str) -> None:
    """What is wrong with the frame is said with its number."""
    with pytest.raises(DistdataError, match=reason):
        judge(change(_paired()), CELLS, GateSettings(), candidate=1)  # type: ignore[operator]
