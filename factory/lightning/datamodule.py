"""The LightningDataModule: takes backends, and yields the batches of the plan."""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any
from weakref import WeakSet

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.trainer.states import TrainerFn

from factory.backends.prepared import PreparedBackend
from factory.backends.sample_ids import resolve
from factory.engine.engine import Engine
from factory.engine.local_engine import LocalEngine
from factory.errors import ConfigError, PlanError
from factory.ledger.file_format import LedgerHeader
from factory.ledger.ledger import Ledger
from factory.lightning.checkpoint_file import explain_failure
from factory.lightning.data_state import check_place, check_state, sealed
from factory.lightning.loaders import (
    EvalLoader,
    StepRecorder,
    TorchEvalLoader,
    TorchTrainLoader,
    TrainLoader,
)
from factory.lightning.plain_loop import PlainLoop
from factory.lightning.position import Position
from factory.lightning.restore_trainer import epoch_limit
from factory.lightning.resume import STATE_FORMAT, check_cut, check_plan
from factory.lightning.step_callback import StepCallback
from factory.limits import Above, AtLeast, check_limits
from factory.metrics.stages import Telemetry
from factory.registry.plan_inputs import eval_plans, plan_backend
from factory.registry.prepare import end_epoch, load, preload, prepare
from factory.registry.registry import Backend, Registry
from factory.registry.reopen import ReopenSpec, check_reopenable, check_shared, reopen
from factory.registry.streams import Streams
from factory.runtime.batches.batch import EncodedCounts
from factory.runtime.batches.collate import Collate
from factory.runtime.batches.quarantine import Quarantine, QuarantineLimit
from factory.runtime.distributed.consistency import check_same_plan
from factory.runtime.distributed.current_rank import check_ranks
from factory.runtime.distributed.rank_monitor import PEER_TIMEOUT_S, monitor_ranks
from factory.runtime.prefetch.batch_fetcher import Prefetch
from factory.runtime.prefetch.cache_prefetch import cache_prefetcher
from factory.runtime.prefetch.expected_memory import check_memory
from factory.runtime.prefetch.loader_context import LoaderContext
from factory.runtime.prefetch.report import FetchReport
from factory.runtime.prefetch.worker.process import BatchWorker
from factory.sampling.evaluation import EvalPlan
from factory.sampling.exclusion import Exclude, Excluded
from factory.sampling.mixture import Mixture
from factory.sampling.passes import PlanBackend
from factory.sampling.plan import Plan
from factory.sampling.rank_shares import RankLayout
from factory.storage.local import LocalStorage
from factory.workspace import Workspace


