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
}
"""Kind -> module within this package and class; the kind `python` is any class by its own import path."""

CONTENT_HASH = re.compile(r"[0-9a-f]{16,64}")

SEEDS: Mapping[str, str] = {"crossing": "crossing.seeds:seeds", "highway": "highway_seeds:seeds"}
"""Generator name -> module within this package and function."""


def make_teacher(config: TeacherConfig, project_dir: Path) -> Teacher:
    """Build the teacher that ``[teacher]`` names; cheap, as teachers load on their first sample.

    `project_dir` is the folder of distdata.toml: modules of a `python` teacher are looked for there, and a
    relative `path` of a `diffusers` teacher starts there when it exists.

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
        if config.kind == "diffusers" and isinstance(options.get("path"), str):
            beside = project_dir / options["path"]
            options["path"] = str(beside.resolve()) if beside.exists() else options["path"]
    else:
        raise DistdataError(f"teacher.kind = {config.kind!r}: unknown.{nearest(config.kind, [*TEACHERS, 'python'])}")
    teacher: Teacher = _call(cls, options, "teacher.options")
    return teacher


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
    if generator in SEEDS:
        function = _import_here(SEEDS[generator])
    elif ":" in generator:
        function = load_object(generator, project_dir, what="seeds generator")
    else:
        raise DistdataError(
            f"seeds generator {generator!r}: unknown.{nearest(generator, SEEDS)} "
            'Your own function is written as "module:function".'
        )
    import pyarrow as pa

    table = _call(function, {"n": n, "salt": salt, **(options or {})}, "seeds options")
    if not isinstance(table, pa.Table):
        raise DistdataError(f"seeds generator {generator!r}: returned a {type(table).__name__}, not a pyarrow.Table.")
    return table


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
