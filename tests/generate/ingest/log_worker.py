"""A service of its own process: logs answers and acknowledges each call that returned; the chaos test kills it."""

import sys

import numpy as np

from distdata import log_byproduct

PAD = "x" * 60_000


def main():
    """Log `n` answers to `folder` as worker `w`; every tenth is of another teacher version."""
    folder, worker, n = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    for i in range(n):
        x = np.array([worker, i, 0, 0, 0], np.float32)
        teacher = "0" * 16 if i % 10 == 9 else "00000000000000aa"
        ok = log_byproduct(
            folder, seed_id=f"s{(worker + i) % 21:02d}", members={"x.npy": x}, outcome="low", teacher_hash=teacher,
            pad=PAD,
        )  # fmt: skip
        if ok:
            sys.stdout.write(f"{worker} {i}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
