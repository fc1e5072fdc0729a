"""Requests for batches, and what is known of a batch's samples before one of them is read.

Names, captions, crops and where the rows of captions lie all follow from the catalog. Looking them
up for a batch of sixteen takes as long as copying its rows; for several batches at once, hardly
longer. Batches that follow each other are therefore described together, with the
first of them, and their rows are asked of the disk at once.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from itertools import repeat
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from factory.backends.prepared import PreparedBackend
from factory.cache.gather.gather_plan import GatherPlan
from factory.catalog.crops import CropArrays
from factory.sampling.evaluation import EvalPlan
from factory.sampling.plan import Plan, PlanStep
from factory.sampling.rank_shares import RankLayout, pad, share
from factory.sampling.substitutes import substitute_key

# Describes rows, int64 [n], of one backend in one epoch.
Describe: TypeAlias = "Callable[[NDArray[np.int64]], BatchMetadata]"
# Samples described together: what a call costs at least is then little for each. More than these
# gain nothing, and the next batch waits until all are described.
TOGETHER = 1024
# The same at the beginning, and twice as many each time: the first batch comes soon.
AT_FIRST = 64
_OF_STEP = ("backend", "bucket", "epoch", "step", "global_step", "slider_strength")


@dataclass(frozen=True, eq=False)
class BatchMetadata:
    """What is known of B samples of one backend.

    Attributes:
        rows: Their rows in the catalog, int64 [B].
        keys: Storage keys.
        captions: The captions they have in the epoch.
        original_size: Source sizes (width, height), px, int32 [B, 2].
        cuts: How they are resized and cut.
        latents: Where the rows of the latents lay when this was made; None where nobody has looked.
        text: Where those of the captions lay.
    """

    rows: NDArray[np.int64]
    keys: list[str]
    captions: list[str]
    original_size: NDArray[np.int32]
    crops: CropArrays
    latents: GatherPlan | None
    text: GatherPlan | None

    @classmethod
    def of(
        cls, source: PreparedBackend, rows: NDArray[np.int64], *, seed: int, epoch: int
    ) -> "BatchMetadata":
        """Describe some rows of a backend in an epoch; have a disk begin to read what is theirs.

        Args:
            source: The backend.
            rows: Rows of its catalog, int64 [B].
            seed: Seed of the choice among a sample's captions.
            epoch: The epoch.
        """
        facts = source.catalog.facts
        keys = facts.keys(rows)
        sample_captions = source.catalog.sample_captions(rows, seed=seed, epoch=epoch, keys=keys)
        text = source.locate_text(sample_captions)
        latents, vision = (source.located(each, rows) for each in (source.latents, source.vision))
        beside = _beside(source, rows, seed=seed, epoch=epoch)
        for located in (latents, vision, text, *beside):
            if located is not None:
                located.willneed()
        size = np.stack([facts.take("width", rows), facts.take("height", rows)], axis=1)
        return cls(
            rows,
            keys,
            sample_captions.captions,
            size.astype(np.int32),
            source.crops(rows, epoch),
            latents,
            text,
        )

    def fields(self) -> dict[str, Any]:
        """Return the fields of `Batch` that say these things."""
        return {
            "rows": torch.from_numpy(self.rows),
            "keys": self.keys,
            "captions": self.captions,
            "original_size": torch.from_numpy(self.original_size),
            "target_size": torch.from_numpy(self.crops.target),
            "crop_top_left": torch.from_numpy(self.crops.offset),
        }

    def split(self, counts: Sequence[int]) -> "Iterator[BatchMetadata]":
        """Yield the first samples, those that follow, and so on: so many each."""
        end = 0
        parts = (
            repeat(None) if each is None else each.split(counts)
            for each in (self.latents, self.text)
        )
        for count, latents, text in zip(counts, *parts, strict=False):
            some = slice(end, end := end + count)
            crops = self.crops
            yield BatchMetadata(
                self.rows[some],
                self.keys[some],
                self.captions[some],
                self.original_size[some],
                CropArrays(crops.intermediary[some], crops.offset[some], crops.target[some]),
                latents,
                text,
            )


def _beside(
    source: PreparedBackend, rows: NDArray[np.int64], *, seed: int, epoch: int
) -> Iterator[GatherPlan | None]:
    """Yield where the rows of the partners lie that some samples have in an epoch."""
    for name, partners in source.partner_rows(rows, seed=seed, epoch=epoch).items():
        partner, there = source.conditioning[name][0], partners[partners >= 0]
        for embeds in (partner.latents, partner.vision):
            yield partner.located(embeds, there)


class RequestGroup:
    """Requests of one backend and epoch, described together when the first of them is."""

    def __init__(self, rows: Sequence[NDArray[np.int64]]) -> None:
        """Hold the rows of each batch; nothing is described."""
        self._rows: list[NDArray[np.int64]] = list(rows)
        self._found: dict[int, BatchMetadata] | None = None
        self._lock = threading.Lock()

    def metadata(self, batch: int, describe: Describe) -> BatchMetadata:
        """Return what is known of one batch; kept for the first call, described anew after it."""
        with self._lock:
            if self._found is None:
                whole = describe(np.concatenate(self._rows))
                self._found = dict(enumerate(whole.split([len(rows) for rows in self._rows])))
            known = self._found.pop(batch, None)
        # A copy: whoever is given it may write to it.
        return describe(self._rows[batch].copy()) if known is None else known


Described: TypeAlias = Callable[[Describe], BatchMetadata]


@dataclass(frozen=True)
class FlushRequest:
    """Asks the worker process to publish what it has encoded meanwhile; there is no batch of it."""

    def __str__(self) -> str:
        """Say what it is, for messages."""
        return "what was encoded"


class StepNumber(NamedTuple):
    """Says which micro-batch of which step a rank asks for; the plan says the rest.

    Attributes:
        backend: The backend whose validation it is a step of; "" for training.
        epoch: The epoch, from 0.
        step: The step inside it, from 0.
        micro: The micro-batch, from 0.
        layout: How the global batch is divided.
    """

    backend: str
    epoch: int
    step: int
    micro: int
    layout: RankLayout


@dataclass(frozen=True, eq=False)
class BatchRequest:
    """This rank's part of a planned step, for one micro-batch.

    Pickled it is its number, where it has one: whoever has the plan makes it anew.

    Attributes:
        step: The planned step, with the whole global batch.
        places: Places in the global batch, int64 [B]; a place may come twice, as padding.
        valid: bool [B], False where a sample only pads ranks to equal size; None means all.
        near: Describes it together with others; None where it is described alone.
        number: Which request of the plan it is; None for one that follows from no plan.
    """

    step: PlanStep
    places: NDArray[np.int64]
    valid: NDArray[np.bool_] | None = None
    near: Described | None = field(default=None, repr=False)
    number: StepNumber | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the number, or what is asked for."""
        if self.number is not None:
            return StepNumber, tuple(self.number)
        return BatchRequest, (self.step, self.places, self.valid)

    @property
    def rows(self) -> NDArray[np.int64]:
        """Row ids of its samples, int64 [B]."""
        return self.step.rows[self.places]

    def fields(self) -> dict[str, Any]:
        """Return the fields of `Batch` that say which step it is of."""
        return {name: getattr(self.step, name) for name in _OF_STEP}

    def metadata(self, describe: Describe) -> BatchMetadata:
        """Return what is known of its samples.

        Args:
            describe: Describes rows of its backend in its epoch.
        """
        return describe(self.rows) if self.near is None else self.near(describe)

    def substitute_key(self, index: int) -> int:
        """Return the key under which substitutes are drawn for its sample `index`, from 0."""
        step, place = self.step, int(self.places[index])
        return substitute_key(step.seed, step.epoch, step.backend, step.number, place)

    def __str__(self) -> str:
        """Say where it stands, for messages."""
        return (
            f"epoch {self.step.epoch}, step {self.step.step}: backend {self.step.backend!r}, "
            f"bucket {self.step.bucket}"
        )


