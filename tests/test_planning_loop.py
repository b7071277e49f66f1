"""Planning as a person meets it: verdicts and top-ups, pilots, looking again, cases, all through the real catalog."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from distdata.catalogs import store
from distdata.catalogs.cases import read_cases
from distdata.catalogs.errors import DistdataError
from distdata.catalogs.gather import catalog_facts
from distdata.catalogs.hashing import unit_interval
from distdata.catalogs.project import Project
from distdata.catalogs.register import rebuild
from distdata.cycle.outputs import estimate_fleet
from distdata.cycle.purchases import (
    compare_plans,
    explain_in_force,
    last_budget,
    plan_purchase,
    programme_costs,
    save_purchase,
)
from distdata.generate.ingest.divergence import ingest_divergence
from distdata.generate.ingest.rejects import ingest_rejects


def _ask(project: Project, sql: str) -> list[tuple[Any, ...]]:
    with store.read(project.catalog_path) as con:
        return con.execute(sql).fetchall()


def _buy(tiny: Any, project: Project, **how: Any) -> Any:
    bought = plan_purchase(project, **how)
    if bought.plan.n_fresh:
        save_purchase(project, bought)
        tiny.run(project)
    return bought


def _verify(project: Project, path: Path, share: float) -> int:
    """Let a verifier see everything and reject a fixed `share`, by a hash of the sample."""
    ids = [r[0] for r in _ask(project, "SELECT sample_id FROM samples ORDER BY 1")]
    bad = [i for i in ids if unit_interval("verdict", "v", i) < share]
    path.write_text("".join(json.dumps({"sample_id": i, "reason": "blurred"}) + "\n" for i in bad))
    ingest_rejects(project, path)
    return len(bad)


def test_a_top_up_fills_what_verifiers_emptied(tiny: Any, tmp_path: Path) -> None:
    """After rounds of verdicts and top-ups every cell holds its target of kept samples; nothing is asked twice."""
    project = tiny.build(tmp_path / "p", n_draws=40, plan=False, unit_draws=8)
    _buy(tiny, project, budget="40samples")
    targets = dict(_ask(project, "SELECT cell, target FROM coverage"))
    for round_ in range(8):
        _verify(project, tmp_path / f"bad-{round_}.jsonl", 0.3)
        if not _buy(tiny, project, budget=None, top_up=True).plan.n_fresh:
            break
    kept = dict(_ask(project, "SELECT cell, kept FROM coverage"))
    assert all(kept[cell] <= target + 2 for cell, target in targets.items())  # one seed's K above it at most
    assert targets == dict(_ask(project, "SELECT cell, target FROM coverage"))
    assert all(kept[cell] >= target for cell, target in targets.items())
    made = _ask(project, "SELECT seed_id, k, count(*) FROM samples GROUP BY ALL HAVING count(*) > 1")
    assert made == []
    # a rejected draw of a seed with two draws is replaced by the next k, not by its own number again
    beyond = _ask(project, "SELECT seed_id FROM samples WHERE k >= 2")
    holes = _ask(project, "SELECT DISTINCT s.seed_id FROM samples s SEMI JOIN drops d USING (sample_id) WHERE k < 2")
    assert beyond
    assert set(beyond) <= set(holes)
    before = _ask(project, "FROM coverage ORDER BY cell")
    rebuild(project)
    assert _ask(project, "FROM coverage ORDER BY cell") == before


def test_a_top_up_needs_a_plan(tiny: Any, tmp_path: Path) -> None:
    """Without a plan in force there is nothing to top up, and the message says what to do."""
    project = tiny.build(tmp_path / "p", plan=False)
    with pytest.raises(DistdataError, match=r"distdata plan --budget"):
        plan_purchase(project, budget=None, top_up=True)


def test_looking_again_weighs_nothing_until_a_plan_reaches_it(tiny: Any, tmp_path: Path) -> None:
    """Draws bought with a boost have fleet weight 0; a larger plan made without looking takes them in."""
    project = tiny.build(tmp_path / "p", n_draws=40, plan=False, unit_draws=8)
    _buy(tiny, project, budget="12samples")
    cell = _ask(project, "SELECT min(cell) FROM cells")[0][0]
    assert _ask(project, "SELECT round(sum(fleet_weight), 9) FROM samples_weighted") == [(1.0,)]
    boosted = _buy(tiny, project, budget="20samples", boosts={cell: 8.0})
    assert boosted.header["adaptive"]
    new = _ask(project, "SELECT DISTINCT fleet_weight FROM samples_weighted JOIN plans USING (plan_id) WHERE adaptive")
    assert new == [(0.0,)]
    assert _ask(project, "SELECT round(sum(fleet_weight), 9) FROM samples_weighted") == [(1.0,)]
    _buy(tiny, project, budget="56samples")
    zero = _ask(project, "SELECT count(*) FROM samples_weighted WHERE fleet_weight = 0")
    assert zero == [(0,)]


def test_estimates_are_the_same_after_a_rebuild(tiny: Any, tmp_path: Path) -> None:
    """Weights come from the plans' own files: a catalog made anew estimates the same to the digit."""
    project = tiny.build(tmp_path / "p", n_draws=30, plan=False, unit_draws=8)
    _buy(tiny, project, budget="20samples")
    _buy(tiny, project, budget="30samples")
    first, _ = estimate_fleet(project, "k", by="weather")
    rebuild(project)
    again, _ = estimate_fleet(project, "k", by="weather")
    assert first.table.equals(again.table)
    assert first.table["weather"].to_list() == ["clear", "rain"]


