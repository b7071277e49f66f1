"""Write the dataset card: what the Hub reads (YAML) and what a person reads (coverage, weights, provenance)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..catalogs import store
from ..catalogs.project import Project
from ..catalogs.tables import count, usd
from ..catalogs.views import SERVED_BY
from .export_read import HELD_OUT, Choice

MAX_SLICES = 60
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"),
          (10**8, "10M<n<100M"), (10**9, "100M<n<1B"))  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """One configuration of the dataset: a record kind, the pattern of its files, its members.

    `columns` rows are (column, member, what it holds in words).
    `features` is what the card declares, in the form of `datasets`' JSON; None declares nothing.
    """

    name: str
    kind: str
    n_samples: int
    pattern: str
    columns: tuple[tuple[str, str, str], ...]
    features: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What the catalog says of the exported samples.

    `cells` rows are (slice, scenario, feasible, target, exported, then one value per axis); `plans` rows are
    (plan id, policy, budget, created, teacher, version, content hash, exported).
    """

    cells: tuple[tuple[Any, ...], ...]
    plans: tuple[tuple[Any, ...], ...]
    n_seeds: int
    n_decision_points: int
    k_range: tuple[int, int]
    n_failed: int
    gpu_h: float
    known_usd: float
    in_doubt_usd: float


def gather_provenance(project: Project, choice: Choice) -> Provenance:
    """Read where the exported samples come from and what they cost, failed draws of their plans included."""
    hidden = [] if choice.purpose in HELD_OUT else list(HELD_OUT)
    axes = "".join(f', c."{axis}"' for axis in choice.axes)
    chosen = (
        "samples s JOIN plans p USING (plan_no) ANTI JOIN drops d ON d.sample_id = s.sample_id "
        "WHERE p.purpose IN (SELECT unnest(?)) AND coalesce(s.split, '') NOT IN (SELECT unnest(?))"
    )
    serving = list(SERVED_BY[choice.purpose])
    given = [serving, hidden]
    with store.read(project.catalog_path) as con:
        cells = con.execute(
            f"""SELECT c.slice, c.scenario, c.feasible, coalesce(v.target, 0), coalesce(n, 0){axes} FROM cells c
            LEFT JOIN (SELECT s.cell_id, count(*) AS n FROM {chosen} GROUP BY ALL) USING (cell_id)
            LEFT JOIN (SELECT cell, target FROM coverage_by_purpose WHERE purpose = ?) v USING (cell)
            ORDER BY c.cell_id""",
            [*given, choice.purpose],
        ).fetchall()
        plans = con.execute(
            f"""SELECT p.plan_id, policy, budget, created, teacher, teacher_version, teacher_hash, count(*)
            FROM {chosen} GROUP BY ALL ORDER BY min(plan_no)""",
            given,
        ).fetchall()
        seeds = store.first(
            con.execute(
                f"""SELECT count(DISTINCT s.seed_id), count(DISTINCT s.seed_id) FILTER (s.decision_point), min(s.n_k),
            max(s.n_k) FROM {chosen}""",
                given,
            )
        )
        spend = store.first(
            con.execute(
                """SELECT coalesce(sum(failed), 0)::BIGINT, coalesce(sum(u.gpu_s), 0) / 3600, coalesce(sum(u.usd), 0),
            coalesce(sum(in_doubt_usd), 0) FROM unit_cells u JOIN plans USING (plan_no)
                WHERE purpose IN (SELECT unnest(?))""",
                [serving],
            )
        )
    assert seeds is not None, "an aggregate has one row"
    assert spend is not None, "an aggregate has one row"
    return Provenance(
        cells=tuple(map(tuple, cells)), plans=tuple(map(tuple, plans)), n_seeds=seeds[0], n_decision_points=seeds[1],
        k_range=(seeds[2], seeds[3]), n_failed=spend[0], gpu_h=spend[1], known_usd=spend[2], in_doubt_usd=spend[3],
    )  # fmt: skip


def render_card(
    name: str, layout: str, choice: Choice, configs: Sequence[Config], facts: Provenance, license_id: str
) -> str:
    """Return README.md; the same catalog gives the same text."""
    main = max(configs, key=lambda c: c.n_samples)
    sections = (
        f"# {name}",
        _opening(choice, facts),
        _how_to_load(layout, choice, configs, main),
        _contents(layout, choice, configs),
        _coverage(choice, facts),
        _weights(layout),
        _provenance(choice, facts),
        _limits(layout, choice),
    )
    return _front_matter(name, layout, choice, configs, main, license_id) + "\n\n".join(sections) + "\n"


