"""What a distillation programme costs, from rates to a table: generation, training, labels, gates, payback.

Pure arithmetic over `[costs]`, `[teacher]` and what the catalog measured. A measured rate takes the place of one that
is only said, and every line says what it stands on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from ..catalogs.config import Costs, TeacherConfig
from ..catalogs.cost_table import CostRow, CostTable, Source, figure
from ..catalogs.errors import DistdataError
from ..catalogs.tables import usd

FLOPS_PER_PARAMETER_TOKEN = 6
"""Forward and backward pass of a dense network: 2 + 4 (Kaplan et al. 2020, section 2.1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What is known rather than said; None where it isn't. Each takes the place of the rate that is said.

    - `gpu_s_per_draw`, `usd_per_draw`: means over the catalog's draws of this teacher version.
    - `n_draws`, `n_seeds`: of the training corpus bought here: draws that were made, and those that open plans are
      still to make. `n_draws_to_make` says how many of them the latter are, `n_draws_rejected` how many of the
      former no verifier kept; they are paid for.
    - `n_gate_draws`, `n_gate_draws_to_make`: the same of the teacher's draws on held-out seeds.
    - `draw_steps`: the sampler steps of a full draw, where the teacher says so.
    """

    gpu_s_per_draw: float | None = None
    usd_per_draw: float | None = None
    n_draws: int | None = None
    n_draws_to_make: int = 0
    n_draws_rejected: int = 0
    n_seeds: int | None = None
    n_gate_draws: int | None = None
    n_gate_draws_to_make: int = 0
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


def cost_table(costs: Costs, measured: Measured | None = None, teacher: TeacherConfig | None = None) -> CostTable:
    """Price the programme.

    The draws' price is the measured one, else what `teacher` says of itself, else that of `costs`. What `costs` holds
    by default is marked as the reference programme's.

    Raises:
        DistdataError: rates whose product no number can hold.
    """
    known = measured or Measured()
    sheet = _Sheet(costs)
    try:
        _generation(sheet, costs, known, teacher)
        _training(sheet, costs)
        _labels(sheet, costs, known)
        _gates(sheet, costs, known)
        _together(sheet, costs)
        _serving(sheet, costs)
    except (ZeroDivisionError, OverflowError):
        last = next(reversed(sheet.rows.values())).label if sheet.rows else "the first line"
        raise DistdataError(
            f"costs: after {last!r}, a product of rates is too small or too large for a number. Check [costs]."
        ) from None
    return CostTable(rows=tuple(sheet.rows.values()), notes=tuple(_notes(sheet, costs, known)))


class _Sheet:
    """The table in the making: every line may build on the ones before it."""

    def __init__(self, costs: Costs) -> None:
        self.rows: dict[str, CostRow] = {}
        self._given = costs.model_fields_set

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
        said: tuple[str, ...] = (),
        on: tuple[str, ...] = (),
        rounded: str = "",
    ) -> None:
        """Append a line; its source joins its own, those of the keys `said` in [costs], and of the lines it is `on`."""
        if value is not None and not math.isfinite(value):
            raise DistdataError(
                f"costs: {label} = {formula} is too large for a number. Check the rates in [costs] and their units."
            )
        found = {self.rows[k].source for k in on if k in self.rows} | ({source} if source else set())
        found |= {self.said(key) for key in said}
        self.rows[key] = CostRow(
            key=key, section=section, label=label, formula=formula, value=value, unit=unit,
            source=_joined(found), rounded=rounded,
        )  # fmt: skip

    def said(self, key: str) -> Source:
        """Tell whether distdata.toml says this key of [costs], or the reference programme's default stands there."""
        return "given" if key in self._given else "reference"


def _joined(sources: set[Source]) -> Source:
    """Say what a number stands on: what all its grounds are, else ``mixed``; measured x planned counts as planned."""
    if len(sources) == 1:
        return next(iter(sources))
    return "planned" if sources == {"measured", "planned"} else "mixed"


def _generation(sheet: _Sheet, costs: Costs, known: Measured, teacher: TeacherConfig | None) -> None:
    part = "generation"
    miles = costs.draw_miles
    bought: Source = "planned" if known.n_draws_to_make else "measured"
    mix = 1 + costs.k_share * (costs.k - 1)
    if known.n_draws is None:
        words = f"{_short(costs.miles)} miles, {figure(miles)} a draw"
        sheet.add("seeds", part, "seeds", costs.miles / miles, "", words,
                  said=("miles", "draw_miles"))  # fmt: skip
        words = f"1 + {_percent(costs.k_share)} of the seeds x (K = {costs.k} - 1)" if mix > 1 else "K = 1 everywhere"
        sheet.add("draws_per_seed", part, "draws per seed", mix, "x", words, said=("k", "k_share"))
    elif known.n_seeds is not None:
        sheet.add("seeds", part, "seeds", known.n_seeds, "", "in the training corpus", source=bought)
        words = f"in the training corpus ({figure(mix)}x by [costs] k and k_share)"
        sheet.add("draws_per_seed", part, "draws per seed", known.n_draws / known.n_seeds, "x", words, source=bought)
    if known.n_draws is None:
        n_draws, words = sheet["seeds"] * sheet["draws_per_seed"], f"{figure(sheet['seeds'])} seeds x {figure(mix)}"
        sheet.add("draws", part, "draws", n_draws, "", words, on=("seeds", "draws_per_seed"))
    else:
        rejected = f" ({known.n_draws_rejected:,} rejected)" if known.n_draws_rejected else ""
        words = f"{known.n_draws - known.n_draws_to_make:,} made{rejected}, {known.n_draws_to_make:,} to make"
        sheet.add("draws", part, "draws", known.n_draws, "", words, source=bought)
    _draw_price(sheet, costs, known, teacher)
    n_draws = sheet["draws"]
    words = f"{figure(n_draws)} draws x {figure(sheet['draw_gpuh'])} GPU-h"
    # without a length of a draw that is known, the one that is said cancels
    cancels = known.n_draws is None and known.gpu_s_per_draw is None and _gpu_s(teacher) is None
    said = ("miles", "gpuh_per_mile", "k", "k_share") if cancels else ()
    on = () if cancels else ("draws", "draw_gpuh")
    sheet.add("generation_gpuh", part, "generation", n_draws * sheet["draw_gpuh"], "GPU-h", words, said=said, on=on)
    words = f"{figure(n_draws)} draws x {usd(sheet['draw_usd'])}"
    on = ("generation_gpuh", "usd_per_gpuh") if known.usd_per_draw is None else ("draws", "draw_usd")
    sheet.add("generation_usd", part, "generation, money", n_draws * sheet["draw_usd"], "$", words, on=on)


def _gpu_s(teacher: TeacherConfig | None) -> float | None:
    return None if teacher is None else teacher.gpu_s_per_draw


def _draw_price(sheet: _Sheet, costs: Costs, known: Measured, teacher: TeacherConfig | None) -> None:
    part = "generation"
    gpu_s = _gpu_s(teacher)
    before = costs.gpuh_per_mile * costs.draw_miles if gpu_s is None else gpu_s / 3600
    keys = ("gpuh_per_mile", "draw_miles") if gpu_s is None else ()
    origin = _joined({sheet.said(key) for key in keys} or {"given"})
    if known.gpu_s_per_draw is not None:
        words = f"{figure(known.gpu_s_per_draw)} s a draw in the catalog; {_before(before, origin)} GPU-h"
        sheet.add("draw_gpuh", part, "one draw", known.gpu_s_per_draw / 3600, "GPU-h", words, source="measured")
    elif gpu_s is not None:
        sheet.add("draw_gpuh", part, "one draw", before, "GPU-h", f"{figure(gpu_s)} s, [teacher] gpu_s_per_draw",
                  source="given")  # fmt: skip
    else:
        length = "a mile" if costs.draw_miles == 1 else f"{figure(costs.draw_miles)} miles"
        words = f"{figure(costs.gpuh_per_mile)} GPU-h a mile; a draw taken for {length}"
        sheet.add("draw_gpuh", part, "one draw", before, "GPU-h", words, said=keys)
    price = costs.usd_per_gpuh
    if teacher is None or teacher.usd_per_gpuh is None:
        sheet.add("usd_per_gpuh", part, "one GPU-hour", price, "$", "[costs] usd_per_gpuh", said=("usd_per_gpuh",))
    else:
        price = teacher.usd_per_gpuh
        sheet.add("usd_per_gpuh", part, "one GPU-hour", price, "$", "[teacher] usd_per_gpuh", source="given")
    if known.usd_per_draw is None:
        words = f"{figure(sheet['draw_gpuh'])} GPU-h x {usd(price)}"
        sheet.add("draw_usd", part, "one draw, money", sheet["draw_gpuh"] * price, "$", words,
                  on=("draw_gpuh", "usd_per_gpuh"))  # fmt: skip
    else:
        origin = _joined({origin, sheet.rows["usd_per_gpuh"].source})
        words = f"billed a draw in the catalog; {_before(usd(before * price), origin)}"
        sheet.add("draw_usd", part, "one draw, money", known.usd_per_draw, "$", words, source="measured")


def _before(value: float | str, origin: Source) -> str:
    """Name the figure that a measured one replaced."""
    return f"{origin}: {value if isinstance(value, str) else figure(value)}"


def _training(sheet: _Sheet, costs: Costs) -> None:
    """Add the student's training, and beside it the same in whole hours, as such figures are quoted.

    Quoted figures round the hours up first and multiply then, so that 35.2 h are told as 36 h and $36,000 as $37K.
    """
    part = "training"
    tokens = costs.frames * costs.tokens_per_frame
    words = f"{_short(costs.frames)} frames x {_short(costs.tokens_per_frame)} tokens"
    sheet.add("tokens", part, "tokens", tokens, "", words, said=("frames", "tokens_per_frame"))
    flops = FLOPS_PER_PARAMETER_TOKEN * costs.student_params * tokens * costs.epochs
    words = (
        f"{FLOPS_PER_PARAMETER_TOKEN} x {_short(costs.student_params)} parameters x {figure(tokens)} tokens"
        f" x {figure(costs.epochs)} {'epoch' if costs.epochs == 1 else 'epochs'}"
    )
    sheet.add("flops", part, "arithmetic", flops, "FLOPs", words, said=("student_params", "epochs"),
              on=("tokens",))  # fmt: skip
    hours = flops / (costs.train_gpus * costs.pflops_per_gpu * 1e15) / 3600
    words = f"on {costs.train_gpus:,} GPUs at {figure(costs.pflops_per_gpu)} PFLOP/s"
    whole = math.ceil(hours - 1e-9) if math.isfinite(hours) else 0
    sheet.add("training_h", part, "wall time", hours, "h", words, rounded=f"{whole:,} h",
              said=("train_gpus", "pflops_per_gpu"), on=("flops",))  # fmt: skip
    words = f"{figure(hours)} h x {costs.train_gpus:,} GPUs"
    sheet.add("training_gpuh", part, "training", hours * costs.train_gpus, "GPU-h", words, on=("training_h",))
    words = f"{figure(sheet['training_gpuh'])} GPU-h x {usd(costs.usd_per_gpuh)}; quoted from {whole:,} h"
    money = sheet["training_gpuh"] * costs.usd_per_gpuh
    quoted = whole * costs.train_gpus * costs.usd_per_gpuh
    sheet.add("training_usd", part, "training, money", money, "$", words, rounded=_thousands(quoted),
              said=("usd_per_gpuh",), on=("training_gpuh",))  # fmt: skip
    words = f"{usd(sheet['generation_usd'])} of teacher for {usd(money)} of training"
    sheet.add("ratio", part, "generation to training", sheet["generation_usd"] / money, ":1", words,
              on=("generation_usd", "training_usd"))  # fmt: skip


def _labels(sheet: _Sheet, costs: Costs, known: Measured) -> None:
    """Price labels asked of the live teacher: its steps on a share of the frames, by what a step on a frame costs."""
    if costs.label_steps == 0 or costs.label_share == 0:
        return
    part = "labels"
    steps = costs.draw_steps if known.draw_steps is None else known.draw_steps
    origin = sheet.said("draw_steps") if known.draw_steps is None else "measured"
    words = "of the sampler, " + ("[costs] draw_steps" if known.draw_steps is None else "as the teacher says")
    sheet.add("draw_steps", part, "steps of a draw", steps, "steps", words, source=origin)
    n_frames = costs.frames * costs.draw_miles / costs.miles
    words = f"{_short(costs.frames)} frames / {_short(costs.miles)} miles"
    sheet.add("draw_frames", part, "frames of a draw", n_frames, "frames", words,
              said=("frames", "draw_miles", "miles"))  # fmt: skip
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
    sheet.add("labels_gpuh", part, "live labels", gpuh, "GPU-h", words,
              said=("frames", "label_share", "label_steps"), on=("frame_step_gpuh",))  # fmt: skip
    per_gpuh, on = _teacher_usd_per_gpuh(sheet, costs)
    words = f"{figure(gpuh)} GPU-h x {usd(per_gpuh)}"
    sheet.add("labels_usd", part, "live labels, money", gpuh * per_gpuh, "$", words, on=("labels_gpuh", *on))


def _teacher_usd_per_gpuh(sheet: _Sheet, costs: Costs) -> tuple[float, tuple[str, ...]]:
    """Return what the teacher's GPU-hour costs: by its draws where both of their rates are above 0, else as said."""
    if sheet["draw_gpuh"] > 0 and sheet["draw_usd"] > 0:
        return sheet["draw_usd"] / sheet["draw_gpuh"], ("draw_usd", "draw_gpuh")
    return sheet["usd_per_gpuh"] or costs.usd_per_gpuh, ("usd_per_gpuh",)


def _gates(sheet: _Sheet, costs: Costs, known: Measured) -> None:
    n = costs.gate_draws if known.n_gate_draws is None else known.n_gate_draws
    if n == 0:
        return
    origin, words = sheet.said("gate_draws"), "[costs] gate_draws"
    if known.n_gate_draws is not None:
        to_make = known.n_gate_draws_to_make
        origin = "planned" if to_make else "measured"
        words = f"on held-out seeds: {known.n_gate_draws - to_make:,} made, {to_make:,} to make"
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
              said=("train_gpus",), on=("total_gpuh",))  # fmt: skip