def test_rounds_are_kept_with_their_conditional_probability(tiny: Any, tmp_path: Path) -> None:
    """A round records the walk's seeds before it and the chance of those it added; a case's seed is none of them."""
    project = tiny.build(tmp_path / "p", n_draws=36, plan=False, unit_draws=8)
    # 40 seeds, ten a cell; every third of all is a decision point with two draws
    _buy(tiny, project, budget="12samples")
    queue = tmp_path / "cases.jsonl"
    case = {"case_id": "c1", "kind": "student_diverged", "weather": "clear", "scenario": "cross", "params": {"v": 1}}
    queue.write_text(json.dumps({**case, "decision_point": False}) + "\n")
    ingest_divergence(project, queue)
    _buy(tiny, project, budget="28samples")
    rows = _ask(
        project,
        """SELECT plan_no, n_before, n_frame, pi_round, (SELECT count(DISTINCT seed_id) FROM samples s JOIN seeds
            USING (seed_id) WHERE s.cell_id = c.cell_id AND origin = 'frame' AND s.plan_no <= c.plan_no) AS n_now
        FROM plan_cells c ORDER BY plan_no, cell_id""",
    )
    assert [r[2] for r in rows] == [10] * 8
    first, second = rows[:4], rows[4:]
    assert all(r[1] == 0 and r[3] == pytest.approx(r[4] / 10) for r in first)
    for earlier, later in zip(first, second, strict=True):
        assert later[1] == earlier[4]
        assert later[3] == pytest.approx((later[4] - earlier[4]) / (10 - earlier[4]))
    assert any(r[3] > 0 for r in second)


def test_a_case_is_bought_once_and_weighs_nothing(tiny: Any, tmp_path: Path) -> None:
    """A student's divergence becomes a seed of the next plan, is consumed by its draws, and has no probability."""
    project = tiny.build(tmp_path / "p", n_draws=30, plan=False, unit_draws=8)
    _buy(tiny, project, budget="12samples")
    queue = tmp_path / "cases.jsonl"
    case = {
        "case_id": "c1",
        "kind": "student_diverged",
        "weather": "rain",
        "scenario": "cut_in",
        "priority": 0.9,
        "params": {"v": 1},
    }
    queue.write_text(json.dumps({**case, "decision_point": True}) + "\n")
    for _ in range(2):
        ingest_divergence(project, queue)
    assert read_cases(project).select("case_id", "state").rows() == [("c1", "open")]
    bought = _buy(tiny, project, budget="24samples")
    drawn = bought.plan.draws.filter(pl.col("pi") == 0)
    assert drawn["k"].to_list() == [0, 1]  # K of this project is 2
    assert drawn["weight"].to_list() == [0.0, 0.0]
    assert bought.cases == ["c1"]
    later = _buy(tiny, project, budget="30samples")
    assert later.cases == []
    assert later.plan.draws.filter(pl.col("pi") == 0).height == 0
    assert read_cases(project).select("case_id", "state").rows() == [("c1", "consumed")]
    before = read_cases(project)
    rebuild(project)
    assert read_cases(project).equals(before)


