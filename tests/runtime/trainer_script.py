"""A program that trains: prints its worker process, and ends in several ways."""

import os
import signal
import sys
from typing import Any

from factory.runtime.prefetch.batch_fetcher import BatchFetcher, Prefetch
from tests.runtime.work import perform


class Make:
    """Work that this program defines in itself."""

    def __call__(self, job: tuple[Any, ...]) -> Any:
        """Do what the job says."""
        return perform(job)


def say(what: object) -> None:
    """Print a line, now."""
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


def fork() -> int:
    """Return the process id of a fork that does nothing."""
    pid = os.fork()
    if not pid:
        signal.pause()
    return pid


def main() -> None:
    """Take a batch, tell who made it, then do as told.

    That is to "leave", to "wait" for the next one, or to wait with a "fork" of this process.
    """
    ending, gate = sys.argv[1:]
    jobs = [("pid", 0), ("bytes", 1, 10**6), ("gate", 2, gate), ("gate", 3, gate)]
    batches = iter(BatchFetcher(Make(), jobs, Prefetch(mode="process")))
    held.append(batches)  # never closed
    try:
        say(next(batches))
        held.append(next(batches))
        if ending == "fork":
            say(fork())
        if ending != "leave":
            next(batches)
    except KeyboardInterrupt:
        say("interrupted")


held: list[Any] = []
if __name__ == "__main__":
    main()
