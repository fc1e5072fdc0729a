"""What a process holds: threads, files, children, and names in shared memory."""

import gc
import threading
from pathlib import Path

import psutil

NAMED = Path("/dev/shm")


def traces() -> dict[str, object]:
    """Return what would be left behind, if this were the end."""
    return {
        "threads": sorted(t.name for t in threading.enumerate() if "factory" in t.name),
        "files": sorted(_files()),
        "children": sorted(child.pid for child in psutil.Process().children(recursive=True)),
        "shared memory": sorted(_named()),
        "mapped": sum("factory-batch" in line for line in _maps()),
    }


def left(before: dict[str, object]) -> dict[str, object]:
    """Return `traces`; where they are not those of before, once garbage is collected."""
    now = traces()
    if now != before:
        gc.collect()
        now = traces()
    return now


def _named() -> list[str]:
    """Return what lies in shared memory, but for locks of other tests that run meanwhile."""
    names = [path.name for path in NAMED.iterdir()] if NAMED.is_dir() else []
    return [name for name in names if not name.startswith("sem.")]


def _files() -> list[str]:
    found = []
    for path in Path("/proc/self/fd").iterdir():
        try:
            found.append(str(path.readlink()).partition(":")[0])
        except FileNotFoundError:
            continue  # the listing's own
    return found


def _maps() -> list[str]:
    return Path("/proc/self/maps").read_text().splitlines()