def _front_matter(
    name: str, layout: str, choice: Choice, configs: Sequence[Config], main: Config, license_id: str
) -> str:
    size = next((label for below, label in _SIZES if choice.n_samples < below), "n>1T")
    data: dict[str, Any] = {
        "pretty_name": name,
        "license": license_id,
        "size_categories": [size],
        "tags": ["distdata", "distillation", "synthetic", *(["webdataset"] if layout == "webdataset" else [])],
        "configs": [
            {
                "config_name": c.name,
                **({"default": True} if c is main else {}),
                "data_files": [{"split": choice.purpose, "path": c.pattern}],
            }
            for c in configs
        ],
    }
    declared = [
        {"config_name": c.name, "features": [{"name": n, **yaml_feature(f)} for n, f in c.features.items()]}
        for c in configs
        if c.features is not None
    ]
    if declared:
        data["dataset_info"] = declared
    return "---\n" + "\n".join(_yaml_lines(data, 0)) + "\n---\n\n"


def yaml_feature(feature: Mapping[str, Any]) -> dict[str, Any]:
    """Turn a feature from the JSON form of `datasets` into the one it reads from a card."""
    kind = feature.get("_type")
    if kind is None:
        return {"struct": [{"name": name, **yaml_feature(part)} for name, part in feature.items()]}
    if kind == "Value":
        return {"dtype": feature["dtype"]}
    if kind == "List":
        item = yaml_feature(feature["feature"])
        return {"list": next(iter(item.values())) if set(item) in ({"dtype"}, {"struct"}) else item}
    if kind.startswith("Array"):
        return {"dtype": {f"array{kind[5]}_d": {"shape": feature["shape"], "dtype": feature["dtype"]}}}
    return {"dtype": kind.lower()}


def _yaml_lines(value: Any, depth: int) -> list[str]:
    """Write mappings and lists as block YAML; every scalar is JSON, which YAML reads as it is meant."""
    pad = "  " * depth
    if isinstance(value, Mapping):
        lines = []
        for key, part in value.items():
            if isinstance(part, Mapping | list) and part:
                lines += [f"{pad}{key}:", *_yaml_lines(part, depth + 1)]
            else:
                lines.append(f"{pad}{key}: {json.dumps(part, ensure_ascii=False)}")
        return lines
    lines = []
    for item in value:
        inner = _yaml_lines(item, depth + 1) if isinstance(item, Mapping | list) else [json.dumps(item)]
        lines += [f"{pad}- {inner[0].lstrip()}", *inner[1:]]
    return lines


def _opening(choice: Choice, facts: Provenance) -> str:
    teachers = " and ".join(dict.fromkeys(f"{t} {v}" for *_, t, v, _hash, _n in facts.plans))
    low, high = facts.k_range
    draws = f"{low}" if low == high else f"{low} to {high}"
    return (
        f"{count(choice.n_samples)} samples that the teacher {teachers} drew from {count(facts.n_seeds)} scenario "
        f"seeds, {draws} per seed; {count(facts.n_decision_points)} of the seeds are decision points, whose futures "
        "are open and which are therefore drawn several times under different noise. Written by `distdata export hf`."
    )


def _how_to_load(layout: str, choice: Choice, configs: Sequence[Config], main: Config) -> str:
    lines = ["from datasets import load_dataset", ""]
    lines += [
        f'{"data" if c is main else "more"} = load_dataset("PATH_OR_REPO"{"" if c is main else f", {c.name!r}"}, '
        f'split="{choice.purpose}")'.replace("'", '"')
        for c in sorted(configs, key=lambda c: c is not main)
    ]
    if layout == "webdataset":
        lines += ["", "import webdataset, polars", ""]
        lines += [f'shards = webdataset.WebDataset("{main.pattern.replace("?????", "00000")}", shardshuffle=False)']
        lines += [f'facts = polars.read_parquet("{_facts_file(main)}")  # one row per sample: weight, cell, outcome']
    else:
        lines += ['data.with_format("numpy")[0]  # arrays instead of lists; "torch" works as well']
    return "## Load it\n\n```python\n" + "\n".join(lines) + "\n```"


def _facts_file(config: Config) -> str:
    return config.pattern.replace("data/", "metadata/").replace("-?????.tar", ".parquet")


def _contents(layout: str, choice: Choice, configs: Sequence[Config]) -> str:
    place = "Every row has" if layout == "parquet" else "The files under metadata/ have for every sample"
    axes = ", ".join(f"`{axis}`" for axis in choice.axes)
    parts = [
        "## What is in it",
        f"{place} `sample_id`; `cell`, made of a `slice` of the conditions ({axes}) and a `scenario` type of a "
        "`layer`; the teacher's `outcome`; `seed_id`, draw number `k` of `n_k` and whether the seed is a "
        "`decision_point`; `weight` and `pi` (see Weights); `source`, `teacher`, `teacher_version`, "
        "`teacher_hash` and `plan_id`.",
    ]
    for c in configs:
        if layout == "parquet":
            rows = [
                "| column | member | holds |",
                "|---|---|---|",
                *(f"| `{n}` | `{m}` | {w} |" for n, m, w in c.columns),
            ]
        else:
            rows = ["| member | holds |", "|---|---|", *(f"| `{m}` | {w} |" for _, m, w in c.columns)]
        parts.append(f"### {c.name}: {count(c.n_samples)} samples\n\n" + "\n".join(rows))
    return "\n\n".join(parts)


