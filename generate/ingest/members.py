"""Which members every sample of a record kind has: what is there decides, then the teacher, then the mapping."""

from __future__ import annotations

from ...catalogs import store
from ...catalogs.errors import DistdataError
from ...catalogs.project import Project
from ...catalogs.protocol import MemberSpec, TeacherInfo
from ...catalogs.samples import read_stored
from ..run_unit import META_MEMBER
from ..tasks import load_units
from .mapping import IngestMapping


def wanted_members(
    project: Project, info: TeacherInfo, mapping: IngestMapping, *, any_teacher: bool = False
) -> dict[str, MemberSpec | None] | None:
    """Return the members of a sample and what is declared of each; None when nothing is known before the first row.

    `any_teacher` looks at samples of `info.kind` whoever made them.

    Raises:
        DistdataError: the mapping names a member that the samples of this kind don't have.
    """
    specs: dict[str, MemberSpec | None] = {**_frozen(project, info), **info.members}
    stored = _stored(project, info, any_teacher)
    if stored is not None:
        foreign = [name for name in mapping.members if name not in stored]
        if foreign:
            raise DistdataError(
                f"ingest mapping: members.{foreign[0]}: samples of kind {info.kind} here have {', '.join(stored)}, and "
                "all samples of a kind have the same members. Leave it out, or say another kind."
            )
        return {name: specs.get(name) for name in stored}
    names = [*specs, *(name for name in mapping.members if name not in specs)]
    return {name: specs.get(name) for name in names} or None


def _frozen(project: Project, info: TeacherInfo) -> dict[str, MemberSpec]:
    """Return what the newest plan of this teacher found its arrays to be."""
    with store.read(project.catalog_path) as con:
        plans = con.execute(
            "SELECT plan_id FROM plans WHERE teacher_hash = ? AND purpose NOT IN ('byproduct', 'clean') "
            "ORDER BY plan_no DESC",
            [info.content_hash],
        ).fetchall()
    for (plan_id,) in plans:
        units = load_units(project, plan_id)
        if units is not None:
            return dict(units.members)
    return {}


def _stored(project: Project, info: TeacherInfo, any_teacher: bool) -> list[str] | None:
    """Return the members of a stored sample of this kind and teacher, without its facts."""
    with store.read(project.catalog_path) as con:
        row = store.first(
            con.execute(
                """SELECT u.shard, s."offset" + u.shard_offset, s.n_bytes
                FROM samples s JOIN units u USING (plan_no, unit, attempt) JOIN plans p USING (plan_no)
                WHERE s.kind = ? AND (? OR p.teacher_hash = ?) AND u.shard IS NOT NULL
                ORDER BY plan_no DESC, s.unit, s."offset" LIMIT 1""",
                [info.kind, any_teacher, info.content_hash],
            )
        )
    if row is None:
        return None
    return [name for name in read_stored(project.storage, *row) if name != META_MEMBER]
