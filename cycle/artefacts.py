"""Whether the files of a student are those that were written down, and how to get them back."""

from __future__ import annotations

import json
import shlex

from ..catalogs.errors import DistdataError
from ..catalogs.loop_events import StudentRecord
from ..catalogs.project import Project
from ..catalogs.snapshots import load_snapshot
from ..train_min.checkpoint import read_student
from .training import candidate_folder, change_of


def is_there(project: Project, student: StudentRecord) -> bool:
    """Tell whether a finished student lies in this one's folder, whichever it is."""
    return (project.students_dir / student.folder / "student.json").exists()


def check_artefact(project: Project, student: StudentRecord, command: str) -> None:
    """Refuse a student whose files are gone or others than those that were written down; `command` asks.

    Raises:
        DistdataError: with the command that makes them again, where one does.
    """
    folder = project.students_dir / student.folder
    header = read_student(folder)
    if header is None:
        again = remade_by(project, student)
        way = f"This makes the same student again: {again}" if again else "Restore them, or train another candidate."
        raise DistdataError(f"{command}: the files of student {student.student_id} are gone from {folder}. {way}")
    if header["artefact"] != student.student_id:
        raise DistdataError(
            f"{command}: {folder} now holds artefact {header['artefact']}, not {student.student_id}: a "
            "verdict names the artefact that ships. Restore the files, or train again."
        )


def remade_by(project: Project, student: StudentRecord) -> str | None:
    """Return the command that trains this very student again.

    None where no command does: its snapshot is gone or of another teacher version, or slices were weighted for it.
    """
    wanted = student.folder.partition("/")[0]
    try:
        name = load_snapshot(project, student.snapshot_id).name
        for recipe, settings in ((None, {}), (student.recipe, change_of(student).settings)):
            if candidate_folder(project, recipe, settings, name, student.parent) == wanted:
                words = ["distdata", "train", "--snapshot", name]
                words += ["--recipe", recipe] if recipe else []
                for key, value in settings.items():
                    words += ["--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
                return shlex.join(words + (["--parent", student.parent] if student.parent else []))
    except DistdataError:
        pass
    return None