def test_policies_are_compared_without_saving(tiny: Any, tmp_path: Path) -> None:
    """A comparison plans the same budget under each policy, and leaves no plan behind."""
    project = tiny.build(tmp_path / "p", n_draws=30, plan=False)
    found = compare_plans(project, budget="20samples", policies="fleet,gate")
    assert [p.policy for p in found.policies] == ["fleet", "gate"]
    assert all(sum(cell.target[i] for cell in found.cells) == 20 for i in range(2))
    assert _ask(project, "SELECT count(*) FROM plans") == [(0,)]
    with pytest.raises(DistdataError, match="for which budget"):
        compare_plans(project, budget=None, policies="fleet,gate")


def test_measured_costs_replace_given_ones(tiny: Any, tmp_path: Path) -> None:
    """Before any draw the table stands on what is said; afterwards a draw's price is the measured one."""
    project = tiny.build(tmp_path / "p", n_draws=30, plan=False)
    assert programme_costs(project).row("draw_usd").source != "measured"
    _buy(tiny, project, budget="20samples")
    row = programme_costs(project).row("draw_usd")
    assert (row.value, row.source) == (tiny.PRICE, "measured")


def test_the_plan_in_force_is_what_is_explained(tiny: Any, tmp_path: Path) -> None:
    """--explain without options tells the saved plan's own numbers, policy included, also after a top-up."""
    project = tiny.build(tmp_path / "p", n_draws=30, plan=False, unit_draws=8)
    with pytest.raises(DistdataError, match="no train plan is in force"):
        explain_in_force(project, "train", "cross")
    saved = _buy(tiny, project, budget="20samples", policy="fleet")
    said = explain_in_force(project, "train", "clear/cross")
    assert "its fleet share" in said[1]
    target = saved.plan.cells.filter(cell="clear/cross")["target"][0]
    assert any(f"target {target} kept samples" in line for line in said)
    _verify(project, tmp_path / "bad.jsonl", 0.4)
    _buy(tiny, project, budget=None, top_up=True)
    assert any(f"target {target} kept samples" in line for line in explain_in_force(project, "train", "clear/cross"))
    assert last_budget(project, "train") == "20samples"


def test_a_top_up_of_a_boosted_plan_is_made_after_looking_too(tiny: Any, tmp_path: Path) -> None:
    """What fills the targets of a boosted plan counts no more in estimates than that plan's own draws."""
    project = tiny.build(tmp_path / "p", n_draws=60, plan=False, unit_draws=8)
    _buy(tiny, project, budget="12samples")
    counted = "SELECT sum(k_counted) FROM corpus"
    before = _ask(project, counted)
    cell = _ask(project, "SELECT min(cell) FROM cells")[0][0]
    _buy(tiny, project, budget="24samples", boosts={cell: 8.0})
    _verify(project, tmp_path / "bad.jsonl", 0.3)
    topped = _buy(tiny, project, budget=None, top_up=True)
    assert topped.plan.n_fresh > 0
    assert topped.header["adaptive"]
    assert _ask(project, counted)[0][0] <= before[0][0] + 12  # only holes of the walk's own seeds are filled


def test_status_speaks_of_verdicts(tiny: Any, tmp_path: Path) -> None:
    """Rejected samples are counted apart, and the next step is to replace them."""
    project = tiny.build(tmp_path / "p", n_draws=30, plan=False, unit_draws=8)
    _buy(tiny, project, budget="20samples")
    n_bad = _verify(project, tmp_path / "bad.jsonl", 0.4)
    facts = catalog_facts(project)
    assert facts["samples"] == f"20 ({n_bad} rejected by verifiers)"
    assert facts["next"] == "distdata plan --top-up"
