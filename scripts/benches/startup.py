"""How long does it take to import factory, and to compose and build the multi demo?"""

import argparse
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benches import ROOT, RUNS, Line, Quick

IMPORT = "import time; t = time.perf_counter(); import factory; print(time.perf_counter() - t)"
TORCH_FREE = "import sys, factory; print(int('torch' in sys.modules))"
# Imports are timed apart: they are paid once by any program that trains.
BUILD = """
import time, torch, lightning, factory.config.build
t = time.perf_counter()
cfg = factory.compose(["data=multi"])
composed = time.perf_counter()
factory.config.build.build(cfg)
print(composed - t, time.perf_counter() - composed)
"""
# Processor time: of importing factory, of what any program that trains imports, and of the rest.
QUICK = """
import time
begin = time.process_time()
import factory
own = time.process_time()
import torch, lightning
theirs = time.process_time()
import factory.config.build
factory.config.build.build(factory.compose(["data=multi"]))
print(theirs - own, own - begin + time.process_time() - theirs)
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add no option: there is nothing to choose."""
    del parser


def run(options: argparse.Namespace) -> Iterator[Line]:
    """Time `import factory`, and composing and building the multi demo, each in a new process."""
    del options
    conditions = {"runs": RUNS, "processes": "new, file cache warm"}
    run_python(IMPORT)
    imports = [float(run_python(IMPORT)[0]) for _ in range(RUNS)]
    yield "import factory", statistics.median(imports), "s", {**conditions, "target": "< 0.5"}
    yield "torch imported by it", float(run_python(TORCH_FREE)[0]), "modules", {"target": "0"}
    runs = [[float(text) for text in run_python(BUILD)] for _ in range(RUNS)]
    both = [sum(run) for run in runs]
    yield "compose", statistics.median(run[0] for run in runs), "s", conditions
    yield "build", statistics.median(run[1] for run in runs), "s", conditions
    target = {**conditions, "target": "< 1.5", "data": "multi", "imports": "not counted"}
    yield "compose and build", statistics.median(both), "s", target


def quick(scratch: Path, *, short: bool) -> Iterator[Quick]:
    """Yield importing factory, composing and building beside importing torch and Lightning."""
    del scratch, short

    def turn() -> tuple[float, float]:
        """Do both in a new process."""
        floor, work = run_python(QUICK)
        return float(floor), float(work)

    yield Quick("startup", turn)


def run_python(code: str) -> list[str]:
    """Run code in a new interpreter and return the words it printed."""
    done = subprocess.run(  # noqa: S603 - this interpreter, with code from above
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return done.stdout.split()
