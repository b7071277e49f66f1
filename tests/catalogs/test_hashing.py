"""Hashes decide what must never change: same everywhere, uniform, and one domain tells nothing of another."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from distdata.catalogs.hashing import bytes_hash, content_hash, draw_rng_seed, hash64, unit_interval, unit_intervals

FALSE_ALARM = 1e-6
"""The chance that a test below fails for a perfect hash. Its inputs are fixed, so it fails always or never."""
N = 20_000
BINS = 50
quick = settings(deadline=None, derandomize=True, max_examples=60)


def test_hashes_never_change() -> None:
    """The values are BLAKE2b-64 of the parts joined by U+001F, as computed by another program (b2sum -l 64)."""
    # printf 'prn\x1fsalt\x1fs1' | b2sum -l 64
    assert f"{hash64('prn', 'salt', 's1'):016x}" == _b2sum(b"prn\x1fsalt\x1fs1")
    assert f"{hash64('x'):016x}" == _b2sum(b"x")
    assert content_hash({"b": 1, "a": [1, 2.5, None]}) == _b2sum(b'{"a":[1,2.5,null],"b":1}')
    assert bytes_hash([b"ab", b"", b"c"]) == _b2sum(b"abc")


def _b2sum(data: bytes) -> str:
    return subprocess.run(["b2sum", "-l", "64"], input=data, capture_output=True, check=True).stdout.split()[0].decode()


def test_hashes_do_not_depend_on_the_process() -> None:
    """Another interpreter with another hash seed gives the same permanent random number."""
    code = "from distdata.catalogs.hashing import unit_interval; print(repr(unit_interval('prn', 's', 'a')))"
    seen = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert seen == {repr(unit_interval("prn", "s", "a"))}


def test_unit_interval_is_uniform() -> None:
    """Permanent random numbers of consecutive ids fill 50 equal bins evenly (chi-square, 49 degrees of freedom)."""
    u = np.array([unit_interval("prn", "salt", f"seed-{i:06d}") for i in range(N)])
    observed = np.histogram(u, bins=BINS, range=(0, 1))[0]
    chi2 = float(((observed - N / BINS) ** 2 / (N / BINS)).sum())
    assert chi2 < stats.chi2.isf(FALSE_ALARM, BINS - 1)


def test_domains_are_independent() -> None:
    """The split of a group says nothing about its permanent random number (8 x 8 table, 49 degrees of freedom)."""
    prn = np.array([unit_interval("prn", "salt", f"g{i}") for i in range(N)])
    split = np.array([unit_interval("split", "salt", f"g{i}") for i in range(N)])
    table = np.histogram2d(prn, split, bins=8, range=((0, 1), (0, 1)))[0]
    expected = N / 64  # both margins are uniform, so independence is a flat table: 63 degrees of freedom
    chi2 = float(((table - expected) ** 2 / expected).sum())
    assert chi2 < stats.chi2.isf(FALSE_ALARM, 63)


def test_salts_are_independent() -> None:
    """Two salts order the same seeds unrelatedly: |r| < z / sqrt(n), with z at the false-alarm rate."""
    a = np.array([unit_interval("prn", "salt-1", i) for i in range(N)])
    b = np.array([unit_interval("prn", "salt-2", i) for i in range(N)])
    assert abs(float(np.corrcoef(a, b)[0, 1])) < stats.norm.isf(FALSE_ALARM / 2) / np.sqrt(N)


def test_draw_seeds_differ_in_each_part() -> None:
    """Another salt, seed, k or stream is another random seed; all lie in [0, 2**63)."""
    seeds = [
        draw_rng_seed(salt, seed, k, stream)
        for salt in ("a", "b")
        for seed in ("s1", "s2", "s11")
        for k in range(20)
        for stream in ("draw", "control")
    ]
    assert len(set(seeds)) == 2 * 3 * 20 * 2
    assert all(0 <= s < 2**63 for s in seeds)
    assert max(seeds) > 2**62, "the top bit of the range is used"


@quick
@given(st.lists(st.text(alphabet="ab1-", min_size=1), min_size=2, max_size=4))
def test_parts_do_not_run_together(parts: list[str]) -> None:
    """Moving a character over the border between two parts gives another hash."""
    moved = [parts[0] + parts[1][0], parts[1][1:], *parts[2:]]
    assert hash64("d", *parts) != hash64("d", *moved)


@quick
@given(st.dictionaries(st.text(), st.integers() | st.text() | st.none() | st.booleans(), max_size=6), st.randoms())
def test_content_hash_ignores_key_order(value: dict[str, object], random: object) -> None:
    """Two orders of the same keys hash alike, and a changed value does not."""
    keys = list(value)
    random.shuffle(keys)  # type: ignore[attr-defined]
    assert content_hash({k: value[k] for k in keys}) == content_hash(value)
    assert content_hash({**value, "more": 1}) != content_hash({**value, "more": 2})


@quick
@given(st.lists(st.binary(max_size=20), max_size=5))
def test_bytes_hash_ignores_chunks(chunks: list[bytes]) -> None:
    """A stream hashes the same however it is cut."""
    assert bytes_hash(chunks) == bytes_hash([b"".join(chunks)])


@given(st.text(max_size=5), st.text(max_size=5), st.lists(st.text(max_size=20), max_size=20))
def test_many_at_once_are_the_same_numbers(domain: str, salt: str, names: list[str]) -> None:
    """Hashing a column gives to the bit what hashing its names one by one gives."""
    one_by_one = [unit_interval(domain, salt, name) for name in names]
    assert unit_intervals(domain, salt, names).tolist() == one_by_one
