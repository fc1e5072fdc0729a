"""Bulk work on a Ray cluster: tasks that scan, and encoders that each have a process or a GPU.

Workers see what this process sees: storages must be reachable from every machine (a bucket, or a
file system all of them share), this package must be installed there (or be brought by
`runtime_env`), and credentials come from each machine's own environment, never from here.
"""

import logging
import os
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from types import ModuleType
from typing import Annotated, Any

from factory.engine.engine import Item, Report, Result, Unit, Worker
from factory.engine.local_engine import THREADS_PER_CORE, LocalEngine
from factory.engine.pipeline import Lookahead
from factory.engine.ray.pool import EncoderPool, EncoderResources, raised
from factory.engine.ray.remote_calls import apply, pack, ray_module, unpack
from factory.errors import EngineError
from factory.limits import Above, AtLeast, check_limits

logger = logging.getLogger("factory")

# A task should take long enough that handing it over (about a millisecond) is nothing, and
# briefly enough that results come steadily and little is done for nobody at the end.
_TASK_SECONDS = (0.2, 1.0)
_TASK_ITEMS = 256
# Tasks handed over for each core: one runs, one waits.
_TASKS_PER_CORE = 2

_CONNECTING = threading.Lock()


@dataclass
class RayEngine:
    """Processes of a Ray cluster; connects at the first work.

    Attributes:
        address: The cluster: auto | HOST:PORT | ray://HOST:PORT; None: RAY_ADDRESS, else the one
            that runs on this machine, else one that is started here.
        encoders: Encoders that work side by side; None: one for each GPU, or else each machine.
        gpus_per_encoder: GPUs, or part of one, for each encoder; None: 1 where the cluster has any.
        cpus_per_encoder: Cores that Ray sets aside for each encoder.
        workers: Threads reading and decoding for each encoder; None shares 2 per core among them.
        runtime_env: What Ray brings to the workers, such as +engine.runtime_env.pip=[...]; no
            secrets.
    """

    address: str | None = None
    encoders: Annotated[int | None, AtLeast(1)] = None
    gpus_per_encoder: Annotated[float | None, AtLeast(0)] = None
    # Above 0, or any number of encoders would fit on a machine.
    cpus_per_encoder: Annotated[float, Above(0)] = 1.0
    workers: Annotated[int | None, AtLeast(1)] = None
    runtime_env: dict[str, Any] = field(default_factory=dict)
    _connected: bool = field(default=False, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse a pool without encoders; nothing is connected."""
        check_limits(self, "engine")

    @property
    def here(self) -> LocalEngine:
        """Threads of this process."""
        return LocalEngine(self.workers)

    def copies(self) -> int:
        """Return how many encoders work side by side.

        Raises:
            EngineError: There is no cluster, or it has no room for an encoder.
            MissingExtraError: Ray is not installed.
        """
        return self._resources(self._ray()).encoders

    def map(
        self,
        function: Callable[[Item], Result],
        items: Iterable[Item],
        *,
        at_once: int | None = None,
    ) -> Generator[tuple[Item, Result | Exception], None, None]:
        """Yield (item, result or exception) in the order of the items.

        Items are sent as tasks of several, which work in a process each: `at_once`, a bound
        for threads of one process, has no bearing here.

        Raises:
            EngineError: There is no cluster, or a task's process died again and again.
            ConfigError: The function holds a storage that no other process sees.
        """
        del at_once
        ray = self._ray()
        task = ray.remote(num_cpus=1)(apply)
        packed = ray.put(pack(function))
        most = _TASKS_PER_CORE * max(1, int(ray.cluster_resources().get("CPU", 1)))
        size = 1

        def chunks() -> Iterator[list[Item]]:
            """Yield the items of each task."""
            stream = iter(items)
            while chunk := list(islice(stream, size)):
                yield chunk

        tasks = Lookahead(
            lambda chunk: (chunk, task.remote(packed, pack(chunk))), chunks(), most=most
        )
        try:
            while (first := tasks.head()) is not None:
                results, seconds = _results(ray, *first)
                tasks.pop()
                size = _better_size(size, seconds)
                yield from results
        finally:
            for _, reference in tasks.drop():
                ray.cancel(reference)

    def work(
        self, worker: Worker[Unit, Report], units: Iterable[Unit]
    ) -> Generator[Report, None, None]:
        """Have encoders do the units, and yield what each tells of its unit once it is durable.

        An encoder whose process dies is replaced, and the units it had are done again.

        Raises:
            EngineError: There is no cluster, it has no room, or a unit was lost three times.
            ConfigError: The worker holds a storage that no other process sees.
            Exception: What the worker raised, with a note that tells where.
        """
        ray = self._ray()
        return EncoderPool(ray, pack(worker), self._resources(ray)).run(units)

    def close(self) -> None:
        """Leave the cluster, if this engine has joined it."""
        if self._connected:
            self._connected = False
            ray_module().shutdown()

    def _ray(self) -> ModuleType:
        """Return Ray, connected; a connection that is there already is used, and left open."""
        with _CONNECTING:  # scans side by side ask for it at once
            return self._connect(ray_module())

    def _connect(self, ray: ModuleType) -> ModuleType:
        if ray.is_initialized():
            return ray
        # Ray would report to its makers how it is used.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            ray.init(
                address=self.address,
                runtime_env=self.runtime_env or None,
                logging_level=logging.WARNING,
                log_to_driver=False,
            )
        except (ConnectionError, ValueError) as error:
            raise EngineError(
                f"engine.address={self.address} is no Ray cluster that can be reached: {error}; "
                "start one with `ray start --head` and join others with `ray start "
                "--address=HEAD:6379`, or set engine.address=null to use this machine alone"
            ) from error
        self._connected = True
        logger.info("engine: Ray with %s", _in_words(ray.cluster_resources()))
        return ray

    def _resources(self, ray: ModuleType) -> EncoderResources:
        """Return what each encoder has, and how many there are."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpus = self.gpus_per_encoder
        if gpus is None:
            gpus = float(any(node.get("GPU") for node in nodes))
        room = EncoderResources(0, self.cpus_per_encoder, gpus, 0).room(ray)
        count = self.encoders or (room if gpus else min(room, len(nodes)))
        if not 1 <= count <= room:
            raise EngineError(
                f"{max(1, count)} encoders with {self.cpus_per_encoder:g} cores and {gpus:g} GPUs "
                f"each were asked for, and the Ray cluster has room for {room} "
                f"({_in_words(ray.cluster_resources())}); lower engine.encoders, "
                "engine.cpus_per_encoder or engine.gpus_per_encoder, or join machines to it"
            )
        cores = sum(node.get("CPU", 0) for node in nodes)
        threads = self.workers or max(1, int(THREADS_PER_CORE * cores // count))
        return EncoderResources(count, self.cpus_per_encoder, gpus, threads)


def _results(
    ray: ModuleType, chunk: list[Item], reference: Any
) -> tuple[Iterator[tuple[Item, Any]], float]:
    """Return the results of a task, and the seconds it took."""
    try:
        results, seconds = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise raised(error) from None
    except ray.exceptions.RayError as error:
        raise EngineError(
            f"a task of {len(chunk)} items was lost on the Ray cluster again and again; the last "
            f"time: {error}"
        ) from error
    return zip(chunk, unpack(results), strict=True), seconds


def _better_size(size: int, seconds: float) -> int:
    least, most = _TASK_SECONDS
    if seconds < least:
        return min(2 * size, _TASK_ITEMS)
    return max(1, size // 2) if seconds > most else size


def _in_words(resources: dict[str, float]) -> str:
    return ", ".join(f"{resources.get(name, 0):g} {name}s" for name in ("CPU", "GPU"))
