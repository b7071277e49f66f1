"""From the names in distdata.toml to teachers and seed generators, imported only when they are asked for."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...catalogs.config import TeacherConfig
from ...catalogs.errors import DistdataError, nearest
from ...catalogs.protocol import Teacher, TeacherInfo
from .python import load_class, load_object

if TYPE_CHECKING:
    import pyarrow as pa

TEACHERS: Mapping[str, str] = {
    "crossing": "crossing.teacher:CrossingTeacher",
    "diffusers": "diffusers:DiffusersTeacher",
    "highway": "highway:HighwayTeacher",
    "markov": "markov.teacher:MarkovTeacher",
    "transformers": "transformers:TransformersTeacher",
}
"""Kind -> module within this package and class; the kind `python` is any class by its own import path."""

STUDENT = "distdata.train_min.student:open_student"
"""What opens a student of the kind `student`; by import path, since generating must not know of training."""

CONTENT_HASH = re.compile(r"[0-9a-f]{16,64}")

SEEDS: Mapping[str, str] = {
    "crossing": "crossing.seeds:seeds",
    "highway": "highway_seeds:seeds",
    "markov": "markov.seeds:seeds",
}
"""Generator name -> module within this package and function."""


def make_teacher(config: TeacherConfig, project_dir: Path) -> Teacher:
    """Build the teacher that ``[teacher]`` names; cheap, as teachers load on their first sample.

    `project_dir` is the folder of distdata.toml: modules of a `python` teacher are looked for there, and a
    relative `path` of a `diffusers` or `transformers` teacher or of a `student` starts there when it exists. A
    student's option `teacher` is a table like ``[teacher]``: the model whose decoder makes the student's records.

    Raises:
        DistdataError: unknown kind or option (with the nearest), a missing or bad option.
    """
    options = dict(config.options)
    if config.kind == "python":
        path = options.pop("class", None)
        if not isinstance(path, str):
            raise DistdataError(
                "teacher.kind = 'python' needs teacher.options.class = \"module:Class\", "
                'for example class = "my_teacher:MyTeacher" for a my_teacher.py beside distdata.toml.'
            )
        cls = load_class(path, project_dir)
    elif config.kind in TEACHERS:
        cls = _import_here(TEACHERS[config.kind])
        if config.kind in ("diffusers", "transformers") and isinstance(options.get("path"), str):
            beside = project_dir / options["path"]
            options["path"] = str(beside.resolve()) if beside.exists() else options["path"]
        if config.kind == "transformers":
            options.setdefault("project_dir", str(project_dir))
    elif config.kind == "student":
        cls, options = load_object(STUDENT, project_dir), _student_options(options, project_dir)
    else:
        known = [*TEACHERS, "python", "student"]
        raise DistdataError(f"teacher.kind = {config.kind!r}: unknown.{nearest(config.kind, known)}")
    teacher: Teacher = _call(cls, options, "teacher.options")
    return teacher


def _student_options(options: Mapping[str, Any], project_dir: Path) -> dict[str, Any]:
    """Return what opens a student: its folder from the project's, and the teacher that decodes for it."""
    found = dict(options)
    described = found.pop("teacher", None)
    if not isinstance(described, Mapping) or described.get("kind") in (None, "student"):
        raise DistdataError(
            "teacher.kind = 'student' needs teacher.options.teacher, the teacher that the student was distilled from, "
            'for example teacher = { kind = "crossing", options = { steps = 32 } }.'
        )
    try:
        config = TeacherConfig(**described)
    except ValueError as e:
        raise DistdataError(f"teacher.options.teacher = {dict(described)!r}: no table like [teacher]: {e}") from e
    found["decoder"] = make_teacher(config, project_dir)
    if isinstance(found.get("path"), str):
        beside = project_dir / found["path"]
        found["path"] = str(beside.resolve()) if beside.exists() else found["path"]
    return found


def teacher_info(teacher: Teacher, config: TeacherConfig) -> TeacherInfo:
    """Describe `teacher` at the price that ``teacher.usd_per_gpuh`` sets, where it is set.

    Raises:
        DistdataError: `describe` returns something else than a TeacherInfo, or a content hash that is none.
    """
    info = teacher.describe()
    if not isinstance(info, TeacherInfo):
        raise DistdataError(
            f"teacher.kind = {config.kind!r}: {type(teacher).__name__}.describe() returned a {type(info).__name__}; "
            "it must return a distdata.catalogs.protocol.TeacherInfo."
        )
    if not CONTENT_HASH.fullmatch(info.content_hash):
        raise DistdataError(
            f"teacher {info.id}: content_hash = {info.content_hash!r}; it must be 16 to 64 of 0-9 a-f, since it is "
            "part of every sample's key. Hash what decides the output, for example with "
            "distdata.generate.teachers.python.source_hash(type(self))."
        )
    return info if config.usd_per_gpuh is None else dataclasses.replace(info, usd_per_gpuh=config.usd_per_gpuh)


def make_seeds(
    generator: str, n: int, salt: str, options: Mapping[str, Any] | None = None, project_dir: Path = Path()
) -> pa.Table:
    """Call a seed generator: a bundled one by name, or any function by ``module:function``.

    A generator is ``f(n: int, salt: str, **options) -> pyarrow.Table`` with the columns of a seed file.

    Raises:
        DistdataError: unknown generator (with the nearest) or option, `n` below 1, no table returned.
    """
    if n < 1:
        raise DistdataError(f"seeds: n = {n}: ask for at least 1 seed.")
    function = _generator(generator, project_dir)
    import pyarrow as pa

    table = _call(function, {"n": n, "salt": salt, **(options or {})}, "seeds options")
    if not isinstance(table, pa.Table):
        raise DistdataError(f"seeds generator {generator!r}: returned a {type(table).__name__}, not a pyarrow.Table.")
    return table


def takes_option(generator: str, option: str, project_dir: Path = Path()) -> bool:
    """Tell whether a seed generator has an option of this name; raises DistdataError for an unknown generator."""
    return option in inspect.signature(_generator(generator, project_dir)).parameters


def _generator(generator: str, project_dir: Path) -> Callable[..., Any]:
    found: Any = None
    if generator in SEEDS:
        found = _import_here(SEEDS[generator])
    elif ":" in generator:
        found = load_object(generator, project_dir, what="seeds generator")
    if found is not None:
        function: Callable[..., Any] = found
        return function
    raise DistdataError(
        f"seeds generator {generator!r}: unknown.{nearest(generator, SEEDS)} "
        'Your own function is written as "module:function".'
    )


def _import_here(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(f".{module}", __package__), name)


def _call(target: Callable[..., Any], options: Mapping[str, Any], where: str) -> Any:
    """Call `target` with keyword `options`, after checking their names against its signature."""
    parameters = inspect.signature(target).parameters
    named = {n: p for n, p in parameters.items() if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for option in options:
        if option not in named and not takes_any:
            known = nearest(option, named) if named else " It takes no options."
            raise DistdataError(f"{where}.{option}: {_name(target)} has no such option.{known}")
    missing = [n for n, p in named.items() if p.default is p.empty and n not in options]
    if missing:
        raise DistdataError(f"{where}: {_name(target)} needs {', '.join(missing)}.")
    try:
        return target(**options)
    except (TypeError, ValueError) as e:
        given = ", ".join(f"{k} = {v!r}" for k, v in options.items()) or "none"
        raise DistdataError(f"{where}: {_name(target)} refused its options ({given}): {e}") from e


def _name(target: Callable[..., Any]) -> str:
    return getattr(target, "__qualname__", repr(target))
