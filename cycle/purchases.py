"""What to buy: plans, comparisons of policies and prices, from the catalog as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

import polars as pl

from ..catalogs.cases import mark_planned, settle_cases
from ..catalogs.comparison import Comparison
from ..catalogs.config import Policy
from ..catalogs.cost_table import CostTable
from ..catalogs.errors import DistdataError, nearest
from ..catalogs.events import append_json
from ..catalogs.files import exclusive_lock
from ..catalogs.intake import changed_cells, define_cells
from ..catalogs.macros import ALL_COUNTED
from ..catalogs.planning import PlanInputs, measured_costs, outcome_counts, pilot_rows, planning_inputs
from ..catalogs.plans import catalog_state, open_plans, plan_frames, plan_in_force, save_plan
from ..catalogs.project import Project
from ..catalogs.protocol import TeacherInfo
from ..catalogs.register import catch_up
from ..generate.spool import leftover
from ..generate.teachers.registry import make_teacher, teacher_info
from ..stratify.budget import Budget, parse_budget
from ..stratify.compare import compare_policies, needed_draws, parse_policies
from ..stratify.costs import Measured, cost_table
from ..stratify.explain import explain
from ..stratify.minima import GateAims, tied_contrasts
from ..stratify.pilot import with_pilot
from ..stratify.plan import make_plan
from ..stratify.reach import within_reach
from ..stratify.request import FRAME_SPLIT, Plan, PlanRequest, Purpose, Rates, plan_id, restored_request
from ..stratify.spending import spent_alpha

HELD_OUT = ("gate", "confirm")
AS_NEEDED = "as needed"
"""The budget of a plan whose size follows from what it is for."""
TOP_UP = ", topped up"
REFRESHED = ", refreshed"
AIMS = ("power", "expected_difference", "sigma", "tau", "seeds")
"""What of `[gates]` decides how many draws a gate needs, as it stands there."""
UNSEEN_LABELS = 2
"""Outcomes of a scenario type that no draw has shown yet."""
K_UNSETTLED = 8
"""K where `[plan] k` is "auto" and no pilot has settled it: in the pilot's own plan."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Purchase:
    """A plan with what it would be saved as. `known` says that the very same plan is saved already.

    `state` is the catalog that the plan was computed from: (events, units) in it; `before` [cell_id, n_before]
    the seeds of the corpus before this round. `cases` are the divergence cases that the plan answers.
    """

    plan: Plan
    header: dict[str, Any]
    known: bool
    state: tuple[int, ...]
    before: pl.DataFrame
    cases: list[str]

    @property
    def plan_id(self) -> str:
        """The plan's id."""
        return str(self.header["plan_id"])


