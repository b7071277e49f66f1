"""The stages of the loop, joined: the one module besides the command line that knows all of them."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import polars as pl

from .catalogs.config import CONFIG_NAME, Policy, parse_config
from .catalogs.errors import DistdataError
from .catalogs.events import append_json
from .catalogs.files import TMP_PREFIX, disk_errors, exclusive_lock, make_folder, write_atomic
from .catalogs.gather import gather_report
from .catalogs.hashing import content_hash
from .catalogs.intake import ImportResult, changed_cells, define_cells, import_file, import_seeds
from .catalogs.plans import PlanInputs, catalog_state, open_plans, planning_inputs, save_plan
from .catalogs.project import Project
from .catalogs.protocol import TeacherInfo
from .catalogs.register import catch_up
from .catalogs.report import render_report
from .catalogs.seeds import from_arrow
from .catalogs.tables import PlanRow
from .curate.export_hf import Layout, export_hf
from .curate.push_hub import push_to_hub
from .generate.presets import Preset, load_preset
from .generate.spool import leftover
from .generate.teachers.registry import make_seeds, make_teacher, teacher_info
from .stratify.budget import parse_budget
from .stratify.plan import make_plan
from .stratify.request import Plan, PlanRequest, Purpose, Rates, plan_id
from .stratify.splits import assign_splits

HELD_OUT = ("gate", "confirm")
SAY_EVERY_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Purchase:
    """A plan with what it would be saved as. `known` says that the very same plan is saved already.

    `state` is the catalog that the plan was computed from: (plans, units, imports) in it.
    """

    plan: Plan
    header: dict[str, Any]
    known: bool
    state: tuple[int, ...]

    @property
    def plan_id(self) -> str:
        """The plan's id."""
        return str(self.header["plan_id"])


def init_project(root: Path, preset_name: str, n_seeds: int | None = None) -> ImportResult | None:
    """Make a project in `root`: the catalog, for a bundled preset its seeds, and last distdata.toml.

    All or nothing: what fails leaves the folder as it was, and after a kill the same call goes on.

    Raises:
        DistdataError: there is a distdata.toml already, the preset is not known or not valid, or its cells or
            seeds can't be made.
    """
    preset = load_preset(preset_name)
    config = parse_config(preset.text, preset_name if preset.generator is None else f"preset {preset_name}")
    with disk_errors(root / CONFIG_NAME):
        is_new = not root.exists()
        make_folder(root)
    lock = root / f"{TMP_PREFIX}init-lock"
    try:
        with exclusive_lock(lock, f"{root}: process {{holder}} is making a project here; wait for it."):
            try:
                return _make_project(Project(root.resolve(), config), preset, n_seeds)
            finally:
                lock.unlink(missing_ok=True)
    except BaseException:
        if is_new:
            with contextlib.suppress(OSError):  # somebody else has put something there
                root.rmdir()
        raise


def _make_project(project: Project, preset: Preset, n_seeds: int | None) -> ImportResult | None:
    path = project.root / CONFIG_NAME
    if path.exists():
        raise DistdataError(f"{path}: a project is here already. Use another folder: distdata init --project DIR")
    is_new = not project.events_dir.exists() and not project.catalog_path.exists()
    try:
        define_cells(project)
        done = None
        if preset.generator is not None and n_seeds != 0:
            done = import_generated(project, preset.generator, n_seeds or preset.n_seeds, {})
        write_atomic(path, preset.text.encode(), "init.config")  # last: with it the folder is a project
    except BaseException:
        if is_new:
            shutil.rmtree(project.events_dir, ignore_errors=True)
            for made in (project.catalog_path, project.catalog_path.with_name(project.catalog_path.name + ".wal")):
                made.unlink(missing_ok=True)
        raise
    return done


def import_seed_file(project: Project, path: Path) -> ImportResult:
    """Import seeds from a Parquet, JSONL or CSV file."""
    return import_file(project, path, _split_rule(project))


def import_generated(project: Project, generator: str, n: int, options: Mapping[str, Any]) -> ImportResult:
    """Import seeds that a generator makes (see `generate.teachers.registry.make_seeds`)."""
    salt = project.config.project.salt
    table = make_seeds(generator, n, salt, options, project.root)
    identity = content_hash(["generator", generator, n, salt, dict(options)])
    return import_seeds(project, from_arrow(table), f"{generator} generator, n = {n:,}", identity, _split_rule(project))


