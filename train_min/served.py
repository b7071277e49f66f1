"""What all students in a teacher's place share: their header, and how they describe themselves."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ..catalogs.errors import DistdataError
from ..catalogs.protocol import Reproducible, TeacherInfo
from .checkpoint import read_student


def served_header(folder: Path, families: Collection[str], what: str) -> Mapping[str, Any]:
    """Return ``student.json``; raises DistdataError where no whole student of these families, of `what`, is."""
    header = read_student(folder)
    if header is None:
        raise DistdataError(f"{folder}: no student.json, so no finished student. Train one there first.")
    if header["family"] not in families:
        raise DistdataError(f"{folder}: a student of family {header['family']!r}, not of {what}.")
    return header


def served_info(header: Mapping[str, Any], teacher: TeacherInfo, *, usd_per_gpuh: float, device: str) -> TeacherInfo:
    """Describe a student: records as its teacher's, the artefact as the hash; equal bytes on the CPU alone."""
    artefact = str(header["artefact"])
    reproducible: Reproducible = "exact" if device == "cpu" else "tolerance"
    return TeacherInfo(
        id="student",
        version=artefact[:8],
        content_hash=artefact,
        kind=teacher.kind,
        usd_per_gpuh=usd_per_gpuh,
        reproducible=reproducible if teacher.reproducible == "exact" else teacher.reproducible,
        joint_batches=True,  # a batch is one matrix product: its company decides the last bits
        members=teacher.members,
        outcomes=teacher.outcomes,
    )
