"""Compaction of a project: fewer files, the same samples, and no crash that loses or doubles one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distdata.catalogs.check import check_project
from distdata.catalogs.errors import BusyError, DistdataError
from distdata.catalogs.files import exclusive_lock
from distdata.catalogs.packing import compact_project
from distdata.catalogs.shards import read_sample
from distdata.generate.verify import replay


@pytest.fixture(scope="module")
def built(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A finished project of several small shards; not to be changed."""
    project = tiny.build(tmp_path_factory.mktemp("compact") / "p", n_draws=30, joint=True)
    tiny.run(project)
    return project


@pytest.fixture
def project(built: Any, tiny: Any, tmp_path: Path) -> Any:
    """A copy of the finished project."""
    return tiny.copy(built, tmp_path / "p")


def contents(tiny: Any, project: Any) -> dict[str, tuple[str, dict[str, bytes]]]:
    """Read every sample where the catalog says that it lies: id -> (outcome, members)."""
    rows = tiny.sql(project, 'SELECT sample_id, shard, "offset", n_bytes, outcome FROM samples_wide')
    found = {}
    for sample_id, shard, offset, n_bytes, outcome in rows:
        with project.storage.open(shard) as f:
            found[sample_id] = (outcome, read_sample(f, offset, n_bytes))
    return found


def sizes(project: Any) -> list[int]:
    """Return the sizes of the stored shards, in bytes."""
    folder = next(Path(project.storage.root).iterdir())
    return sorted(p.stat().st_size for p in folder.glob("*.tar"))


def assert_sound(tiny: Any, project: Any, built: Any) -> None:
    """Assert that every sample is there once, readable and unchanged, and that the catalog can be rebuilt."""
    assert contents(tiny, project) == contents(tiny, built)
    found = check_project(project)
    assert (found.damaged, found.unreferenced) == ([], [])
    assert tiny.rebuilt_tables(project) == tiny.tables(project)
    tiny.assert_tidy(project)


def test_small_shards_are_joined(project: Any, built: Any, tiny: Any) -> None:
    """All shards become one; every sample reads back the same through the catalog; no old shard is left."""
    before = sizes(project)
    done = compact_project(project)
    # what is joined loses its own end of archive (1,024 bytes) and gets one in common
    assert sizes(project) == [sum(before) - 1024 * (len(before) - 1)] == [done.n_bytes]
    assert (done.n_before, done.n_after) == (len(before), 1)
    assert next(iter(tiny.shards(project))).startswith("pack-")
    assert_sound(tiny, project, built)
    assert replay(project, 1.0).different == []


def test_the_target_bounds_the_joined_shards(project: Any, built: Any, tiny: Any) -> None:
    """No joined shard exceeds the target, the same project gives the same shards, and a second time changes nothing."""
    target = 2 * max(sizes(project)) + 2048
    twin = tiny.copy(project, project.root.parent / "twin")
    done = compact_project(project, target)
    assert 1 < done.n_after < done.n_before
    assert max(sizes(project)) <= target
    assert_sound(tiny, project, built)
    compact_project(twin, target)
    assert tiny.shards(twin) == tiny.shards(project)
    again = compact_project(project, target)
    assert (again.n_before, again.n_after, again.n_bytes) == (done.n_after, done.n_after, 0)


def test_a_dry_run_counts_and_changes_nothing(project: Any, tiny: Any) -> None:
    """A dry run gives the figures of the real one and leaves every file as it is."""
    shards = tiny.shards(project)
    dry = compact_project(project, dry_run=True)
    assert tiny.shards(project) == shards
    assert dry == compact_project(project)


def test_joined_shards_are_joined_again(project: Any, built: Any, tiny: Any) -> None:
    """Compacting in steps moves samples twice, and the catalog and its rebuild follow both moves."""
    target = 2 * max(sizes(project)) + 2048
    compact_project(project, target)
    compact_project(project, 10**9)
    assert len(sizes(project)) == 1
    assert_sound(tiny, project, built)


