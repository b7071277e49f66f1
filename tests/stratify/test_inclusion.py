"""The weights of draws recover the fleet's mean: exactly, over all orders of small frames, and by simulation."""

from itertools import permutations

import numpy as np
import polars as pl
import pytest

from distdata.catalogs.frames import candidates_of
from distdata.catalogs.macros import ALL_COUNTED
from distdata.stratify.budget import parse_budget
from distdata.stratify.draws import find_credits, take_fresh
from distdata.stratify.frame import build_frame
from distdata.stratify.inclusion import Inclusion, inclusion
from distdata.stratify.plan import make_plan
from distdata.stratify.request import Plan, PlanRequest, Rates


def _cells(shares: list[float], bands: list[float]) -> pl.DataFrame:
    n = len(shares)
    return pl.DataFrame(
        {
            "cell_id": pl.Series(range(n), dtype=pl.Int32),
            "cell": [f"s{i}/x" for i in range(n)],
            "slice": [f"s{i}" for i in range(n)],
            "scenario": ["x"] * n,
            "layer": ["core"] * n,
            "feasible": [True] * n,
            "band": bands,
            "fleet_share": shares,
            "k": pl.Series([8] * n, dtype=pl.Int32),
        }
    )


def _seeds(cell: list[int], k: list[int], prn: list[float]) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "seed_id": [f"x{i:03d}" for i in range(len(cell))],
            "cell_id": pl.Series(cell, dtype=pl.Int32),
            "grp": [f"g{i}" for i in range(len(cell))],
            "split": ["train"] * len(cell),
            "prn": prn,
            "decision_point": [value > 1 for value in k],
            "k": pl.Series(k, dtype=pl.Int32),
        }
    )


def _plan(
    cells: pl.DataFrame, seeds: pl.DataFrame, budget: int, bought: pl.DataFrame | None = None, floor: int = 0
) -> Plan:
    request = PlanRequest(
        purpose="train", budget=parse_budget(f"{budget}samples"), held_out=(), floor_seeds=floor, min_groups=0
    )
    owned = pl.DataFrame(schema={"seed_id": pl.String, "k": pl.Int32}) if bought is None else bought
    return make_plan(request, cells, seeds, owned, Rates(usd=0.0, gpu_s=1.0))


def _estimate(plan: Plan, value: dict[str, float]) -> float:
    """Add up weight x value over all draws of the corpus, a seed's draws all alike."""
    return sum(w * n * value[seed] for seed, w, n in plan.seeds.select("seed_id", "weight", "k_total").iter_rows())


def _plain_estimate(plan: Plan, value: dict[str, float]) -> float:
    """Weigh every seed touched alike, as if m of N were a simple random sample whatever K is (one cell)."""
    return float(np.mean([value[seed] for seed in plan.seeds["seed_id"]]))


K_MIXED = [1, 4, 1, 8, 2, 1]
VALUES = {f"x{i:03d}": float(v) for i, v in enumerate([0.0, 5.0, 1.0, 9.0, 3.0, 2.0])}  # larger where K is


def _check_all_orders(n: int, budget: int) -> None:
    """Average over the n! orders of the first n seeds: ours is exact, equal weights are not."""
    truth = sum(list(VALUES.values())[:n]) / n
    estimates, plain = [], []
    for order in permutations(range(n)):
        prn = [0.1 * (place + 1) for place in order]
        plan = _plan(_cells([1.0], [0.1]), _seeds([0] * n, K_MIXED[:n], prn), budget)
        estimates.append(_estimate(plan, VALUES))
        plain.append(_plain_estimate(plan, VALUES))
    assert np.mean(estimates) == pytest.approx(truth, abs=1e-12)
    if 2 <= budget < sum(K_MIXED[:n]) - max(K_MIXED[:n]):  # at 1 draw one seed is touched, near the end all are
        assert abs(np.mean(plain) - truth) > 0.02


@pytest.mark.parametrize("budget", [1, 2, 5, 6, 9, 13, 14])
def test_unbiased_over_all_orders_with_mixed_k(budget: int) -> None:
    """Averaged over all 24 orders of four seeds with K 1, 4, 1 and 8, the estimate is the mean to the last digit."""
    _check_all_orders(4, budget)


