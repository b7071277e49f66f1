"""A project's beginning: the catalog, distdata.toml, and the seeds that go in."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from .catalogs.config import CONFIG_NAME, parse_config
from .catalogs.errors import DistdataError
from .catalogs.files import TMP_PREFIX, disk_errors, exclusive_lock, make_folder, write_atomic
from .catalogs.hashing import content_hash
from .catalogs.intake import ImportResult, define_cells, import_file, import_seeds
from .catalogs.project import Project
from .catalogs.seeds import from_arrow
from .generate.presets import Preset, load_preset
from .generate.teachers.registry import make_seeds, takes_option
from .stratify.splits import assign_splits


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
    """Import seeds that a generator makes (see `generate.teachers.registry.make_seeds`).

    One that takes an option `within` is asked for the project's own axis values and scenario types alone.
    """
    salt = project.config.project.salt
    if "within" not in options and takes_option(generator, "within", project.root):
        config = project.config
        within = {name: list(axis.values) for name, axis in config.axes.items()} | {"scenario": list(config.scenarios)}
        options = {**options, "within": within}
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