def group_requests(requests: Iterable[BatchRequest]) -> Iterator[BatchRequest]:
    """Yield requests in their order, those near each other to be described together.

    Of those that are taken at once, those of one backend and epoch belong together.
    """
    for group in _groups(requests):
        yield from group


def _groups(requests: Iterable[BatchRequest]) -> Iterator[list[BatchRequest]]:
    """Yield requests in groups, each group's to be described together."""
    for some in _some_at_a_time(requests):
        rows: dict[tuple[str, int], list[NDArray[np.int64]]] = {}
        for request in some:
            rows.setdefault(_owner(request), []).append(request.rows)
        near = {owner: enumerate(repeat(RequestGroup(each))) for owner, each in rows.items()}
        group = []
        for request in some:
            number, others = next(near[_owner(request)])
            group.append(replace(request, near=partial(others.metadata, number)))
        yield group


def _some_at_a_time(requests: Iterable[BatchRequest]) -> Iterator[list[BatchRequest]]:
    """Yield requests in groups: no more than have so many samples, but one at least.

    Where no more can be planned, those before it still come first.
    """
    some: list[BatchRequest] = []
    samples, most, failure = 0, AT_FIRST, None
    try:
        for request in requests:
            if some and samples + len(request.places) > most:
                yield some
                some, samples, most = [], 0, min(2 * most, TOGETHER)
            some.append(request)
            samples += len(request.places)
    except Exception as error:  # noqa: BLE001 - raised in its turn
        failure = error
    if some:
        yield some
    if failure is not None:
        raise failure