def _serving(sheet: _Sheet, costs: Costs) -> None:
    """Add how long serving must go on until distilling has paid, against the teacher as it is and quantised."""
    rivals = (
        ("", "the teacher", 1.0, ()),
        ("_int8", "it in int8", costs.int8_saving, ("int8_saving",)),
        ("_int4", "it in int4", costs.int4_saving, ("int4_saving",)),
    )
    served, hour = costs.served_gpuh_per_day, sheet["usd_per_gpuh"] or costs.usd_per_gpuh
    for suffix, rival, saving, key in rivals:
        said = ("student_speedup", *key)
        gain = 1 / saving - 1 / costs.student_speedup
        label = f"pays against {rival}"
        if gain <= 0:
            words = f"the student's {figure(costs.student_speedup)}x is no more than the {figure(saving)}x of {rival}"
            sheet.add(f"payback{suffix}_gpuh", "serving", label, None, "GPU-h", words, said=said)
            continue
        gpuh = sheet["total_usd"] / (hour * gain)
        saved = f"({figure(1 / saving)} - 1/{figure(costs.student_speedup)})"
        words = f"served: {usd(sheet['total_usd'])} / {usd(hour)} / {saved}"
        sheet.add(f"payback{suffix}_gpuh", "serving", label, gpuh, "GPU-h", words, said=said,
                  on=("total_usd", "usd_per_gpuh"))  # fmt: skip
        if served is not None:
            words = f"at {figure(served)} GPU-h of the teacher's serving a day"
            sheet.add(f"payback{suffix}_days", "serving", "  that is after", gpuh / served, "days", words,
                      said=("served_gpuh_per_day",), on=(f"payback{suffix}_gpuh",))  # fmt: skip


def _notes(sheet: _Sheet, costs: Costs, known: Measured) -> list[str]:
    notes = [_verdict(sheet, costs)]
    if any(row.source == "reference" for row in sheet.rows.values()):
        notes.append(
            "reference: a figure of the reference programme, which says nothing about this project; set it in [costs]."
        )
    if costs.served_gpuh_per_day is None:
        notes.append("Set served_gpuh_per_day in [costs] to see the payback in days.")
    if known.n_draws is not None:
        notes.append(
            f"Generation is this project's corpus ({known.n_draws:,} draws); training is that of [costs] "
            f"({_short(costs.frames)} frames), and the ratio compares the two only if those frames are this corpus."
        )
    return notes


def _verdict(sheet: _Sheet, costs: Costs) -> str:
    saving = figure(costs.int4_saving)
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