class FactoryDataModule(PlainLoop):
    """Training data from named backends, in the order of a plan that resumes exactly.

    `prepare_data` (one process) measures, decides and encodes; `setup` (every process) makes
    the plan. Batches are `factory.runtime.batches.batch.Batch`. The state in a Lightning checkpoint
    is the plan's fingerprint, the epoch and the last optimizer step that was completed; and
    of each stream, where it goes on.

    Args:
        backends: Sources of samples, and of embeddings.
        batch_size: Samples per optimizer step, over all ranks and accumulation.
        seed: Seed of the plan. Random crops and the choice among captions follow from it, too.
        sampling: Weights, selection and short batches; uniform and balanced if None.
        cache: Where facts and tensors are kept; the folder "cache" if None.
        prefetch: How far batches are prepared ahead; 4 batches in threads if None.
        engine: Where bulk work runs; this machine's threads if None.
        quarantine: How many samples may turn out unusable; a hundredth if None.
        accept_changed_plan: Continue from a checkpoint of another plan, from the same step on:
            true, or the keys that may have changed: [batch_size, backends.web].
        context_parallel: Consecutive ranks that get the same samples; divides the ranks.
        peer_timeout_s: Seconds without a sign of life after which another process counts as
            hanging and this one ends with a report; None watches none.
        exclude: Samples that are not used, each from a step on; others stand in for them.
        ledger: Folder for the record of what each step used; None: no record.
        telemetry: Where stages are recorded; one of its own if None.
        rank: This process, where neither a trainer nor torch.distributed nor the launcher says
            so; and its companions, see `loader`.
        world_size: Number of processes that share each batch.
        accumulate_grad_batches: Micro-batches of one optimizer step, without a trainer.

    Raises:
        ConfigError: Backends that refer to each other wrongly, or none to train on.
    """

    def __init__(
        self,
        backends: Iterable[Backend],
        *,
        batch_size: Annotated[int, AtLeast(1)] = 16,
        seed: int = 0,
        sampling: Mixture | None = None,
        cache: Workspace | None = None,
        prefetch: Prefetch | None = None,
        engine: Engine | None = None,
        quarantine: QuarantineLimit | None = None,
        accept_changed_plan: bool | Sequence[str] = False,
        context_parallel: Annotated[int, AtLeast(1)] = 1,
        peer_timeout_s: Annotated[float | None, Above(0)] = PEER_TIMEOUT_S,
        exclude: Sequence[Exclude] = (),
        ledger: Path | str | None = None,
        telemetry: Telemetry | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        accumulate_grad_batches: int | None = None,
    ) -> None:
        """Store the parts and check how they refer to each other; no I/O."""
        super().__init__(rank, world_size, accumulate_grad_batches)
        self.batch_size, self.seed = batch_size, seed
        self.context_parallel, self.peer_timeout_s = context_parallel, peer_timeout_s
        check_limits(self, "data", ConfigError)
        self.sampling = sampling or Mixture()
        self.prefetch = prefetch or Prefetch()
        self.quarantine_limit = quarantine or QuarantineLimit()
        self.accept_changed_plan = accept_changed_plan
        self.exclude, self.ledger = tuple(exclude), Ledger(ledger)
        self.registry = Registry(
            backends,
            cache=cache or Workspace(LocalStorage(".")),
            engine=engine or LocalEngine(),
            telemetry=telemetry,
        )
        _check_backends(self.registry, self.prefetch)
        # Facts in a bucket are made once for all nodes, on local disks once for each node.
        self.prepare_data_per_node = self.registry.cache.storage.local_path("catalog") is not None
        if not self.registry.eval:  # an empty loader would make Lightning warn at every start
            self.val_dataloader = super().val_dataloader  # type: ignore[method-assign]
        self.sources: dict[str, PreparedBackend] = {}
        self.streams = Streams()
        self._excluded: dict[str, Excluded] = {}  # known once there is a plan
        # Weak: trainers may ask for new ones every epoch, and drop the old ones.
        self._loaders: WeakSet[TrainLoader | EvalLoader] = WeakSet()
        self._unchecked: dict[str, Any] | None = None
        self._context: LoaderContext | None = None

    @property
    def plan(self) -> Plan:
        """The plan; there is one after `setup`."""
        if self._plan is None:
            raise PlanError("there is no plan yet; call prepare_data() and setup() first")
        return self._plan

    @cached_property
    def quarantine(self) -> Quarantine:
        """What this process found unusable while it trained; there is one after `setup`."""
        kept = {name: len(source.catalog) for name, source in self.sources.items()}
        # Of a stream a pass in an epoch, which is what the plan knows of it.
        passes = {each.name: len(each.order) for each in self.plan.backends if each.sequential}
        return Quarantine(
            self.quarantine_limit, {**kept, **passes}, self._layout.rank, streams=passes
        )

    @cached_property
    def encoded(self) -> EncodedCounts:
        """What had to be encoded while this process's batches were made."""
        return EncodedCounts()

    def prepare_data(self) -> None:
        """Measure, decide and encode what is new; Lightning calls it in one process a node."""
        check_shared(self.registry, self.world_size)
        # First: whether they can be reached shows in seconds.
        self.streams.open(self.registry, batch_size=self.batch_size, seed=self.seed)
        if not self.sources:
            self.sources = prepare(self.registry, seed=self.seed, check=partial(check_memory, self))

    def setup(self, stage: str = "fit") -> None:
        """Make the plan from the catalogs; Lightning calls it in every process.

        Raises:
            PlanError: The mixture cannot be planned.
            ResumeError: The checkpoint loaded before belongs to another plan.
            PeerError: The processes of the run cannot reach each other.
        """
        self._watch_ranks()
        if not self.sources:
            self.sources = load(self.registry, seed=self.seed)
        self.streams.open(self.registry, batch_size=self.batch_size, seed=self.seed)
        if self.registry.cache.preload:
            preload(self.registry)
        if self._plan is None:
            with self.registry.telemetry.stage("plan") as record:
                self._excluded = resolve(self.exclude, self.sources, self.streams)
                self._plan = self.sampling.plan(
                    [self._plan_backend(name) for name in self.registry.data],
                    batch_size=self.batch_size,
                    seed=self.seed,
                    exclude={n: e for n, e in self._excluded.items() if n in self.registry.data},
                )
                record.counts["steps"] = self._plan.steps(0)
        if self._unchecked is not None:
            self._check_restored(self._unchecked)
            self._unchecked = None  # only now: what was refused is refused again
        self._check_trainer()
        if self.trainer is not None:
            self._layout = RankLayout(
                self.trainer.global_rank,
                self.trainer.world_size,
                self.trainer.accumulate_grad_batches,
                self.context_parallel,
            )
            check_same_plan(self.plan, self._eval_backends())
            if stage == TrainerFn.FITTING:
                self._join(self.trainer)

    def train_dataloader(self) -> TrainLoader:
        """Return this rank's micro-batches, epoch after epoch.

        With the trainer's `overfit_batches` those of the first epoch repeat.
        """
        self._lay_out()
        fixed = self.trainer is not None and bool(self.trainer.overfit_batches)  # type: ignore[attr-defined]
        # A ledger says which epoch a step's captions and cuts are of, and here all are of one.
        records = [] if fixed or self.ledger.folder is None else [self.ledger]
        if records:
            self.ledger.begin(self._about())
        ahead = cache_prefetcher(self.sources, self.plan, self.registry.cache.ahead_mb)
        parts = self.plan, self._collate(), self.prefetch, self._layout, self._position, ahead
        aside = {"fixed": fixed, **self._aside(*records)}
        loader = (
            TorchTrainLoader(*parts, ended=self.end_epoch, begin=self._begin, **aside)
            if self.trainer is None
            else TrainLoader(*parts, **aside)
        )
        self._loaders.add(loader)
        return loader

    def val_dataloader(self) -> EvalLoader:
        """Return every sample of the eval backends once; not called where there are none.

        A loop of one's own may ask before it trains: what was not prepared is prepared first.
        """
        if self._plan is None and self.trainer is None:
            self._make_ready()
        plans = list(self._eval_plans().values())
        self._lay_out()
        parts = plans, self._collate(), self.prefetch, self._layout
        loader = (
            TorchEvalLoader(*parts, begin=lambda: check_ranks(self._ranks), **self._aside())
            if self.trainer is None
            else EvalLoader(*parts, **self._aside())
        )
        self._loaders.add(loader)
        return loader

    def state_dict(self) -> dict[str, Any]:
        """Return the plan's fingerprint and the last completed optimizer step.

        Nothing before there is a plan: a callback that saves on any exception asks for it then.
        """
        if self._plan is None:
            return {}
        self._warn_uncommitted()
        epoch, step = self.committed
        self.ledger.flush()
        self.registry.publish()
        if self._context is not None:
            self._context.flush()
        return sealed(
            {
                "format": STATE_FORMAT,
                "fingerprint": self.plan.fingerprint,
                "plan": self.plan.describe(),
                "epoch": epoch,
                "step": step,
                "cut": epoch_limit(self.trainer),
                "streams": self.streams.state_dict(self.plan, epoch, step),
            }
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue after the last completed step of a checkpoint.

        Raises:
            ResumeError: The checkpoint belongs to another plan; the message shows the
                difference, key by key. Or its state is of a newer format.
        """
        if self.trainer is not None and self.trainer.state.fn != TrainerFn.FITTING:
            return  # a model is looked at, not trained on
        if state_dict == {}:
            return  # saved before there was a plan
        check_state(state_dict)
        self._unchecked = dict(state_dict) if self._plan is None else None
        if self._plan is not None:
            self._check_restored(state_dict)
        self._position.move(state_dict["epoch"], state_dict["step"])

    def text_embeds(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Return the fields of texts, [B, ...], as those of captions in the default store.

        What is not there yet is encoded now, and kept if the store keeps what it encodes.

        Raises:
            ConfigError: There is no text encoder.
        """
        return self.registry.read_texts(texts)

    def end_epoch(self, epoch: int, step: int) -> None:
        """Note that an epoch ended after so many steps, perhaps before its last one.

        Lightning's trainer is watched already, and so is whoever takes all batches of a loader.
        Streams go on from there; without this they take every epoch for a whole one.
        """
        self.streams.end_epoch(self.plan, epoch, step)
        end_epoch(self.registry, self.sources, epoch, first=self._layout.rank == 0)

    def teardown(self, stage: str = "fit") -> None:
        """Stop prefetching; the stores stay open for another fit until `close`."""
        del stage
        monitor, self._monitor = self._monitor, None
        with ExitStack() as stack:
            if monitor is not None:
                stack.callback(monitor.close)
            self.pause()

    def pause(self) -> None:
        """Stop prefetching, as long as nothing is asked for.

        What fails to close, such as a ledger on a full disk, does not keep the rest open.

        Raises:
            StorageError: The ledger cannot be written.
        """
        with ExitStack() as stack:  # the last one first
            stack.callback(self.streams.pause)
            if self._context is not None:
                stack.callback(self._context.close)
            stack.callback(self.ledger.close)
            stack.callback(self.registry.publish)
            for loader in self._loaders:
                stack.callback(loader.close)

    def on_exception(self, exception: BaseException) -> None:
        """Tell the other processes, and stop; Lightning calls it instead of `teardown`."""
        cause = self._monitor.fail(exception) if self._monitor is not None else None
        if cause is not None:
            exception.add_note(f"because {cause}; the report is in the log")
        self.teardown()
        # Lightning asks nobody before it loads a checkpoint, and does not say which one it was.
        found = explain_failure(getattr(self.trainer, "ckpt_path", None), exception)
        if found is not None:
            raise found from exception

    def on_interrupt(self) -> None:
        """Note a Ctrl-C: that other processes end, too, is no fault of theirs."""
        if self._monitor is not None:
            self._monitor.interrupt()

    def close(self) -> None:
        """Stop prefetching and close every store and storage."""
        with ExitStack() as stack:  # the last one first
            stack.callback(self.registry.close)
            stack.callback(self.streams.close)
            self.teardown()

    def write_metrics(self, folder: Path) -> None:
        """Write what each stage took to `metrics.json` in a folder."""
        self.registry.write_metrics(folder)

    def _collate(self) -> Collate:
        here, memory = self.registry.engine.here, self._shared_context().memory
        parts = self.sources, here, self.seed, self.streams, self.quarantine_limit
        return Collate(*parts, memory=memory)

    def _aside(self, *records: StepRecorder) -> dict[str, Any]:
        """Return what every loader is given beside the batches it makes."""
        return {
            "records": (self.quarantine, self.encoded, *records),
            "context": self._shared_context(),
            "activity": self._activity,
        }

    @property
    def fetch_report(self) -> FetchReport:
        """Who waited for whom in training so far: the trainer, or its batches."""
        return FetchReport() if self._context is None else self._context.total.report

    def _shared_context(self) -> LoaderContext:
        """Return what the loaders share, made with the first of them."""
        prefetch = self.prefetch
        if self._context is None:
            self._context = LoaderContext(here=lambda request: request.step.backend in self.streams)
            if prefetch.mode == "process":
                self._context.worker = BatchWorker(
                    self._reopen_spec(), workers=prefetch.workers, timeout_s=prefetch.timeout_s
                )
        device = None if self.trainer is None else self.trainer.strategy.root_device
        self._context.set_device(device, prefetch)
        return self._context

    def _about(self) -> LedgerHeader:
        """Return what the ledger says its steps are steps of."""
        return LedgerHeader(
            rank=self._layout.rank,
            ranks=self._layout.ranks,
            micros=self._layout.micros,
            context_parallel=self._layout.context_parallel,
            fingerprint=self.plan.fingerprint,
            seed=self.seed,
            identities={each.name: each.identity for each in self.plan.backends},
            streams=tuple(self.streams),
        )

    def _plan_backend(self, name: str) -> PlanBackend:
        if name in self.streams:
            return self.streams.planned(name, self.batch_size)
        return plan_backend(self.sources[name])

    def _join(self, trainer: Trainer) -> None:
        """Take part in a fit: watch the trainer's steps."""
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        if any(isinstance(callback, GradientAccumulationScheduler) for callback in callbacks):
            raise PlanError(
                "gradient accumulation must stay the same for the whole run, since it divides "
                "the batches of the plan; remove GradientAccumulationScheduler and set "
                "trainer.accumulate_grad_batches"
            )
        if not self.plan.alike:
            # Else Lightning cuts every epoch to the length of the first one.
            trainer.reload_dataloaders_every_n_epochs = 1  # type: ignore[attr-defined]
        if not any(isinstance(c, StepCallback) and c.data is self for c in callbacks):
            if not self._position.restored:
                self._position = Position()
            # First, so that a checkpoint saved in the same hook counts the step.
            callbacks.insert(0, StepCallback(self, self._position))
        self._position.divide(self._layout.micros)

    def _check_restored(self, state: dict[str, Any]) -> None:
        """Refuse a state of another plan; else let the streams go on from it."""
        epoch, step = state["epoch"], state["step"]
        same_plan = state["fingerprint"] == self.plan.fingerprint
        if same_plan:
            check_place(self.plan, epoch, step)
        else:
            committed = self.plan.steps_before(epoch) + step
            now = self.plan.describe()
            check_plan(state["plan"], now, committed, self.accept_changed_plan)
        if self.trainer is not None:
            check_cut(state.get("cut"), epoch_limit(self.trainer), self.accept_changed_plan)
        streams = state.get("streams", {})
        self.streams.load_state_dict(streams, self.plan, epoch, step, same_plan=same_plan)

    def _reopen_spec(self) -> ReopenSpec:
        """Return how a worker process opens the backends and makes the plan once more."""
        return reopen(
            self.registry, self.sources, self.plan, self._eval_plans(), self._excluded,
            limit=self.quarantine_limit,
        )  # fmt: skip

    def _eval_plans(self) -> dict[str, EvalPlan]:
        sources = [self.sources[name] for name in self.registry.eval]
        return eval_plans(sources, self.batch_size, self._excluded)

    def _eval_backends(self) -> list[PlanBackend]:
        return [plan.backend for plan in self._eval_plans().values()]

    def _watch_ranks(self) -> None:
        if self._monitor is not None:
            self._monitor.close()
        self._monitor = None
        if self.trainer is not None and self.peer_timeout_s is not None:
            exchange = self.trainer.strategy.broadcast
            several = self.trainer.num_nodes > 1
            self._monitor = monitor_ranks(
                exchange, self.peer_timeout_s, self._activity, several_nodes=several
            )


def _check_backends(registry: Registry, prefetch: Prefetch) -> None:
    if prefetch.mode == "process":
        check_reopenable(registry)
    if not registry.data:
        raise ConfigError(
            "no backend to train on: add an image backend, such as data=single, or "
            "+data/backend@data.backends.photos=image"
        )
