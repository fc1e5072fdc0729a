"""Pool of encoder actors on a Ray cluster: units are shared out, and lost ones done again."""

import logging
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Generic

from factory.engine.engine import Unit
from factory.engine.ray.remote_calls import Encoder, pack, unpack
from factory.errors import EngineError

logger = logging.getLogger("factory")

# Units an encoder has at once: one that is encoded, one that is read ahead or written.
_UNITS_AT_ONCE = 2
# How often a unit may be lost with the process that had it. Once is bad luck (a machine that is
# taken back), and three times it is the unit, which is then most likely too large for the memory.
_MOST_LOSSES = 3


@dataclass(frozen=True)
class EncoderResources:
    """What each encoder of a pool has.

    Attributes:
        encoders: How many there are.
        cpus: Cores set aside for each.
        gpus: GPUs set aside for each.
        threads: Threads that read and decode for each.
    """

    encoders: int
    cpus: float
    gpus: float
    threads: int

    def room(self, ray: ModuleType) -> int:
        """Return how many such encoders the machines of the cluster have room for."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return sum(
            min(int(node.get(name, 0) // need) for name, need in self.needs.items())
            for node in nodes
        )

    @property
    def needs(self) -> dict[str, float]:
        """What is set aside for each, by Ray's names."""
        return {name: need for name, need in (("CPU", self.cpus), ("GPU", self.gpus)) if need}


@dataclass(eq=False)
class _Job(Generic[Unit]):
    """A unit, and how often it was lost."""

    unit: Unit
    losses: int = 0


@dataclass(eq=False)
class _Member:
    """An encoder's actor, and what it has to do, by the reference of its result."""

    actor: Any
    jobs: dict[Any, _Job[Any]] = field(default_factory=dict)


class EncoderPool:
    """Encoders of a cluster that do units until there are none left."""

    def __init__(self, ray: ModuleType, worker: bytes, resources: EncoderResources) -> None:
        """Store the parts; encoders are started by `run`."""
        self._ray, self._worker, self._resources = ray, worker, resources
        self._encoders = resources.encoders
        self._members: list[_Member] = []
        self._again: deque[_Job[Any]] = deque()

    def run(self, units: Iterable[Unit]) -> Generator[Any, None, None]:
        """Yield the reports on units, each unit's once it is durable.

        Raises:
            EngineError: A unit was lost too often.
            Exception: What the worker raised.
        """
        stream = iter(units)
        try:
            while True:
                self._assign(stream)
                references = [ref for member in self._members for ref in member.jobs]
                if not references:
                    return
                done, _ = self._ray.wait(references, num_returns=1)
                yield from self._reports(done[0])
        finally:
            for member in self._members:
                self._ray.kill(member.actor, no_restart=True)

    def _assign(self, stream: Iterator[Any]) -> None:
        """Give each encoder what it can take, those that have nothing first."""
        for most in range(1, _UNITS_AT_ONCE + 1):
            for number in range(self._encoders):
                if number < len(self._members) and len(self._members[number].jobs) >= most:
                    continue
                job = self._again.popleft() if self._again else _next_job(stream)
                if job is None:
                    return
                self._submit(number, job)

    def _submit(self, number: int, job: _Job[Any]) -> None:
        if number == len(self._members):  # started when there is something to do
            self._members.append(self._started())
        member = self._members[number]
        member.jobs[member.actor.do.remote(pack(job.unit))] = job

    def _started(self) -> _Member:
        resources = self._resources
        actor = self._ray.remote(Encoder).options(
            num_cpus=resources.cpus,
            num_gpus=resources.gpus,
            max_concurrency=_UNITS_AT_ONCE,
            scheduling_strategy="SPREAD",
        )
        return _Member(actor.remote(self._worker, resources.threads))

    def _reports(self, reference: Any) -> Any:
        """Return the reports on a unit; none if it was lost."""
        member = next(member for member in self._members if reference in member.jobs)
        try:
            reports = unpack(self._ray.get(reference))
        except self._ray.exceptions.RayTaskError as error:
            raise raised(error) from None
        except self._ray.exceptions.RayError as error:
            self._replace(member, error)
            return []
        del member.jobs[reference]
        return reports

    def _replace(self, member: _Member, error: Exception) -> None:
        """Have the units of an encoder that is lost done again, by another in its place."""
        self._ray.kill(member.actor, no_restart=True)  # it may only be out of reach
        self._members.remove(member)
        lost, reason = list(member.jobs.values()), str(error).split("\n", maxsplit=1)[0]
        for job in lost:
            job.losses += 1
            if job.losses >= _MOST_LOSSES:
                raise EngineError(
                    f"an encoder's process died {job.losses} times over the same samples; the last "
                    f"time: {reason}; most often its memory was full: lower batch_size of the "
                    "backend of embeddings, engine.workers or engine.encoders"
                ) from error
        # With a machine lost there may be room for fewer, and one too many would wait without end.
        self._encoders = min(self._encoders, self._resources.room(self._ray))
        if not self._encoders:
            raise EngineError(f"the Ray cluster has no room for an encoder any more: {reason}")
        logger.warning(
            "an encoder's process died; the %d units it had are done again (%s)", len(lost), reason
        )
        self._again.extend(lost)


def _next_job(stream: Iterator[Any]) -> _Job[Any] | None:
    for unit in stream:
        return _Job(unit)
    return None


def raised(error: Any) -> BaseException:
    """Return what was raised in another process, instead of Ray's word about it."""
    return error.cause if isinstance(error.cause, BaseException) else error
