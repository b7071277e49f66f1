"""A teacher of your own in one class: the queue at a counter.

distdata.toml beside this file names it as "my_teacher:QueueTeacher", seeds.jsonl holds its seeds; from there
on the commands are the same as for any other teacher. Two rules: all randomness comes from request.rng_seed,
and every request is answered by one Draw (or a Failure with the reason).
"""

import numpy as np

from distdata.catalogs.protocol import Draw, MemberSpec, TeacherInfo
from distdata.generate.teachers.python import source_hash


class QueueTeacher:
    def __init__(self, n_customers: int = 50):
        self.n_customers = n_customers

    def describe(self):
        return TeacherInfo(
            id="queue", version="1", content_hash=source_hash(type(self), n_customers=self.n_customers),
            kind="rollout", usd_per_gpuh=1.0, joint_batches=False, outcomes=("calm", "long_wait"),
            members={"wait_min.npy": MemberSpec(dtype="float32", shape=(self.n_customers,))},
        )  # fmt: skip

    def sample(self, requests):
        for r in requests:
            rng = np.random.default_rng(r.rng_seed)
            arrives = np.cumsum(rng.exponential(1 / r.params["arrivals_per_min"], self.n_customers))
            serves = rng.exponential(0.5 if r.axes["staff"] == "skilled" else 0.8, self.n_customers)
            wait = np.zeros(self.n_customers)
            for i in range(1, self.n_customers):  # Lindley's recursion: what is left of the wait before mine
                wait[i] = max(0.0, wait[i - 1] + serves[i - 1] - (arrives[i] - arrives[i - 1]))
            outcome = "long_wait" if wait.max() > 3 else "calm"
            members = {"wait_min.npy": wait.astype(np.float32)}
            yield Draw(seed_id=r.seed_id, k=r.k, members=members, outcome=outcome)
