"""The loaders Lightning iterates over: micro-batches of this rank, in plan order."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from factory.errors import PlanError
from factory.runtime.batch import Batch
from factory.runtime.collate import Collate, batch_bytes
from factory.runtime.fetcher import BatchFetcher, Prefetch
from factory.runtime.part import Part
from factory.runtime.position import Position
from factory.sampling.evaluation import EvalPlan
from factory.sampling.plan import Plan, PlanStep
from factory.sampling.ranks import check_division, pad, share


@dataclass(frozen=True)
class Layout:
    """How a global batch is divided.

    Attributes:
        rank: This process, from 0.
        ranks: Number of processes.
        micros: Micro-batches per optimizer step (gradient accumulation).
    """

    rank: int = 0
    ranks: int = 1
    micros: int = 1


class Record(Protocol):
    """Where it is noted what is handed to the trainer."""

    def restart(self) -> None:
        """Forget what was handed out and not completed: the loader begins anew."""

    def note(self, batch: Batch) -> None:
        """Note that a micro-batch is handed to the trainer."""


class TrainLoader:
    """This rank's micro-batches of one epoch after another.

    Where an epoch begins is asked for when its first batch is: trainers make iterators
    before they restore a checkpoint.
    """

    def __init__(
        self,
        plan: Plan,
        collate: Collate,
        prefetch: Prefetch,
        layout: Layout,
        position: Position,
        record: Record | None = None,
    ) -> None:
        """Store the parts.

        Args:
            plan: The plan.
            collate: Puts batches together.
            prefetch: How far ahead.
            layout: How a global batch is divided.
            position: Where the run stands.
            record: Is told of every batch that is handed out.

        Raises:
            PlanError: The layout does not divide the batch; names those that do.
        """
        self._plan, self._collate, self._prefetch = plan, collate, prefetch
        self._layout, self._position = layout, position
        self._record = record
        self.fetcher: BatchFetcher[Part, Batch] | None = None
        self._closed = False
        _check_layout(plan, layout)

    def __len__(self) -> int:
        """Return the number of micro-batches of the epoch that comes next, counted whole.

        0 after `close`: trainers ask once more while they are torn down.

        Raises:
            PlanError: No backend is active in that epoch.
        """
        if self._closed:
            return 0
        epoch, _ = self._position.next(self._plan.steps)
        return self._plan.steps(epoch) * self._layout.micros

    def __iter__(self) -> Iterator[Batch]:
        """Yield what is left of the epoch that comes next."""
        epoch, step = self._position.next(self._plan.steps)
        self._position.begin(epoch, step)
        self.close()
        self._closed = False
        if self._record is not None:
            self._record.restart()
        self.fetcher = BatchFetcher(
            self._collate, self._parts(epoch, step), self._prefetch, nbytes=batch_bytes
        )
        left = (self._plan.steps(epoch) - step) * self._layout.micros
        for number, batch in enumerate(self.fetcher, 1):
            if number == left:
                # Said before it is given out: nobody asks for a batch after the last one.
                self._position.give_out_last()
            if self._record is not None:
                self._record.note(batch)
            yield batch

    def _parts(self, epoch: int, first: int) -> Iterator[Part]:
        layout = self._layout
        for number in range(first, self._plan.steps(epoch)):
            step = self._plan.at(epoch, number)
            places = np.arange(len(step.rows))
            for micro in range(layout.micros):
                mine = share(places, layout.rank, layout.ranks, micro, layout.micros)
                yield Part(step, mine)

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: where the run stands is the data module's state.

        The method tells Lightning that this loader continues in mid-epoch.
        """
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Accept the nothing that `state_dict` returned."""

    def close(self) -> None:
        """Stop prefetching; leaves no thread behind."""
        self._closed = True
        if self.fetcher is not None:
            self.fetcher.close()
            self.fetcher = None


def _check_layout(plan: Plan, layout: Layout) -> None:
    """Refuse a layout that cannot share every batch of a plan equally, the short ones too."""
    check_division(plan.batch_size, layout.ranks, layout.micros)
    if plan.short_batch != "short":
        return
    parts = layout.ranks * layout.micros
    for backend in plan.backends:
        rest = backend.sizes % (backend.batch_size or plan.batch_size) % parts
        if rest.any():
            bucket = backend.buckets[int(rest.argmax())]
            raise PlanError(
                f"backend {backend.name!r}: the short batch of bucket {bucket} cannot be shared "
                f"by {layout.ranks} ranks x {layout.micros} micro-batches; set "
                "sampling.short_batch=fill or drop, or train without accumulation on one device"
            )


class EvalLoader:
    """Every sample of the validation backends once, padded so that ranks stay equal."""

    def __init__(
        self, plans: Sequence[EvalPlan], collate: Collate, prefetch: Prefetch, layout: Layout
    ) -> None:
        """Store the parts."""
        self._plans, self._collate, self._prefetch = plans, collate, prefetch
        self._layout = layout
        self.fetcher: BatchFetcher[Part, Batch] | None = None

    def __len__(self) -> int:
        """Return the number of batches, equal on every rank."""
        return sum(plan.steps() for plan in self._plans)

    def __iter__(self) -> Iterator[Batch]:
        """Yield this rank's share of every batch."""
        self.close()
        steps = (plan.at(step) for plan in self._plans for step in range(plan.steps()))
        parts = map(self._part, steps)
        self.fetcher = BatchFetcher(self._collate, parts, self._prefetch, nbytes=batch_bytes)
        yield from self.fetcher

    def _part(self, step: PlanStep) -> Part:
        places, valid = pad(np.arange(len(step.rows)), self._layout.ranks)
        width = len(places) // self._layout.ranks
        mine = slice(self._layout.rank * width, (self._layout.rank + 1) * width)
        return Part(step, places[mine], valid[mine])

    def close(self) -> None:
        """Stop prefetching; leaves no thread behind."""
        if self.fetcher is not None:
            self.fetcher.close()
            self.fetcher = None
