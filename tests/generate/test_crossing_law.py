"""The crossing world's mathematics, against hand-worked numbers and independent references."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from distdata.catalogs.errors import DistdataError
from distdata.generate.teachers.crossing import law
from distdata.generate.teachers.crossing.reference import CASES, law_of
from distdata.generate.teachers.crossing.world import (
    AXES,
    N_STEPS,
    OUTCOMES,
    TUNNEL_SCENARIOS,
    WORLD,
    Motion,
    World,
    feasible,
)

CASE = CASES["pedestrian_crossing"]
PARAMS = CASE["params"]


def test_modes_are_the_eigenvectors_of_a_random_walk():
    """The modes are orthonormal and diagonalise min(i, j), the covariance of a walk that starts at 0."""
    phi = law.basis()
    np.testing.assert_allclose(phi @ phi.T, np.eye(N_STEPS), atol=1e-13)
    i = np.arange(1, N_STEPS + 1)
    rotated = phi @ np.minimum(i[:, None], i[None, :]) @ phi.T
    k = np.arange(1, N_STEPS + 1)
    # eigenvalues of min(i, j): 1 / (4 sin^2((2k-1) pi / (2 (2T+1))))
    values = 1 / (4 * np.sin((2 * k - 1) * math.pi / (2 * (2 * N_STEPS + 1))) ** 2)
    np.testing.assert_allclose(rotated, np.diag(values), atol=1e-9)


def test_mode_rates_are_their_derivatives():
    """The closed-form velocity and acceleration of a mode equal central differences of the continuous sine."""
    first, second = law.basis_rates()
    n, h = 2 * N_STEPS + 1, 1e-4
    k = np.arange(1, N_STEPS + 1)[:, None]

    def at(t_s):
        return 2 / math.sqrt(n) * np.sin((2 * k - 1) * math.pi * (t_s / 0.1) / n)

    t = law.times_s()
    np.testing.assert_allclose(first, (at(t + h) - at(t - h)) / (2 * h), atol=1e-4)
    np.testing.assert_allclose(second, (at(t + h) - 2 * at(t) + at(t - h)) / h**2, atol=1e-3)


@pytest.mark.parametrize(
    ("kind", "size", "start_s", "duration_s", "at_s", "metres"),
    [
        ("brake", -2.0, 0.4, 1.0, 2.4, -4.0),  # -2/2 * (2.4 - 0.4)^2
        ("brake", -2.0, 0.4, 1.0, 0.3, 0.0),  # not begun
        ("ramp", 1.5, 0.4, 1.0, 2.4, 2.25),  # 0.5 s of lag: 1.5 * (2.0 - 0.5)
        ("ramp", 2.0, 0.0, 2.0, 1.0, 0.5),  # half way up: 2/2 * 1^2 / 2
        ("shift", 3.0, 0.2, 2.0, 1.2, 1.5),  # the middle of a smoothstep
        ("shift", 3.0, 0.2, 2.0, 2.4, 3.0),
        ("bump", 1.8, 0.2, 2.0, 1.2, 1.8),  # furthest out in the middle
        ("bump", 1.8, 0.2, 2.0, 2.2, 0.0),  # and back
    ],
)
def test_motions_by_hand(kind, size, start_s, duration_s, at_s, metres):
    """Every kind of motion displaces by the metres that its formula gives."""
    motion = Motion(agent=0, coord=0, kind=kind, size=size, start_s=start_s, duration_s=duration_s)
    assert law.profile(motion)[round(at_s / 0.1) - 1] == pytest.approx(metres, abs=1e-12)


def test_outcome_probabilities_by_hand():
    """The probabilities are the softmax of main effects, interactions and the seed's own terms."""
    # rain, night, downtown: visibility -0.5 - 0.8 - 0.6 (rain x night) + 0.4 (night x downtown) = -1.5;
    # grip -0.6; busy 0.9 - 0.3 - 0.5 (night x downtown) = 0.1;
    # speed (9 - 9) / 2 = 0; gap (26 - 20) / 8 = 0.75; assertive -0.6
    crosses = 0.5 + 0.5 * -1.5 + 0.6 * 0.1 + 0.5 * 0.75 - 0.3 * -0.6
    waits = 0.4 - 0.2 * -1.5 - 0.2 * 0.1 - 0.3 * -0.6
    hesitates = -0.4 - 0.7 * -1.5 - 0.3 * -0.6 - 0.3 * 0.75 + 0.2 * -0.6
    total = math.exp(crosses) + math.exp(waits) + math.exp(hesitates)
    found = law.outcome_probabilities(CASE["axes"], "pedestrian_crossing", PARAMS)
    assert list(found) == ["crosses", "waits", "hesitates"]
    for name, logit in (("crosses", crosses), ("waits", waits), ("hesitates", hesitates)):
        assert found[name] == pytest.approx(math.exp(logit) / total, rel=1e-12)