@pytest.mark.parametrize("order", ["repair-compact", "compact-repair", "compact-repair-compact"])
def test_repairs_and_compaction_in_any_order(order: str, project: Any, built: Any, tiny: Any) -> None:
    """Damage before or after compaction is repaired to the same bytes, and the rebuilt catalog has equal tables."""
    for step in order.split("-"):
        if step == "compact":
            compact_project(project)
        else:
            _alter_a_sample(tiny, project)
            tiny.run(project, mode="repair")
    assert_sound(tiny, project, built)
    # one micro-batch of the joint teacher was paid again
    assert len(tiny.calls(project)) == 30 + 3
    assert tiny.rebuilt_tables(project) == tiny.tables(project)


def test_damage_is_not_copied(project: Any, tiny: Any) -> None:
    """A damaged sample stops compaction with its name and the way out; no shard is changed."""
    sample_id = _alter_a_sample(tiny, project)
    before = tiny.shards(project)
    with pytest.raises(DistdataError, match=rf"sample {sample_id} is damaged \(altered.*--repair"):
        compact_project(project)
    assert tiny.shards(project) == before
    tiny.assert_tidy(project)


def test_not_while_generating(project: Any) -> None:
    """Compaction is refused while generate holds its lock, with the holder's process id."""
    with (
        exclusive_lock(project.spool_dir / "generate.lock", "busy"),
        pytest.raises(BusyError, match=r"process \d+ is generating here; compact when it is done"),
    ):
        compact_project(project)


def test_a_shard_about_to_be_committed_is_left_alone(project: Any, tiny: Any, crashes: Any, tmp_path: Path) -> None:
    """A unit's shard without a manifest may belong to a worker at work: compaction does not take it away."""
    begun = tiny.build(tmp_path / "begun", n_draws=30, joint=True)
    effects = crashes.finish(tiny.copy(begun, tmp_path / "whole"))
    last_shard = max(i for i, name in enumerate(effects) if name == "shard.rename")
    crashes.run(begun, last_shard + 1)
    named = {Path(r["shard"]).name for r in tiny.manifest_rows(begun)}
    loose = [name for name in tiny.shards(begun) if name not in named]
    assert len(loose) == 1
    compact_project(begun)
    assert loose[0] in tiny.shards(begun)
    tiny.run(begun)
    assert tiny.payloads(begun) == tiny.payloads(project)


def test_killed_at_any_effect(project: Any, built: Any, tiny: Any, crashes: Any, tmp_path: Path) -> None:
    """Killed at every effect of compaction, no sample is ever unreadable, and running it again finishes the job."""
    target = 2 * max(sizes(project)) + 2048
    samples = contents(tiny, built)
    whole = tiny.copy(project, tmp_path / "whole")
    effects = crashes.finish(whole, do="compact", target_bytes=target)
    wanted = {
        "pack.write", "pack.fsync", "pack.rename", "event.compact.write", "event.compact.fsync",
        "event.compact.rename", "catalog.before-commit", "catalog.commit", "pack.remove",
    }  # fmt: skip
    assert set(effects) == wanted
    for i, name in enumerate(effects, 1):
        killed = tiny.copy(project, tmp_path / str(i))
        assert crashes.run(killed, i, do="compact", target_bytes=target)["killed"]
        # between the crash and the next compaction the corpus is whole for every reader
        tiny.run(killed)
        assert contents(tiny, killed) == samples, f"{i}: {name}"
        assert check_project(killed).damaged == [], f"{i}: {name}"
        crashes.finish(killed, do="compact", target_bytes=target)
        assert tiny.shards(killed) == tiny.shards(whole), f"{i}: {name}"
        assert check_project(killed).damaged == [], f"{i}: {name}"
        if i % 4 == 0:
            assert_sound(tiny, killed, built)
        tiny.assert_tidy(killed)
    assert len(tiny.calls(project)) == 30, "compaction asks the teacher nothing"


def _alter_a_sample(tiny: Any, project: Any) -> str:
    """Flip one bit in the middle of one sample where it lies now, and return its id."""
    query = 'SELECT sample_id, shard, "offset", n_bytes FROM samples_wide ORDER BY unit, "offset" LIMIT 1'
    sample_id, shard, offset, n_bytes = tiny.sql(project, query)[0]
    path = Path(project.storage.root) / shard
    data = bytearray(path.read_bytes())
    data[offset + n_bytes // 2] ^= 1
    path.write_bytes(data)
    return str(sample_id)
