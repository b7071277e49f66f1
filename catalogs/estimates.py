"""What `distdata estimate` starts from: the user's expression on every draw that stands for the fleet."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import duckdb
import polars as pl

from . import store
from .errors import DistdataError, nearest
from .project import Project

Kind = Literal["number", "share", "text"]

PURPOSES = ("train", "gate", "confirm")
MAX_VALUES = 50
"""Distinct texts of which the shares are estimated; more are no outcome."""
_NUMBERS = re.compile(r"^(U?(TINY|SMALL|BIG|HUGE)INT|U?INTEGER|FLOAT|DOUBLE|DECIMAL.*|INTERVAL)$")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EstimateRows:
    """The draws to estimate from, their cells, and what was left out.

    - `draws`: one row per draw that counts: seed_id, cell_id, share, pi, certain (its seed was chosen by others), value
      (float64, or text for the kind ``text``; null: outside the domain), domain (whether the condition holds).
    - `cells`: the feasible cells: cell_id, cell, slice, scenario, layer, the axes, fleet_share, n_frame.
    - `kind`: ``share`` of a truth value, mean of a ``number``, or the shares of each ``text``.
    - `n_rejected`, `n_beyond`, `n_outside`, `n_unweighed`, `n_null`: draws left out (see `words`); `n_waiting`: seeds
      of the corpus without a kept draw, of `n_seeds`.
    """

    draws: pl.DataFrame
    cells: pl.DataFrame
    kind: Kind
    teacher: str
    purpose: str
    n_rejected: int
    n_beyond: int
    n_outside: int
    n_unweighed: int
    n_null: int
    n_waiting: int
    n_seeds: int

    def words(self) -> list[str]:
        """Say which teacher's draws these are, how much of the fleet they cover, and what was left out and why."""
        seeds = self.draws.group_by("cell_id").agg(
            chosen=pl.col("seed_id").filter("certain").n_unique(), walked=(~pl.col("certain")).any()
        )
        held = self.cells.join(seeds, on="cell_id")
        used = held.filter(pl.col("walked") | (pl.col("chosen") >= pl.col("n_frame")))  # as stratify.estimate has it
        uncovered = self.cells.join(used, on="cell_id", how="anti")
        covered = 1 - float(uncovered["fleet_share"].sum())
        lines = [f"{self.draws.height:,} draws of teacher {self.teacher}, {self.purpose} split"]
        if uncovered.height:
            names = uncovered.sort("fleet_share", descending=True)["cell"].to_list()
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            lines.append(
                f"the sample covers {covered:.1%} of the fleet; {len(names)} of {self.cells.height} cells have none: "
                f"{', '.join(names[:3])}{more}"
            )
        n_alone = held.height - used.height
        if n_alone:
            lines.append(
                f"cells that hold only samples that others chose, which stand for nobody else: {n_alone}; "
                "a plan that buys there covers them"
            )
        if self.draws.height and not self.draws["domain"].any():
            lines.append("no draw meets --where")
        reasons = (
            (self.n_rejected, "rejected by a verifier"),
            (self.n_beyond, "bought after looking, beyond the walk: counting them would bias the result"),
            (self.n_outside, "outside the frame: their seeds have no probability of being drawn"),
            (self.n_unweighed, "weighed by no plan yet: the next plan does it"),
        )
        left = [f"{n:,} {why}" for n, why in reasons if n]
        if left:
            lines.append("left out: " + "; ".join(left))
        if self.n_null:
            lines.append(f"draws without a value (null), counted as outside the condition: {self.n_null:,}")
        if self.n_waiting:
            lines.append(
                f"{self.n_waiting:,} of {self.n_seeds:,} sampled seeds have no kept draw (not made yet, failed, or all "
                "rejected); the others stand for them"
            )
        return lines


def estimate_rows(
    project: Project, expr: str, where: str | None = None, purpose: str = "train", teacher: str | None = None
) -> EstimateRows:
    """Evaluate `expr` (and the condition `where`) on every draw of one teacher in the split of `purpose`.

    Both are SQL expressions over the columns of ``samples_wide`` (and ``fleet_draws``), read-only and with external
    access off. `teacher` is a version or the beginning of a hash; None is the newest with a weighed corpus.

    Raises:
        DistdataError: no weighed corpus, an unknown or ambiguous teacher, an expression that is wrong, gives neither
            numbers nor truth values nor texts, is infinite or NaN somewhere, or has over 50 different texts.
    """
    if purpose not in PURPOSES:
        if purpose == "pilot":
            raise DistdataError("estimate: a pilot's draws are part of the training corpus. Use --purpose train.")
        raise DistdataError(f"estimate: no purpose {purpose!r}.{nearest(purpose, PURPOSES)}")
    with store.read(project.catalog_path) as con:
        teacher_hash, name = _find_teacher(con, purpose, teacher)
        kind = _check(con, expr, where)
        draws, cells = read_draws(con, expr, where, kind, purpose, teacher_hash)
        n_counted = store.first(con.execute(
            "SELECT count(*) FROM fleet_draws WHERE counted AND split = ? AND teacher_hash = ?", [purpose, teacher_hash]
        ))  # fmt: skip
        facts = _facts(con, purpose, teacher_hash)
    if n_counted and draws.height != n_counted[0]:
        raise DistdataError(
            f"estimate: {expr!r} makes {draws.height:,} rows of {n_counted[0]:,} draws; give one value for each draw."
        )
    n_null = int((draws["value"].is_null() & draws["domain"]).sum())
    _check_values(draws, expr, kind)
    columns = ["cell_id", "cell", "slice", "scenario", "layer", *project.config.axes, "fleet_share", "n_frame"]
    return EstimateRows(
        draws=draws.drop("sample_id"), cells=cells.select(columns), kind=kind, teacher=name, purpose=purpose,
        n_null=n_null, **facts,
    )  # fmt: skip


