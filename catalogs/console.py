"""What all commands share: their common options, and how results and remarks are printed."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from .project import Project

ProjectDir = Annotated[Path, typer.Option("--project", "-p", help="Folder of the project.", show_default="here")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would happen; spend and write nothing.")]


def open_here(project_dir: Path) -> Project:
    """Open the project in a folder with its catalog caught up."""
    from .intake import open_project

    return open_project(project_dir)


def say(text: str) -> None:
    """Print a remark: to stderr, so that stdout holds results alone."""
    print(text, file=sys.stderr)


def emit(as_json: bool, data: Any, text: Callable[[], str]) -> None:
    """Print a command's result: as one JSON object, or as text for people."""
    print(json.dumps(data, default=str) if as_json else text())


def screen() -> dict[str, Any]:
    """Return the `width` in characters and whether `color` may be used on stdout."""
    tty = sys.stdout.isatty()
    return {"width": shutil.get_terminal_size((100, 24)).columns if tty else 100, "color": tty}
