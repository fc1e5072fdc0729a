"""What a process holds: threads, files, children, and names in shared memory."""

import gc
import threading
from collections import Counter
from pathlib import Path

import psutil

NAMED = Path("/dev/shm")


Traces = dict[str, Counter[str]]


def traces() -> Traces:
    """Return what would be left behind, if this were the end."""
    children = psutil.Process().children(recursive=True)
    return {
        "threads": Counter(t.name for t in threading.enumerate() if "factory" in t.name),
        "files": Counter(_files()),
        "children": Counter(str(child.pid) for child in children),
        "shared memory": Counter(_named()),
        "mapped": Counter("batch" for line in _maps() if "factory-batch" in line),
    }


def left(before: Traces) -> Traces:
    """Return what there is more than before, once garbage is collected: nothing, if all is well.

    What other tests had left, and what has gone since, does not count.
    """
    more = _more(before)
    if more:
        gc.collect()
        more = _more(before)
    return more


def _more(before: Traces) -> Traces:
    now = traces()
    return {what: now[what] - before[what] for what in now if now[what] - before[what]}


def _named() -> list[str]:
    """Return what lies in shared memory, but for what other tests that run meanwhile may make.

    That is locks, and the folder in which all runs of a user keep copies of caches.
    """
    names = [path.name for path in NAMED.iterdir()] if NAMED.is_dir() else []
    return [name for name in names if not name.startswith(("sem.", "tensor-cache-"))]


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
