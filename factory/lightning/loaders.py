"""The loaders Lightning iterates over: micro-batches of this rank, in plan order."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any, NoReturn, Protocol

from torch.utils.data import DataLoader, IterableDataset

from factory.errors import FetchError, PlanError
from factory.lightning.position import Position
from factory.runtime.batches.batch import Batch
from factory.runtime.batches.collate import Collate
from factory.runtime.batches.request import (
    BatchRequest,
    PlannedRequests,
    StepNumber,
    group_requests,
)
from factory.runtime.prefetch.activity import ActivityTracker
from factory.runtime.prefetch.batch_fetcher import BatchFetcher, Prefetch
from factory.runtime.prefetch.cache_prefetch import CachePrefetcher
from factory.runtime.prefetch.loader_context import LoaderContext
from factory.runtime.prefetch.report import FetchReport
from factory.sampling.evaluation import EvalPlan
from factory.sampling.plan import Plan
from factory.sampling.rank_shares import RankLayout, check_division

# Were both counted, commits of the one would be taken for those of the other.
_OVERTAKEN = (
    "the training batches were begun anew, or a state was loaded, since this iteration gave out "
    "its last one: a run stands in one place, so go on with the newer iteration (two loops that "
    "train side by side need a FactoryDataModule each)"
)


class StepRecorder(Protocol):
    """Is told what is handed to the trainer, in the trainer's thread."""

    def restart(self) -> None:
        """Note that the loader begins anew: what was handed out may come again."""

    def note(self, batch: Batch) -> None:
        """Note that a batch is about to be handed out; what is raised here stops the run."""


class Loader:
    """What the loaders of training and of validation have in common: a fetcher at a time."""

    def __init__(
        self,
        collate: Collate,
        prefetch: Prefetch,
        layout: RankLayout,
        *,
        records: Sequence[StepRecorder] = (),
        context: LoaderContext | None = None,
        activity: ActivityTracker | None = None,
        begin: Callable[[], None] | None = None,
    ) -> None:
        """Store the parts.

        Args:
            collate: Puts batches together.
            prefetch: How far ahead.
            layout: How a global batch is divided.
            begin: Called before the first batch of an iteration is made.
            records: Are told of every batch that is handed out.
            context: What the fetchers of a run share; nothing if None.
            activity: Is told what this process waits for and works on.
        """
        self._collate, self._prefetch, self._layout = collate, prefetch, layout
        self._records = tuple(records)
        self._context = context or LoaderContext()
        self._activity = activity or ActivityTracker()
        self._begin = begin or (lambda: None)
        self.fetcher: BatchFetcher[BatchRequest, Batch] | None = None

    def _fetched(
        self,
        requests: Iterable[BatchRequest],
        stage: str,
        name: Callable[[int], str],
        numbered: Callable[[Batch], Batch] = lambda batch: batch,
    ) -> Iterator[Batch]:
        """Yield the batches of some requests, `numbered`, telling everybody who is to know."""
        self._stop()
        for record in self._records:
            record.restart()
        fetcher = self.fetcher = self._context.fetcher(self._collate, requests, self._prefetch)
        if stage == "training":
            self._context.total.follow(lambda: fetcher.report)
        for made in self._activity.track(fetcher, stage, name):
            batch = numbered(made)
            del made
            for record in self._records:
                record.note(batch)
            yield batch
            del batch  # not held while the next one is waited for

    def close(self) -> None:
        """Stop prefetching; leaves no thread behind."""
        self._stop()

    def _stop(self) -> None:
        if self.fetcher is not None:
            self.fetcher.close()
            self.fetcher = None


class TrainLoader(Loader):
    """This rank's micro-batches of one epoch after another.

    Where an epoch begins is asked for when its first batch is: trainers make iterators
    before they restore a checkpoint.
    """

    def __init__(
        self,
        plan: Plan,
        collate: Collate,
        prefetch: Prefetch,
        layout: RankLayout,
        position: Position,
        ahead: CachePrefetcher | None = None,
        *,
        fixed: bool = False,
        ended: Callable[[int, int], None] | None = None,
        **aside: Any,
    ) -> None:
        """Store the parts.

        Args:
            plan: The plan.
            collate: Puts batches together.
            prefetch: How far ahead.
            layout: How a global batch is divided.
            position: Where the run stands.
            ahead: Fetches encoded rows of coming steps, where they are not on this machine.
            fixed: Whether every epoch repeats the batches of the first.
            ended: Called with an epoch and its length when its last batch was worked on, where
                nobody else watches.
            aside: The other arguments of `Loader`.

        Raises:
            PlanError: The layout does not divide the batch; names those that do.
        """
        super().__init__(collate, prefetch, layout, **aside)
        self._plan, self._position, self._ahead = plan, position, ahead
        self._planned = PlannedRequests(plan, {})
        self._closed, self._fixed, self._ended = False, fixed, ended
        _check_layout(plan, layout)

    def __len__(self) -> int:
        """Return the number of micro-batches of the epoch that comes next, counted whole.

        0 after `close`: trainers ask once more while they are torn down.

        Raises:
            PlanError: No backend is active in that epoch.
        """
        if self._closed:
            return 0
        epoch, _ = self._position.next(self._steps)
        return self._steps(epoch) * self._layout.micros

    def __iter__(self) -> Iterator[Batch]:
        """Yield what is left of the epoch that comes next."""
        self._begin()
        epoch, step = self._position.next(self._steps)
        self._position.begin(epoch, step)
        turn = self._position.turn
        self._closed = False
        micros = self._layout.micros
        left = (self._steps(epoch) - step) * micros

        def name(number: int) -> str:
            return f"epoch {epoch}, step {step + number // micros}"

        # Captions and cuts are drawn by epoch, too: what repeats is made as that of the first.
        of = 0 if self._fixed else epoch
        requests: Iterable[BatchRequest] = self._requests(of, step)
        if self._ahead is not None:
            requests = self._ahead.along(partial(self._requests, of, step))
        for batch in self._fetched(requests, "training", name, partial(self._numbered, epoch)):
            left -= 1  # counted here: `enumerate` holds a batch until it has the next one
            if not left:
                # Said before it is given out: nobody asks for a batch after the last one.
                self._position.give_out_last()
            self._position.give_out()
            yield batch
            del batch
            if self._position.turn != turn:
                raise FetchError(_OVERTAKEN)
        if not left and self._ended is not None:
            self._ended(epoch, self._steps(epoch))

    def _steps(self, epoch: int) -> int:
        return self._plan.steps(0 if self._fixed else epoch)

    def _numbered(self, epoch: int, batch: Batch) -> Batch:
        """Return a batch with the numbers of the epoch it is given out in."""
        if batch.epoch == epoch:
            return batch
        first = self._plan.steps_before(epoch)
        return replace(batch, epoch=epoch, global_step=first + batch.step)

    @property
    def report(self) -> FetchReport:
        """Who waited for whom, over all epochs so far."""
        return self._context.total.report

    def _requests(self, epoch: int, first: int) -> Iterator[BatchRequest]:
        return group_requests(self._planned.since(StepNumber("", epoch, first, 0, self._layout)))

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
        super().close()
        if self._ahead is not None:
            self._ahead.close()


