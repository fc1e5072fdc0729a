"""Fetches the encoded rows of coming steps to this machine, ahead of the batches made of them."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from factory.backends.prepared import PreparedBackend
from factory.cache.gather.gather_plan import GatherPlan
from factory.cache.index.recipe_index import RowRefs
from factory.cache.store import TensorStore
from factory.engine.pipeline import Lookahead
from factory.errors import FactoryError
from factory.runtime.batches.request import BatchRequest
from factory.sampling.plan import Plan

logger = logging.getLogger(__name__)

_MIB = 2**20
# Rows asked for together: enough to keep a network busy, and little enough that the first steps'
# rows are not waited for long.
_GROUP_BYTES = 32 * _MIB
# Groups under way: the next one keeps the network busy while the last rows of one come.
_GROUPS = 2
# Rows that are fetched together, each with its step.
_Group: TypeAlias = list[tuple[int, GatherPlan]]


@dataclass(frozen=True)
class NeededRows:
    """Says which encoded rows a request is for.

    Attributes:
        sources: The backends made ready, by name.
        seed: Seed of the choice among a sample's captions.
    """

    sources: Mapping[str, PreparedBackend]
    seed: int

    def __call__(self, request: BatchRequest) -> Iterator[GatherPlan]:
        """Yield the rows of latents, of captions and of what they are conditioned on."""
        source = self.sources.get(request.step.backend)
        if source is None:
            return  # a stream, which is read in its own order
        rows = request.rows
        yield from _pictures(source, rows)
        if source.text is not None:
            sample_captions = source.catalog.sample_captions(
                rows, seed=self.seed, epoch=request.step.epoch
            )
            text = source.locate_text(sample_captions)
            if text is not None:
                yield text
        for partner, partners in source.conditioning.values():
            yield from _pictures(partner, partners[rows])

    @property
    def stores(self) -> list[TensorStore]:
        """The stores that rows come from, each once."""
        everyone = [*self.sources.values()]
        everyone += [
            pair[0] for each in self.sources.values() for pair in each.conditioning.values()
        ]
        embeds = [each for e in everyone for each in (e.latents, e.text, e.vision)]
        return list({id(each.store): each.store for each in embeds if each is not None}.values())


class CachePrefetcher:
    """Fetches the rows of coming steps in a thread of its own, while batches are made.

    It stays ahead of the batches that are begun by a limit in bytes, ends once everything is on
    this machine, and tells the tiers which step needs a copy next. What fails is noted and left
    alone: whoever needs the rows meets it again, and reports it.

    Attributes:
        problems: What failed, the last few.
    """

    def __init__(
        self, needs: Callable[[BatchRequest], Iterable[GatherPlan]], stores: Sequence[TensorStore],
        megabytes: float, plan: int,
    ) -> None:  # fmt: skip
        """Store the parts; no thread starts.

        Args:
            needs: Says which rows a request needs.
            stores: All stores that they may be of.
            megabytes: How far ahead, MiB of rows.
            plan: Number of the plan, the same in every process that follows it; not 0.
        """
        self._needs, self._stores, self._plan = needs, stores, plan
        self._limit = int(megabytes * _MIB)
        self._moved = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._reached = -1
        self._came_whole: bool | None = None  # the group that was fetched last
        self._ahead: deque[tuple[int, int]] = deque()  # steps, and the bytes of their rows
        self.problems: deque[str] = deque(maxlen=16)

    def along(self, requests: Callable[[], Iterable[BatchRequest]]) -> Iterator[BatchRequest]:
        """Yield the requests of an epoch, and meanwhile fetch the rows of those that follow.

        Args:
            requests: Yields them, as often as it is called.
        """
        self.close()
        self._closing, self._reached, self._came_whole = False, -1, None
        self._ahead.clear()
        self._tell(0)
        self._thread = threading.Thread(
            target=self._run, args=(requests(),), name="fetch-ahead", daemon=True
        )
        self._thread.start()
        try:
            for request in requests():
                self._reach(request.step.global_step)
                yield request
        finally:
            self.close()

    def close(self) -> None:
        """End the thread; what is under way is waited for, which takes a bounded time."""
        with self._moved:
            self._closing = True
            self._moved.notify_all()
        thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _reach(self, step: int) -> None:
        """Note that the batch of a step is begun."""
        with self._moved:
            if step == self._reached:
                return
            self._reached = step
            while self._ahead and self._ahead[0][0] <= step:
                self._ahead.popleft()
            self._moved.notify_all()
        self._tell(step)

    def _tell(self, step: int) -> None:
        """Tell the tiers where the plan is."""
        for store in self._stores:
            store.shard_files.expect(self._plan, step)

    def _run(self, requests: Iterable[BatchRequest]) -> None:
        try:
            self._fetch_all(requests)
        except RuntimeError as error:
            # The interpreter ends, and begins no thread any more.
            if "shutdown" not in str(error):
                raise

    def _fetch_all(self, requests: Iterable[BatchRequest]) -> None:
        """Fetch group after group, until everything is here or nobody waits for it."""
        with ThreadPoolExecutor(_GROUPS, thread_name_prefix="fetch-ahead-group") as pool:
            groups = self._due(requests)
            for fetched in Lookahead(lambda g: pool.submit(self._fetch, g), groups, most=_GROUPS):
                self._came_whole = fetched.result()

    def _due(self, requests: Iterable[BatchRequest]) -> Iterator[_Group]:
        """Yield each group once the trainer is near enough, while some rows are elsewhere."""
        for group, steps in self._groups(requests):
            here = self._came_whole is not None and all(store.is_local for store in self._stores)
            if here or not self._wait(steps):
                return
            yield group

    def _groups(
        self, requests: Iterable[BatchRequest]
    ) -> Iterator[tuple[_Group, list[tuple[int, int]]]]:
        """Yield rows that are fetched together, each with its step, and the bytes of the steps."""
        group: _Group = []
        steps: list[tuple[int, int]] = []
        for request in requests:
            step = request.step.global_step
            if self._closing:
                return
            if step <= self._reached and not group:
                continue  # whoever makes its batch fetches its rows
            try:
                rows = list(self._needs(request))
            except FactoryError as error:
                self._note(error)
                continue
            group += [(step, each) for each in rows]
            steps.append((step, sum(each.refs.nbytes for each in rows)))
            if sum(nbytes for _, nbytes in steps) >= min(_GROUP_BYTES, self._limit):
                yield group, steps
                group, steps = [], []
        yield group, steps

    def _wait(self, steps: list[tuple[int, int]]) -> bool:
        """Wait for the trainer before a group is begun, and count it; False to end.

        Where the last group did not come whole, for want of room or because a server fails, the
        next try follows the trainer's next step.

        Args:
            steps: The steps of the group, and the bytes of their rows.
        """
        there = self._came_whole is not False
        with self._moved:
            before = self._reached
            self._moved.wait_for(
                lambda: (
                    self._closing
                    or (self._left() < self._limit and (there or self._reached != before))
                )
            )
            self._ahead.extend(steps)
            return not self._closing

    def _fetch(self, group: _Group) -> bool:
        """Fetch the rows of some steps; False if some have no room, or do not come."""
        there = True
        for store in self._stores:
            of_store = [(step, rows) for step, rows in group if rows.store is store]
            for step, refs in _joined(of_store):
                if self._closing:
                    return there
                try:
                    there &= store.prefetch(refs, self._plan, step)
                except FactoryError as error:
                    self._note(error)
                    there = False
        return there

    def _left(self) -> int:
        return sum(nbytes for _, nbytes in self._ahead)

    def _note(self, error: FactoryError) -> None:
        if not self.problems:
            logger.warning("fetching ahead failed, which batches will notice: %s", error)
        self.problems.append(f"{type(error).__name__}: {error}")


def cache_prefetcher(
    sources: Mapping[str, PreparedBackend], plan: Plan, megabytes: float
) -> CachePrefetcher | None:
    """Return what fetches the rows of a plan's steps; None where all lie on this machine.

    Args:
        sources: The backends made ready, by name.
        plan: The plan.
        megabytes: How far it may be ahead; see `cache.ahead_mb`.
    """
    needs = NeededRows(sources, plan.seed)
    stores = [store for store in needs.stores if store.shard_files.copied]
    if not stores or not megabytes:
        return None
    # As many of its digits as the field that copies have for it holds.
    return CachePrefetcher(needs, stores, megabytes, int(plan.fingerprint[:15], 16))


def _pictures(source: PreparedBackend, rows: np.ndarray) -> Iterator[GatherPlan]:
    """Yield the rows that a source's samples have in its stores of pictures."""
    for embeds in (source.latents, source.vision):
        if embeds is None:
            continue
        located = source.located(embeds, rows)
        if located is None:
            keys = embeds.keys(source.backend.reader, source.columns(rows))
            located = GatherPlan(embeds.store, embeds.store.snapshot().index.find(keys))
        yield located


def _joined(rows: list[tuple[int, GatherPlan]]) -> Iterator[tuple[int, RowRefs]]:
    """Yield rows of one store whose shards are numbered alike as one; the first of their steps."""
    for shards in {id(each.refs.shards): each.refs.shards for _, each in rows}.values():
        some = [(step, each.refs) for step, each in rows if each.refs.shards is shards]
        yield some[0][0], RowRefs.joined([refs for _, refs in some])