@pytest.mark.prove
@pytest.mark.parametrize("budget", range(1, 18))
def test_unbiased_over_all_orders_of_six_seeds(budget: int) -> None:
    """The same over all 720 orders of six seeds, for every budget up to all 17 draws."""
    _check_all_orders(6, budget)


def test_equal_k_gives_the_simple_random_sample() -> None:
    """With equal K, pi is m/N and a draw weighs f / (N pi K), the last seed by the draws that it got."""
    plan = _plan(_cells([1.0], [0.1]), _seeds([0] * 5, [4] * 5, [0.5, 0.1, 0.3, 0.2, 0.4]), 10)
    assert plan.seeds["seed_id"].to_list() == ["x001", "x003", "x002"]
    assert plan.seeds["k_total"].to_list() == [4, 4, 2]
    np.testing.assert_allclose(plan.seeds["pi"].to_numpy(), 3 / 5)
    np.testing.assert_allclose(plan.seeds["weight"].to_numpy(), [1 / 12, 1 / 12, 1 / 6])


def test_murthys_weights_by_hand() -> None:
    """K 1, 1, 4 and 3 draws: the seed of 4 must have come last (without it 2 < 3), so it stands for nothing."""
    seeds = _seeds([0] * 4, [1, 1, 4, 1], [0.1, 0.2, 0.3, 0.4])
    plan = _plan(_cells([1.0], [0.1]), seeds, 3)
    # m = 3, l = 1: shares 1/2, 1/2 and 0, over K 1, 1 and the 1 draw that was bought
    np.testing.assert_allclose(plan.seeds["weight"].to_numpy(), [1 / 2, 1 / 2, 0])
    # all seven draws: every seed could have been last, shares 1/4, K 1 1 4 1
    full = _plan(_cells([1.0], [0.1]), seeds, 7)
    np.testing.assert_allclose(full.seeds["weight"].to_numpy(), [1 / 4, 1 / 4, 1 / 16, 1 / 4])


def test_a_grown_plan_weighs_like_one_bought_at_once() -> None:
    """Buying 7 and then up to 12 draws gives the corpus the weights of 12 bought together."""
    cells = _cells([0.7, 0.3], [0.1, 0.05])
    seeds = _seeds([0, 1] * 6, [1, 4, 2, 8, 1, 1, 4, 2, 1, 4, 1, 8], [((i * 7) % 12) / 12 for i in range(12)])
    small = _plan(cells, seeds, 7)
    grown, at_once = _plan(cells, seeds, 12, small.draws), _plan(cells, seeds, 12)
    assert small.n_fresh + grown.n_fresh == 12
    columns = ["seed_id", "k_total", "pi", "weight"]
    assert grown.seeds.select(columns).equals(at_once.seeds.select(columns))


@pytest.mark.parametrize("budget", [1, 2, 4])
def test_byproducts_stand_for_themselves_over_all_orders(budget: int) -> None:
    """A seed that somebody chose for its large value leaves the estimate unbiased, over all 120 orders of the rest."""
    byproducts = pl.DataFrame({"seed_id": ["x001"] * 4, "k": [0, 1, 2, 3], "planned": [False] * 4})
    estimates = []
    for order in permutations(range(5)):
        seeds = _seeds([0] * 5, [1, 4, 1, 2, 2], [0.1 * (place + 1) for place in order])
        plan = _plan(_cells([1.0], [0.1]), seeds, 4 + budget, byproducts)
        assert plan.n_fresh == budget
        estimates.append(_estimate(plan, VALUES))
    assert np.mean(estimates) == pytest.approx((0 + 5 + 1 + 9 + 3) / 5, abs=1e-12)


def test_byproducts_alone_stand_for_nobody() -> None:
    """Where nothing but byproducts exists they weigh 0, unless others chose all seeds of the cell."""
    byproducts = pl.DataFrame({"seed_id": ["x000", "x001", "x001"], "k": [0, 0, 1], "planned": [False] * 3})
    plan = _plan(_cells([1.0], [0.1]), _seeds([0] * 4, [4] * 4, [0.1, 0.2, 0.3, 0.4]), 3, byproducts)
    assert plan.n_fresh == 0
    np.testing.assert_allclose(plan.seeds["weight"].to_numpy(), [0, 0])
    assert plan.seeds["k_counted"].to_list() == [ALL_COUNTED] * 2
    whole = _plan(_cells([1.0], [0.1]), _seeds([0] * 2, [4] * 2, [0.1, 0.2]), 3, byproducts)
    np.testing.assert_allclose(whole.seeds["weight"].to_numpy(), [1 / 2, 1 / 4])
    np.testing.assert_allclose(whole.seeds["pi"].to_numpy(), 1)


