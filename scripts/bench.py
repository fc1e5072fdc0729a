"""How fast is it? `python scripts/bench.py NAME` prints one JSON object a line.

Each object has `bench`, `metric`, `value`, `unit` and `conditions`. Values are medians of
several runs; machines differ and are shared, so compare values of one run with each other.
"""

import argparse
import json
import os
import pkgutil
import platform
import sys
from importlib import import_module
from typing import Any

import benches


def main() -> int:
    """Run one benchmark and print its lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    doors = parser.add_subparsers(dest="bench", required=True, metavar="NAME")
    for found in pkgutil.iter_modules(benches.__path__):
        module = import_module(f"benches.{found.name}")
        meaning = str(module.__doc__).split("\n", maxsplit=1)[0]
        door = doors.add_parser(found.name, help=meaning, description=module.__doc__)
        module.arguments(door)
        door.set_defaults(run=module.run)
    options = parser.parse_args()
    for metric, value, unit, conditions in options.run(options):
        line = {"bench": options.bench, "metric": metric, "value": round(value, 4), "unit": unit}
        print(json.dumps({**line, "conditions": {**machine(), **conditions}}), flush=True)
    return 0


def machine() -> dict[str, Any]:
    """Return what every figure depends on."""
    return {
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 1),
    }


if __name__ == "__main__":
    sys.exit(main())