def _split_rule(project: Project) -> Any:
    rules, salt = project.config.splits, project.config.project.salt

    def assign(seeds: pl.DataFrame, used: pl.DataFrame) -> pl.DataFrame:
        return assign_splits(
            seeds, used, gate=rules.gate, confirm=rules.confirm, min_groups=rules.min_groups, salt=salt
        )  # fmt: skip

    return assign


def plan_purchase(
    project: Project,
    *,
    budget: str,
    purpose: Purpose = "train",
    policy: Policy | None = None,
    boosts: Mapping[str, float] | None = None,
    allow_undecidable: bool = False,
    dry_run: bool = False,
) -> Purchase:
    """Decide what to buy, from the catalog as it is. A changed cell table is written, unless it is a `dry_run`.

    Raises:
        DistdataError: a bad budget, floors it can't cover, cells without seeds, slices without gate groups,
            or a money budget while no cost per draw is known.
    """
    changed = None
    if dry_run:
        changed = changed_cells(project)
    else:
        define_cells(project)
    state = catalog_state(project)
    rules, splits = project.config.plan, project.config.splits
    info = teacher_info(make_teacher(project.config.teacher, project.root), project.config.teacher)
    inputs = planning_inputs(project, info.content_hash, purpose, changed[0] if changed else None)
    request = PlanRequest(
        purpose=purpose,
        budget=parse_budget(budget),
        policy=policy or rules.policy,
        gamma=rules.gamma,
        fleet_blend=rules.fleet_blend,
        k=rules.k,
        floor_seeds=rules.floor_seeds,
        expected_yield=rules.expected_yield,
        held_out=tuple(s for s in HELD_OUT if getattr(splits, s) > 0),
        min_groups=splits.min_groups,
        boosts=boosts or {},
        allow_undecidable=allow_undecidable,
    )
    rates = _rates(project, request, info, inputs)
    plan = make_plan(request, inputs.cells, inputs.seeds, inputs.bought, rates)
    identity = plan_id(plan, f"{info.content_hash} {project.config.project.salt}")
    earlier = open_plans(project)
    header = {
        "plan_id": identity,
        "purpose": purpose,
        "policy": request.policy,
        "budget": budget,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "teacher": info.id,
        "teacher_version": info.version,
        "teacher_hash": info.content_hash,
        "usd_per_gpuh": info.usd_per_gpuh,
        "gpu_s_per_draw": rates.gpu_s,
        "usd_per_draw": rates.usd,
        "n_draws": plan.n_fresh,
        "usd": plan.usd,
        "gpu_s": plan.gpu_s,
        "supersedes": [p["plan_id"] for p in earlier if p["purpose"] == purpose and p["plan_id"] != identity],
    }
    return Purchase(plan=plan, header=header, known=any(p["plan_id"] == identity for p in earlier), state=state)


def _rates(project: Project, request: PlanRequest, info: TeacherInfo, inputs: PlanInputs) -> Rates:
    """Take the measured cost per draw where this teacher version has one, else the given one."""
    given = project.config.teacher.gpu_s_per_draw
    gpu_s = inputs.measured_gpu_s if inputs.measured_gpu_s is not None else given
    if gpu_s is None:
        if request.budget.kind != "samples":
            raise DistdataError(
                f"plan: a budget of {request.budget} needs the cost of a draw, which is not known yet. Set [teacher] "
                "gpu_s_per_draw in distdata.toml, or buy a few samples first: distdata plan --budget 200samples"
            )
        return Rates(usd=0.0, gpu_s=0.0)
    usd = inputs.measured_usd if inputs.measured_usd is not None else gpu_s / 3600 * info.usd_per_gpuh
    return Rates(usd=usd, gpu_s=gpu_s)


