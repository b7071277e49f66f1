"""A student that was trained here, as a teacher: what gates draw from and what people sample.

In distdata.toml, or in the options of a plan:

    [teacher]
    kind = "student"
    [teacher.options]
    path = "students/0123456789ab"       # a folder that `distdata train` wrote, or its int8 copy
    teacher = { kind = "crossing", options = { steps = 32 } }

Its records and labels are made by that teacher's own code; its price is its own.
"""

from __future__ import annotations

from pathlib import Path

from ..catalogs.errors import DistdataError
from ..catalogs.protocol import Teacher
from .checkpoint import read_student
from .latent_student import FAMILIES, LatentStudent


def open_student(*, path: str, decoder: Teacher, usd_per_gpuh: float = 2.0, device: str = "cpu") -> Teacher:
    """Return the student in a folder as a teacher; its network is loaded on the first sample.

    `decoder` is its teacher, which makes records and labels (`LatentTeacher` or `TokenTeacher`); `usd_per_gpuh` the
    price of an hour of the student's time; `device` cpu or cuda, of which only the CPU promises equal bytes.

    Raises:
        DistdataError: no whole student in the folder, or a decoder that can't make its records.
    """
    header = read_student(Path(path).expanduser())
    if header is None:
        raise DistdataError(f"{path}: no student.json, so no finished student. Train one there first.")
    if header["family"] == "causal_lm":
        from .language_student import LanguageStudent

        return LanguageStudent(path=path, decoder=decoder, usd_per_gpuh=usd_per_gpuh, device=device)
    if header["family"] in FAMILIES:
        return LatentStudent(path=path, decoder=decoder, usd_per_gpuh=usd_per_gpuh, device=device)
    raise DistdataError(
        f"{path}: a student of family {header['family']!r}; this version knows {', '.join(FAMILIES)} and causal_lm. "
        "Update distdata."
    )
