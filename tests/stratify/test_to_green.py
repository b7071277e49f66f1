"""Dollars until all is green: known curves give known dollars, and predictions are checked against what happened."""

import math

import numpy as np
import polars as pl
import pytest

from distdata.catalogs.errors import DistdataError
from distdata.stratify.learning_curves import Curves, fit_curves
from distdata.stratify.to_green import calibration, to_green, to_green_words
from distdata.stratify.training_noise import TrainingNoise


def _known(rows: dict[str, tuple[float, float, float, float]], sd: float = 1e-6) -> Curves:
    """Return curves known for certain: n_now, floor, part, exponent by slice."""
    m = 400
    n_now, floor, part, exponent = (np.array(values) for values in zip(*rows.values(), strict=True))
    return Curves(
        slices=tuple(rows), n_now=n_now, common=np.repeat([0.4, 0.6], m // 2), exponent=np.tile(exponent[:, None], m),
        floor=np.tile(floor[:, None], m), part=np.tile(part[:, None], m), noise=TrainingNoise(sd=sd, df=100),
    )  # fmt: skip


def test_known_curves_give_known_dollars() -> None:
    """2 (n / 100)^-1/2 needs 400 samples, 0.5 + 1 (n / 100)^-1/2 too: 300 x $0.50 + 300 x $2 = $750, certain beyond."""
    curves = _known({"night": (100, 0.0, 2.0, 0.5), "rain": (100, 0.5, 1.0, 0.5)})
    found = to_green(curves, {"night": 100, "rain": 100}, {"night": 0.5, "rain": 2.0})
    assert found.dollars[0.5] == pytest.approx(750, rel=0.01)
    assert found.dollars[0.9] == pytest.approx(750, rel=0.01)
    assert (found.chance(0), found.chance(10_000)) == (0.0, 1.0)
    assert found.needs["usd"].to_list() == pytest.approx([150, 600])
    assert to_green_words(found)[0].startswith("All slices are green with 50% for $75")
    assert "rain: has 100 samples, needs about 400 (80%: 400 to 400): $600.00." in to_green_words(found)
    grid = to_green(curves, {"night": 100, "rain": 100}, {"night": 0.5, "rain": 2.0}, usd_grid=[5000, 0])
    assert grid.table["usd"].to_list() == [0, 5000]
    assert grid.table["chance"].to_list() == [0.0, 1.0]


def test_two_slices_with_noise_are_green_together() -> None:
    """Endless data leaves each slice at its floor of 0.9 with training noise of 10%: P(green) = P(Z <= 1.11) = 0.867.

    Two slices with noise of their own are both green with 0.867^2 = 0.751; 400 draws have a standard error of 2%.
    """
    curves = _known({"a": (100, 0.9, 0.3, 1.0), "b": (100, 0.9, 0.3, 1.0)}, sd=0.1)
    found = to_green(curves, {"a": 100, "b": 100}, {"a": 1.0, "b": 1.0})
    assert float(found.table["chance"].max()) == pytest.approx(0.751, abs=0.07)  # type: ignore[arg-type]
    assert math.isinf(found.dollars[0.9])


def test_a_floor_above_the_band_is_told() -> None:
    """Where no amount helps the chance stays 0, dollars are infinite and the words send the person to diagnose."""
    found = to_green(_known({"fog": (100, 1.4, 1.0, 0.5)}), {"fog": 100}, {"fog": 1.0})
    assert found.table["chance"].to_list() == [0.0]
    assert math.isinf(found.dollars[0.5])
    words = "\n".join(to_green_words(found))
    assert "No amount turns all slices green with 80%: more data ends at 0%." in words
    assert "fog: with 100% no amount of data is enough" in words


def test_chance_grows_with_dollars_and_lies_in_its_interval() -> None:
    """On curves fitted to noisy points the table rises in dollars, samples and chance, and low <= chance <= high."""
    rng = np.random.default_rng(2)
    rows = [(s, n, (2 - 0.4 * i) * (n / 100) ** -0.5 * np.exp(0.1 * rng.normal()))
            for i, s in enumerate("abc") for n in (25.0, 50.0, 100.0) for _ in range(2)]  # fmt: skip
    curves = fit_curves(pl.DataFrame(rows, schema=["slice", "n", "score"], orient="row"))
    found = to_green(curves, dict.fromkeys("abc", 100), dict.fromkeys("abc", 0.25))
    usd, chance, low, high = (found.table[name].to_numpy() for name in ("usd", "chance", "low", "high"))
    assert np.all(np.diff(usd) > 0)
    assert np.all(np.diff(chance) >= 0)
    assert np.all((low <= chance + 1e-12) & (chance <= high + 1e-12))
    assert found.dollars[0.5] <= found.dollars[0.8] <= found.dollars[0.9]
    assert found.chart()[0][0] == 0


def test_predictions_hold() -> None:
    """Of 60 worlds drawn as the model assumes, the chance predicted for a purchase is that of what then happens.

    Brier skill against the outcomes' own share is above 0.15 (a useless prediction has 0 or less), and in the mean the
    prediction is right within 15 points (standard error 6%). The seed is fixed.
    """
    rng = np.random.default_rng(11)
    predicted, happened = [], []
    for world in range(60):
        common, rows, truth = 0.5 * np.exp(0.4 * rng.normal()), [], {}
        for name in "ab":
            b, level, share = common * np.exp(0.2 * rng.normal()), rng.uniform(1, 2), rng.uniform(0, 1)
            truth[name] = (level * share, level * (1 - share), b)
            for size in (0.25, 0.5, 1.0):
                mean = level * share + level * (1 - share) * size**-b
                rows += [(name, 100 * size, abs(mean * (1 + 0.1 * rng.normal()))) for _ in range(2)]
        curves = fit_curves(pl.DataFrame(rows, schema=["slice", "n", "score"], orient="row"), n_samples=400, seed=world)
        found = to_green(curves, dict.fromkeys("ab", 100), dict.fromkeys("ab", 1.0))
        at = int(rng.integers(found.table.height))
        predicted.append(float(found.table["chance"][at]))
        grown = found.needs["n_have"].to_numpy() + found.table["n_samples"][at] / 2
        happened.append(bool(all(
            (f + p * (n / 100) ** -b) * (1 + 0.1 * rng.normal()) <= 1
            for (f, p, b), n in zip(truth.values(), grown, strict=True)
        )))  # fmt: skip
    held = calibration(predicted, happened)
    assert held.skill > 0.15
    assert abs(float(np.mean(predicted)) - float(np.mean(happened))) < 0.15


def test_calibration_by_hand() -> None:
    """Predictions 0.1, 0.1, 0.9, 0.9 of which 0, 0, 1, 0 happen: Brier (0.01 + 0.01 + 0.01 + 0.81) / 4 = 0.21.

    One of four happened: 0.25 x 0.75 = 0.1875 without knowledge. Wilson's interval of 1 of 2 is 0.0945 to 0.9055.
    """
    held = calibration([0.1, 0.1, 0.9, 0.9], [False, False, True, False], n_bins=2)
    assert held.brier == pytest.approx(0.21)
    assert held.reference == pytest.approx(0.1875)
    assert held.skill == pytest.approx(1 - 0.21 / 0.1875)
    assert held.reliability["n"].to_list() == [2, 2]
    assert held.reliability["happened"].to_list() == [0.0, 0.5]
    assert held.reliability.row(1, named=True)["happened_low"] == pytest.approx(0.0945, abs=1e-4)
    with pytest.raises(DistdataError, match="1 predictions with 0 outcomes"):
        calibration([0.5], [])


def test_what_cant_be_priced_is_refused() -> None:
    """A slice without samples or without a price is named."""
    curves = _known({"night": (100, 0.0, 2.0, 0.5)})
    for have, price in (({}, {"night": 1.0}), ({"night": 5}, {}), ({"night": 5}, {"night": math.nan})):
        with pytest.raises(DistdataError, match="slice night needs samples and a price"):
            to_green(curves, have, price)