def _simulate(n_plans: int, seed: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Draw plans over three skewed cells with mixed K; return weighted and unweighted estimates, and the truth."""
    rng = np.random.default_rng(seed)
    cell = np.repeat([0, 1, 2], [60, 25, 12])
    k = np.where(rng.random(97) < 0.3, 8, 1)
    mean = cell * 2.0 + (k > 1) * 3.0 + rng.normal(size=97)  # decision points and rare cells differ
    shares = [0.9, 0.09, 0.01]
    truth = sum(share * mean[cell == h].mean() for h, share in enumerate(shares))
    cells = _cells(shares, [0.1, 0.05, 0.1])
    weighted, unweighted = np.empty(n_plans), np.empty(n_plans)
    for i in range(n_plans):
        plan = _plan(cells, _seeds(cell.tolist(), k.tolist(), rng.random(97).tolist()), 80, floor=2)
        at = plan.draws["seed_id"].str.slice(1).cast(pl.Int64).to_numpy()
        y = mean[at] + rng.normal(size=len(at))  # noise of the single draw
        weighted[i] = (plan.draws["weight"].to_numpy() * y).sum()
        unweighted[i] = y.mean()
    return weighted, unweighted, float(truth)


@pytest.mark.parametrize("n_plans", [300, pytest.param(4000, marks=pytest.mark.prove)])
def test_weights_recover_the_fleet_mean(n_plans: int) -> None:
    """Over simulated plans the weighted mean is within 4 standard errors of the truth; the plain mean is far off.

    False alarm 6e-5 for a normal mean; seeds are fixed. The unweighted mean must fail the same check, or it proves
    nothing.
    """
    weighted, unweighted, truth = _simulate(n_plans, seed=11)
    standard_error = weighted.std(ddof=1) / np.sqrt(n_plans)
    assert abs(weighted.mean() - truth) < 4 * standard_error
    assert abs(unweighted.mean() - truth) > 4 * unweighted.std(ddof=1) / np.sqrt(n_plans)


NOTHING = pl.DataFrame(schema={"seed_id": pl.String, "k": pl.Int32})


def _include(
    k: list[int],
    prn: list[float],
    n_fresh: int,
    *,
    walk: int,
    size: list[float] | None = None,
    bought: pl.DataFrame = NOTHING,
    adaptive: bool = False,
    blocked: list[str] | None = None,
) -> tuple[list[str], Inclusion]:
    """Take `n_fresh` draws of one cell; return the touched seeds and their inclusion."""
    seeds = _seeds([0] * len(k), k, prn).with_columns(decision_point=pl.lit(True))
    if size is not None:
        seeds = seeds.with_columns(size=pl.Series(size))
    one = np.ones(1, dtype=np.bool_)
    frame = build_frame(
        candidates_of(seeds, "train"), np.zeros(1, np.int32), one, np.ones(1, np.int64), cell_decision=one,
        blocked=pl.Series(blocked or [], dtype=pl.String),
    )  # fmt: skip
    credits = find_credits(frame, bought)
    taken = take_fresh(frame, credits, np.array([n_fresh]))
    chance = inclusion(frame, credits, taken, walk=np.array([walk]), adaptive=adaptive)
    return frame.ids(chance.position).to_list(), chance


def _made(*draws: tuple[str, int], **columns: object) -> pl.DataFrame:
    frame = pl.DataFrame(draws, schema=NOTHING.schema, orient="row")
    return frame.with_columns(**{name: pl.lit(value) for name, value in columns.items()})


@pytest.mark.parametrize("k", [[1, 1, 1, 1, 1], [1, 4, 2, 1, 3]])
@pytest.mark.parametrize("walk", [1, 4, 7])
def test_priorities_are_the_chances_given_the_others(k: list[int], walk: int) -> None:
    """With the other four seeds held fast, a seed enters for the fraction pi of its own numbers, whatever the K's.

    100 equally spaced numbers of seed i see the fraction to 1/100; pi itself must be the same for all of them.
    """
    rng = np.random.default_rng(walk)
    size = [1.0, 2.5, 0.4, 5.0, 1.5]
    others = rng.random(5)
    for i in range(5):
        inside, chances = 0, set()
        for u in (np.arange(100) + 0.5) / 100:
            prn = [*others[:i], float(u), *others[i + 1 :]]
            seeds, chance = _include(k, prn, walk, walk=walk, size=size)
            if f"x{i:03d}" in seeds:
                inside += 1
                at = seeds.index(f"x{i:03d}")
                chances.add(round(float(chance.pi[at]), 12))
                assert chance.share[at] == pytest.approx(1 / (5 * chance.pi[at]))
        if inside:  # never, where the others complete the walk below all of its ranks
            assert len(chances) == 1
            assert inside / 100 == pytest.approx(chances.pop(), abs=1.01 / 100)


def test_priority_sampling_by_hand() -> None:
    """Ranks 0.1, 0.2, 0.4, 0.6 and three draws: the threshold is the fourth rank (Duffield, Lund, Thorup)."""
    seeds, chance = _include([1] * 4, [0.2, 0.2, 0.2, 0.6], 3, walk=3, size=[2.0, 1.0, 0.5, 1.0])
    assert seeds == ["x000", "x001", "x002"]
    # pi = min(1, size x 0.6); share = 1 / (4 pi)
    np.testing.assert_allclose(chance.pi, [1.0, 0.6, 0.3])
    np.testing.assert_allclose(chance.share, [1 / 4, 1 / 2.4, 1 / 1.2])


def test_a_walk_through_everything_is_certain() -> None:
    """When all draws are bought every seed stands for itself, sized or not."""
    for size in (None, [2.0, 1.0, 0.5]):
        _, chance = _include([1, 4, 2], [0.5, 0.1, 0.9], 7, walk=7, size=size)
        np.testing.assert_allclose(chance.pi, 1.0)
        np.testing.assert_allclose(chance.share, 1 / 3)


def test_sizes_that_do_not_differ_are_no_sizes() -> None:
    """A cell whose seeds all have size 3 is weighed as one without sizes."""
    prn = [0.5, 0.1, 0.9, 0.3]
    _, plain = _include([1, 4, 2, 1], prn, 4, walk=4)
    _, same = _include([1, 4, 2, 1], prn, 4, walk=4, size=[3.0] * 4)
    np.testing.assert_allclose(same.share, plain.share)


def test_adaptive_draws_do_not_count() -> None:
    """A refresh goes on where the walk stopped: its draws get no share, the walk's keep theirs."""
    prn = [0.1, 0.2, 0.3, 0.4, 0.5]
    walked = _made(*[(f"x00{i}", k) for i in range(2) for k in range(2)])
    seeds, chance = _include([2] * 5, prn, 4, walk=8, bought=walked, adaptive=True)
    assert seeds == ["x000", "x001", "x002", "x003"]
    assert chance.k_counted.tolist() == [2, 2, 0, 0]
    np.testing.assert_allclose(chance.share, [1 / 2, 1 / 2, 0, 0])
    np.testing.assert_allclose(chance.pi, [2 / 5, 2 / 5, 0, 0])
    assert chance.n_counted.tolist() == [2, 2, 0, 0]


def test_a_refresh_does_not_finish_the_last_seed_of_the_walk() -> None:
    """The walk gave 1 of 4 draws of its second seed; the refresh's other three don't count."""
    walked = _made(*[("x000", k) for k in range(4)], ("x001", 0))
    _, chance = _include([4] * 5, [0.1, 0.2, 0.3, 0.4, 0.5], 3, walk=8, bought=walked, adaptive=True)
    assert chance.k_counted.tolist() == [4, 1]
    assert chance.k_total.tolist() == [4, 4]
    assert chance.n_counted.tolist() == [4, 1]


def test_a_later_plan_takes_in_what_its_walk_reaches() -> None:
    """Of four seeds bought after looking, a walk of 7 draws takes in one whole and half of another."""
    walked = _made(*[(f"x00{i}", k) for i in range(2) for k in range(2)])
    extra = _made(*[(f"x00{i}", k) for i in range(2, 6) for k in range(2)], walk=False)
    bought = pl.concat([walked.with_columns(walk=pl.lit(True)), extra])
    _, chance = _include([2] * 8, [0.1 * (i + 1) for i in range(8)], 0, walk=7, bought=bought)
    assert chance.k_counted.tolist() == [2, 2, 2, 1, 0, 0]
    np.testing.assert_allclose(chance.share, [1 / 4] * 4 + [0, 0])
    # and the next plan, smaller, does not give it back
    kept = bought.with_columns(
        walk=pl.struct("seed_id", "k").is_in(pl.concat([walked, extra.drop("walk")[:3]]).to_struct())
    )
    _, again = _include([2] * 8, [0.1 * (i + 1) for i in range(8)], 0, walk=2, bought=kept)
    assert again.k_counted.tolist() == [2, 2, 2, 1, 0, 0]


def test_a_refresh_begins_the_walk_of_an_empty_cell() -> None:
    """Where nothing was drawn before, how many draws come can't depend on what they said: they count."""
    _, chance = _include([2] * 4, [0.1, 0.2, 0.3, 0.4], 4, walk=4, adaptive=True)
    np.testing.assert_allclose(chance.share, [1 / 2, 1 / 2])
    assert chance.k_counted.tolist() == [2, 2]


def test_holes_are_filled_inside_the_walk() -> None:
    """Rejected draws keep their place in the walk, and the k's that replace them count: 2 and 3 for 0 and 1."""
    draws = _made(("x000", 0), ("x000", 1), ("x001", 0), ("x001", 1))
    rejected = draws.with_columns(
        state=pl.when(pl.col("seed_id") == "x000").then(pl.lit("rejected")).otherwise(pl.lit("kept"))
    )
    # no new draws yet: the walk still has both seeds, and only the second carries draws
    _, before = _include([2] * 4, [0.1, 0.2, 0.3, 0.4], 0, walk=2, bought=rejected)
    np.testing.assert_allclose(before.share, [1 / 2, 1 / 2])
    assert before.n_counted.tolist() == [0, 2]
    _, after = _include([2] * 4, [0.1, 0.2, 0.3, 0.4], 2, walk=4, bought=rejected)
    assert after.k_counted.tolist() == [4, 2]
    assert after.n_counted.tolist() == [2, 2]
    np.testing.assert_allclose(after.share, [1 / 2, 1 / 2])


def test_certain_seeds_count_whole() -> None:
    """A byproduct's seed carries 1/N with all its draws, whatever their numbers, and the walk stands for the rest."""
    seeds, chance = _include([2] * 4, [0.1, 0.2, 0.3, 0.4], 2, walk=3, bought=_made(("x000", 1000), planned=False))
    assert seeds == ["x000", "x001"]
    assert chance.k_counted.tolist() == [ALL_COUNTED, 2]
    np.testing.assert_allclose(chance.share, [1 / 4, 3 / 4])
    np.testing.assert_allclose(chance.pi, [1.0, 1 / 3])


def test_blocked_seeds_stand_for_nothing() -> None:
    """A seed that may not be bought is outside the frame, with the draws that it has."""
    seeds, chance = _include([2] * 3, [0.1, 0.2, 0.3], 2, walk=2, bought=_made(("x000", 0)), blocked=["x000"])
    assert seeds == ["x000", "x001"]
    np.testing.assert_allclose(chance.share, [0, 1])
    np.testing.assert_allclose(chance.pi, [0, 1 / 2])
    assert chance.k_counted.tolist() == [0, 2]


def test_seeds_imported_later_wait_for_their_turn() -> None:
    """A new seed in the middle of an old walk, not bought yet, leaves the old seeds their equal shares."""
    old = _made(("x000", 0), ("x002", 0))
    seeds, chance = _include([1] * 4, [0.1, 0.2, 0.3, 0.4], 0, walk=0, bought=old)
    assert seeds == ["x000", "x002"]
    np.testing.assert_allclose(chance.share, [1 / 2, 1 / 2])