def _owner(request: BatchRequest) -> tuple[str, int]:
    return request.step.backend, request.step.epoch


class PlannedRequests:
    """The requests that follow from the plans of a run, the same in every process."""

    def __init__(self, plan: Plan | None, evaluations: Mapping[str, EvalPlan]) -> None:
        """Store the plans.

        Args:
            plan: The plan of training; None where only validation is asked for.
            evaluations: Those of validation, by the names of their backends.
        """
        self._plan, self._evaluations = plan, evaluations
        self._planned = lru_cache(maxsize=1)(self._step)  # its micro-batches follow each other

    def at(self, number: StepNumber) -> BatchRequest:
        """Return a request by its number.

        Raises:
            PlanError: There is no such step.
        """
        name, epoch, at, micro, layout = number
        step = self._planned(name, epoch, at)
        places, mine = np.arange(len(step.rows)), (layout.replica, layout.replicas)
        if not name:
            places = share(places, *mine, micro, layout.micros)
            return BatchRequest(step, places, number=number)
        places, valid = pad(places, layout.replicas)
        width = len(places) // layout.replicas
        own = slice(layout.replica * width, (layout.replica + 1) * width)
        return BatchRequest(step, places[own], valid[own], number=number)

    def since(self, number: StepNumber) -> Iterator[BatchRequest]:
        """Yield a request and those that follow it in its epoch, each described alone."""
        name, epoch, first, micro, layout = number
        micros = 1 if name else layout.micros
        for turn in range(first * micros + micro, self._steps(name, epoch) * micros):
            yield self.at(StepNumber(name, epoch, *divmod(turn, micros), layout))

    def _step(self, name: str, epoch: int, step: int) -> PlanStep:
        return self._evaluations[name].at(step) if name else self._trained.at(epoch, step)

    def _steps(self, name: str, epoch: int) -> int:
        return self._evaluations[name].steps() if name else self._trained.steps(epoch)

    @property
    def _trained(self) -> Plan:
        assert self._plan is not None  # noqa: S101 - else nobody asks for its steps
        return self._plan


class GroupedRequests:
    """Requests by their numbers, those that follow each other described together.

    For a process that is sent numbers, in the order of the plan. Safe to ask from several threads.
    """

    def __init__(self, planned: PlannedRequests) -> None:
        """Store what makes the requests."""
        self._planned, self._lock = planned, threading.Lock()
        self._groups: Iterator[list[BatchRequest]] = iter(())
        self._ready: dict[StepNumber | None, BatchRequest] = {}

    def at(self, number: StepNumber) -> BatchRequest:
        """Return a request by its number.

        Raises:
            PlanError: There is no such step.
        """
        with self._lock:
            if number not in self._ready:
                self._add_group()
            if number not in self._ready:  # another epoch, or a step that was jumped to
                self._ready.clear()
                self._groups = _groups(self._planned.since(number))
                self._add_group()
            return self._ready.pop(number)

    def _add_group(self) -> None:
        self._ready.update((each.number, each) for each in next(self._groups, ()))
