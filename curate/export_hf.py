"""Write a corpus as a Hugging Face dataset: a folder that `datasets.load_dataset` opens, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from ..catalogs.effects import effect
from ..catalogs.errors import DistdataError, nearest
from ..catalogs.files import (
    TMP_PREFIX,
    disk_errors,
    exclusive_lock,
    sha256_file,
    sync_folder,
    temporary_beside,
    write_atomic,
)
from ..catalogs.project import Project
from .export_card import Config, gather_provenance, render_card
from .export_parquet import Tick, write_parquet
from .export_read import Choice, choose, read_samples
from .export_types import (
    JSON,
    META_MEMBER,
    Column,
    ColumnType,
    Fields,
    KindTypes,
    Listing,
    Scalar,
    Tensor,
    name_columns,
)
from .export_webdataset import METADATA_FOLDER, webdataset_features, write_webdataset

Layout = Literal["parquet", "webdataset"]
MARKER = ".distdata-export.json"
CARD = "README.md"
DATA_FOLDER = "data"
Progress = Callable[[int, int], None]
"""(done, total): every sample counts twice, once when it is checked and once when it is written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportResult:
    """What an export wrote: samples by record kind, and the files relative to `out` with the card."""

    out: Path
    layout: Layout
    purpose: str
    n_samples: int
    kinds: dict[str, int]
    files: tuple[str, ...]
    n_bytes: int


def export_hf(
    project: Project,
    out: Path,
    *,
    layout: Layout = "parquet",
    purpose: str = "train",
    overwrite: bool = False,
    license_id: str = "other",
    progress: Progress | None = None,
) -> ExportResult:
    """Write the samples bought for `purpose` to the folder `out`, with a card.

    Every sample is compared with its digest first. The folder is built beside `out` and renamed when it is
    complete, so that an interrupted export leaves `out` as it was. The same catalog gives the same bytes.

    Raises:
        DistdataError: `out` holds something (or, with `overwrite`, something that no export wrote), nothing
            to export, an unknown layout or purpose, or a shard that is missing or damaged.
    """
    if layout not in get_args(Layout):
        raise DistdataError(f"export: unknown layout {layout!r}.{nearest(layout, get_args(Layout))}")
    out = out.resolve()
    _check_target(out, overwrite)
    choice = choose(project, purpose)
    lock = project.spool_dir / f"export-{hashlib.sha256(str(out).encode()).hexdigest()[:12]}.lock"
    with disk_errors(out), exclusive_lock(lock, f"{out}: process {{holder}} is exporting there; wait for it."):
        _clear_left_behind(out)
        built = temporary_beside(out)
        try:
            built.mkdir()
            result = _build(project, choice, built, out, layout, license_id, _Count(progress, 2 * choice.n_samples))
            _put_in_place(built, out, overwrite)
        finally:
            shutil.rmtree(built, ignore_errors=True)
    lock.unlink(missing_ok=True)
    return result


def _check_target(out: Path, overwrite: bool) -> None:
    """Make sure that nothing but an export of ours, unchanged, would be replaced."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not out.is_dir():
        raise DistdataError(f"{out}: is a file. Name a folder that is new or empty.")
    try:
        known = json.loads((out / MARKER).read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError):
        n = sum(1 for _ in out.iterdir())
        raise DistdataError(
            f"{out}: holds {n:,} file(s) that no export wrote. Name a folder that is new or empty."
        ) from None
    if not overwrite:
        raise DistdataError(f"{out}: holds an earlier export. Add --overwrite to replace it, or name another folder.")
    found = {str(p.relative_to(out)) for p in out.rglob("*") if not p.is_dir()} - {MARKER}
    foreign = sorted(found - set(known))
    if foreign:
        raise DistdataError(
            f"{out}: --overwrite would delete {foreign[0]}"
            + (f" and {len(foreign) - 1:,} more" if len(foreign) > 1 else "")
            + ", which no export wrote. Move it away, or name another folder."
        )
    if CARD in found and known[CARD] != sha256_file(out / CARD):
        raise DistdataError(f"{out / CARD}: was edited after the export. Move it away, or name another folder.")


def _clear_left_behind(out: Path) -> None:
    """Remove what an export to `out` that was killed has left beside it."""
    ours = re.compile(re.escape(TMP_PREFIX) + r"\d+-[0-9a-f]{8}-" + re.escape(out.name))
    for path in out.parent.iterdir() if out.parent.is_dir() else ():
        if ours.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


class _Count:
    """Adds up the samples done and tells the caller."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def __call__(self, n: int) -> None:
        self._done += n
        if self._progress is not None:
            self._progress(self._done, self._total)


