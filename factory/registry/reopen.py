"""Opens a run's backends once more, inside the worker process.

Catalogs and stores are memory maps of any size and are not pickled. Their locations are; the
worker opens them again from what was published, without listing or scanning anything.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any

import numpy as np

from factory.backends.image import SampleBackend
from factory.backends.prepared import PreparedBackend
from factory.engine.engine import Engine
from factory.errors import CacheError, ConfigError, FactoryError
from factory.registry.plan_inputs import eval_plans, plan_backend
from factory.registry.prepare import end_epoch, load
from factory.registry.registry import Backend, Registry
from factory.runtime.batches.batch import Batch
from factory.runtime.batches.buffer_pool import BufferPool
from factory.runtime.batches.collate import Collate
from factory.runtime.batches.quarantine import QuarantineLimit
from factory.runtime.batches.request import (
    BatchRequest,
    FlushRequest,
    GroupedRequests,
    PlannedRequests,
    StepNumber,
)
from factory.sampling.evaluation import EvalPlan
from factory.sampling.exclusion import Excluded
from factory.sampling.passes import PlanBackend
from factory.sampling.plan import Plan
from factory.storage.base import Storage
from factory.storage.memory import MemoryStorage
from factory.workspace import Workspace

INSTEAD = "prefetch=thread needs no worker process"


@dataclass(frozen=True)
class ReopenSpec:
    """Where everything is that batches are made of; a small picklable value.

    Attributes:
        backends: The backends of samples and embeddings, streams left out.
        cache: Where facts and encoded tensors are kept.
        engine: Reads pixels where no image encoder is set.
        seed: Seed of the plan.
        limit: How many samples may be unusable.
        expected: What each backend's rows stand for, by name.
        plan: Makes the plan of its backends.
        trained: The backends of the plan, in its order: names of those that are opened, and the
            settings of streams.
        eval_batch_sizes: Samples of a batch of each validation backend, by name.
        excluded: Samples that are left out, by backend.
    """

    backends: tuple[Backend, ...]
    cache: Workspace
    engine: Engine
    seed: int
    limit: QuarantineLimit
    expected: Mapping[str, str]
    plan: Callable[[Sequence[PlanBackend]], Plan]
    trained: Sequence[str | Mapping[str, Any]]
    eval_batch_sizes: Mapping[str, int]
    excluded: Mapping[str, Excluded]

    def __call__(self) -> "ReopenedBackends":
        """Open it, in this process.

        Raises:
            CacheError: The catalogs are not those the plan was made from.
        """
        registry = Registry(self.backends, cache=self.cache, engine=self.engine)
        try:
            sources = load(registry, seed=self.seed)
        except FactoryError as error:
            error.add_note(f"while opening the catalogs in the worker process; {INSTEAD}")
            raise
        for name, source in sources.items():
            if identity(source) != self.expected[name]:
                raise CacheError(
                    f"backend {name!r}: the catalog that is published in "
                    f"{self.cache.storage.identity} is not the one this run has planned with; "
                    "another run has published its own since. Start again, or give each run a "
                    f"cache of its own (cache.prefix); {INSTEAD}"
                )
        collate = Collate(sources, self.engine, self.seed, limit=self.limit)
        return ReopenedBackends(registry, collate, self._requests(sources))

    def _requests(self, sources: Mapping[str, PreparedBackend]) -> PlannedRequests:
        """Return the requests that follow from the plans, made once more from the catalogs."""
        plan = self.plan(
            [plan_backend(sources[each]) if isinstance(each, str) else _stream(each)
             for each in self.trained]
        )  # fmt: skip
        evaluations = {
            name: eval_plans([sources[name]], size, self.excluded)[name]
            for name, size in self.eval_batch_sizes.items()
        }
        return PlannedRequests(plan, evaluations)


class ReopenedBackends:
    """Makes batches of what was opened again."""

    def __init__(self, registry: Registry, collate: Collate, planned: PlannedRequests) -> None:
        """Store the parts."""
        self._registry, self._collate = registry, collate
        # Training and validation take turns, and each goes on where it was.
        self._training, self._validation = GroupedRequests(planned), GroupedRequests(planned)
        self._epoch = 0
        self._beginning = Lock()

    def __call__(self, request: StepNumber | BatchRequest | FlushRequest) -> Batch | None:
        """Return the requested batch; None if there is only to publish."""
        if isinstance(request, FlushRequest):
            self._registry.publish()
            return None
        if isinstance(request, StepNumber):
            grouped = self._validation if request.backend else self._training
            request = grouped.at(request)
        with self._beginning:
            if request.step.epoch > self._epoch:  # nobody else says here that the last one is over
                sources = self._collate.sources
                end_epoch(self._registry, sources, request.step.epoch - 1, first=False)
                self._epoch = request.step.epoch
        return self._collate(request)

    def gather_in(self, memory: BufferPool) -> None:
        """Have batches gathered in such memory from now on."""
        self._collate = replace(self._collate, memory=memory)

    def close(self) -> None:
        """Publish what is open, and close every store and storage."""
        self._registry.close()


def reopen(
    registry: Registry,
    sources: Mapping[str, PreparedBackend],
    plan: Plan,
    evaluations: Mapping[str, EvalPlan],
    excluded: Mapping[str, Excluded],
    *,
    limit: QuarantineLimit,
) -> ReopenSpec:
    """Return how to open the backends of a registry that were made ready, and to plan with them."""
    make_plan, _ = plan.__reduce__()  # of backends; theirs are made from the catalogs
    return ReopenSpec(
        tuple(each for name, each in registry.backends.items() if name not in registry.streams),
        registry.cache,
        registry.engine.here,
        plan.seed,
        limit,
        {name: identity(source) for name, source in sources.items()},
        make_plan,
        [_settings(each) if each.sequential else each.name for each in plan.backends],
        {name: each.batch_size for name, each in evaluations.items()},
        excluded,
    )


def _settings(stream: PlanBackend) -> dict[str, Any]:
    """Return what a plan knows of a stream but for its rows, which are all alike."""
    return {name: value for name, value in vars(stream).items() if name != "order"}


def _stream(settings: Mapping[str, Any]) -> PlanBackend:
    rows = int(settings["offsets"][-1])
    return PlanBackend(order=np.broadcast_to(np.int64(0), (rows,)), **settings)


def identity(source: PreparedBackend) -> str:
    """Return what the rows of a backend stand for: samples, their order, cuts and raw texts."""
    return f"{source.identity}/{source.catalog.texts_identity}"


def check_reopenable(registry: Registry) -> None:
    """Refuse backends that another process cannot see; no I/O.

    Raises:
        ConfigError: Something lies in this process's memory.
    """
    _refuse_memory(
        _places(registry) | _cache_places(registry),
        "prefetch.mode=process",
        "choose another storage, or set prefetch.mode=thread",
    )


def check_shared(registry: Registry, ranks: int) -> None:
    """Refuse a cache that the other processes of a run cannot see; no I/O.

    Raises:
        ConfigError: The cache lies in this process's memory, and there are several.
    """
    if ranks > 1:
        _refuse_memory(
            _cache_places(registry),
            f"the run has {ranks} processes",
            "set storage@cache=local, or trainer.devices=1",
        )


def _places(registry: Registry) -> dict[str, Storage]:
    """Return the storages of samples, by their keys in the config."""
    samples = registry.backends.items()
    return {
        f"data.backends.{name}.storage": backend.storage
        for name, backend in samples
        if isinstance(backend, SampleBackend)
    }


def _cache_places(registry: Registry) -> dict[str, Storage]:
    """Return the storages that facts and tensors are kept in, by their keys in the config."""
    stores = {
        f"data.backends.{name}.cache.storage": backend.cache.storage
        for name, backend in registry.backends.items()
        if not isinstance(backend, SampleBackend)
    }
    return {"cache.storage": registry.cache.storage, **stores}


def _refuse_memory(places: Mapping[str, Storage], why: str, mend: str) -> None:
    problems = [
        f"{why}: {key} is {storage.identity}, which no other process sees; {mend}"
        for key, storage in places.items()
        if isinstance(storage, MemoryStorage)
    ]
    if problems:
        raise ConfigError(problems)
