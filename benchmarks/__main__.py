"""Run one benchmark by name in this process, or all of them, each in a process of its own."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

NOT_BENCHMARKS = {"__init__", "__main__", "green_picture", "green_world", "report", "scale_picture"}


def main(arguments: list[str]) -> int:
    names = sorted(p.stem for p in Path(__file__).parent.glob("*.py") if p.stem not in NOT_BENCHMARKS)
    if not arguments:
        codes = [subprocess.run([sys.executable, "-m", "benchmarks", name], check=False).returncode for name in names]
        failed = [name for name, code in zip(names, codes, strict=True) if code]
        if failed:
            print(f"did not run to the end: {', '.join(failed)}", file=sys.stderr)
        return 1 if failed else 0
    if len(arguments) > 1 or arguments[0] not in names:
        print(f"usage: [SIZE=small] python -m benchmarks [NAME]; NAME is one of {', '.join(names)}", file=sys.stderr)
        return 2
    importlib.import_module(f".{arguments[0]}", __package__).main()
    return 0


sys.exit(main(sys.argv[1:]))