def _build(
    project: Project, choice: Choice, folder: Path, out: Path, layout: Layout, license_id: str, tick: Tick
) -> ExportResult:
    """Write everything into `folder`, which is to become `out`."""
    data = folder / DATA_FOLDER
    data.mkdir()
    members = {kind: _scan(project, choice, kind, tick) for kind in choice.kinds}
    declared = {k: webdataset_features(k, m) if layout == "webdataset" else None for k, m in members.items()}
    files: list[Path] = []
    configs: list[Config] = []
    for kind, stem in _stems(choice).items():
        if layout == "parquet":
            typed = {name: JSON if name == META_MEMBER else t for name, t in members[kind].items()}
            columns = name_columns(typed, [f.name for f in choice.fact_fields])
            files += write_parquet(project, choice, kind, columns, data, stem, tick)
            pattern = f"{DATA_FOLDER}/{stem}-?????-of-?????.parquet"
        else:
            files += write_webdataset(project, choice, kind, data, folder / METADATA_FOLDER, stem, tick)
            pattern = f"{DATA_FOLDER}/{stem}-?????.tar"
            columns = [Column(name, name, t) for name, t in members[kind].items()]
        told = tuple((c.name, c.member, _in_words(c.kind, layout)) for c in columns)
        n = choice.kinds[kind]
        configs.append(
            Config(name=stem.removesuffix(f"-{choice.purpose}"), kind=kind, n_samples=n, pattern=pattern, columns=told,
                   features=declared[kind])
        )  # fmt: skip
    card = render_card(
        project.config.project.name, layout, choice, configs, gather_provenance(project, choice), license_id
    )
    write_atomic(folder / CARD, card.encode(), "export.card")
    files.append(folder / CARD)
    names = [str(p.relative_to(folder)) for p in files]
    known = {name: sha256_file(folder / name) if name == CARD else "" for name in names}
    marker = {"layout": layout, "purpose": choice.purpose, "files": known}
    write_atomic(folder / MARKER, json.dumps(marker, indent=1, sort_keys=True).encode(), "export.marker")
    return ExportResult(
        out=out, layout=layout, purpose=choice.purpose, n_samples=choice.n_samples, kinds=choice.kinds,
        files=tuple(names), n_bytes=sum(p.stat().st_size for p in files),
    )  # fmt: skip


def _scan(project: Project, choice: Choice, kind: str, tick: Tick) -> dict[str, ColumnType]:
    """Check every sample of a kind against its digest and find the types of its members."""
    types = KindTypes()
    for sample in read_samples(project, choice, choice.of_kind(kind), check=True):
        try:
            types.see(sample.members)
        except ValueError as e:
            raise DistdataError(
                f"export: sample {sample.facts['sample_id']}: {e}. Run `distdata catalog check` to see what "
                "else is damaged."
            ) from None
        tick(1)
    return types.members()


def _stems(choice: Choice) -> dict[str, str]:
    """Name the files of each kind: its name, made safe for a file and a configuration, and the purpose."""
    stems: dict[str, str] = {}
    for kind in choice.kinds:
        safe = re.sub(r"[^A-Za-z0-9_-]", "_", kind) or "samples"
        while f"{safe}-{choice.purpose}" in stems.values():
            safe += "_"
        stems[kind] = f"{safe}-{choice.purpose}"
    return stems


def _put_in_place(built: Path, out: Path, overwrite: bool) -> None:
    """Make `built` the folder `out`; an earlier export is moved aside first and removed last."""
    effect("export.built")
    _check_target(out, overwrite)  # asked again: it may have been filled while this was built
    if out.exists() and any(out.iterdir()):
        old = temporary_beside(out)
        out.rename(old)
        try:
            effect("export.aside")
            built.rename(out)
        except BaseException:
            old.rename(out)
            raise
        shutil.rmtree(old, ignore_errors=True)
    else:
        built.rename(out)  # over an empty folder as well
    effect("export.rename")
    sync_folder(out.parent)


def _in_words(kind: ColumnType, layout: Layout) -> str:
    """Say in a few words what a column holds."""
    if isinstance(kind, Tensor):
        shape = ", ".join("any" if n is None else str(n) for n in kind.shape)
        stored = {"pictures": " as PNG pictures", "flat": " as `values` and `shape`"} if layout == "parquet" else {}
        return f"{kind.dtype} [{shape}]" + stored.get(kind.form, "") + (", null in some" if kind.optional else "")
    if isinstance(kind, Fields) and kind.from_npz:
        return "; ".join(f"`{key}` {_in_words(part, layout)}" for key, part in kind.parts)
    if isinstance(kind, Fields):
        return "an object of " + ", ".join(f"`{key}`" for key, _ in kind.parts)
    if isinstance(kind, Listing):
        return "a list, each item " + _in_words(kind.item, layout)
    if isinstance(kind, Scalar):
        return kind.dtype
    said = {"json": "JSON text", "image": "an encoded picture", "bytes": "the file's bytes", "npy": "an .npy file"}
    if layout == "webdataset":
        said["json"] = "JSON"
    return said.get(kind.form, kind.form)
