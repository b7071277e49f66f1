"""Where a model's weights come from: a folder, or one commit of a repository on the hub."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ...catalogs.errors import DistdataError
from ...catalogs.hashing import bytes_hash

_HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")
_COMMIT = re.compile(r"^[0-9a-f]{40}$")


def check_commit(what: str, path: str, revision: str | None) -> None:
    """Refuse a hub id without the commit to use: a branch or tag could move between plan and generation.

    Raises:
        DistdataError: no hub id, or no commit of 40 hex digits; `what` is the teacher as errors name it.
    """
    if not _HUB_ID.match(path):
        raise DistdataError(f"{what}: {path!r} is no folder here, and no hub id like 'org/name' either.")
    if revision is None or not _COMMIT.match(revision):
        given = "none was given" if revision is None else f"{revision!r} could move"
        raise DistdataError(
            f"{what}: hub id {path!r} needs revision = the commit to use, 40 hex digits; {given}. "
            f"`python -c \"import huggingface_hub as h; print(h.model_info('{path}').sha)\"` prints today's."
        )


def folder_hash(folder: Path) -> str:
    """Return 16 hex digits over a model folder's files, names included; its README and hidden files don't count."""

    def chunks() -> Iterator[bytes]:
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            name = file.relative_to(folder)
            if name.name == "README.md" or any(part.startswith((".", "__")) for part in name.parts):
                continue
            yield f"\x00{name.as_posix()}\x00{file.stat().st_size}\x00".encode()
            with open(file, "rb") as f:
                while block := f.read(1 << 20):
                    yield block

    return bytes_hash(chunks())
