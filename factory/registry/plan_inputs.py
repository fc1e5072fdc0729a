"""Inputs of the plan: what it must know of each backend made ready."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from factory.backends.image import ImageBackend
from factory.backends.prepared import PreparedBackend
from factory.backends.streaming.source import StreamSource
from factory.sampling.evaluation import EvalPlan
from factory.sampling.exclusion import Excluded, without_excluded
from factory.sampling.passes import PlanBackend


def plan_backend(source: PreparedBackend) -> PlanBackend:
    """Return what the plan must know of a backend made ready."""
    decisions = source.catalog.decisions
    shape = PlanBackend(
        name=source.name,
        order=decisions.order,
        offsets=decisions.offsets,
        buckets=tuple(bucket.name for bucket in decisions.buckets),
        identity=source.catalog.identity,
    )
    backend = source.backend
    return _taking_part(shape, backend) if isinstance(backend, ImageBackend) else shape


def eval_backend(source: PreparedBackend, excluded: Mapping[str, Excluded]) -> PlanBackend:
    """Return what validation must know of a backend: without what is excluded, at any step."""
    shape = plan_backend(source)
    return without_excluded(shape, excluded[shape.name]) if shape.name in excluded else shape


def eval_plans(
    sources: Iterable[PreparedBackend], batch_size: int, excluded: Mapping[str, Excluded]
) -> dict[str, EvalPlan]:
    """Return the plans of validation, by the names of their backends."""
    plans = {}
    for source in sources:
        barred = frozenset(excluded[source.name].steps) if source.name in excluded else frozenset()
        plans[source.name] = EvalPlan(eval_backend(source, excluded), batch_size, barred)
    return plans


def plan_stream(source: StreamSource, batch_size: int) -> PlanBackend:
    """Return what the plan must know of a stream: how many whole batches an epoch has.

    Rows are numbers in the epoch; which samples they are shows when they are read.
    """
    rows = source.batches_per_pass() * (source.backend.batch_size or batch_size)
    shape = PlanBackend(
        name=source.name,
        order=np.broadcast_to(np.int64(0), (rows,)),  # never looked at, and takes no memory
        offsets=np.array([0, rows]),
        buckets=("stream",),
        identity=source.backend.identity,
        sequential=True,
    )
    return _taking_part(shape, source.backend)


def _taking_part(shape: PlanBackend, backend: ImageBackend) -> PlanBackend:
    return replace(
        shape,
        probability=backend.probability,
        repeats=backend.repeats,
        window=backend.window,
        batch_size=backend.batch_size,
        slider_strength=backend.slider_strength,
    )
