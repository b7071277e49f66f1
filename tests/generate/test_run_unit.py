"""Units under a teacher, a disk and a user that go wrong: what is kept, what is a row, and what heals it."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distdata.catalogs import store
from distdata.catalogs.check import check_project
from distdata.catalogs.codec import decode_member
from distdata.catalogs.errors import BusyError, DistdataError
from distdata.catalogs.files import atomic_file, disk_errors
from distdata.catalogs.register import rebuild
from distdata.catalogs.shards import read_sample
from distdata.cycle.purchases import plan_purchase, save_purchase
from distdata.generate.run import choose_mode

TRIES = 3  # the default of generate.max_attempts
ON_ONE_DRAW = {
    # fault: (failure, reason, how often the draw is asked for in the first run)
    "raise": ("error", "RuntimeError: out of memory on {seed}", 1 + TRIES - 1),
    "few": ("error", "the teacher answered 0 of 1 requests; this one got nothing", TRIES),
    "text": ("error", "the teacher answered with a str, not a Draw or Failure", TRIES),
    "nan": ("invalid", "x.npy: 1 NaN of 5 values", 1),
    "shape": ("invalid", "x.npy: shape (4,), want (5,)", 1),
    "dtype": ("invalid", "x.npy: dtype float64, want float32", 1),
    "missing": ("invalid", "member(s) x.npy missing; the draw has y.npy", 1),
    "outcome": ("invalid", "outcome 'sideways' is not one of low, high", 1),
    "refuse": ("refused", "not that one", 1),
}


@pytest.fixture
def project(tiny: Any, tmp_path: Path) -> Any:
    """A plan of a teacher whose requests are independent, so that a draw's bytes do not depend on its company."""
    return tiny.build(tmp_path / "p", joint=False)


