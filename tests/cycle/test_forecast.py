"""What turning every slice green would cost: retraining on subsets, and prices of samples that verifiers keep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distdata.catalogs import store
from distdata.catalogs.errors import DistdataError
from distdata.catalogs.loop_events import gates
from distdata.catalogs.project import Project
from distdata.cycle.forecast import _prices, forecast
from distdata.cycle.purchases import plan_purchase, save_purchase
from distdata.cycle.training import current_teacher
from distdata.generate.ingest.rejects import ingest_rejects
from distdata.generate.run import generate

SLICES = ["day,dry", "day,wet", "night,dry", "night,wet"]
USD = 0.001
"""Dollars of a draw: 0.001 s of a GPU at $3,600 an hour."""


def ask(project: Project, sql: str) -> list[Any]:
    with store.read(project.catalog_path) as con:
        return con.execute(sql).fetchall()


def reject(project: Project, name: str, n: int) -> None:
    """Let a verifier throw out n training draws of a slice."""
    path = project.root / f"rejects-{name.replace(',', '-')}-{n}.csv"
    found = ask(
        project,
        f"SELECT sample_id FROM samples_weighted WHERE slice = '{name}' AND split = 'train' AND kept "
        f"ORDER BY ALL LIMIT {n}",
    )
    assert len(found) == n
    path.write_text("sample_id,reason\n" + "".join(f"{s},blurred\n" for (s,) in found))
    ingest_rejects(project, path)


def test_a_price_counts_each_rejected_draw_once(worlds: Any, heard: Any, tmp_path: Path) -> None:
    """A cell's 100 draws in several units at $0.001, 10 of them rejected: $0.1 / 90 a kept sample, however many units.

    With 60 rejected it is $0.1 / 40; a slice of which nothing is left costs what the others do on the mean.
    """
    project = worlds.raw(tmp_path / "p", n_seeds=320, loop="[generate]\nunit_draws = 30")
    hash_ = current_teacher(project).content_hash
    with pytest.raises(DistdataError, match="no training draw of this teacher was made here, so no price is known"):
        _prices(project, hash_, SLICES)
    purchase = plan_purchase(project, budget="400samples", purpose="train")
    save_purchase(project, purchase)
    generate(project, heard, plan_id=purchase.plan_id)
    made = ask(project, "SELECT slice, count(*), sum(generated) FROM unit_cells JOIN cells USING (cell_id) GROUP BY 1")
    assert {name: n for name, _, n in made} == dict.fromkeys(SLICES, 100)
    assert min(n_units for _, n_units, _ in made) > 1
    assert _prices(project, hash_, SLICES) == pytest.approx(dict.fromkeys(SLICES, USD))
    reject(project, "day,wet", 10)
    assert _prices(project, hash_, SLICES) == pytest.approx(dict.fromkeys(SLICES, USD) | {"day,wet": 0.1 / 90})
    reject(project, "day,wet", 50)
    reject(project, "night,dry", 100)
    others = {"day,dry": USD, "day,wet": 0.1 / 40, "night,wet": USD}
    assert _prices(project, hash_, SLICES) == pytest.approx(others | {"night,dry": sum(others.values()) / 3})


def test_a_forecast_retrains_on_parts_and_prices_what_is_missing(easy: Project, heard: Any) -> None:
    """Two probes are gated, by no candidate's alpha; dollars are missing samples x price; again it trains nothing."""
    before = [g for g in gates(easy) if g.role == "candidate"]
    first = forecast(easy, heard, heard)
    assert heard.n_trainings == 2
    assert [g for g in gates(easy) if g.role == "candidate"] == before
    assert first.needs["slice"].to_list() == SLICES
    for row in first.needs.iter_rows(named=True):
        assert row["n_have"] == 200
        assert row["usd"] == pytest.approx(max(row["n_middle"] - 200, 0) * USD)
    again = forecast(easy, heard, heard)
    assert heard.n_trainings == 2
    assert again.needs.equals(first.needs)
