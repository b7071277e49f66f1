"""The `language` preset as a user meets it: a project that plans and generates at once, with slices fit to gate."""

from __future__ import annotations

from collections import Counter

import numpy as np
import polars as pl
import pytest

from distdata.catalogs import store
from distdata.catalogs.codec import decode_member
from distdata.catalogs.project import Project
from distdata.catalogs.shards import read_sample
from distdata.catalogs.token_probs import sparse_targets
from distdata.generate.teachers.markov.language import AXES, SCENARIOS, read_prompt
from distdata.generate.teachers.markov.law import law
from distdata.generate.teachers.markov.seeds import FLEET, SCENARIO_FLEET
from distdata.projects import init_project


@pytest.fixture(scope="module")
def made(tiny, tmp_path_factory) -> Project:
    """Return a project of the preset with a finished plan of 600 samples."""
    from distdata.cycle.purchases import plan_purchase, save_purchase

    root = tmp_path_factory.mktemp("language") / "p"
    init_project(root, "language")
    project = Project.open(root)
    save_purchase(project, plan_purchase(project, budget="600samples"))
    result = tiny.run(project)
    assert (result.generated, result.failed) == (600, 0)
    return project


def test_the_file_and_the_seeds_speak_of_one_world(made: Project) -> None:
    """Axes, scenario types and fleet shares of the preset are those that the seed generator knows."""
    config = made.config
    assert {name: tuple(axis.values) for name, axis in config.axes.items()} == AXES
    assert {name: tuple(axis.fleet or ()) for name, axis in config.axes.items()} == FLEET
    assert {name: s.fleet for name, s in config.scenarios.items()} == SCENARIO_FLEET
    assert tuple(config.scenarios) == SCENARIOS


def test_every_slice_can_be_gated(made: Project) -> None:
    """Gate and confirm each hold at least 20 template families and 60 seeds of every slice, and so does training."""
    with store.read(made.catalog_path) as con:
        rows = con.sql(
            'SELECT slice, split, count(DISTINCT "group") AS n_groups, count(*) AS n_seeds FROM seeds_wide GROUP BY ALL'
        ).pl()
    assert rows.height == 12 * 3
    assert rows["n_groups"].min() >= 20
    assert rows["n_seeds"].min() >= 60
    assert rows["n_seeds"].sum() == 64_000


def test_every_kind_of_prompt_can_be_gated(made: Project) -> None:
    """Gate and confirm hold at least 40 prompts of every slice that should be refused, and as many look-alikes."""
    with store.read(made.catalog_path) as con:
        rows = con.sql(
            """SELECT slice, split, params->>'should_refuse' AS refuse, count(*) AS n FROM seeds_wide
            WHERE scenario = 'refusal' AND split <> 'train' GROUP BY ALL"""
        ).pl()
    assert rows.height == 12 * 2 * 2
    assert rows["n"].min() >= 40


def test_samples_can_be_trained_on(made: Project) -> None:
    """Stored samples of all cells have counts whose ids the teacher's law holds probable, and readable prompts."""
    with store.read(made.catalog_path) as con:
        samples = con.sql('SELECT cell, kind, shard, "offset", n_bytes FROM samples_wide').pl()
    assert samples.height == 600
    assert samples["kind"].unique().to_list() == ["logits"]
    assert samples["cell"].n_unique() == 60
    seen: Counter[str] = Counter()
    for shard, part in samples.sort("cell").group_by("shard"):
        with made.storage.open(shard[0]) as f:
            for row in part.filter(pl.int_range(pl.len()) % 10 == 0).iter_rows(named=True):
                raw = read_sample(f, row["offset"], row["n_bytes"])
                members = {name: decode_member(name, data) for name, data in raw.items()}
                n_prompt = members["meta.json"]["n_prompt"]
                ids = members["input_ids.npy"]
                exact = law(read_prompt(ids[:n_prompt])).at(ids[n_prompt:])
                targets = sparse_targets(members)
                position = np.repeat(np.arange(len(exact)), np.diff(targets.offsets))
                assert (exact[position, targets.ids] > 0).all()
                assert exact[position, targets.ids] @ targets.weights > 1 / len(exact[0]) * len(exact)
                seen[members["meta.json"]["scenario"]] += 1
    assert sum(seen.values()) >= 40