def plan_purchase(
    project: Project,
    *,
    budget: str | None,
    purpose: Purpose = "train",
    policy: Policy | None = None,
    boosts: Mapping[str, float] | None = None,
    top_up: bool = False,
    allow_undecidable: bool = False,
    goals: pl.DataFrame | None = None,
    dry_run: bool = False,
) -> Purchase:
    """Decide what to buy, from the catalog as it is. A changed cell table is written, unless it is a `dry_run`.

    Without a budget a gate or confirm plan buys its decidable minima, a pilot its default size, and a top-up
    what is short. `goals` are the targets of a refresh (`stratify.growth`): a top-up that was made after looking.

    Raises:
        DistdataError: a bad budget, floors it can't cover, cells without seeds, slices without gate groups,
            or a money budget while no cost per draw is known.
    """
    start = _start(project, purpose, dry_run=dry_run)
    request = _request(
        project, purpose=purpose, budget=None if budget is None else parse_budget(budget), policy=policy, boosts=boosts,
        top_up=top_up or goals is not None, allow_undecidable=allow_undecidable,
    )  # fmt: skip
    said = budget or AS_NEEDED
    if goals is not None:
        request = replace(request, adaptive=True)
        start = replace(start, inputs=replace(start.inputs, goals=goals))
        said = f"{last_budget(project, purpose) or AS_NEEDED}{REFRESHED}"
    elif top_up:  # it aims at another plan's targets: as that one was made after looking or not, so is this
        force = plan_in_force(project, purpose) or {}
        request = replace(request, adaptive=bool(force.get("adaptive", False)))
        said = str(force.get("budget", AS_NEEDED)).removesuffix(TOP_UP) + TOP_UP
    rates = _rates(project, request, start.info, start.inputs)
    plan = _plan(project, start.inputs, request, rates)
    info = start.info
    identity = plan_id(plan, f"{info.content_hash} {project.config.project.salt}")
    earlier = open_plans(project)
    header = {
        "plan_id": identity,
        "purpose": purpose,
        "split": FRAME_SPLIT[purpose],
        "policy": request.policy,
        "adaptive": request.looked,
        "budget": said,
        "request": asdict(request),
        "band_ref": plan.band_ref,
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
    return Purchase(
        plan=plan,
        header=header,
        known=any(p["plan_id"] == identity for p in earlier),
        state=start.state,
        before=_walked(start.inputs.corpus, "n_before"),
        cases=start.inputs.cases.filter(pl.col("seed_id").is_in(plan.draws["seed_id"].implode()))["case_id"].to_list(),
    )


def compare_plans(
    project: Project, *, budget: str | None, policies: str, purpose: Purpose = "train", allow_undecidable: bool = False
) -> Comparison:
    """Plan the same purchase under several policies (``fleet,uniform,gate``) and compare; nothing is saved.

    Without a budget it is that of the plan in force. Raises DistdataError as `plan_purchase` does.
    """
    names = parse_policies(policies)
    if budget is None:
        budget = last_budget(project, purpose)
        if budget is None:
            raise DistdataError("plan --compare: for which budget? Give --budget 2000samples, 400gpuh or $800.")
    start = _start(project, purpose, dry_run=True)
    request = _request(
        project, purpose=purpose, budget=parse_budget(budget), policy=None, boosts=None, top_up=False,
        allow_undecidable=allow_undecidable,
    )  # fmt: skip
    rates = _rates(project, request, start.info, start.inputs)
    return compare_policies(
        names,
        lambda policy: _plan(project, start.inputs, replace(request, policy=policy), rates),
        needed=needed_draws(start.inputs.cells, request.aims, request.k),
    )


def programme_costs(project: Project) -> CostTable:
    """Price the programme of ``[costs]``, with what this project has measured in place of what is only said."""
    info = teacher_info(make_teacher(project.config.teacher, project.root), project.config.teacher)
    known = Measured(**measured_costs(project, info.content_hash))
    return cost_table(project.config.costs, known, project.config.teacher)


def last_budget(project: Project, purpose: str) -> str | None:
    """Return the budget of the plan in force for `purpose`; None where there is none, or it was bought as needed."""
    same = [
        str(p["budget"]).removesuffix(TOP_UP).removesuffix(REFRESHED)
        for p in open_plans(project)
        if p["purpose"] == purpose
    ]
    return same[-1] if same and same[-1] != AS_NEEDED else None


def explain_in_force(project: Project, purpose: str, pattern: str) -> list[str]:
    """Say why the plan in force gives the cells that `pattern` names their numbers (see `stratify.explain`).

    Raises:
        DistdataError: there is no such plan, or nothing matches.
    """
    header = plan_in_force(project, purpose)
    if header is None:
        raise DistdataError(
            f"plan --explain: no {purpose} plan is in force. Make one, or give the --budget of one to look at."
        )
    frames = plan_frames(project, header)
    if "request" not in header:
        raise DistdataError(f"plan {header['plan_id']}: an older distdata made it. Give --budget to explain a new one.")
    nothing = pl.DataFrame()
    plan = Plan(
        request=restored_request(header["request"]), cells=frames["cells"], draws=nothing, seeds=nothing,
        prices=frames["prices"], minima=frames["minima"], shortfall=0.0, band_ref=header["band_ref"],
    )  # fmt: skip
    return explain(plan, pattern)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Start:
    """What a plan is computed from: the catalog's counts, the teacher, and the frames."""

    state: tuple[int, ...]
    info: TeacherInfo
    inputs: PlanInputs


def _start(project: Project, purpose: Purpose, *, dry_run: bool) -> _Start:
    if purpose not in FRAME_SPLIT:
        raise DistdataError(f"plan: no purpose {purpose!r}.{nearest(purpose, FRAME_SPLIT)}")
    changed = None
    info = teacher_info(make_teacher(project.config.teacher, project.root), project.config.teacher)
    if purpose in HELD_OUT:
        from .gate_rules import check_gate_rules  # with its metrics, which other plans need not load

        check_gate_rules(project, info.kind)
    if dry_run:
        changed = changed_cells(project)
    else:
        define_cells(project)
        settle_cases(project, info.content_hash)
    state = catalog_state(project)
    cells = changed[0] if changed else None
    inputs = planning_inputs(project, info.content_hash, purpose, FRAME_SPLIT[purpose], cells)
    rules = project.config.plan
    pilot = pilot_rows(project, info.content_hash)
    if purpose != "pilot" and (pilot.height or rules.k == "auto"):
        settled = with_pilot(inputs.cells, pilot, seed_cost=rules.seed_cost, k_max=rules.k_max)
        if purpose in HELD_OUT and "sigma" in settled.columns:
            settled = settled.drop("sigma")  # a pilot's draws are not of pairs: what a gate compares varies less
        inputs = replace(inputs, cells=settled)
    if purpose in HELD_OUT:
        inputs = replace(inputs, cells=inputs.cells.with_columns(n_labels=_labels(project)))
    k = project.config.gates.k
    if purpose in HELD_OUT and k is not None:
        inputs = replace(inputs, cells=inputs.cells.with_columns(k=pl.lit(k, pl.Int32)))
    return _Start(state=state, info=info, inputs=inputs)


def _request(
    project: Project,
    *,
    purpose: Purpose,
    budget: Budget | None,
    policy: Policy | None,
    boosts: Mapping[str, float] | None,
    top_up: bool,
    allow_undecidable: bool,
) -> PlanRequest:
    rules, splits = project.config.plan, project.config.splits
    return PlanRequest(
        purpose=purpose,
        budget=budget,
        policy=policy or ("uniform" if purpose == "pilot" else rules.policy),  # a pilot looks everywhere alike
        gamma=rules.gamma,
        fleet_blend=rules.fleet_blend,
        k=rules.k if isinstance(rules.k, int) else K_UNSETTLED,
        floor_seeds=rules.floor_seeds,
        expected_yield=rules.expected_yield,
        held_out=tuple(s for s in HELD_OUT if getattr(splits, s) > 0),
        min_groups=splits.min_groups,
        boosts=boosts or {},
        layers=rules.layers,
        case_share=rules.case_share,
        aims=_aims(project),
        top_up=top_up,
        allow_undecidable=allow_undecidable,
    )


def _aims(project: Project) -> GateAims:
    """Return what a gate must tell, with what its judge will spend of alpha and how many contrasts it has."""
    rules = project.config.gates
    labels = outcome_counts(project)
    types = [max(labels.get(name, UNSEEN_LABELS), 1) for name in project.config.scenarios]
    return GateAims(
        **rules.model_dump(include=set(AIMS)),
        alpha=spent_alpha(rules.alpha, candidate=rules.candidates, n_looks=rules.looks),
        lean=1.0,  # shares of single draws differ by -1, 0 or 1
        n_contrasts=tied_contrasts(types),
    )


def _labels(project: Project) -> pl.Expr:
    """Return how many outcomes each cell's scenario type has, as far as draws have shown them."""
    known = outcome_counts(project)
    labels = {name: max(known.get(name, UNSEEN_LABELS), 1) for name in project.config.scenarios}
    return pl.col("scenario").replace_strict(labels, return_dtype=pl.Int64)


def _plan(project: Project, inputs: PlanInputs, request: PlanRequest, rates: Rates) -> Plan:
    cells, note = within_reach(
        project.config, project.root, request, inputs.cells, inputs.candidates, inputs.bought, rates,
        corpus=inputs.corpus, outside=inputs.outside, cases=inputs.cases, blocked=inputs.blocked,
    )  # fmt: skip
    plan = make_plan(
        request, cells, inputs.candidates, inputs.bought, rates, groups=inputs.groups, corpus=inputs.corpus,
        outside=inputs.outside, cases=inputs.cases, blocked=inputs.blocked,
        goals=inputs.goals if request.top_up else None,
    )  # fmt: skip
    return replace(plan, notes=(note, *plan.notes)) if note else plan


def _rates(project: Project, request: PlanRequest, info: TeacherInfo, inputs: PlanInputs) -> Rates:
    """Take the measured cost per draw where this teacher version has one, else the given one."""
    given = project.config.teacher.gpu_s_per_draw
    gpu_s = inputs.measured_gpu_s if inputs.measured_gpu_s is not None else given
    if gpu_s is None:
        if request.budget is not None and request.budget.kind != "samples":
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
        plan = purchase.plan
        save_plan(
            project, purchase.header, _with_rounds(plan, purchase.before), plan.draws.rename({"k_total": "n_k"}),
            plan.seeds, {"prices": plan.prices, "minima": plan.minima},
        )  # fmt: skip
        mark_planned(project, purchase.cases, purchase.plan_id)
    catch_up(project)
    return True


def _with_rounds(plan: Plan, before: pl.DataFrame) -> pl.DataFrame:
    """Add what this round is, given the earlier ones: seeds of the walk before it, and the chance of those it adds.

    The chance is that of a seed which the walk had not reached and nobody else had chosen; null where sizes differ,
    since each seed then has its own (`corpus.pi`), and for a plan made after looking, which extends no walk.
    """
    chosen = plan.seeds.filter(pl.col("k_counted") == ALL_COUNTED).group_by("cell_id").agg(n_chosen=pl.len())
    cells = plan.cells.join(before, on="cell_id", how="left", maintain_order="left")
    for more in (_walked(plan.seeds, "n_now"), chosen):
        cells = cells.join(more, on="cell_id", how="left", maintain_order="left")
    cells = cells.with_columns(pl.col("n_before", "n_now", "n_chosen").fill_null(0).cast(pl.Int64))
    left = pl.col("n_seeds_frame") - pl.col("n_chosen") - pl.col("n_before")
    alike = plan.seeds.group_by("cell_id").agg(alike=pl.col("pi").filter(_IN_WALK).n_unique() <= 1)
    cells = cells.join(alike, on="cell_id", how="left", maintain_order="left")
    known = pl.col("alike").fill_null(True) & (left > 0) & (not plan.request.looked)
    chance = pl.when(known).then((pl.col("n_now") - pl.col("n_before")) / left)
    return cells.with_columns(pi_round=chance).drop("n_now", "n_chosen", "alike")


_IN_WALK = (pl.col("k_counted") > 0) & (pl.col("k_counted") < ALL_COUNTED)


def _walked(corpus: pl.DataFrame, name: str) -> pl.DataFrame:
    """Count the seeds of each cell's walk: [cell_id, `name`]."""
    return corpus.filter(_IN_WALK).group_by("cell_id").agg(pl.len().cast(pl.Int64).alias(name))


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
        if not name or "=" in name:
            raise DistdataError(f"--boost {text}: write CELL_OR_SLICE=FACTOR, for example night,rain=2, once for each.")
    return boosts