def test_axes_interact():
    """Rain and night together do to the log-odds what neither does alone: the double difference is not 0."""

    def log_odds(weather, light):
        axes = {"weather": weather, "light": light, "district": "residential"}
        p = law.outcome_probabilities(axes, "pedestrian_crossing", PARAMS)
        return math.log(p["hesitates"] / p["crosses"])

    double = log_odds("rain", "night") - log_odds("rain", "day") - log_odds("clear", "night") + log_odds("clear", "day")
    # hesitates - crosses load visibility by -0.7 - 0.5 = -1.2; the interaction is -0.6
    assert double == pytest.approx(0.72, abs=1e-12)


def test_world_has_the_promised_shape():
    """Three axes, at least five scenario types, decision points of 2 to 4 outcomes, and types without one."""
    assert len(AXES) >= 3
    n_outcomes = [len(s.outcomes) for s in WORLD.scenarios.values()]
    assert len(n_outcomes) >= 5
    assert {1, 2, 3, 4} == set(n_outcomes)
    assert len(OUTCOMES) == len(set(OUTCOMES))


def test_committed_seed_has_one_future():
    """A seed whose actor has decided keeps one component, of probability 1."""
    params = {**PARAMS, "committed": "waits"}
    assert law.outcome_probabilities(CASE["axes"], "pedestrian_crossing", params) == {
        "crosses": 0.0,
        "waits": 1.0,
        "hesitates": 0.0,
    }
    mix = law.mixture(CASE["axes"], "pedestrian_crossing", params)
    assert mix.names == ("waits",)
    np.testing.assert_array_equal(mix.mean[0], law_of("pedestrian_crossing").mean[1])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"scenario": "pedestrain_crossing"}, "Did you mean 'pedestrian_crossing'?"),
        ({"axes": {**CASE["axes"], "light": "nigth"}}, "Did you mean 'night'?"),
        ({"axes": {"weather": "rain"}}, "axis light is None"),
        ({"params": {**PARAMS, "pace": float("nan")}}, "params['pace'] is nan"),
        ({"params": {**PARAMS, "side": None}}, "params['side'] is None"),
        ({"params": {**PARAMS, "committed": "wait"}}, "Did you mean 'waits'?"),
    ],
)
def test_bad_conditions_are_named(change, said):
    """A cell or seed of another world is refused with the value and what is known."""
    with pytest.raises(DistdataError, match=r"crossing: ") as e:
        law.outcome_probabilities(**{**CASE, **change})
    assert said in str(e.value)


def test_anchor_is_constant_velocity():
    """A latent of zeros decodes to everyone driving on: ego 9 m/s for 2.4 s, oncoming car 45 - 8 * 2.4."""
    mix = law_of("pedestrian_crossing")
    path = law.decode(np.zeros(law.LATENT_SHAPE), mix.anchor_m)
    assert path[0, 0, -1] == pytest.approx(21.6)
    assert path[2, 0, -1] == pytest.approx(25.8)
    assert path[1, 1, 9] == pytest.approx(-3.2 + 0.3 * 1.0)


def test_mean_is_the_planned_motion():
    """The mean of 'crosses' decodes to the motions of its table, worked out by hand at 2.4 s."""
    mix = law_of("pedestrian_crossing")
    path = law.decode(mix.mean[0], mix.anchor_m)
    gain = 0.86 * 0.93 * 0.95
    # command -0.6 m/s^2 from 0 s on, braking 2.0 m/s^2 from 0.6 s on, both times the gain
    assert path[0, 0, -1] == pytest.approx(21.6 + gain * (-0.6 * 2.4**2 / 2 - 2.0 * 1.8**2 / 2))
    # walking 1.4 m/s on top of 0.3 m/s, reached from 0.1 s within 0.7 s: lag 0.35 s
    assert path[1, 1, -1] == pytest.approx(-3.2 + 0.3 * 2.4 + 1.4 * (2.3 - 0.35))