@pytest.fixture(scope="module")
def whole(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same plan run without any fault; not to be changed."""
    project = tiny.build(tmp_path_factory.mktemp("whole") / "p", joint=False)
    tiny.run(project)
    return project


def test_bad_draws_take_no_sibling_down(tiny: Any, tmp_path: Path) -> None:
    """A bad draw of a batch is a row with its reason, its siblings are kept, and a retry heals just the bad draws."""
    project = tiny.build(tmp_path / "p", n_draws=48, joint=False)
    whole = tiny.copy(project, tmp_path / "whole")
    tiny.run(whole)
    draws = tiny.draws(project)
    bad = {draws[4 * i + 1]: fault for i, fault in enumerate(ON_ONE_DRAW)}  # never two in one micro-batch of three
    tiny.break_teacher(project, {fault: [draw] for draw, fault in bad.items()})
    done = tiny.run(project)
    assert (done.total, done.generated, done.failed) == (48, 48 - len(bad), len(bad))
    rows = tiny.sql(project, "SELECT seed_id, k, failure, reason, tries FROM attempts")
    wanted = []
    for draw, fault in bad.items():
        failure, reason, n_asked = ON_ONE_DRAW[fault]
        assert Counter(tiny.calls(project))[draw] == n_asked, fault
        wanted.append((*draw, failure, reason.format(seed=draw[0]), n_asked))
    assert sorted(rows) == sorted(wanted)
    assert tiny.payloads(project).items() < tiny.payloads(whole).items(), "every sibling has its bytes"

    tiny.heal_teacher(project)
    n_before = len(tiny.calls(project))
    assert tiny.run(project).asked == 0, "a plain run does not ask a failed draw again"
    healed = tiny.run(project, mode="retry-failed")
    assert (healed.asked, healed.failed, healed.generated) == (len(bad), 0, 48)
    assert tiny.calls(project)[n_before:] == list(bad), "the very draws (seed and k) that failed, and no others"
    assert tiny.payloads(project) == tiny.payloads(whole), "each kept its k, so its random seed, so its bytes"
    assert tiny.sql(project, "SELECT count(*) FROM attempts") == [(len(bad),)], "that they failed before stays known"
    assert tiny.run(project, mode="retry-failed").asked == 0
    assert tiny.rebuilt_tables(project) == tiny.tables(project)
    assert check_project(project).damaged == []
    tiny.assert_tidy(project)


@pytest.mark.parametrize("fault", ["twice", "unasked"])
def test_surplus_answers_change_nothing(fault: str, project: Any, whole: Any, tiny: Any) -> None:
    """A second answer to one request, or an answer to none, is dropped: the same shards come out."""
    tiny.break_teacher(project, {fault: None})
    assert tiny.run(project).failed == 0
    assert tiny.shards(project) == tiny.shards(whole)
    tiny.assert_whole(project, None, 0, 3)


def test_a_failure_in_a_joint_batch_is_isolated(tiny: Any, tmp_path: Path) -> None:
    """A batch that is computed as one and raises is asked again draw by draw; only the poison draw fails."""
    project = tiny.build(tmp_path / "p", joint=True)
    draws = tiny.draws(project)
    bad, batch = draws[4], draws[3:6]
    tiny.break_teacher(project, {"raise": [bad]})
    done = tiny.run(project)
    assert (done.failed, done.generated) == (1, len(draws) - 1)
    asked = Counter(tiny.calls(project))
    # once together with its company, then alone: the siblings succeed at once, the poison uses all its tries
    assert {d: asked[d] for d in batch} == {batch[0]: 2, bad: TRIES, batch[2]: 2}
    assert all(asked[d] == 1 for d in draws if d not in batch)
    reasons = tiny.sql(project, "SELECT failure, reason, tries FROM attempts")
    assert reasons == [("error", f"RuntimeError: out of memory on {bad[0]}", TRIES)]


def test_a_teacher_that_always_fails_is_stopped_at_the_probe(project: Any, whole: Any, tiny: Any) -> None:
    """When every probed draw fails nothing is committed, one error says why, and the fixed teacher runs."""
    first = tiny.draws(project)[0][0]
    for fault, (failure, reason, _) in ON_ONE_DRAW.items():
        tiny.break_teacher(project, {fault: None})
        with pytest.raises(DistdataError) as caught:
            tiny.run(project)
        why = reason.format(seed=first).replace("0 of 1", "0 of 3")
        # unit 0 has 7 draws: six as configured, and the second draw of the seed that begins within them
        said = f"teacher tiny: the first 7 draws all failed; the first one: {failure}: {why}. Nothing was committed"
        assert str(caught.value).startswith(said)
        assert "run `distdata generate` again" in str(caught.value)
    assert tiny.manifest_rows(project) == []
    tiny.heal_teacher(project)
    assert tiny.run(project).failed == 0
    assert tiny.shards(project) == tiny.shards(whole)
    # each probe asked for draws: what a failure cost was paid, and is in the books
    assert tiny.spend(project)[0] >= 0.25 * len(tiny.draws(project))


@pytest.mark.parametrize("fault", ["raise", "nan"])
def test_a_teacher_that_breaks_later_stops_the_run(fault: str, tiny: Any, tmp_path: Path) -> None:
    """Units without one good draw, 16 draws long, stop the run with the commonest reason; a retry heals them."""
    project = tiny.build(tmp_path / "p", n_draws=48, joint=False)
    whole = tiny.copy(project, tmp_path / "whole")
    tiny.run(whole)
    draws, sizes = tiny.draws(project), [u[0] for u in tiny.sql(whole, "SELECT n_ok FROM units ORDER BY unit")]
    first = sizes[0]
    tiny.break_teacher(project, {fault: draws[first:]})  # from the second unit on
    with pytest.raises(DistdataError) as caught:
        tiny.run(project)
    n_failed = sum(sizes[1:4])  # units of 6 or 7 draws: the third one makes it 16 or more
    assert sum(sizes[1:3]) < 16 <= n_failed
    said = f"the last {n_failed} draws all failed, so the run was stopped before it costs more. Most often: "
    assert said + ON_ONE_DRAW[fault][0] in str(caught.value)
    assert "--retry-failed" in str(caught.value)
    failed = tiny.sql(project, "SELECT seed_id, k FROM attempts")
    assert sorted(failed) == sorted(draws[first : first + n_failed]), "each failed draw is one row"
    assert set(tiny.calls(project)) == set(draws[: first + n_failed]), "the units after them were not asked"
    tiny.heal_teacher(project)
    tiny.run(project)
    tiny.run(project, mode="retry-failed")
    assert tiny.payloads(project) == tiny.payloads(whole)
    assert tiny.rebuilt_tables(project) == tiny.tables(project)


def test_a_hanging_request_times_out_and_the_rest_goes_on(tiny: Any, tmp_path: Path) -> None:
    """A request that hangs is a timeout row after teacher.timeout_s; the other draws are made by a fresh teacher."""
    project = tiny.build(tmp_path / "p", joint=False, timeout_s=0.4, max_attempts=1)
    bad = tiny.draws(project)[5]  # the last of its batch, so that no sibling waits behind it
    tiny.break_teacher(project, {"hang": [bad]})
    done = tiny.run(project)
    assert (done.failed, done.generated) == (1, len(tiny.draws(project)) - 1)
    row = (*bad, "timeout", "no answer within 0.4 s (teacher.timeout_s)")
    assert tiny.sql(project, "SELECT seed_id, k, failure, reason FROM attempts") == [row]
    tiny.heal_teacher(project)
    assert tiny.run(project, mode="retry-failed").failed == 0


def test_a_teacher_that_only_hangs_is_given_up(tiny: Any, tmp_path: Path) -> None:
    """After three hangs no more waiting: what was not asked says so, and the run stops with that reason."""
    project = tiny.build(tmp_path / "p", n_draws=48, joint=False, timeout_s=0.3)
    draws = tiny.draws(project)
    tiny.break_teacher(project, {"hang": draws[7:]})  # unit 0 has 7 draws
    with pytest.raises(DistdataError, match=r"the last \d+ draws all failed.*Most often: timeout: "):
        tiny.run(project)
    reasons = {r[0] for r in tiny.sql(project, "SELECT reason FROM attempts")}
    assert reasons == {
        "no answer within 0.3 s (teacher.timeout_s)", "not asked: the teacher hung 3 times in this run",
    }  # fmt: skip
    assert len(tiny.calls(project)) - 7 == 3, "asked three times, each of which hung"
    tiny.heal_teacher(project)
    tiny.run(project)
    tiny.run(project, mode="retry-failed")
    assert len(tiny.payloads(project)) == len(draws)


def test_undeclared_members_are_inferred_and_enforced(tiny: Any, tmp_path: Path) -> None:
    """A teacher that declares no members is held to what its first micro-batch looked like."""
    project = tiny.build(tmp_path / "p", joint=False, declare=False)
    bad = tiny.draws(project)[7]
    tiny.break_teacher(project, {"shape": [bad]})
    assert tiny.run(project).failed == 1
    frozen = json.loads((project.plans_dir / tiny.plan(project).plan_id / "units.json").read_text())
    assert frozen["members"] == {"x.npy": {"dtype": "float32", "shape": [5], "allow_nan": False}}
    assert tiny.sql(project, "SELECT reason FROM attempts") == [("x.npy: shape (4,), want (5,)",)]


@pytest.mark.parametrize(
    ("joint", "unit_draws", "options"),
    [
        (True, 6, {"price": 1.0}),
        (True, 2, {"price": 1.0}),
        (True, None, {"price": 1.0}),
        (False, None, {"price": 1.0}),
        (True, 6, {"price": 0.0}),
        (False, 2, {"price": 0.0}),
        (True, 6, {"price": 1.0, "spool": "off"}),
    ],
)
def test_every_draw_is_asked_for_once(joint: bool, unit_draws: Any, options: Any, tiny: Any, tmp_path: Path) -> None:
    """Without a fault each planned draw costs one request, the probe's included, whatever the sizes and the spool."""
    project = tiny.build(tmp_path / "p", joint=joint, unit_draws=unit_draws, **options)
    done = tiny.run(project)
    assert sorted(tiny.calls(project)) == sorted(tiny.draws(project))
    assert done.asked == done.generated == len(tiny.draws(project))
    assert (done.usd, done.in_doubt_usd) == (options["price"] * 0.25 * done.asked, 0.0)
    tiny.assert_whole(project, None, 0, 3)


def test_a_finished_plan_costs_nothing(project: Any, tiny: Any) -> None:
    """Running a finished plan again asks the teacher nothing and changes no file but the lock."""
    tiny.run(project)
    files = {p: p.stat().st_mtime_ns for p in project.root.rglob("*") if p.is_file() and p.name != "generate.lock"}
    n_calls = len(tiny.calls(project))
    for mode in ("missing", "only-started", "retry-failed", "repair"):
        done = tiny.run(project, mode=mode)
        assert (done.asked, done.units, done.usd) == (0, 0, 0.0)
        assert done.generated == done.total == n_calls
    assert len(tiny.calls(project)) == n_calls
    now = {p: p.stat().st_mtime_ns for p in project.root.rglob("*") if p.is_file() and p.name != "generate.lock"}
    assert now == files


def test_a_full_cycle_of_trouble_rebuilds_to_equal_tables(project: Any, tiny: Any) -> None:
    """After failures, a retry, damage, a repair and another failing repair the catalog rebuilds to equal tables."""
    draws = tiny.draws(project)
    tiny.break_teacher(project, {"nan": [draws[1], draws[8]]})
    tiny.run(project)
    tiny.heal_teacher(project)
    tiny.run(project, mode="retry-failed")
    for name in list(tiny.shards(project))[:3]:
        _damage(_shard_path(tiny, project, name), "alter")
    tiny.run(project, mode="repair")
    assert check_project(project).damaged == []
    _damage(_shard_path(tiny, project, next(iter(tiny.shards(project)))), "delete")
    tiny.break_teacher(project, {"shape": [draws[2]]})
    assert tiny.run(project, mode="repair").failed == 1
    tiny.heal_teacher(project)
    assert tiny.rebuilt_tables(project) == tiny.tables(project)
    tiny.run(project, mode="retry-failed")
    assert tiny.sql(project, "SELECT count(*), count(DISTINCT sample_id) FROM samples") == [(len(draws), len(draws))]
    tables = tiny.tables(project)
    project.catalog_path.unlink()
    assert tiny.run(project).asked == 0, "without a catalog nothing is asked again"
    assert tiny.tables(project) == tables
    rebuild(project)
    assert tiny.tables(project) == tables


def test_a_rebuild_in_many_small_batches_gives_equal_tables(
    project: Any, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many manifests are registered at a time, a repair ends up standing in for what it replaced."""
    tiny.run(project)
    _damage(_shard_path(tiny, project, next(iter(tiny.shards(project)))), "delete")
    tiny.run(project, mode="repair")
    monkeypatch.setattr("distdata.catalogs.register.BATCH", 1)
    assert tiny.rebuilt_tables(project) == tiny.tables(project)


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("how", ["truncate", "alter", "delete"])
def test_a_damaged_shard_is_named_and_repaired(how: str, joint: bool, tiny: Any, tmp_path: Path) -> None:
    """`catalog check` names the damaged shard, `--repair` pays for what is lost only, and the bytes are the same."""
    project = tiny.build(tmp_path / "p", joint=joint)
    draws = tiny.draws(project)
    tiny.run(project)
    payloads, original = tiny.payloads(project), dict(tiny.shards(project))
    name = next(iter(original))
    path = _shard_path(tiny, project, name)
    entries = [r for r in tiny.manifest_rows(project) if r["shard"].endswith(name)]
    lost = _damage(path, how, entries)
    said = {"truncate": "truncated", "alter": "altered", "delete": "missing file"}[how]
    found = check_project(project).damaged
    assert [(d.shard, list(d.sample_ids)) for d in found] == [(str(path), [r["sample_id"] for r in lost])]
    assert found[0].text.startswith(f"{len(lost)} sample(s) lost, {lost[0]['sample_id']} the first: {said}")
    if not joint:  # once is enough to see what a user sees
        checked = tiny.command(project, "catalog", "check")
        assert checked.returncode == 1
        assert f"{path}: {found[0].text}" in checked.stderr
        assert "generate --repair" in checked.stderr
        assert "Traceback" not in checked.stderr

    done = tiny.run(project, mode="repair")
    asked = tiny.calls(project)[len(draws) :]
    damaged = [(r["seed_id"], r["k"]) for r in lost]
    # requests paid one by one: just the damaged draws; a batch computed as one is asked whole, or its bits change
    batches = [draws[i : min(i + 3, len(entries))] for i in range(0, len(entries), 3)]
    company = [d for b in batches if set(b) & set(damaged) for d in b]
    assert asked == (company if joint else damaged)
    assert [str(path) in text for text in done.damaged] == [True]
    assert (done.generated, done.failed) == (len(draws), 0)
    assert tiny.payloads(project) == payloads, "every sample has its bytes again"
    repaired = name.replace("unit-000000-", "unit-000000-r1-")
    assert tiny.shards(project) == {n if n != name else repaired: h for n, h in original.items()}
    found = check_project(project)
    assert (found.damaged, found.unreferenced) == ([], [])
    assert tiny.rebuilt_tables(project) == tiny.tables(project)
    # what the damaged draws cost the first time was truly paid, and stays in the books
    assert tiny.spend(project) == (0.25 * len(tiny.calls(project)), 0.0)
    assert tiny.run(project, mode="repair").asked == 0


def test_a_repair_leaves_failed_draws_alone(project: Any, tiny: Any) -> None:
    """Repairing a shard does not ask for draws of its unit that failed: that is what --retry-failed is for."""
    draws = tiny.draws(project)
    tiny.break_teacher(project, {"refuse": [draws[2]]})
    tiny.run(project)
    tiny.heal_teacher(project)
    n_calls = len(tiny.calls(project))
    _damage(_shard_path(tiny, project, next(iter(tiny.shards(project)))), "delete")
    tiny.run(project, mode="repair")
    assert draws[2] not in tiny.calls(project)[n_calls:]
    assert [f[0] for f in tiny.run(project).failures] == ["refused"]
    assert tiny.run(project, mode="retry-failed").asked == 1
    assert len(tiny.payloads(project)) == len(draws)
    assert tiny.sql(project, "SELECT count(*), count(DISTINCT sample_id) FROM samples") == [(len(draws), len(draws))]
    assert tiny.rebuilt_tables(project) == tiny.tables(project)


def test_a_repair_after_an_interrupted_retry_keeps_the_books(project: Any, tiny: Any, crashes: Any) -> None:
    """A retry killed with its answer spooled, then a repair of the same unit: nothing paid is forgotten."""
    draws = tiny.draws(project)
    tiny.break_teacher(project, {"nan": [draws[4]]})
    tiny.run(project)
    tiny.heal_teacher(project)
    stopped = crashes.run(project, 2, mode="retry-failed")
    assert stopped["effects"] == ["spool.ask", "spool.got"]
    _damage(_shard_path(tiny, project, next(iter(tiny.shards(project)))), "delete")
    tiny.run(project, mode="repair")
    tiny.run(project, mode="retry-failed")
    assert tiny.sql(project, "SELECT count(*), count(DISTINCT sample_id) FROM samples") == [(len(draws), len(draws))]
    known, doubt = tiny.spend(project)
    true = 0.25 * len(tiny.calls(project))
    assert known <= true <= known + doubt
    assert (known, doubt) == (true, 0.0), "the retry's answer had arrived, so it is known"
    tiny.assert_tidy(project)


@pytest.mark.parametrize("mode", [pytest.param("retry-failed", marks=pytest.mark.prove), "repair"])
def test_killed_at_any_effect_of_a_retry_or_repair(mode: str, tiny: Any, crashes: Any, tmp_path: Path) -> None:
    """A retry and a repair, killed at every effect, resume to what they would have been."""
    project = tiny.build(tmp_path / "p", n_draws=8, unit_draws=4, joint=False)
    draws = tiny.draws(project)
    tiny.break_teacher(project, {"refuse": [draws[1]]})
    tiny.run(project)
    tiny.heal_teacher(project)
    if mode == "repair":
        tiny.run(project, mode="retry-failed")
        _damage(_shard_path(tiny, project, next(n for n in tiny.shards(project) if "-r1-" not in n)), "delete")
    whole = tiny.copy(project, tmp_path / "whole")
    n_effects = len(crashes.finish(whole, mode=mode))
    tiny.assert_tidy(whole)
    for i in range(1, n_effects + 1):
        killed = tiny.copy(project, tmp_path / str(i))
        stopped = crashes.run(killed, i, mode=mode)
        assert stopped["killed"], stopped
        crashes.finish(killed, mode=mode)
        where = f"{i}: {stopped['effects'][-1]}"
        assert tiny.payloads(killed) == tiny.payloads(whole), where
        assert tiny.shards(killed) == tiny.shards(whole), where
        n, n_ids, known, doubt = tiny.sql(
            killed,
            """SELECT count(*), count(DISTINCT sample_id), (SELECT sum(usd) FROM units),
            (SELECT sum(in_doubt_usd) FROM units) FROM samples""",
        )[0]
        assert (n, n_ids) == (len(draws), len(draws)), where
        assert known <= 0.25 * len(tiny.calls(killed)) <= known + doubt, where
        assert doubt <= 0.25 * 3, where
        tiny.assert_tidy(killed)
        if i % 6 == 0:
            assert tiny.rebuilt_tables(killed) == tiny.tables(killed), where


def test_two_generates_at_once(tiny: Any, tmp_path: Path) -> None:
    """A second generate is refused at once with the first one's process id, and the first one is not disturbed."""
    project = tiny.build(tmp_path / "p", joint=False, sleep_s=0.15)
    line = tiny.command_line(project, "generate", "--engine", "inprocess")
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as first:
        deadline = time.monotonic() + 60
        while not tiny.calls(project) and time.monotonic() < deadline:
            time.sleep(0.02)
        with pytest.raises(BusyError, match=rf"process {first.pid} is already generating here.*Ctrl-C"):
            tiny.run(project)
        second = tiny.command(project, "generate", "--engine", "inprocess")
        assert (second.returncode, second.stdout) == (1, "")
        assert f"process {first.pid} is already generating here" in second.stderr
        assert "Traceback" not in second.stderr
        _, said = first.communicate(timeout=120)
    assert first.returncode == 0, said
    tiny.assert_whole(project, None, 0, 3)


def test_an_orphaned_workers_unit_is_not_touched(project: Any, tiny: Any, crashes: Any) -> None:
    """A shard whose unit is locked by another process is left alone; without that lock it is cleaned up."""
    seen = crashes.finish(tiny.copy(project, project.root.parent / "whole"))
    crashes.run(project, seen.index("shard.rename") + 1)
    plan_id = tiny.plan(project).plan_id
    shard = project.storage.list(plan_id)[0].name
    with open(project.spool_dir / f"{plan_id}-unit-000000.lock", "a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        tiny.run(project, mode="retry-failed")  # cleans up, and has nothing else to do
        assert project.storage.exists(shard)
    tiny.run(project, mode="retry-failed")
    assert not project.storage.exists(shard)
    tiny.run(project)
    tiny.assert_whole(project, None, 1, 3)


def test_an_interrupted_plan_is_not_given_up_silently(project: Any, tiny: Any, crashes: Any) -> None:
    """Paid answers of an interrupted unit block a new plan, until `--only-started` has brought just these home."""
    seen = crashes.finish(tiny.copy(project, project.root.parent / "whole"))
    second = [i for i, name in enumerate(seen) if name == "spool.ask"][3]  # a batch of the second unit
    crashes.run(project, second + 2)
    purchase = plan_purchase(project, budget="16samples")
    with pytest.raises(DistdataError, match=r"interrupted with \d paid answers in 1 unfinished unit.*--only-started"):
        save_purchase(project, purchase)
    n_before = len(tiny.payloads(project))
    tiny.run(project, mode="only-started")
    units = tiny.sql(project, "SELECT count(*) FROM units")[0][0]
    assert units == 2
    assert len(tiny.payloads(project)) > n_before
    assert save_purchase(project, plan_purchase(project, budget="16samples"))


def test_flags_that_contradict() -> None:
    """Two jobs at once are refused with both named; one is taken."""
    assert choose_mode(retry_failed=False, repair=False, only_started=False) == "missing"
    assert choose_mode(retry_failed=False, repair=True, only_started=False) == "repair"
    with pytest.raises(DistdataError, match=r"--retry-failed and --repair are two jobs"):
        choose_mode(retry_failed=True, repair=True, only_started=False)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of its own with 64 KB of space."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small file system takes root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_stops_cleanly_and_goes_on(tiny: Any, small_disk: Path, tmp_path: Path) -> None:
    """With no space left the run says so, keeps what is committed, and goes on without paying again."""
    project = tiny.build(tmp_path / "p", n_draws=60, joint=False, storage=str(small_disk))
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(30_000))
    with pytest.raises(DistdataError) as caught:
        tiny.run(project)
    said = str(caught.value)
    assert str(small_disk) in said
    assert "the disk is full" in said
    assert "run the same command again" in said
    rows = tiny.manifest_rows(project)
    assert 0 < len(rows) < 60, "what was committed before is there"
    ballast.write_bytes(b"")
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    tiny.run(project)
    assert sorted(tiny.calls(project)) == sorted(tiny.draws(project)), "each draw was paid for once"
    tiny.assert_whole(project, None, 0, 3)


def test_no_space_is_translated_and_cleaned_up(tmp_path: Path) -> None:
    """ENOSPC, as /dev/full gives it, becomes one error with path and free bytes; no half file stays."""
    path = tmp_path / "folder" / "result.bin"

    def write_half() -> None:
        with atomic_file(path, "test") as f, open("/dev/full", "wb", buffering=0) as full:
            f.write(b"begun")
            full.write(b"x")

    with pytest.raises(DistdataError) as caught:
        write_half()
    assert str(caught.value).startswith(f"{path}: the disk is full (")
    assert "bytes free in" in str(caught.value)
    assert list(path.parent.iterdir()) == []
    with pytest.raises(DistdataError, match="the disk is full"), disk_errors(path), open("/dev/full", "w") as text:
        text.write("x" * 100_000)


def test_a_stored_sample_reads_back(whole: Any, tiny: Any) -> None:
    """What the catalog points at is the draw the teacher gave: member, outcome and the sample's own facts."""
    with store.read(whole.catalog_path) as con:
        rows = con.sql('SELECT sample_id, seed_id, k, shard, "offset", n_bytes, outcome FROM samples_wide').fetchall()
    for sample_id, seed_id, k, shard, offset, n_bytes, outcome in rows:
        with whole.storage.open(shard) as f:
            members = read_sample(f, offset, n_bytes)
        meta = json.loads(members["meta.json"])
        assert (meta["sample_id"], meta["seed_id"], meta["k"], meta["outcome"]) == (sample_id, seed_id, k, outcome)
        # the tiny teacher's law, drawn again from the seed that the sample itself names
        expected = np.random.default_rng(meta["rng_seed"]).normal(size=5).astype(np.float32)
        assert np.array_equal(decode_member("x.npy", members["x.npy"]), expected)
        assert outcome == ("low" if expected[0] < 0 else "high")


def _shard_path(tiny: Any, project: Any, name: str) -> Path:
    return Path(project.storage.root) / tiny.plan(project).plan_id / name


def _damage(path: Path, how: str, entries: list[dict[str, Any]] | None = None) -> list[dict[str, Any]]:
    """Damage a shard, and return the rows of `entries` that are lost by it: the last, the second, or all."""
    entries = sorted(entries or [], key=lambda r: r["offset"])
    if how == "delete":
        path.unlink()
        return entries
    data = bytearray(path.read_bytes())
    if how == "truncate":
        path.write_bytes(data[: entries[-1]["offset"] + 700])
        return entries[-1:]
    at = entries[1]["offset"] + entries[1]["n_bytes"] // 2 if entries else len(data) // 4
    data[at] ^= 0x10
    path.write_bytes(data)
    return entries[1:2]
