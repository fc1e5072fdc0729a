"""What a process holds: threads, files, children, and names in shared memory."""

import gc
import os
import threading
from pathlib import Path

import psutil

NAMED = Path("/dev/shm")


def traces() -> dict[str, object]:
    """Return what would be left behind, after letting go of what nobody refers to."""
    gc.collect()
    return {
        "threads": sorted(t.name for t in threading.enumerate() if "factory" in t.name),
        "files": sorted(_files()),
        "children": sorted(child.pid for child in psutil.Process().children(recursive=True)),
        "shared memory": sorted(_named()),
        "mapped": sum("factory-batch" in line for line in _maps()),
    }


def _named() -> list[str]:
    """Return what lies in shared memory, but for locks of other tests that run meanwhile."""
    names = os.listdir(NAMED) if NAMED.is_dir() else []
    return [name for name in names if not name.startswith("sem.")]


def _files() -> list[str]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # the listing's own
        found.append(target.partition(":")[0] if ":" in target else target)
    return found


def _maps() -> list[str]:
    return Path("/proc/self/maps").read_text().splitlines()