def read_draws(
    con: duckdb.DuckDBPyConnection, expr: str, where: str | None, kind: Kind, split: str, teacher_hash: str
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the draws that count, with the value of `expr`, and the feasible cells of the split."""
    cast = "VARCHAR" if kind == "text" else "DOUBLE"
    draws = _ask(
        con,
        f"""SELECT sample_id, seed_id, cell_id, share, corpus_pi AS pi, chosen AS certain, CAST(({expr}
        ) AS {cast}) AS value, coalesce(({where or "true"}
        ), false) AS domain FROM fleet_draws WHERE counted AND split = $split AND teacher_hash = $teacher""",
        expr if where is None else f"{expr} where {where}",
        {"split": split, "teacher": teacher_hash},
    )
    cells = con.sql("FROM fleet_cells WHERE feasible AND split = $split ORDER BY cell_id", params={"split": split}).pl()
    return draws.sort("sample_id"), cells


def _find_teacher(con: duckdb.DuckDBPyConnection, purpose: str, wanted: str | None) -> tuple[str, str]:
    """Return the hash of the teacher meant, and its name and version."""
    known = con.execute(
        """SELECT teacher_hash, any_value(teacher), any_value(teacher_version), max(plan_no) FROM plans
        SEMI JOIN (FROM corpus WHERE split = ?) c USING (teacher_hash) GROUP BY ALL ORDER BY 4 DESC""",
        [purpose],
    ).fetchall()
    if not known:
        raise DistdataError(
            f"estimate: there is no weighed {purpose} corpus yet. Plan and generate first: distdata plan --purpose "
            f"{purpose} --budget 2000samples (a catalog of an older version is weighed by its next plan)."
        )
    if wanted is not None and not wanted.strip():
        raise DistdataError("estimate: --teacher is empty. Give a version or the beginning of a hash, or leave it out.")
    hits = [row for row in known if wanted is None or row[2] == wanted or str(row[0]).startswith(wanted)]
    if wanted is not None and len(hits) != 1:
        versions = [str(row[2]) for row in known] + [str(row[0])[:8] for row in known]
        what = f"{len(hits)} teachers match" if hits else "no teacher has version or hash"
        raise DistdataError(f"estimate: {what} {wanted!r}.{nearest(wanted, versions)}")
    teacher_hash, name, version, _ = hits[0]
    return str(teacher_hash), f"{name} {version} ({str(teacher_hash)[:8]})"


def _check(con: duckdb.DuckDBPyConnection, expr: str, where: str | None) -> Kind:
    """Refuse what is no expression of one draw, and return what kind of value it has."""
    kinds = {}
    for what, text in (("the expression", expr), ("--where", where)):
        if text is None:
            continue
        if not text.strip():
            raise DistdataError(
                f"estimate: {what} is empty. Give one over a draw's columns, such as outcome = 'stops'."
            )
        _refuse_many_rows(con, text)
        # the newline ends a comment, so that the bracket is always closed
        asked = _ask(con, f"DESCRIBE SELECT ({text}\n) AS value FROM fleet_draws", text, {})
        if asked.height != 1:
            raise DistdataError(f"estimate: {text!r} is {asked.height} columns; give a single expression.")
        kinds[what] = str(asked["column_type"][0])
    if where is not None and kinds["--where"] != "BOOLEAN":
        raise DistdataError(
            f"estimate: --where {where!r} gives {kinds['--where']} values; a condition must be true or false."
        )
    found = kinds["the expression"]
    if found.startswith("TUPLE"):
        raise DistdataError(f"estimate: {expr!r} is several values; give a single expression, and ask once for each.")
    if found == "BOOLEAN":
        return "share"
    if found == "VARCHAR":
        return "text"
    if _NUMBERS.match(found) and found != "INTERVAL":
        return "number"
    raise DistdataError(
        f"estimate: {expr!r} gives {found} values; give numbers, true or false, or texts. SQL takes a "
        "number out of most things, for example epoch(time) or len(list)."
    )


def _refuse_many_rows(con: duckdb.DuckDBPyConnection, text: str) -> None:
    """Refuse what is not a function of one draw alone: windows, subqueries, and lists made into rows."""
    row = store.first(con.execute("SELECT json_serialize_sql(?)", [f"SELECT ({text}\n) AS value"]))
    tree = str(row[0]) if row else ""
    for mark, what in (
        ('"class":"WINDOW"', "looks at other draws (a window)"),
        ('"class":"SUBQUERY"', "holds a query of its own"),
        ('"function_name":"unnest"', "makes several rows of one draw"),
        ('"function_name":"unlist"', "makes several rows of one draw"),
    ):
        if mark in tree:
            raise DistdataError(f"estimate: {text!r} {what}; give the value of one draw, such as gpu_s.")


def _ask(con: duckdb.DuckDBPyConnection, sql: str, text: str, params: dict[str, str]) -> pl.DataFrame:
    """Run a query that holds the user's expression; what is wrong with it becomes a message about the expression."""
    try:
        if len(con.extract_statements(sql)) != 1:
            raise DistdataError(f"estimate: {text!r} is more than one statement; give a single expression.")
        answer: pl.DataFrame = con.sql(sql, params=params).pl()
        return answer
    except duckdb.BinderException as e:
        message = str(e).split("\n")[0].removeprefix("Binder Error: ")
        unknown = re.search(r'Referenced column "([^"]+)" not found', message)
        if unknown:
            columns = [row[0] for row in con.execute("DESCRIBE samples_wide").fetchall()]
            raise DistdataError(
                f"estimate: {text!r}: no column {unknown[1]!r} in samples_wide.{nearest(unknown[1], columns)} "
                "Texts are written in single quotes."
            ) from None
        if "GROUP BY" in message or "aggregate" in message.lower():
            raise DistdataError(
                f"estimate: {text!r} is an aggregate. Give the value of one draw, such as gpu_s; the weighted mean and "
                "its error are what estimate computes from it."
            ) from None
        raise DistdataError(f"estimate: {text!r}: {message}") from None
    except (duckdb.IOException, duckdb.InternalException, duckdb.FatalException, duckdb.SerializationException):
        raise
    except duckdb.Error as e:
        raise DistdataError(f"estimate: {text!r}: {str(e).strip().splitlines()[0]}") from None


def _facts(con: duckdb.DuckDBPyConnection, split: str, teacher_hash: str) -> dict[str, int]:
    """Count the draws that don't stand for the fleet by reason, and the seeds that have no draw that does."""
    row = store.first(
        con.execute(
            """SELECT count(*) FILTER (NOT kept),
                count(*) FILTER (kept AND NOT counted AND share IS NOT NULL AND in_frame),
                count(*) FILTER (kept AND NOT in_frame), count(*) FILTER (kept AND share IS NULL AND in_frame),
                count(DISTINCT seed_id) FILTER (counted)
            FROM (
                SELECT d.*, s.seed_id IS NULL AS in_frame FROM fleet_draws d
                LEFT JOIN (SELECT seed_id FROM seeds WHERE coalesce(origin, 'frame') <> 'frame') s USING (seed_id)
            ) WHERE split = $split AND teacher_hash = $teacher""",
            {"split": split, "teacher": teacher_hash},
        )
    )
    planned = store.first(
        con.execute(
            "SELECT count(*) FROM corpus WHERE split = ? AND teacher_hash = ? AND k_counted > 0", [split, teacher_hash]
        )
    )
    rejected, beyond, outside, unweighed, n_drawn = row or (0, 0, 0, 0, 0)
    n_seeds = planned[0] if planned else 0
    return {
        "n_rejected": rejected, "n_beyond": beyond, "n_outside": outside, "n_unweighed": unweighed,
        "n_waiting": n_seeds - n_drawn,
        "n_seeds": n_seeds,
    }  # fmt: skip


def _check_values(draws: pl.DataFrame, expr: str, kind: Kind) -> None:
    used = draws.filter(pl.col("domain") & pl.col("value").is_not_null())
    if kind == "text":
        n = used["value"].n_unique()
        if n > MAX_VALUES:
            raise DistdataError(
                f"estimate: {expr!r} has {n:,} different values; shares are given for up to {MAX_VALUES}. Ask for one "
                "of them: distdata estimate \"column = 'value'\""
            )
        return
    bad = used.filter(~pl.col("value").is_finite())
    if bad.height:
        raise DistdataError(
            f"estimate: {expr!r} is infinite or NaN in {bad.height:,} of {draws.height:,} draws, {bad['sample_id'][0]} "
            f"the first. Leave them out with --where 'isfinite({expr})', or mend the expression."
        )