def _check_layout(plan: Plan, layout: RankLayout) -> None:
    """Refuse a layout that cannot share every batch of a plan equally, the short ones too."""
    for backend in plan.backends:
        size = backend.batch_size or plan.batch_size
        owner = f"backend {backend.name!r}: " if backend.batch_size else ""
        check_division(size, layout.replicas, layout.micros, owner=owner, whom=layout.whom)
    if plan.short_batch != "short":
        return
    parts = layout.replicas * layout.micros
    for backend in plan.backends:
        rest = backend.sizes % (backend.batch_size or plan.batch_size) % parts
        if rest.any():
            bucket = backend.buckets[int(rest.argmax())]
            raise PlanError(
                f"backend {backend.name!r}: the short batch of bucket {bucket} cannot be shared "
                f"by {layout.replicas} {layout.whom} x {layout.micros} micro-batches; set "
                "sampling.short_batch=fill or drop, or train without accumulation on one device"
            )


class EvalLoader(Loader):
    """Every sample of the validation backends once, padded so that ranks stay equal."""

    def __init__(
        self,
        plans: Sequence[EvalPlan],
        collate: Collate,
        prefetch: Prefetch,
        layout: RankLayout,
        **aside: Any,
    ) -> None:
        """Store the parts: the plans of the backends, and the arguments of `Loader`."""
        super().__init__(collate, prefetch, layout, **aside)
        self._plans = plans

    def __len__(self) -> int:
        """Return the number of batches, equal on every rank."""
        return sum(plan.steps() for plan in self._plans)

    def __iter__(self) -> Iterator[Batch]:
        """Yield this rank's share of every batch."""
        self._begin()
        planned = PlannedRequests(None, {plan.backend.name: plan for plan in self._plans})
        firsts = [StepNumber(plan.backend.name, 0, 0, 0, self._layout) for plan in self._plans]
        requests = group_requests(chain.from_iterable(map(planned.since, firsts)))
        return self._fetched(requests, "validating", "validation batch {}".format)


class PlannedDataset(IterableDataset[Batch]):
    """Stands for what is planned: nobody shards a dataset that only gives its own order."""

    def __iter__(self) -> NoReturn:
        """Refuse: batches come from the loader."""
        raise TypeError("a planned dataset has no order of its own; iterate over its loader")


def _become(loader: Loader, threads: int) -> None:
    """Fill in what a DataLoader has, for those who look at it; none of it is used."""
    DataLoader.__init__(loader, PlannedDataset(), batch_size=None)  # type: ignore[arg-type]
    # Those that make batches here are threads. Said, lest anybody advises to have more than none.
    loader.num_workers = threads  # type: ignore[attr-defined]


class TorchTrainLoader(TrainLoader, DataLoader[Batch]):
    """This rank's micro-batches, as a DataLoader that is not to be sharded again."""

    def __init__(self, *parts: Any, **settings: Any) -> None:
        """Store the parts, see `TrainLoader`."""
        TrainLoader.__init__(self, *parts, **settings)
        _become(self, self._prefetch.workers)

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """Yield what is left of the epoch that comes next."""
        return TrainLoader.__iter__(self)


class TorchEvalLoader(EvalLoader, DataLoader[Batch]):
    """This rank's share of validation, as a DataLoader that is not to be sharded again."""

    def __init__(self, *parts: Any, **settings: Any) -> None:
        """Store the parts, see `EvalLoader`."""
        EvalLoader.__init__(self, *parts, **settings)
        _become(self, self._prefetch.workers)

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """Yield this rank's share of every batch."""
        return EvalLoader.__iter__(self)
