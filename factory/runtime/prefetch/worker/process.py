"""The worker process, which makes batches so that the trainer's interpreter is free.

It is a fresh interpreter, never a fork, so connections that are open here do no harm there. It
hears of its jobs over a socket, gathers batches in shared memory, and ends when the socket does,
whatever became of the trainer.
"""

import logging
import pickle
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import spawn
from threading import Lock
from typing import Any, Generic

from factory.errors import FetchError
from factory.runtime.prefetch.executors import BatchFuture, Job, Made
from factory.runtime.prefetch.worker.connection import INSTEAD, WorkerConnection

# Of a class that a script or notebook defines in itself.
_MAIN = b"__main__"


class BatchWorker(Generic[Job, Made]):
    """One worker process for any number of fetchers, one after another or at once.

    It starts with the first job, and again with the first one after it died.
    """

    def __init__(
        self, opener: Callable[[], Callable[[Job], Made]], *, workers: int, timeout_s: float
    ) -> None:
        """Store the parts; nothing starts.

        Args:
            opener: Returns, over there, what makes a batch of a job; a picklable value. What it
                returns may have a `gather_in`, which is told the memory whose tensors need not be
                copied, and a `close`, which is called at the end.
            workers: Threads that make batches, each a whole one.
            timeout_s: Seconds to wait for the process to take a job.
        """
        self._opener, self._workers, self._timeout_s = opener, workers, timeout_s
        self._starting = Lock()
        self._connections: list[WorkerConnection] = []
        self._end = weakref.finalize(self, _end, self._connections)

    @property
    def pid(self) -> int | None:
        """The process's id; None where none is running."""
        return self._connections[0].process.pid if self._connections else None

    def submit(
        self, future: BatchFuture[Job, Made], connection: WorkerConnection | None = None
    ) -> WorkerConnection | None:
        """Send a job; its future is completed when the batch arrives, or when none will.

        Args:
            future: The job.
            connection: The run of the process that it belongs to; where that has ended, the job
                fails with it. None takes the one there is, or starts one.

        Returns:
            The run that has the job; None where none could be started.
        """
        try:
            connection = connection or self._started()
        except Exception as error:  # noqa: BLE001 - raised at the consumer
            future.stage = "starting the worker process for"
            future.fail(error)
            return None
        connection.submit(future)
        return connection

    def cancel(self, futures: Sequence[BatchFuture[Job, Made]]) -> None:
        """Give up jobs; those that are in the making are made, and dropped."""
        for connection in self._connections:
            connection.cancel(futures)

    def pause(self) -> None:
        """Begin with no further job until `resume`."""
        for connection in self._connections:
            connection.gate(opened=False)

    def resume(self) -> None:
        """Go on."""
        for connection in self._connections:
            connection.gate(opened=True)

    def look(self) -> str:
        """Return what the process's threads do; notes in futures for how long they do it."""
        return "\n".join(connection.look() for connection in self._connections)

    def close(self, *, wait: bool = True) -> None:
        """End the process, and leave nothing of it behind; the next job starts another one.

        Args:
            wait: Let it close what it has open; else it is killed.
        """
        _end(self._connections, wait=wait)

    def _started(self) -> WorkerConnection:
        with self._starting:
            if self._connections and (self._connections[0].ended or self._connections[0].foreign):
                self._connections.pop().close()
            if not self._connections:
                self._connections.append(WorkerConnection(self._setup(), timeout_s=self._timeout_s))
            return self._connections[0]

    def _setup(self) -> dict[str, Any]:
        """Return the first message to the process.

        Raises:
            FetchError: The opener cannot be pickled.
        """
        try:
            opener = pickle.dumps(self._opener)
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            raise FetchError(
                f"what makes batches cannot be sent to another process ({error}); define its "
                f"classes and functions at the top of a module, or: {INSTEAD}"
            ) from error
        main = spawn.get_preparation_data("factory-worker") if _MAIN in opener else {}
        wanted = ("sys_argv", "init_main_from_name", "init_main_from_path")
        return {
            "opener": opener,
            "main": {name: main[name] for name in wanted if name in main},
            "workers": self._workers,
            "level": logging.getLogger("factory").getEffectiveLevel(),
        }


class ProcessExecutor(Generic[Job, Made]):
    """The jobs of one fetcher in a process that may serve others, too."""

    def __init__(self, worker: BatchWorker[Job, Made], *, own: bool) -> None:
        """Store the process, and whether it is this fetcher's own, to be closed with it."""
        self._worker, self._own = worker, own
        self._sent: list[BatchFuture[Job, Made]] = []
        # One run of the process serves all jobs: what ends it ends this executor's work, in
        # the order of the jobs, and another would be started for jobs that nobody will ask for.
        self._connection: WorkerConnection | None = None
        self._closed = False

    def submit(self, future: BatchFuture[Job, Made]) -> None:
        """Take on a job; dropped where this is closed, else it would start the process again."""
        if self._closed:
            return
        self._sent = [*(each for each in self._sent if not each.done), future]
        self._connection = self._worker.submit(future, self._connection)

    def pause(self) -> None:
        """Begin with no further job until `resume`."""
        self._worker.pause()

    def resume(self) -> None:
        """Go on."""
        self._worker.resume()

    def look(self) -> str:
        """Return what the process does."""
        return self._worker.look()

    def close(self, *, wait: bool = True) -> None:
        """Give up what has not begun; what has is dropped when it comes."""
        self._closed = True
        sent, self._sent = self._sent, []
        if self._own:
            self._worker.close(wait=wait)
        else:
            self._worker.cancel([future for future in sent if not future.done])


def _end(connection: list[WorkerConnection], *, wait: bool = True) -> None:
    with suppress(IndexError):  # another thread ends it, too
        while connection:
            connection.pop().close(wait=wait)
