"""Training without Lightning's Trainer: ranks, commits and loaders for a loop of your own."""

import logging
import os
from collections.abc import Iterator
from types import TracebackType
from typing import Self

import torch.distributed
from lightning.pytorch import LightningDataModule

from factory.errors import ConfigError, FactoryError
from factory.ledger.ledger import Ledger
from factory.lightning.loaders import TrainLoader
from factory.lightning.position import Position
from factory.runtime.batches.batch import Batch
from factory.runtime.distributed.consistency import (
    broadcast_text,
    check_equal,
    check_same_plan,
    is_distributed,
    run_first,
)
from factory.runtime.distributed.current_rank import Ranks, check_given, check_ranks, find_ranks
from factory.runtime.distributed.rank_monitor import RankMonitor, monitor_ranks
from factory.runtime.prefetch.activity import ActivityTracker
from factory.sampling.passes import PlanBackend
from factory.sampling.plan import Plan
from factory.sampling.rank_shares import RankLayout

logger = logging.getLogger("factory")

_UNCOMMITTED = (
    "the data's state says that %s steps of epoch %s are completed, and %s batches were given out "
    "since: a run that goes on from it sees them again. Call data.commit() after each optimizer "
    "step, before you save"
)


class PlainLoop(LightningDataModule):
    """The part of the data module that a loop of one's own uses, of plain torch or of Fabric.

    ::

        with data:
            for batch in data.batches(max_steps=1000):
                loss = model(batch.to(device))
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                data.commit()

    Every process of torch.distributed gets its contiguous share of each global batch.
    """

    ledger: Ledger
    peer_timeout_s: float | None
    context_parallel: int
    prepare_data_per_node: bool

    def __init__(
        self, rank: int | None, world_size: int | None, accumulate_grad_batches: int | None
    ) -> None:
        """Store what is said of the ranks, see `loader`; None where nothing is."""
        super().__init__()
        self._say_ranks(rank, world_size, accumulate_grad_batches)
        self._plan: Plan | None = None
        self._ranks, self._layout = Ranks(), RankLayout()
        self._position, self._activity = Position(), ActivityTracker()
        self._monitor: RankMonitor | None = None
        self._entered = self._agreed = self._warned = False

    def loader(
        self,
        *,
        rank: int | None = None,
        world_size: int | None = None,
        accumulate_grad_batches: int | None = None,
    ) -> TrainLoader:
        """Return this rank's micro-batches of one epoch after another, each time it is iterated.

        It is a DataLoader for those who ask, such as `fabric.setup_dataloaders`, and not sharded
        again. What was not prepared is prepared first: by one process of torch.distributed, while
        the others wait.

        Args:
            rank: This process, from 0; None for what the data module was given, else that of
                torch.distributed, else the launcher's.
            world_size: Number of processes.
            accumulate_grad_batches: Micro-batches of one optimizer step; 1 if nobody says.

        Raises:
            PlanError: The ranks cannot share a batch, or nothing says which one this is.
            ConfigError: What is given makes no sense.
        """
        self._say_ranks(rank, world_size, accumulate_grad_batches)
        if self._plan is None:
            self._make_ready()
        loader: TrainLoader = self.train_dataloader()
        return loader

    def batches(
        self, *, max_steps: int | None = None, max_epochs: int | None = None, **ranks: int | None
    ) -> Iterator[Batch]:
        """Return this rank's micro-batches from where the run stands, epoch after epoch.

        Args:
            max_steps: Optimizer steps after which the run ends, counted from its beginning; None
                for no end.
            max_epochs: Epochs after which it ends, likewise.
            ranks: The arguments of `loader`.

        Raises:
            PlanError: See `loader`.
            ConfigError: A limit is no number of steps or epochs.
        """
        for name, limit in {"max_steps": max_steps, "max_epochs": max_epochs}.items():
            if limit is not None and (int(limit) != limit or limit < 0):
                raise ConfigError(f"{name} must be a whole number from 0, or None, got {limit}")
        return self._batches(self.loader(**ranks), max_steps, max_epochs)

    def commit(self) -> None:
        """Note that the batches given out so far are trained on.

        Call it after each optimizer step, or after each micro-batch: a step is completed with
        its last one. `state_dict` says which was the last that is.
        """
        self._position.commit()
        self._warned = False
        self.ledger.commit(*self.committed)

    def count_micro_batch(self) -> None:
        """Note that one more micro-batch is trained on.

        Lightning's trainer is watched already. For loops that take batches ahead of those they
        train on; others call `commit`.
        """
        self._position.count()
        self.ledger.commit(*self.committed)

    @property
    def committed(self) -> tuple[int, int]:
        """The epoch, and the number of its optimizer steps that are completed."""
        return self._position.committed

    @property
    def world_size(self) -> int:
        """Number of processes, as far as a trainer or torch.distributed says so by now."""
        if self.trainer is not None:
            return int(self.trainer.world_size)
        return torch.distributed.get_world_size() if is_distributed() else 1

    def __enter__(self) -> Self:
        """Watch the other processes from the first batch on: their end will be told, too."""
        self._entered = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Tell the other processes how this one ends, and close everything."""
        del kind, trace
        self._entered = False
        if error is not None:
            self.on_exception(error)
        self.close()

    def _say_ranks(self, rank: int | None, world_size: int | None, micros: int | None) -> None:
        """Store what is said; what is not stays as it was."""
        check_given(rank, world_size)
        if micros is not None and micros < 1:
            raise ConfigError(f"accumulate_grad_batches must be at least 1, got {micros}")
        before = getattr(self, "_said", (None, None, None))
        both = before[:2] if rank is None else (rank, world_size)
        self._said = (*both, before[2] if micros is None else micros)

    def _check_trainer(self) -> None:
        """Refuse what contradicts a trainer, which says these things itself."""
        trainer = self.trainer
        if trainer is None:
            return
        theirs = trainer.global_rank, trainer.world_size, trainer.accumulate_grad_batches
        names = "rank", "world_size", "accumulate_grad_batches"
        for name, said, its in zip(names, self._said, theirs, strict=True):
            if said is not None and said != its:
                raise ConfigError(
                    f"{name}={said} was given to the data, and the trainer says {its}; leave it to "
                    "the trainer"
                )

    def _lay_out(self) -> None:
        """Divide batches among the processes as they are now."""
        if self.trainer is not None:
            return  # done in `setup`, which the trainer calls
        rank, world_size, micros = self._said
        self._ranks = find_ranks(rank, world_size)
        self._layout = RankLayout(*self._ranks[:2], micros or 1, self.context_parallel)
        self._position.divide(self._layout.micros)

    def _make_ready(self) -> None:
        """Prepare in one process while the others wait, then set up in each."""
        ranks = find_ranks(*self._said[:2])
        if is_distributed():
            mine, local = torch.distributed.get_rank(), os.environ.get("LOCAL_RANK")
            first = mine == 0
            if self.prepare_data_per_node and local is not None:
                first = local == "0"
            run_first(self.prepare_data, first=first)
        elif ranks.world_size == 1:
            self.prepare_data()
        try:
            self.setup("fit")
        except FactoryError as error:
            if ranks.world_size > 1 and not is_distributed():
                error.add_note(
                    "without torch.distributed nobody can wait while another process prepares: "
                    "call data.prepare_data() in one, then data.loader() in each; or "
                    "torch.distributed.init_process_group() first"
                )
            raise

    def _begin(self) -> None:
        """Be sure, before the first batch of an epoch, that all processes mean the same run."""
        warning = check_ranks(self._ranks)
        if warning is not None and not self._agreed:
            logger.warning("%s", warning)
        if is_distributed() and not self._ranks.given:
            if not self._agreed:
                check_same_plan(self.plan, self._eval_backends())
            epoch, step = self._position.committed
            layout = {"micros": self._layout.micros, "context_parallel": self.context_parallel}
            check_equal({"epoch": epoch, "step": step, **layout}, "where they go on")
            if self._entered and self._monitor is None and self.peer_timeout_s is not None:
                # Of the launcher's: those of one machine reach each other without a network.
                nodes = os.environ.get("LOCAL_WORLD_SIZE") != str(self._ranks.world_size)
                self._monitor = monitor_ranks(
                    broadcast_text, self.peer_timeout_s, self._activity, several_nodes=nodes
                )
        self._agreed = True

    def _batches(
        self, loader: TrainLoader, max_steps: int | None, max_epochs: int | None
    ) -> Iterator[Batch]:
        while True:
            epoch, step = self._position.next(self.plan.steps)
            if max_epochs is not None and epoch >= max_epochs:
                return
            left = -1
            if max_steps is not None:
                left = max_steps - self.plan.steps_before(epoch) - step
                if left <= 0:
                    return
                left *= self._layout.micros
            for batch in loader:
                yield batch
                del batch  # not held while the next one is waited for
                left -= 1
                if not left:
                    return
            if self._position.counts and self._position.pending:
                logger.warning(
                    "epoch %s ended with %s batches that were not committed: they come again",
                    epoch, self._position.pending,
                )  # fmt: skip

    def _warn_uncommitted(self) -> None:
        """Say so, once, where a loop saves a state that is behind what it has trained on."""
        position = self._position
        if self.trainer is not None or not position.given or self._warned:
            return
        # Of a step under way nothing is to be said.
        if not position.counts or position.pending > self._layout.micros:
            epoch, step = position.committed
            self._warned = True
            logger.warning(_UNCOMMITTED, step, epoch, position.pending)

    @property
    def plan(self) -> Plan:
        """The plan; the data module's."""
        raise NotImplementedError

    def close(self) -> None:
        """Stop prefetching and close every store and storage; the data module's."""
        raise NotImplementedError

    def _eval_backends(self) -> list[PlanBackend]:
        raise NotImplementedError
