"""Ingest in forked children that kill themselves at a given effect; JSON lines in, JSON lines out.

This process imports everything and opens nothing, so that its children are quick and hold real locks.
"""

import json
import os
import signal
import sys
from pathlib import Path

import numpy.random
import pandas
import polars
import pyarrow.dataset

from distdata.catalogs import plans, register_ingest
from distdata.catalogs.effects import observe
from distdata.catalogs.project import Project
from distdata.generate.ingest import archives, byproducts, divergence, rejects, samples, values
from distdata.generate.teachers import registry

LOADED = (numpy.random, pandas, polars, pyarrow.dataset, plans, register_ingest, archives, values, registry)
"""What an ingest would otherwise import in every child."""

samples.BATCH_ROWS = 2


def main():
    """Run one command per line."""
    for line in sys.stdin:
        job = json.loads(line)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            run(job, writing)
        os.close(writing)
        with os.fdopen(reading) as f:
            effects = f.read().split()
        _, status = os.waitpid(child, 0)
        print(json.dumps({"code": os.waitstatus_to_exitcode(status), "effects": effects}), flush=True)


def run(job, out):
    """Do one ingest and end this process; never returns."""
    n_seen = 0

    def hear(name):
        nonlocal n_seen
        n_seen += 1
        os.write(out, name.encode() + b"\n")
        if n_seen == job["stop_at"]:
            os.kill(os.getpid(), signal.SIGKILL)

    code = 70
    try:
        observe(hear)
        project, path = Project.open(Path(job["root"])), Path(job["path"])
        if job["do"] == "byproduct":
            byproducts.ingest_byproduct(project, [path], kind="golden")
        elif job["do"] == "clean":
            byproducts.ingest_clean(project, [path], case="A")
        elif job["do"] == "rejects":
            rejects.ingest_rejects(project, path)
        else:
            divergence.ingest_divergence(project, path)
        code = 0
    finally:
        os._exit(code)


if __name__ == "__main__":
    main()
