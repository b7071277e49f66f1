"""Run commands in forked children that kill themselves at a given effect; started by the `crashes` fixture.

A kill has to be a real one, in a process that holds real locks and a real DuckDB connection, and hundreds of
them have to be quick. So this process imports everything once, opens nothing, and forks a child per command.
Commands come as JSON lines on stdin, answers go as JSON lines to stdout.
"""

import json
import os
import signal
import sys
from pathlib import Path

import numpy.random
import pandas
import pyarrow.dataset

from distdata.catalogs import packing, register
from distdata.catalogs.effects import observe
from distdata.catalogs.errors import DistdataError
from distdata.catalogs.project import Project
from distdata.generate import run
from distdata.generate.teachers import registry

LOADED = (numpy.random, pandas, pyarrow.dataset, registry)
"""What a run would otherwise import in every child."""

register.FLUSH_EVERY_S = 0.0  # register every unit by itself: more places to stop at, the same in every run


class Silent:
    """Shows no progress."""

    def begin(self, **_):
        pass

    def advance(self, n_draws, n_failed, usd):
        pass

    def note(self, text):
        pass

    def end(self):
        pass


def main():
    for line in sys.stdin:
        job = json.loads(line)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            run_job(job, writing)
        os.close(writing)
        with os.fdopen(reading) as f:
            said = [json.loads(text) for text in f]
        _, status = os.waitpid(child, 0)
        answer = {
            "killed": os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL,
            "code": os.waitstatus_to_exitcode(status),
            "effects": [s["effect"] for s in said if "effect" in s],
            "error": next((s["error"] for s in said if "error" in s), None),
        }
        print(json.dumps(answer), flush=True)


def run_job(job, out):
    """Do one command in this forked process and end it; never returns."""
    n_seen = 0

    def hear(name):
        nonlocal n_seen
        n_seen += 1
        os.write(out, json.dumps({"effect": name}).encode() + b"\n")
        if n_seen == job["stop_at"]:
            os.kill(os.getpid(), signal.SIGKILL)

    code = 70
    try:
        observe(hear)
        project = Project.open(Path(job["root"]))
        if job["do"] == "compact":
            packing.compact_project(project, target_bytes=job["target_bytes"])
        else:
            run.generate(project, Silent(), engine="inprocess", mode=job["mode"])
        code = 0
    except DistdataError as e:
        os.write(out, json.dumps({"error": str(e)}).encode() + b"\n")
        code = 1
    finally:
        os._exit(code)


if __name__ == "__main__":
    main()
