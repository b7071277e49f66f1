"""A small exact teacher that says what it was asked, and misbehaves when told to; tests copy it into projects.

Every dispatched request is one line of ``calls.log`` beside this file, written before the answer, so that what
was truly paid is known independently of distdata: lines times the price of a draw. ``fault.json`` beside it
makes it fail (see `_answer`); taking the file away heals it, with the same content hash.
"""

import json
import os
import time
from pathlib import Path

import numpy as np

from distdata.catalogs.protocol import Draw, Failure, MemberSpec, TeacherInfo

HERE = Path(__file__).parent
SIZE = 5


class Tiny:
    """Draws are five normal numbers; computed as one (`joint`), a batch's company shows in its bits."""

    def __init__(self, joint=True, price=1.0, gpu_s=900.0, sleep_s=0.0, declare=True):
        self.joint, self.price, self.gpu_s, self.sleep_s, self.declare = joint, price, gpu_s, sleep_s, declare

    def describe(self):
        """900 s at a dollar an hour: a draw costs exactly 0.25 dollars, which sums without rounding."""
        return TeacherInfo(
            id="tiny", version="1", content_hash="00000000000000aa", kind="rollout", usd_per_gpuh=self.price,
            joint_batches=self.joint, outcomes=("low", "high"),
            members={"x.npy": MemberSpec(dtype="float32", shape=(SIZE,))} if self.declare else {},
        )  # fmt: skip

    def sample(self, requests):
        if self.joint:
            log(requests)
            time.sleep(self.sleep_s * len(requests))
            company = np.float32(sum(r.rng_seed % 97 for r in requests))
            answers = [a for r in requests for a in self._answer(r, company)]
            return iter(answers)
        return self._one_by_one(requests)

    def _one_by_one(self, requests):
        for r in requests:
            log([r])
            time.sleep(self.sleep_s)
            yield from self._answer(r, np.float32(0))

    def _answer(self, r, company):
        x = np.random.default_rng(r.rng_seed).normal(size=SIZE).astype(np.float32) + company
        outcome = "low" if x[0] < company else "high"
        kind = fault_of(r)
        if kind == "raise":
            raise RuntimeError(f"out of memory on {r.seed_id}")
        if kind == "hang":
            time.sleep(600)
        if kind == "refuse":
            return [Failure(seed_id=r.seed_id, k=r.k, kind="refused", reason="not that one", usd=0.25)]
        if kind == "few":
            return []
        if kind == "text":
            return ["hello"]
        if kind == "nan":
            x[2] = np.nan
        if kind == "shape":
            x = x[:-1]
        if kind == "dtype":
            x = x.astype(np.float64)
        if kind == "outcome":
            outcome = "sideways"
        name = "y.npy" if kind == "missing" else "x.npy"
        draw = Draw(seed_id=r.seed_id, k=r.k, members={name: x}, outcome=outcome, gpu_s=self.gpu_s)
        if kind == "twice":
            return [draw, Draw(seed_id=r.seed_id, k=r.k, members={"x.npy": x + 1}, outcome="low", gpu_s=self.gpu_s)]
        if kind == "unasked":
            return [Draw(seed_id="nobody", k=0, members={"x.npy": x}, outcome="low", gpu_s=self.gpu_s), draw]
        if kind == "kill":
            os.kill(os.getpid(), 9)
        return [draw]


def log(requests):
    """Append one line per request in one write, so that lines of several processes never mix."""
    lines = "".join(f"{r.seed_id} {r.k}\n" for r in requests).encode()
    fd = os.open(HERE / "calls.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(fd, lines)
    finally:
        os.close(fd)


def fault_of(request):
    """Return how this request shall go wrong; None for well. ``draws`` null means every draw."""
    try:
        faults = json.loads((HERE / "fault.json").read_text())
    except FileNotFoundError:
        return None
    draw = [request.seed_id, request.k]
    return next((kind for kind, draws in faults.items() if draws is None or draw in draws), None)
