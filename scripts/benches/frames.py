"""How many Python frames lie between a batch iterator and the tensor that it gathers?

A warm cache is read in thread mode. Of every thread, the stack is looked at whenever the function
that copies rows is called: the frames of factory/ from the thread's loop to that call are counted,
each function once, and the stack that is met most often is told (a batch's tensors are copied one
by one; flags of many rows at once). The trainer's own, from the iterator's `__next__` to where it
waits for a batch, is counted apart. Times are not measured: looking changes them.
"""

import argparse
import queue
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from benches import ROOT, Line
from benches.cached import fill, module

# Rows are copied by one of these, called from factory/cache/gather: modules and their functions.
COPIES = {
    "numpy": ("concatenate", "copyto", "take"),
    "torch": ("cat", "index_select"),
    "os": ("preadv",),
    "cv2": ("vconcat",),
}
# The trainer's thread waits for a batch at a queue, a lock or a condition, by one of these.
WAITS = {"get", "acquire"}
PACKAGE = str(ROOT / "factory") + "/"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add how many samples are read."""
    parser.add_argument("samples", type=int, nargs="?", default=128, help="a quarter MB each")


def run(options: argparse.Namespace) -> Iterator[Line]:
    """Fill a small cache, read it once, and look at the second epoch."""
    sizes = {"samples": options.samples, "batch_size": 16, "buckets": 1, "shard_mb": 256}
    settings = argparse.Namespace(**sizes, mode="thread", workers=2)
    with tempfile.TemporaryDirectory() as scratch:
        data = module(Path(scratch), settings)
        fill(data)
        data.setup()
        list(data.train_dataloader())  # the first time, checksums are compared
        stacks = Stacks()
        with stacks:
            list(data.train_dataloader())
        data.close()
    for name, found in (
        ("from the thread's loop to the copy", stacks.copying),
        ("from the iterator to where a batch is waited for", stacks.waiting),
    ):
        if not found:
            raise SystemExit(
                f"frames: no call was seen {name}; add the function that does it to COPIES or "
                "WAITS in scripts/benches/frames.py"
            )
        ((stack, _),) = found.most_common(1)
        yield name, len(stack), "frames", {"frames": list(stack)}


class Stacks:
    """Stacks of factory/ at calls that copy rows, and at those that wait for a batch, counted."""

    def __init__(self) -> None:
        """Start with none."""
        self.copying: Counter[tuple[str, ...]] = Counter()
        self.waiting: Counter[tuple[str, ...]] = Counter()
        self._wrapped = ExitStack()

    def __enter__(self) -> None:
        """Look at this thread, and put what looks in the place of each function that copies."""
        for library, names in COPIES.items():
            for name in names:
                self._wrap(import_module(library), name)
        sys.setprofile(self._look)

    def __exit__(self, *error: object) -> None:
        """Look no longer."""
        sys.setprofile(None)
        self._wrapped.close()

    def _wrap(self, library: ModuleType, name: str) -> None:
        function = getattr(library, name)

        def copy(*args: Any, **named: Any) -> Any:
            """Note who copies, and copy."""
            caller = sys._getframe(1)  # noqa: SLF001 - the stack is what is looked for
            if "/cache/gather/" in caller.f_code.co_filename:
                self.copying[frames(caller)] += 1
            return function(*args, **named)

        setattr(library, name, copy)
        self._wrapped.callback(setattr, library, name, function)

    def _look(self, frame: FrameType, event: str, called: Any) -> None:
        if event == "c_call" and called.__name__ in WAITS and waits(called):
            self.waiting[frames(frame)] += 1


def waits(called: Any) -> bool:
    """Return whether what is called belongs to a queue or a lock, as a `get` of a dict does not."""
    return isinstance(
        called.__self__, queue.SimpleQueue | type(threading.Lock()) | type(threading.RLock())
    )


def frames(frame: FrameType | None) -> tuple[str, ...]:
    """Return the functions of factory/ on a stack, outermost first, each once."""
    found: dict[str, None] = {}
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith(PACKAGE):
            path = code.co_filename.removeprefix(PACKAGE).removesuffix(".py")
            found[f"{path}:{code.co_qualname}"] = None
        frame = frame.f_back
    return tuple(reversed(found))
