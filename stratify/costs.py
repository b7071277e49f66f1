"""What a distillation programme costs, from rates to a table: generation, training, labels, gates, payback.

Pure arithmetic over `[costs]` and what the catalog measured. A measured rate takes the place of the given one, and
every line says which of the two it stands on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from ..catalogs.config import Costs
from ..catalogs.cost_table import CostRow, CostTable, Source, figure
from ..catalogs.errors import DistdataError
from ..catalogs.tables import usd

FLOPS_PER_PARAMETER_TOKEN = 6
"""Forward and backward pass of a dense network: 2 + 4 (Kaplan et al. 2020, section 2.1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What is known rather than said; None where it isn't. Each takes the place of the given rate.

    - `gpu_s_per_draw`, `usd_per_draw`: means over the catalog's draws of this teacher version.
    - `n_draws`, `n_seeds`: of the corpus that the plan at hand aims at, draws that exist included.
    - `n_gate_draws`: the teacher's draws on held-out seeds, bought or planned.
    - `draw_steps`: the sampler steps of a full draw, where the teacher says so.
    """

    gpu_s_per_draw: float | None = None
    usd_per_draw: float | None = None
    n_draws: int | None = None
    n_seeds: int | None = None
    n_gate_draws: int | None = None
    draw_steps: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            above = field.name in ("n_draws", "n_seeds", "draw_steps")
            if value is not None and not (math.isfinite(value) and (value > 0 if above else value >= 0)):
                _refuse(f"measured {field.name}", value, "above 0" if above else "of at least 0")
        if self.n_seeds is not None and (self.n_draws is None or self.n_draws < self.n_seeds):
            raise DistdataError(
                f"costs: measured {self.n_seeds:,} seeds with {self.n_draws or 0:,} draws; each seed has at least one."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumed:
    """What the reference programme implies without saying it; a line of the table shows each one that is used.

    - `draw_miles`: length of one draw. A mile, because that is the unit the programme prices.
    - `draw_steps`: sampler steps of a full draw. Labels of 30 steps on 1% of 60M frames being 9,000 GPU-h, a step on
      a frame is 0.0005 GPU-h; a frame costs 900,000 / 60M = 0.015 GPU-h, which is 30 of them.
    - `int8`, `int4`: what serving the teacher in 8 or 4 bits saves against 16, as a factor; by the bytes of its
      weights, so the most that a teacher limited by memory saves.
    """

    draw_miles: float = 1.0
    draw_steps: float = 30.0
    int8: float = 2.0
    int4: float = 4.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value > 0):
                _refuse(f"assumed {field.name}", value, "above 0")


def cost_table(costs: Costs, measured: Measured | None = None, assumed: Assumed | None = None) -> CostTable:
    """Price the programme.

    Raises:
        DistdataError: rates whose product no number can hold.
    """
    known, guess = measured or Measured(), assumed or Assumed()
    sheet = _Sheet()
    try:
        _generation(sheet, costs, known, guess)
        _training(sheet, costs)
        _labels(sheet, costs, known, guess)
        _gates(sheet, costs, known)
        _together(sheet, costs)
        _serving(sheet, costs, guess)
    except (ZeroDivisionError, OverflowError):
        last = next(reversed(sheet.rows.values())).label if sheet.rows else "the first line"
        raise DistdataError(
            f"costs: after {last!r}, a product of rates is too small or too large for a number. Check [costs]."
        ) from None
    return CostTable(rows=tuple(sheet.rows.values()), notes=tuple(_notes(sheet, costs, known, guess)))


class _Sheet:
    """The table in the making: every line may build on the ones before it."""

    def __init__(self) -> None:
        self.rows: dict[str, CostRow] = {}

    def __getitem__(self, key: str) -> float:
        row = self.rows.get(key)
        return 0.0 if row is None or row.value is None else row.value

    def add(
        self,
        key: str,
        section: str,
        label: str,
        value: float | None,
        unit: str,
        formula: str,
        *,
        source: Source | None = None,
        on: tuple[str, ...] = (),
        rounded: str = "",
    ) -> None:
        """Append a line whose source is its own and that of the lines it stands `on`, together."""
        if value is not None and not math.isfinite(value):
            raise DistdataError(
                f"costs: {label} = {formula} is too large for a number. Check the rates in [costs] and their units."
            )
        found = {self.rows[k].source for k in on if k in self.rows} | ({source} if source else set())
        self.rows[key] = CostRow(
            key=key, section=section, label=label, formula=formula, value=value, unit=unit,
            source=_joined(found), rounded=rounded,
        )  # fmt: skip


def _joined(sources: set[Source]) -> Source:
    """Say what a number stands on: the weakest of its grounds, or ``mixed`` where measured meets unmeasured."""
    if sources & {"measured", "mixed"}:
        return "measured" if sources == {"measured"} else "mixed"
    return "assumed" if "assumed" in sources else "given"


def _generation(sheet: _Sheet, costs: Costs, known: Measured, guess: Assumed) -> None:
    part = "generation"
    miles = guess.draw_miles
    mix = 1 + costs.k_share * (costs.k - 1)
    if known.n_draws is None:
        words = f"{_short(costs.miles)} miles, {figure(miles)} a draw"
        sheet.add("seeds", part, "seeds", costs.miles / miles, "", words, source="assumed")
        words = f"1 + {_percent(costs.k_share)} of the seeds x (K = {costs.k} - 1)" if mix > 1 else "K = 1 everywhere"
        sheet.add("draws_per_seed", part, "draws per seed", mix, "x", words, source="given")
    elif known.n_seeds is not None:
        sheet.add("seeds", part, "seeds", known.n_seeds, "", "in the plan's corpus", source="measured")
        words = f"in the plan's corpus ({figure(mix)}x by [costs] k and k_share)"
        sheet.add("draws_per_seed", part, "draws per seed", known.n_draws / known.n_seeds, "x", words,
                  source="measured")  # fmt: skip
    if known.n_draws is None:
        n_draws, words = sheet["seeds"] * sheet["draws_per_seed"], f"{figure(sheet['seeds'])} seeds x {figure(mix)}"
        sheet.add("draws", part, "draws", n_draws, "", words, on=("seeds", "draws_per_seed"))
    else:
        sheet.add("draws", part, "draws", known.n_draws, "", "in the plan's corpus", source="measured")
    _draw_price(sheet, costs, known, guess)
    n_draws = sheet["draws"]
    words = f"{figure(n_draws)} draws x {figure(sheet['draw_gpuh'])} GPU-h"
    said: Source | None = None
    if known.n_draws is None and known.gpu_s_per_draw is None:
        said = "given"  # the assumed length of a draw cancels
    on = () if said else ("draws", "draw_gpuh")
    sheet.add("generation_gpuh", part, "generation", n_draws * sheet["draw_gpuh"], "GPU-h", words, source=said, on=on)
    words = f"{figure(n_draws)} draws x {usd(sheet['draw_usd'])}"
    said = said if known.usd_per_draw is None else None
    on = () if said else ("draws", "draw_usd")
    sheet.add("generation_usd", part, "generation, money", n_draws * sheet["draw_usd"], "$", words, source=said, on=on)


def _draw_price(sheet: _Sheet, costs: Costs, known: Measured, guess: Assumed) -> None:
    part = "generation"
    given = costs.gpuh_per_mile * guess.draw_miles
    if known.gpu_s_per_draw is None:
        length = "a mile" if guess.draw_miles == 1 else f"{figure(guess.draw_miles)} miles"
        words = f"{figure(costs.gpuh_per_mile)} GPU-h a mile; a draw taken for {length}"
        sheet.add("draw_gpuh", part, "one draw", given, "GPU-h", words, source="assumed")
    else:
        words = f"{figure(known.gpu_s_per_draw)} s a draw in the catalog, for {figure(given)} GPU-h given"
        sheet.add("draw_gpuh", part, "one draw", known.gpu_s_per_draw / 3600, "GPU-h", words, source="measured")
    sheet.add("usd_per_gpuh", part, "one GPU-hour", costs.usd_per_gpuh, "$", "[costs] usd_per_gpuh", source="given")
    if known.usd_per_draw is None:
        words = f"{figure(sheet['draw_gpuh'])} GPU-h x {usd(costs.usd_per_gpuh)}"
        sheet.add("draw_usd", part, "one draw, money", sheet["draw_gpuh"] * costs.usd_per_gpuh, "$", words,
                  on=("draw_gpuh", "usd_per_gpuh"))  # fmt: skip
    else:
        words = f"billed a draw in the catalog, for {usd(given * costs.usd_per_gpuh)} given"
        sheet.add("draw_usd", part, "one draw, money", known.usd_per_draw, "$", words, source="measured")


def _training(sheet: _Sheet, costs: Costs) -> None:
    """Add the student's training, and beside it the same in whole hours, as such figures are quoted.

    Quoted figures round the hours up first and multiply then, so that 35.2 h are told as 36 h and $36,000 as $37K.
    """
    part = "training"
    tokens = costs.frames * costs.tokens_per_frame
    words = f"{_short(costs.frames)} frames x {_short(costs.tokens_per_frame)} tokens"
    sheet.add("tokens", part, "tokens", tokens, "", words, source="given")
    flops = FLOPS_PER_PARAMETER_TOKEN * costs.student_params * tokens * costs.epochs
    words = (
        f"{FLOPS_PER_PARAMETER_TOKEN} x {_short(costs.student_params)} parameters x {figure(tokens)} tokens"
        f" x {figure(costs.epochs)} {'epoch' if costs.epochs == 1 else 'epochs'}"
    )
    sheet.add("flops", part, "arithmetic", flops, "FLOPs", words, source="given")
    hours = flops / (costs.train_gpus * costs.pflops_per_gpu * 1e15) / 3600
    words = f"on {costs.train_gpus:,} GPUs at {figure(costs.pflops_per_gpu)} PFLOP/s"
    whole = math.ceil(hours - 1e-9) if math.isfinite(hours) else 0
    sheet.add("training_h", part, "wall time", hours, "h", words, source="given", rounded=f"{whole:,} h")
    words = f"{figure(hours)} h x {costs.train_gpus:,} GPUs"
    sheet.add("training_gpuh", part, "training", hours * costs.train_gpus, "GPU-h", words, source="given")
    words = f"{figure(sheet['training_gpuh'])} GPU-h x {usd(costs.usd_per_gpuh)}; quoted from {whole:,} h"
    money = sheet["training_gpuh"] * costs.usd_per_gpuh
    quoted = whole * costs.train_gpus * costs.usd_per_gpuh
    sheet.add("training_usd", part, "training, money", money, "$", words, source="given", rounded=_thousands(quoted))
    words = f"{usd(sheet['generation_usd'])} of teacher for {usd(money)} of training"
    sheet.add("ratio", part, "generation to training", sheet["generation_usd"] / money, ":1", words,
              on=("generation_usd", "training_usd"))  # fmt: skip


def _labels(sheet: _Sheet, costs: Costs, known: Measured, guess: Assumed) -> None:
    """Price labels asked of the live teacher: its steps on a share of the frames, by what a step on a frame costs."""
    if costs.label_steps == 0 or costs.label_share == 0:
        return
    part = "labels"
    steps = guess.draw_steps if known.draw_steps is None else known.draw_steps
    origin: Source = "assumed" if known.draw_steps is None else "measured"
    words = "of the sampler, as the teacher says" if origin == "measured" else "of the sampler; the teacher doesn't say"
    sheet.add("draw_steps", part, "steps of a draw", steps, "steps", words, source=origin)
    n_frames = costs.frames * guess.draw_miles / costs.miles
    words = f"{_short(costs.frames)} frames / {_short(costs.miles)} miles"
    sheet.add("draw_frames", part, "frames of a draw", n_frames, "frames", words, source="assumed")
    step = sheet["draw_gpuh"] / n_frames / steps
    words = f"{figure(sheet['draw_gpuh'])} GPU-h / {figure(n_frames)} frames / {figure(steps)} steps"
    sheet.add("frame_step_gpuh", part, "one step on a frame", step, "GPU-h", words,
              on=("draw_gpuh", "draw_frames", "draw_steps"))  # fmt: skip
    n_labelled = costs.frames * costs.label_share
    words = (
        f"{_percent(costs.label_share)} of {_short(costs.frames)} frames x {figure(costs.label_steps)} steps"
        f" x {figure(step)} GPU-h"
    )
    gpuh = n_labelled * costs.label_steps * step
    sheet.add("labels_gpuh", part, "live labels", gpuh, "GPU-h", words, source="given", on=("frame_step_gpuh",))
    per_gpuh, on = _teacher_usd_per_gpuh(sheet, costs)
    words = f"{figure(gpuh)} GPU-h x {usd(per_gpuh)}"
    sheet.add("labels_usd", part, "live labels, money", gpuh * per_gpuh, "$", words, on=("labels_gpuh", *on))


def _teacher_usd_per_gpuh(sheet: _Sheet, costs: Costs) -> tuple[float, tuple[str, ...]]:
    """Return what the teacher's GPU-hour costs: by its draws where both of their rates are above 0, else as given."""
    if sheet["draw_gpuh"] > 0 and sheet["draw_usd"] > 0:
        return sheet["draw_usd"] / sheet["draw_gpuh"], ("draw_usd", "draw_gpuh")
    return costs.usd_per_gpuh, ("usd_per_gpuh",)


def _gates(sheet: _Sheet, costs: Costs, known: Measured) -> None:
    n = costs.gate_draws if known.n_gate_draws is None else known.n_gate_draws
    if n == 0:
        return
    origin: Source = "given" if known.n_gate_draws is None else "measured"
    words = "[costs] gate_draws" if origin == "given" else "on held-out seeds, bought or planned"
    sheet.add("gate_draws", "gates", "teacher's gate draws", n, "", words, source=origin)
    sheet.add("gates_gpuh", "gates", "gates", n * sheet["draw_gpuh"], "GPU-h",
              f"{figure(n)} draws x {figure(sheet['draw_gpuh'])} GPU-h, once for each teacher version",
              on=("gate_draws", "draw_gpuh"))  # fmt: skip
    sheet.add("gates_usd", "gates", "gates, money", n * sheet["draw_usd"], "$",
              f"{figure(n)} draws x {usd(sheet['draw_usd'])}", on=("gate_draws", "draw_usd"))  # fmt: skip


def _together(sheet: _Sheet, costs: Costs) -> None:
    names = [name for name in ("generation", "training", "labels", "gates") if f"{name}_usd" in sheet.rows]
    words = " + ".join(names)
    for unit, suffix, label in (("GPU-h", "gpuh", "the programme"), ("$", "usd", "the programme, money")):
        keys = tuple(f"{name}_{suffix}" for name in names)
        total = math.fsum(sheet[key] for key in keys)
        sheet.add(f"total_{suffix}", "together", label, total, unit, words, on=keys)
    words = f"{figure(sheet['total_gpuh'])} GPU-h on {costs.train_gpus:,} GPUs: release of a teacher to its student"
    sheet.add("lag_days", "together", "lag, at least", sheet["total_gpuh"] / costs.train_gpus / 24, "days", words,
              on=("total_gpuh",))  # fmt: skip


def _serving(sheet: _Sheet, costs: Costs, guess: Assumed) -> None:
    """Add how long serving must go on until distilling has paid, against the teacher as it is and quantised."""
    rivals = (("", "the teacher", 1.0), ("_int8", "it in int8", guess.int8), ("_int4", "it in int4", guess.int4))
    served = costs.served_gpuh_per_day
    for suffix, rival, saving in rivals:
        source: Source = "given" if saving == 1 else "assumed"
        gain = 1 / saving - 1 / costs.student_speedup
        label = f"pays against {rival}"
        if gain <= 0:
            words = f"the student's {figure(costs.student_speedup)}x is no more than the {figure(saving)}x of {rival}"
            sheet.add(f"payback{suffix}_gpuh", "serving", label, None, "GPU-h", words, source=source)
            continue
        gpuh = sheet["total_usd"] / (costs.usd_per_gpuh * gain)
        saved = f"({figure(1 / saving)} - 1/{figure(costs.student_speedup)})"
        words = f"served: {usd(sheet['total_usd'])} / {usd(costs.usd_per_gpuh)} / {saved}"
        sheet.add(f"payback{suffix}_gpuh", "serving", label, gpuh, "GPU-h", words, source=source, on=("total_usd",))
        if served is not None:
            words = f"at {figure(served)} GPU-h of the teacher's serving a day"
            days = gpuh / served
            sheet.add(f"payback{suffix}_days", "serving", "  that is after", days, "days", words, source=source,
                      on=("total_usd",))  # fmt: skip


def _notes(sheet: _Sheet, costs: Costs, known: Measured, guess: Assumed) -> list[str]:
    notes = [_verdict(sheet, costs, guess)]
    if costs.served_gpuh_per_day is None:
        notes.append("Set served_gpuh_per_day in [costs] to see the payback in days.")
    if known.n_draws is not None:
        notes.append(
            f"Generation is this plan's ({known.n_draws:,} draws); training is what [costs] says "
            f"({_short(costs.frames)} frames), and the ratio compares the two only if those frames are this plan's."
        )
    return notes


def _verdict(sheet: _Sheet, costs: Costs, guess: Assumed) -> str:
    saving = figure(guess.int4)
    limit = (
        f"{saving}x is what int4 weights save where reading them is the limit; a teacher limited by arithmetic, as "
        "diffusion models are, saves less: measure it."
    )
    row = sheet.rows["payback_int4_gpuh"]
    if row.value is None:
        return (
            f"Do not distil: quantise. The student's {figure(costs.student_speedup)}x is no more than the {saving}x of "
            f"the teacher in int4, which costs no draw and no training. {limit}"
        )
    after = f"{figure(row.value)} GPU-h of the teacher's serving"
    if costs.served_gpuh_per_day is not None:
        after += f" ({figure(sheet['payback_int4_days'])} days)"
    return (
        f"If a {saving}x saving is enough, do not distil: quantise the teacher and serve it on the day of its release. "
        f"The student's {figure(costs.student_speedup)}x is worth its {usd(sheet['total_usd'])} beyond that only after "
        f"{after}; a teacher that is replaced sooner was better quantised. {limit}"
    )


def _short(value: float) -> str:
    """Write a round rate the way it is spoken: ``60M``, ``3B``, ``12,000``."""
    for size, letter in ((1e9, "B"), (1e6, "M")):
        if size <= value < 1000 * size:
            return f"{value / size:.4g}{letter}"
    return figure(value)


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"


def _thousands(amount: float) -> str:
    """Write dollars as they are quoted, in whole thousands; smaller amounts and huge ones as they are."""
    return (
        f"${amount / 1000:,.0f}K" if 1000 <= amount < 1e6 else f"${amount / 1e6:,.3g}M" if amount < 1e9 else usd(amount)
    )


def _refuse(what: str, value: float, wanted: str) -> None:
    raise DistdataError(f"costs: {what} = {value:g} must be a number {wanted}.")