def test_world_survives_json():
    """A world written as JSON and read again gives the same law to the last bit."""
    written = json.dumps(WORLD.to_dict())
    again = World.from_dict(json.loads(written))
    assert json.dumps(again.to_dict()) == written
    a, b = (law.mixture(**CASE, world=w) for w in (WORLD, again))
    np.testing.assert_array_equal(a.mean, b.mean)
    np.testing.assert_array_equal(a.std, b.std)
    np.testing.assert_array_equal(a.probs, b.probs)


def test_tunnel_cells():
    """In the tunnel there is no snow and nobody but cars; everywhere else everything can happen."""
    assert not feasible({"weather": "snow", "light": "day", "district": "tunnel"}, "car_following")
    assert not feasible({"weather": "clear", "light": "day", "district": "tunnel"}, "animal_on_road")
    assert all(feasible({"weather": "rain", "light": "day", "district": "tunnel"}, s) for s in TUNNEL_SCENARIOS)
    assert feasible({"weather": "snow", "light": "night", "district": "downtown"}, "animal_on_road")


@pytest.fixture(scope="module")
def score():
    from distdata.generate.teachers.crossing.score_model import CrossingScore

    return CrossingScore()


@pytest.mark.parametrize("sigma", [0.01, 0.3, 2.0, 30.0, 157.0])
@pytest.mark.parametrize("case", list(CASES))
def test_log_density_equals_scipy(score, case, sigma):
    """The noised mixture's log density is normalised: equal to scipy's multivariate normals, to 1e-9."""
    import torch

    mix = law_of(case)
    x = np.random.default_rng(3).standard_normal((5, 144)) * sigma + mix.mean[1].ravel()
    parts = [
        np.log(p) + multivariate_normal(m.ravel(), np.diag(s.ravel() ** 2 + sigma**2)).logpdf(x)
        for p, m, s in zip(mix.probs, mix.mean, mix.std, strict=True)
    ]
    found = score.log_density(torch.from_numpy(x).view(5, 3, 2, 24), sigma, score.conditions([mix] * 5))
    np.testing.assert_allclose(found.numpy(), logsumexp(parts, axis=0), rtol=1e-9)


@pytest.mark.parametrize("sigma", [0.02, 0.3, 2.0, 30.0])
def test_predicted_noise_is_the_gradient_of_the_log_density(score, sigma):
    """The model returns -sigma times the score: central differences of log density agree to 1e-6."""
    import torch

    mixes = [law_of("pedestrian_crossing"), law_of("animal_on_road")]
    conditions = score.conditions(mixes)
    rng = np.random.default_rng(5)
    between = np.stack([(m.mean[0] + m.mean[1]) / 2 for m in mixes])  # where responsibilities change
    x = torch.from_numpy(between + 0.5 * sigma * rng.standard_normal(between.shape))
    noise = score(x / math.sqrt(sigma**2 + 1), sigma, conditions)
    step = 1e-5 * max(sigma, 0.05)
    for a, c, k in [(0, 0, 0), (0, 1, 3), (1, 1, 0), (1, 1, 1), (1, 0, 5), (2, 0, 0), (2, 1, 23)]:
        d = torch.zeros_like(x)
        d[:, a, c, k] = step
        slope = (score.log_density(x + d, sigma, conditions) - score.log_density(x - d, sigma, conditions)) / (2 * step)
        np.testing.assert_allclose(noise[:, a, c, k].numpy(), (-sigma * slope).numpy(), atol=2e-6, rtol=1e-5)


def test_denoiser_of_one_component_shrinks_to_the_mean(score):
    """With one component D(x) = mu + s^2 / (s^2 + sigma^2) (x - mu), so noise = sigma (x - mu) / (s^2 + sigma^2)."""
    import torch

    mix = law.mixture(CASE["axes"], "car_following", PARAMS)
    sigma = 0.7
    x = torch.from_numpy(np.random.default_rng(1).standard_normal((1, 3, 2, 24)))
    found = score(x / math.sqrt(sigma**2 + 1), sigma, score.conditions([mix])).numpy()[0]
    np.testing.assert_allclose(found, sigma * (x.numpy()[0] - mix.mean[0]) / (mix.std[0] ** 2 + sigma**2), atol=1e-12)
