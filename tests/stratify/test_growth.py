"""Refresh targets: only slices that lack coverage grow, by hand-worked numbers, and the plan buys exactly that."""

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distdata.catalogs.errors import DistdataError
from distdata.stratify.causes import REMEDIES, Cause, CauseName
from distdata.stratify.growth import as_the_fleet, refresh_goals
from distdata.stratify.learning_curves import Curves, fit_curves
from distdata.stratify.plan import make_plan
from distdata.stratify.request import PlanRequest, Rates
from distdata.stratify.training_noise import TrainingNoise

SURE = TrainingNoise(sd=0.001, df=1000)


def _cause(name: str, cause: CauseName) -> Cause:
    return Cause(slice=name, cause=cause, remedy=REMEDIES[cause], evidence=())


def _cells(slices: list[str], weights: list[float] | None = None) -> pl.DataFrame:
    n = len(slices)
    return pl.DataFrame(
        {
            "cell_id": pl.Series(range(n), dtype=pl.Int32),
            "slice": slices,
            "feasible": [True] * n,
            "weight": weights or [1.0] * n,
        }
    )


def _curves(floor: float, part: float, exponent: float, n: int, name: str = "night") -> Curves:
    """Return the curve of a slice seen without noise at eight sizes from n / 128 to n."""
    sizes = [n / 2**i for i in range(8)]
    points = pl.DataFrame(
        {"slice": [name] * 8, "n": sizes, "score": [floor + part * 2 ** (i * exponent) for i in range(8)]}
    )
    return fit_curves(points, noise=SURE)


def test_the_fleets_mix_needs_the_rarest_slices_draws() -> None:
    """40 + 30 samples without a curve double; night is 2% and rain 10% of the fleet: max(40 / 0.02, 30 / 0.1) = 2,000.

    A slice that the fleet never meets can't be had that way, and where nothing grows there is nothing to compare.
    """
    causes = [_cause("night", "coverage"), _cause("rain", "coverage")]
    growth = refresh_goals(_cells(["night", "rain"]), {0: 40, 1: 30}, causes, None)
    assert as_the_fleet(growth, {"night": 0.02, "rain": 0.1}) == 2000
    assert as_the_fleet(growth, {"night": 0.02, "rain": 0.0}) is None
    still = refresh_goals(_cells(["night"]), {0: 40}, [_cause("night", "capacity")], None)
    assert as_the_fleet(still, {"night": 0.02}) is None


def test_growth_is_what_the_curve_asks_for() -> None:
    """Score 0.9 (n / 100)^-1/2 comes down to 0.6 at 100 x (0.9 / 0.6)^2 = 225 samples: x2.25 of 40 + 60 samples.

    The grid of exponents has steps of 12%, so the size is right to a few percent. 225 samples over weights 1 : 2 are
    75 and 150.
    """
    growth = refresh_goals(
        _cells(["night", "night", "day"], [1, 2, 1]), {0: 40, 1: 60, 2: 7}, [_cause("night", "coverage")],
        _curves(0.0, 0.9, 0.5, 100),
    )  # fmt: skip
    assert growth.n_wanted == pytest.approx(125, abs=8)
    night = growth.goals["target"].to_list()
    assert night[0] / night[1] == pytest.approx(0.5, abs=0.02)
    assert (night[2], growth.goals["closed"].to_list()) == (7, [False, False, True])


@pytest.mark.parametrize(
    ("part", "floor", "total"),
    [(0.61, 0.0, 125), (3.0, 0.0, 400), (0.5, 0.9, 400)],
    ids=["at the goal already", "needs x25", "never gets there"],
)
def test_growth_is_bounded(part: float, floor: float, total: int) -> None:
    """A turn adds at least a quarter and at most three times what is there."""
    growth = refresh_goals(_cells(["night"]), {0: 100}, [_cause("night", "coverage")], _curves(floor, part, 0.5, 100))
    assert growth.goals["target"].to_list() == [total]


def test_no_curve_doubles_and_ceilings_pass_on() -> None:
    """Without a curve 10 + 10 become 40; the seeds of the first cell end at 12, so the second gets 28."""
    cells = _cells(["night", "night"]).with_columns(ceiling=pl.Series([12, 100]))
    growth = refresh_goals(cells, {0: 10, 1: 10}, [_cause("night", "coverage")], None)
    assert growth.goals["target"].to_list() == [12, 28]
    full = refresh_goals(cells.with_columns(ceiling=10), {0: 10, 1: 10}, [_cause("night", "coverage")], None)
    assert (full.n_wanted, full.goals["closed"].to_list()) == (0, [True, True])
    assert "no more than 20" in full.slices[0].why


def test_a_limit_is_shared_in_proportion() -> None:
    """Slices that want 30 and 10 more share 20 draws as 15 and 5 (Webster of 30 : 10), and say so."""
    causes = [_cause("night", "coverage"), _cause("rain", "coverage")]
    growth = refresh_goals(_cells(["night", "rain"]), {0: 30, 1: 10}, causes, None, max_draws=20)
    assert growth.goals["target"].to_list() == [45, 15]
    assert "limited to 15 more of 30" in growth.slices[0].why