def _coverage(choice: Choice, facts: Provenance) -> str:
    scenarios = list(dict.fromkeys(c[1] for c in facts.cells))
    slices = list(dict.fromkeys(c[0] for c in facts.cells))
    groups: list[tuple[str, list[tuple[Any, ...]]]]
    if len(slices) <= MAX_SLICES:
        head = "slice"
        groups = [(s, [c for c in facts.cells if c[0] == s]) for s in slices]
    else:
        head = f"axis value (of {count(len(slices))} slices)"
        groups = [
            (f"{axis} = {value}", [c for c in facts.cells if c[i] == value])
            for i, axis in enumerate(choice.axes, start=5)
            for value in dict.fromkeys(c[i] for c in facts.cells)
        ]
    lines = [f"| {head} | " + " | ".join(scenarios) + " | all |", "|---|" + "---:|" * (len(scenarios) + 1)]
    for label, cells in groups:
        by_scenario = [_tally([c for c in cells if c[1] == s]) for s in scenarios]
        lines.append(f"| {label} | " + " | ".join([*by_scenario, _tally(cells)]) + " |")
    totals = [_tally([c for c in facts.cells if c[1] == s]) for s in scenarios]
    lines.append("| **all** | " + " | ".join([*totals, _tally(facts.cells)]) + " |")
    note = (
        "Samples here / samples the newest plan wants; × marks cells that can't occur, – cells in which nothing is "
        "wanted."
    )
    return "## Coverage\n\n" + note + "\n\n" + "\n".join(lines)


def _tally(cells: Sequence[tuple[Any, ...]]) -> str:
    possible = [c for c in cells if c[2]]
    target, n = sum(c[3] for c in possible), sum(c[4] for c in cells)
    if not possible and not n:
        return "×"
    return f"{n:,} / {target:,}" if target or n else "–"


def _weights(layout: str) -> str:
    where = "`weight`" if layout == "parquet" else "`weight` (in the Parquet file under metadata/, by `sample_id`)"
    text = (
        f"## Weights\n\n{where} is the share of the fleet's situations that a sample stands for: the share of its "
        "cell, over the seeds of the cell and their inclusion probability `pi`, over the draws per seed. The corpus "
        "buys rare and strict cells more often than the fleet meets them, so a plain mean over rows is not the "
        "fleet's: use `sum(weight * x) / sum(weight)`. Train without weights to keep the emphasis on hard "
        "cells, with them to imitate the fleet."
    )
    return text + (
        " The weights hold for the corpus as a whole, whichever plan bought a sample; samples bought after looking at "
        "the data, and those from outside the sampled seeds, weigh 0. So do the samples of a cell held only by "
        "byproducts: others chose its seeds, which stand for nobody else."
    )


def _provenance(choice: Choice, facts: Provenance) -> str:
    rows = [
        f"| {plan} | {teacher} {version} | `{digest}` | {policy} | {budget} | {created} | {count(n)} |"
        for plan, policy, budget, created, teacher, version, digest, n in facts.plans
    ]
    doubt = f", {usd(facts.in_doubt_usd)} in doubt" if facts.in_doubt_usd else ""
    return (
        "## Provenance\n\n| plan | teacher | content hash | policy | budget | made | samples |\n"
        "|---|---|---|---|---|---|---:|\n"
        + "\n".join(rows)
        + f"\n\nSpent on {choice.purpose}: {usd(facts.known_usd)} known{doubt}, {facts.gpu_h:.3g} GPU-hours; "
        f"{count(facts.n_failed)} draws failed. A sample's id is its seed, its draw k and the beginning of the "
        "teacher's content hash; every sample was compared with its SHA-256 when it was exported."
    )


def _limits(layout: str, choice: Choice) -> str:
    lines = [
        "Everything here was generated by a model or simulator: it has the teacher's errors as well as its knowledge."
    ]
    if choice.purpose in HELD_OUT:
        lines.append(
            f"These seeds are held out for the {choice.purpose} split. Do not train on them: a student that has seen "
            "them can't be gated with them any more."
        )
    else:
        lines.append(
            "Only seeds of the training split are here. Those held out for gates are never exported with them, so a "
            "student trained on this can still be gated."
        )
    if choice.n_held_out:
        lines.append(f"{count(choice.n_held_out)} samples of held-out seeds were left out.")
    if layout == "parquet":
        lines.append("Pictures (uint8 [.., H, W, 3]) are stored as PNG without loss; arrays keep their dtype.")
    lines.append("Rows are in the order of generation: shuffle before training.")
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)
