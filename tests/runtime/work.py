"""Work for fetchers, in this process or another: what a job does is said in the job."""

import ctypes
import logging
import os
import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factory.errors import MediaError

if TYPE_CHECKING:  # a process that makes no tensors starts within a tenth of a second
    import torch

    from factory.runtime.batches.batch import Batch
    from factory.runtime.prefetch.worker.shared_buffers import SharedBufferPool

Job = tuple[Any, ...]


class UnwillingError(Exception):
    """An error that cannot be pickled: its constructor asks for more than its message."""

    def __init__(self, one: str, two: str) -> None:
        """Join both."""
        super().__init__(f"{one} and {two}")


@dataclass(frozen=True)
class Opened:
    """Makes `perform` available in another process; raises there, if asked to."""

    error: Exception | None = None
    mark: str = ""

    def __call__(self) -> "Opened":
        """Return what makes batches."""
        if self.error is not None:
            raise self.error
        return Working(self.mark)  # type: ignore[return-value]


@dataclass(frozen=True)
class Working:
    """Performs jobs, and leaves a mark when it is closed."""

    mark: str = ""

    def __call__(self, job: Job) -> Any:
        """Do what the job says."""
        return perform(job)

    def close(self) -> None:
        """Leave the mark."""
        if self.mark:
            Path(self.mark).write_text("closed")


class Gathering:
    """Makes batches in memory that it is given."""

    memory: "SharedBufferPool"

    def gather_in(self, memory: "SharedBufferPool") -> None:
        """Take the memory."""
        self.memory = memory

    def __call__(self, job: Job) -> Any:
        """Return a tensor that tells a number, or so many of them.

        Or write a number to the one that was made last, wherever it is by now.
        """
        verb, number = job
        if verb == "many":
            return [self._made(one) for one in range(number)]
        if verb == "over":
            self.last.fill_(number)
            return number
        made = self.last = self._made(number)  # another thread may set `last` meanwhile
        return made

    def _made(self, number: int) -> "torch.Tensor":
        import torch

        return self.memory.tensor((2**17,), dtype=torch.uint8).fill_(number)


def perform(job: Job) -> Any:
    """Do what the job says: (verb, arguments)."""
    verb, *rest = job
    return VERBS[verb](*rest)


def name(job: Job) -> str:
    """Name a job in messages."""
    return f"job {job[1]}"


def pass_gate(number: int, gate: str) -> int:
    """Return the number once somebody opens the gate, a named pipe."""
    with Path(gate).open("rb") as file:
        file.read()
    return number


def announced(number: int, bell: str, gate: str) -> int:
    """Say that this has begun, by the pipe `bell`, then wait at the gate."""
    with Path(bell).open("wb") as file:
        file.write(b"begun")
    return pass_gate(number, gate)


def open_gate(gate: Path) -> None:
    """Let through whoever waits at a gate, or comes next."""
    with gate.open("wb"):
        pass


def refuse(number: int, how: str) -> None:
    """Raise an error."""
    if how == "media":
        error = MediaError("truncated", f"{number}.jpg")
        error.add_note("a note from below")
        raise error
    if how == "unwilling":
        raise UnwillingError("this", "that")
    raise ZeroDivisionError(f"{number} / 0")


def end_process(number: int, how: str) -> None:
    """End this process, in one of several ways."""
    if how == "exit":
        os._exit(number)
    os.kill(os.getpid(), getattr(signal, how))
    threading.Event().wait(60)  # a signal may take its time to arrive


def signal_self(number: int, which: str) -> int:
    """Send this process a signal that it survives."""
    os.kill(os.getpid(), getattr(signal, which))
    return number


def hold_interpreter(number: int) -> None:
    """Hang without letting go of the interpreter, as a library may."""
    ctypes.PyDLL(None).sleep(60)


def say(number: int, text: str) -> int:
    """Log a warning."""
    logging.getLogger("factory").warning("%s", text)
    return number


def batch(number: int, rows: int = 4) -> "Batch":
    """Return a batch with tensors of many kinds, all of which tell its number."""
    import torch

    from factory.runtime.batches.batch import Batch

    sizes = torch.full((rows, 2), number, dtype=torch.int32)
    return Batch(
        backend="photos",
        bucket="64x64",
        epoch=0,
        step=number,
        global_step=number,
        rows=torch.arange(rows),
        keys=[f"{number}/{row}.jpg" for row in range(rows)],
        captions=["ä caption", ""] * (rows // 2),
        original_size=sizes,
        target_size=sizes.t().contiguous().t(),  # not contiguous
        crop_top_left=sizes,
        valid=torch.ones(rows, dtype=torch.bool),
        latents=torch.full((rows, 4, 8, 8), float(number), dtype=torch.bfloat16),
        text={
            "embeds": torch.full((rows, 7, 3), number + 0.5),
            "none": torch.empty(rows, 0, 3),
            "scale": torch.tensor(float(number), dtype=torch.float64),
        },
        conditioning={"depth": torch.full((rows, 1), number, dtype=torch.uint8)},
    )


def some_bytes(number: int, size: int) -> "torch.Tensor":
    """Return bytes that tell a number."""
    import torch

    return torch.full((size,), number, dtype=torch.uint8)


VERBS = {
    "give": lambda number: number,
    "thread": lambda number: threading.current_thread().name,
    "pid": lambda number: os.getpid(),
    "gate": pass_gate,
    "announced": announced,
    "refuse": refuse,
    "end": end_process,
    "signal": signal_self,
    "hold": hold_interpreter,
    "say": say,
    "batch": batch,
    "bytes": some_bytes,
    "lambda": lambda number: lambda: number,
}