@pytest.mark.parametrize("cause", ["teacher", "weighting", "capacity", "unknown"])
def test_no_other_cause_spends(cause: CauseName) -> None:
    """Every cell is closed at what it has, whatever the slice's curve would ask for."""
    growth = refresh_goals(_cells(["night", "day"]), {0: 100, 1: 3}, [_cause("night", cause)], _curves(0, 3, 0.5, 100))
    assert (growth.n_wanted, growth.slices) == (0, ())
    assert growth.goals.rows() == [(0, 100, True), (1, 3, True)]


def test_what_cant_grow_is_refused() -> None:
    """A slice without cells or without a first sample is named."""
    with pytest.raises(DistdataError, match="slice fog is to grow and has no feasible cell"):
        refresh_goals(_cells(["night"]), {0: 5}, [_cause("fog", "coverage")], None)
    with pytest.raises(DistdataError, match="slice night has no sample to grow from"):
        refresh_goals(_cells(["night"]), {}, [_cause("night", "coverage")], None)


def _plan_inputs(n_seeds: int, k: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    cells = pl.DataFrame(
        {
            "cell_id": pl.Series([0, 1], dtype=pl.Int32), "cell": ["night/x", "day/x"], "slice": ["night", "day"],
            "scenario": ["x"] * 2, "layer": ["core"] * 2, "feasible": [True] * 2, "band": [0.1] * 2,
            "fleet_share": [0.5] * 2, "k": pl.Series([k] * 2, dtype=pl.Int32),
        }
    )  # fmt: skip
    rows = [(f"c{c}-{i:03d}", c, f"g{c}-{i}", "train", (i + 0.5) / n_seeds) for c in (0, 1) for i in range(n_seeds)]
    schema = {"seed_id": pl.String, "cell_id": pl.Int32, "grp": pl.String, "split": pl.String, "prn": pl.Float64}
    seeds = pl.DataFrame(rows, schema=schema, orient="row")
    return cells, seeds.with_columns(decision_point=pl.lit(True), k=pl.lit(None, dtype=pl.Int32))


@settings(max_examples=60, deadline=None)
@given(
    k=st.integers(1, 5),
    states=st.lists(st.sampled_from(["kept", "rejected", "unverified"]), min_size=1, max_size=40),
    verified=st.integers(0, 60),
    kept_share=st.floats(0, 1),
    expected=st.floats(0.3, 1),
    said=st.integers(0, 500),
)
def test_a_closed_cell_buys_exactly_nothing(
    k: int, states: list[str], verified: int, kept_share: float, expected: float, said: int
) -> None:
    """Whatever was rejected, whatever the yield is and whatever its target says, a closed cell gets 0 draws.

    Its target becomes what its draws are worth, so that nothing is short there; the open cell beside it buys.
    """
    cells, seeds = _plan_inputs(30, k)
    kept = int(kept_share * verified)
    cells = cells.with_columns(yield_kept=pl.Series([kept, 0]), yield_verified=pl.Series([verified, 0]))
    own = [(f"c0-{i // k:03d}", i % k, state) for i, state in enumerate(states) if i // k < 30]
    bought = pl.DataFrame(own, schema={"seed_id": pl.String, "k": pl.Int32, "state": pl.String}, orient="row")
    goals = pl.DataFrame({"cell_id": [0, 1], "target": [said, 10], "closed": [True, False]})
    request = PlanRequest(purpose="train", held_out=(), top_up=True, adaptive=True, expected_yield=expected)
    plan = make_plan(request, cells, seeds, bought, Rates(usd=0.5, gpu_s=36.0), goals=goals)
    fresh, target, worth = (plan.cells[name].to_list() for name in ("fresh", "target", "worth"))
    assert fresh[0] == 0
    assert target[0] <= worth[0] + 1e-9
    assert target[0] > worth[0] - 1
    assert fresh[1] >= 10


def test_an_open_target_at_what_exists_would_buy() -> None:
    """The same target without `closed` buys where verifiers reject: that is what `closed` is for.

    4 of 8 draws verified, all rejected: yield (0 + 20) / 24 = 0.833, 4 unverified draws are worth 3.33, and 8 samples
    take ceil(8 / 0.833) - 4 = 6 more (9.6 rounded up to 10).
    """
    cells, seeds = _plan_inputs(30, 4)
    cells = cells.with_columns(yield_kept=pl.Series([0, 0]), yield_verified=pl.Series([4, 0]))
    own = [(f"c0-{i // 4:03d}", i % 4, "rejected" if i < 4 else "unverified") for i in range(8)]
    bought = pl.DataFrame(own, schema={"seed_id": pl.String, "k": pl.Int32, "state": pl.String}, orient="row")
    goals = pl.DataFrame({"cell_id": [0, 1], "target": [8, 10]})
    request = PlanRequest(purpose="train", held_out=(), top_up=True)
    open_plan = make_plan(request, cells, seeds, bought, Rates(usd=0.5, gpu_s=36.0), goals=goals)
    assert open_plan.cells["fresh"].to_list() == [6, 10]
    closed = goals.with_columns(closed=pl.Series([True, False]))
    shut = make_plan(request, cells, seeds, bought, Rates(usd=0.5, gpu_s=36.0), goals=closed)
    assert (shut.cells["fresh"].to_list(), shut.cells["target"].to_list()) == ([0, 10], [3, 10])
