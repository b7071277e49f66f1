"""What a band 10% tighter costs: by hand, against a plan with that band, and where it is not to be had."""

from typing import Any

import polars as pl
import pytest

from distdata.stratify.budget import parse_budget
from distdata.stratify.minima import GateAims
from distdata.stratify.plan import make_plan
from distdata.stratify.request import Plan, PlanRequest, Rates

NOTHING = pl.DataFrame(schema={"seed_id": pl.String, "k": pl.Int32})


def _plan(budget: str | None, n_seeds: list[int], band: list[float], **changes: Any) -> Plan:
    """Plan one cell per slice, K 1, 0.50 dollars and 36 s a draw."""
    n = len(band)
    cells = pl.DataFrame(
        {
            "cell_id": pl.Series(range(n), dtype=pl.Int32),
            "cell": [f"s{i}/x" for i in range(n)],
            "slice": [f"s{i}" for i in range(n)],
            "scenario": ["x"] * n,
            "layer": changes.pop("layer", ["core"] * n),
            "feasible": [True] * n,
            "band": band,
            "fleet_share": [1 / n] * n,
            "k": pl.Series([1] * n, dtype=pl.Int32),
        }
    ).with_columns(pl.Series(name, values, dtype=pl.Int64) for name, values in changes.pop("rules", {}).items())
    bought = changes.pop("bought", NOTHING)
    rules = {"purpose": "train", "held_out": (), "floor_seeds": 0, "min_groups": 0} | changes
    request = PlanRequest(budget=parse_budget(budget) if budget else None, **rules)
    split = "gate" if request.purpose == "gate" else "train"
    rows = [(f"c{c}-{i}", c, f"g{c}-{i}", split, (i + 0.5) / m) for c, m in enumerate(n_seeds) for i in range(m)]
    schema = {"seed_id": pl.String, "cell_id": pl.Int32, "grp": pl.String, "split": pl.String, "prn": pl.Float64}
    seeds = pl.DataFrame(rows, schema=schema, orient="row").with_columns(
        decision_point=pl.lit(False), k=pl.lit(None, dtype=pl.Int32)
    )
    return make_plan(request, cells, seeds, bought, Rates(usd=0.5, gpu_s=36.0))


def test_a_price_by_hand() -> None:
    """Weights 1 and 4 of 1,000: 200 and 800; (1 / 0.9)^2 = 1.2346 times as much is 247 and 988.

    The next sample has priority 1 / 200.5 or 4 / 800.5 (the larger: 0.0049969); counts are ceil(1.2346 / 0.0049969 -
    0.5) = ceil(246.57) = 247 and ceil(4.9383 / 0.0049969 - 0.5) = ceil(987.77) = 988.
    """
    plan = _plan("1000samples", [2000, 2000], [0.1, 0.05])
    assert plan.cells["target"].to_list() == [200, 800]
    assert plan.prices.rows(named=True) == [
        {"slice": "s0", "band": 0.1, "n_samples": 47, "n_draws": 47, "n_missing": 0, "usd": 23.5, "gpu_s": 1692.0},
        {"slice": "s1", "band": 0.05, "n_samples": 188, "n_draws": 188, "n_missing": 0, "usd": 94.0, "gpu_s": 6768.0},
    ]


def test_a_price_is_what_a_plan_with_that_band_takes() -> None:
    """Planning with the tighter band, and as many samples more as the price says, leaves the other cells alone."""
    bands, seeds = [0.1, 0.07, 0.03], [5000] * 3
    plan = _plan("3000samples", seeds, bands)
    for i in range(3):
        sharper = [b * 0.9 if j == i else b for j, b in enumerate(bands)]
        more = plan.prices["n_samples"][i]
        other = _plan(f"{3000 + more}samples", seeds, sharper)
        expected = [t + (more if j == i else 0) for j, t in enumerate(plan.cells["target"])]
        assert other.cells["target"].to_list() == expected