def save_purchase(project: Project, purchase: Purchase) -> bool:
    """Freeze a purchase as the plan in force; return False when the very same plan is saved already.

    Raises:
        DistdataError: generation is running, or an earlier plan has paid answers that are not committed.
    """
    if purchase.known:
        return False
    busy = (
        f"{project.root}: process {{holder}} is generating here. Wait for it, or stop it with Ctrl-C, then plan again."
    )
    with exclusive_lock(project.spool_dir / "generate.lock", busy):
        catch_up(project)
        if catalog_state(project) != purchase.state:
            raise DistdataError(
                "plan: the catalog changed while this plan was computed (a plan, an import or a generation in another "
                "process). Nothing was saved; run the same command again."
            )
        for old in open_plans(project):
            if old["plan_id"] in purchase.header["supersedes"]:
                _settle_spools(project, old, purchase.header["teacher_hash"])
        draws = purchase.plan.draws.rename({"k_total": "n_k"})
        save_plan(project, purchase.header, purchase.plan.cells, draws)
    catch_up(project)
    return True


def _settle_spools(project: Project, old: Mapping[str, Any], teacher_hash: str) -> None:
    """Refuse to supersede a plan with usable answers in its spools; write off what can't be used any more."""
    paths = sorted(project.spool_dir.glob(f"{old['plan_id']}-unit-*.spool"))
    left = leftover(paths)
    if left.n_good and old["teacher_hash"] == teacher_hash:
        raise DistdataError(
            f"plan {old['plan_id']} was interrupted with {left.n_good} paid answers in {len(paths)} unfinished units. "
            "Finish just these first, and they count as credit here: "
            f"distdata generate --plan {old['plan_id']} --only-started"
        )
    if left.known_usd or left.in_doubt_usd:
        note = f"{left.n_good} answers of another teacher version, never committed" if left.n_good else "failed draws"
        append_json(
            project.events_dir, "spend",
            {"plan_id": old["plan_id"], "known_usd": left.known_usd, "in_doubt_usd": left.in_doubt_usd,
             "gpu_s": left.gpu_s, "note": note},
        )  # fmt: skip
    for path in paths:
        path.unlink(missing_ok=True)


def parse_boosts(texts: list[str]) -> dict[str, float]:
    """Read ``CELL_OR_SLICE=FACTOR`` texts; raises DistdataError for one that is not of that form."""
    boosts = {}
    for text in texts:
        name, _, factor = text.rpartition("=")
        try:
            boosts[name] = float(factor)
        except ValueError:
            name = ""
        if not name:
            raise DistdataError(f"--boost {text}: write CELL_OR_SLICE=FACTOR, for example night,rain=2")
    return boosts


def plan_table_rows(plan: Plan) -> list[PlanRow]:
    """Return the feasible cells of a plan as the terminal table shows them."""
    cells = plan.cells.filter("feasible").select(
        "slice", "scenario", "band", "weight", "target", "credit", "fresh", "usd"
    )
    return [
        PlanRow(slice=s, scenario=c, band=b, weight=w, target=t, have=h, buy=f, usd=u)
        for s, c, b, w, t, h, f, u in cells.iter_rows()
    ]


def layer_shares(plan: Plan) -> str:
    """Say per layer which share of the plan's samples it gets, and which share of the fleet it has."""
    total = max(plan.n_target, 1)
    layers = plan.cells.group_by("layer", maintain_order=True).agg(pl.col("target").sum(), pl.col("fleet_share").sum())
    return "; ".join(f"{name} {t / total:.1%} ({f:.1%})" for name, t, f in layers.iter_rows())


def write_report(project: Project, out: Path) -> Path:
    """Write the HTML report and return its path."""
    data = gather_report(project, datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"))
    write_atomic(out, render_report(data).encode(), "report")
    return out.resolve()


def export_dataset(
    project: Project,
    out: Path,
    *,
    layout: str,
    push: str | None,
    public: bool,
    overwrite: bool,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Export the training corpus to the folder `out` and, if asked, upload it; return what was written.

    `say` hears how it goes, about every two seconds.

    Raises:
        DistdataError: see `curate.export_hf` and `curate.push_hub`.
    """
    last = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= SAY_EVERY_S:
            last = time.monotonic()
            say(f"  exporting: {done / max(total, 1):.0%}")

    done = export_hf(project, out, layout=cast(Layout, layout), overwrite=overwrite, progress=progress)
    facts = {
        "folder": str(out.resolve()),
        "layout": layout,
        "samples": done.n_samples,
        "files": len(done.files),
        "bytes": done.n_bytes,
        "load it": f"datasets.load_dataset({str(out)!r})",
    }
    if push is not None:
        say(f"uploading to {push}")
        facts["uploaded to"] = push_to_hub(out, push, private=not public)
    return facts