def test_layers_have_levels_of_their_own() -> None:
    """With half of 1,000 to each of two layers the price is that of two plans of 500, one for each layer.

    Core: weights 1 and 4 of 500: 100 and 400; next 4 / 400.5: 1.2346 / 0.0099875 - 0.5 = 123.1, so 124, and 4.9383 /
    0.0099875 - 0.5 = 493.95, so 494. Long tail: 250 each, next 1 / 250.5: 1.2346 x 250.5 - 0.5 = 308.8, so 309.
    """
    bands = [0.1, 0.05, 0.1, 0.1]
    shares = {"core": 0.5, "long_tail": 0.5}
    layer = ["core", "core", "long_tail", "long_tail"]
    plan = _plan("1000samples", [2000] * 4, bands, layer=layer, layers=shares)
    assert plan.cells["target"].to_list() == [100, 400, 250, 250]
    assert plan.prices["n_samples"].to_list() == [24, 94, 59, 59]


def test_seeds_that_run_out_are_counted_as_missing() -> None:
    """With 850 seeds, 50 of the 188 samples more can be had; with 800 none; a cap or a pin holds likewise.

    With 800 the next sample is the other cell's, 1 / 200.5: 4.9383 x 200.5 - 0.5 = 989.6, 190 more.
    """
    short = _plan("1000samples", [2000, 850], [0.1, 0.05]).prices.row(1, named=True)
    assert (short["n_samples"], short["n_draws"], short["n_missing"]) == (50, 50, 138)
    none = _plan("1000samples", [2000, 800], [0.1, 0.05]).prices.row(1, named=True)
    assert (none["n_samples"], none["n_missing"]) == (0, 190)
    capped = _plan("1000samples", [2000, 2000], [0.1, 0.05], rules={"cap": [None, 850]}).prices.row(1, named=True)
    assert (capped["n_samples"], capped["n_missing"]) == (50, 138)
    pinned = _plan("1000samples", [2000, 2000], [0.1, 0.05], rules={"pin": [None, 800]}).prices.row(1, named=True)
    assert (pinned["n_samples"], pinned["n_missing"]) == (0, 0)


def test_what_exists_is_not_priced() -> None:
    """Draws that are there already pay for a tighter band: of 47 more samples 30 exist beyond the target."""
    bought = pl.DataFrame({"seed_id": [f"c0-{i}" for i in range(230)], "k": [0] * 230})
    price = _plan("1000samples", [2000, 2000], [0.1, 0.05], bought=bought).prices.row(0, named=True)
    assert (price["n_samples"], price["n_draws"]) == (47, 17)


@pytest.mark.parametrize("policy", ["uniform", "fleet", "neyman"])
def test_policies_without_bands_have_no_price(policy: str) -> None:
    """Where bands don't count, a tighter one costs nothing."""
    plan = _plan("1000samples", [2000, 2000], [0.1, 0.05], policy=policy)
    assert plan.prices.select("n_samples", "n_missing", "usd").rows() == [(0, 0, 0.0)] * 2


def test_a_gate_s_price_is_its_larger_minimum() -> None:
    """Two gates, sigma 0.1: 88 draws at 0.1 and 108.2, so 109 at 0.09; the second slice has 100 seeds, 9 too few.

    2 x 0.01 x (2 x 1.64485)^2 = 0.21645; over 0.05^2 and 0.045^2: 86.58 and 106.89, and 1.353 each.
    """
    rules = {"purpose": "gate", "held_out": ("gate",), "aims": GateAims(sigma=0.1)}
    plan = _plan(None, [500, 100], [0.1, 0.1], **rules)
    assert plan.cells["target"].to_list() == [88, 88]
    assert plan.prices.select("slice", "n_samples", "n_draws", "n_missing", "usd").rows() == [
        ("s0", 21, 21, 0, 10.5),
        ("s1", 12, 12, 9, 6.0),
    ]


def test_everything_bought_still_has_a_price() -> None:
    """When all seeds are used, the tighter band's samples are all missing: 1.2346 x 10 = 12.3, 3 of them."""
    plan = _plan("50samples", [10, 10], [0.1, 0.1])
    assert plan.prices.select("n_samples", "n_missing").rows() == [(0, 3), (0, 3)]
