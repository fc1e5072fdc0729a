"""Where Lightning enters: backends in, batches of the plan out."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.trainer.states import TrainerFn

from factory.backends.image import ImageBackend
from factory.backends.naming import resolve
from factory.backends.source import Source
from factory.backends.stream_source import StreamSource
from factory.bulk import Engine
from factory.cache.place import CachePlace
from factory.engine.local import LocalEngine
from factory.errors import ConfigError, PlanError, ResumeError
from factory.ledger.layout import About
from factory.ledger.ledger import Ledger
from factory.preparation import load, prepare
from factory.registry import Backend, Registry
from factory.runtime.collate import Collate
from factory.runtime.fetcher import Prefetch
from factory.runtime.iterator import EvalLoader, Layout, TrainLoader
from factory.runtime.position import Position
from factory.sampling.evaluation import EvalPlan
from factory.sampling.exclusion import Exclude, Excluded, remaining
from factory.sampling.fingerprint import difference
from factory.sampling.mixture import Mixture
from factory.sampling.passes import PlanBackend
from factory.sampling.plan import Plan
from factory.sampling.schedule import Window
from factory.storage.local import LocalStorage
from factory.telemetry import Telemetry


class FactoryDataModule(LightningDataModule):
    """Training data from named backends, in the order of a plan that resumes exactly.

    `prepare_data` (one process) measures, decides and encodes; `setup` (every process) makes
    the plan. Batches are `factory.runtime.batch.Batch`. The state in a Lightning checkpoint
    is the plan's fingerprint, the epoch and the last optimizer step that was completed; and
    of each stream, where it goes on.

    Args:
        backends: Sources of samples, and of embeddings.
        batch_size: Samples per optimizer step, over all ranks and accumulation.
        seed: Seed of the plan, of random crops and of the choice among captions.
        sampling: Weights, selection and short batches; uniform and balanced if None.
        cache: Where facts and tensors are kept; the folder "cache" if None.
        prefetch: How far batches are prepared ahead; 4 batches in threads if None.
        engine: Where bulk work runs; this machine's threads if None.
        accept_changed_plan: Continue from a checkpoint that belongs to another plan.
        exclude: Samples that are not used, each from a step on; others stand in for them.
        ledger: Folder on this machine where it is recorded what each completed step used;
            nothing is recorded if None.
        telemetry: Where stages are recorded; one of its own if None.

    Raises:
        ConfigError: Backends that refer to each other wrongly, or none to train on.
    """

    def __init__(
        self,
        backends: Iterable[Backend],
        *,
        batch_size: int = 16,
        seed: int = 0,
        sampling: Mixture | None = None,
        cache: CachePlace | None = None,
        prefetch: Prefetch | None = None,
        engine: Engine | None = None,
        accept_changed_plan: bool = False,
        exclude: Sequence[Exclude] = (),
        ledger: Path | str | None = None,
        telemetry: Telemetry | None = None,
    ) -> None:
        """Store the parts and check how they refer to each other; no I/O."""
        super().__init__()
        if batch_size < 1:
            raise ConfigError(f"data.batch_size must be at least 1, got {batch_size}")
        self.batch_size, self.seed = batch_size, seed
        self.sampling = sampling or Mixture()
        self.prefetch = prefetch or Prefetch()
        self.accept_changed_plan = accept_changed_plan
        self.exclude, self.ledger = tuple(exclude), Ledger(ledger)
        self.registry = Registry(
            backends,
            cache=cache or CachePlace(LocalStorage(".")),
            engine=engine or LocalEngine(),
            telemetry=telemetry,
        )
        if not self.registry.data:
            raise ConfigError(
                "no backend to train on: add an image backend, such as data=single, or "
                "+data/backend@data.backends.photos=image"
            )
        # Facts in a bucket are made once for all nodes, on local disks once for each node.
        self.prepare_data_per_node = self.registry.cache.storage.local_path("catalog") is not None
        if not self.registry.eval:
            # Lightning asks for no loader where the method is not overridden; an empty one
            # it would warn of at every start.
            self.val_dataloader = super().val_dataloader  # type: ignore[method-assign]
        self.sources: dict[str, Source] = {}
        self.streams: dict[str, StreamSource] = {}
        self._plan: Plan | None = None
        self._excluded: dict[str, Excluded] = {}  # known once there is a plan
        # Weak: trainers may ask for new ones every epoch, and drop the old ones.
        self._loaders: WeakSet[TrainLoader | EvalLoader] = WeakSet()
        self._unchecked: dict[str, Any] | None = None
        self._position, self._layout = Position(), Layout()

    @property
    def plan(self) -> Plan:
        """The plan; there is one after `setup`."""
        if self._plan is None:
            raise PlanError("there is no plan yet; call prepare_data() and setup() first")
        return self._plan

    def prepare_data(self) -> None:
        """Measure, decide and encode what is new; Lightning calls it in one process a node."""
        self._open_streams()  # first: whether they can be reached shows in seconds
        if not self.sources:
            self.sources = prepare(self.registry, seed=self.seed)

    def setup(self, stage: str = "fit") -> None:
        """Make the plan from the catalogs; Lightning calls it in every process.

        Raises:
            PlanError: The mixture cannot be planned.
            ResumeError: The checkpoint loaded before belongs to another plan.
        """
        if not self.sources:
            self.sources = load(self.registry, seed=self.seed)
        self._open_streams()
        if self._plan is None:
            with self.registry.telemetry.stage("plan") as record:
                self._excluded = resolve(self.exclude, self.sources, self.streams)
                self._plan = Plan(
                    [self._plan_backend(name) for name in self.registry.data],
                    batch_size=self.batch_size,
                    seed=self.seed,
                    weighting=self.sampling.weighting,
                    selection=self.sampling.selection,
                    short_batch=self.sampling.short_batch,
                    exclude={n: e for n, e in self._excluded.items() if n in self.registry.data},
                )
                record.counts["steps"] = self._plan.steps(0)
            self._check_restored()
        if self.trainer is not None:
            self._layout = Layout(
                self.trainer.global_rank,
                self.trainer.world_size,
                self.trainer.accumulate_grad_batches,
            )
            if stage == TrainerFn.FITTING:
                self._join(self.trainer)

    def train_dataloader(self) -> TrainLoader:
        """Return this rank's micro-batches, epoch after epoch."""
        if self.ledger.folder is not None:
            self.ledger.begin(self._about())
        loader = TrainLoader(
            self.plan, self._collate(), self.prefetch, self._layout, self._position, self.ledger
        )
        self._loaders.add(loader)
        return loader

    def val_dataloader(self) -> EvalLoader:
        """Return every sample of the eval backends once; not called where there are none."""
        plans = [
            EvalPlan(eval_backend(self.sources[name], self._excluded), batch_size=self.batch_size)
            for name in self.registry.eval
        ]
        loader = EvalLoader(plans, self._collate(), self.prefetch, self._layout)
        self._loaders.add(loader)
        return loader

    def state_dict(self) -> dict[str, Any]:
        """Return the plan's fingerprint and the last completed optimizer step."""
        epoch, step = self.committed
        self.ledger.flush()
        return {
            "fingerprint": self.plan.fingerprint,
            "plan": self.plan.describe(),
            "epoch": epoch,
            "step": step,
            "streams": self._stream_states(epoch, step),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue after the last completed step of a checkpoint.

        Raises:
            ResumeError: The checkpoint belongs to another plan; the message shows the
                difference, key by key.
        """
        if self.trainer is not None and self.trainer.state.fn != TrainerFn.FITTING:
            return  # a model is looked at, not trained on
        self._unchecked = dict(state_dict)
        self._position.move(state_dict["epoch"], state_dict["step"])
        if self._plan is not None:
            self._check_restored()

    @property
    def committed(self) -> tuple[int, int]:
        """The epoch, and the number of its optimizer steps that are completed."""
        return self._position.committed

    def count_micro_batch(self) -> None:
        """Note that the trainer has completed one more micro-batch.

        Lightning's trainer is watched already; a loop of your own calls this after each one.
        """
        self._position.count()
        self.ledger.commit(*self.committed)

    def end_epoch(self, epoch: int, step: int) -> None:
        """Note that an epoch ended after so many steps, perhaps before its last one.

        Lightning's trainer is watched already. Streams go on from there; without this they
        take every epoch for a whole one.
        """
        given = self._given(epoch, step)
        for name, stream in self.streams.items():
            stream.end_epoch(epoch, given[name])

    def teardown(self, stage: str = "fit") -> None:
        """Stop prefetching; the stores stay open for another fit until `close`."""
        del stage
        for loader in self._loaders:
            loader.close()
        self.ledger.close()
        for stream in self.streams.values():
            stream.pause()

    def on_exception(self, exception: BaseException) -> None:
        """Stop prefetching; Lightning calls it instead of `teardown` when a fit fails."""
        del exception
        self.teardown()

    def close(self) -> None:
        """Stop prefetching and close every store and storage."""
        self.teardown()
        for stream in self.streams.values():
            stream.close()
        self.registry.close()

    def write_metrics(self, folder: Path) -> None:
        """Write what each stage took to `metrics.json` in a folder."""
        self.registry.write_metrics(folder)

    def _collate(self) -> Collate:
        return Collate(self.sources, self.registry.engine, self.seed, self.streams)

    def _about(self) -> About:
        """Return what the ledger says its steps are steps of."""
        return About(
            rank=self._layout.rank,
            ranks=self._layout.ranks,
            micros=self._layout.micros,
            fingerprint=self.plan.fingerprint,
            seed=self.seed,
            identities={each.name: each.identity for each in self.plan.backends},
            streams=tuple(self.streams),
        )

    def _open_streams(self) -> None:
        for name, backend in self.registry.streams.items():
            if name in self.streams:
                continue
            source = StreamSource(
                backend,
                batch_size=self.batch_size,
                seed=self.seed,
                latents=self.registry.image_store(backend),
                text=self.registry.text_store(backend),
            )
            with self.registry.telemetry.stage(f"open {name}") as record:
                record.counts["batches in a pass"] = source.batches_per_pass()
            self.streams[name] = source

    def _plan_backend(self, name: str) -> PlanBackend:
        if name in self.streams:
            return plan_stream(self.streams[name], self.batch_size)
        return plan_backend(self.sources[name])

    def _given(self, epoch: int, step: int) -> dict[str, int]:
        """Return how many batches each stream gives in an epoch before a step."""
        # Nothing before the first; and the epoch after a run's last one cannot be asked.
        given = self.plan.given(epoch, step) if self.streams and step else {}
        return {name: given.get(name, 0) for name in self.streams}

    def _stream_states(self, epoch: int, step: int) -> dict[str, Any]:
        given = self._given(epoch, step)
        return {
            name: stream.state_dict(epoch, given[name]) for name, stream in self.streams.items()
        }

    def _restore_streams(self, state: dict[str, Any]) -> None:
        if not self.streams:
            return
        epoch, step = state["epoch"], state["step"]
        # A plan that was changed may have shorter epochs.
        given = self._given(epoch, min(step, self.plan.steps(epoch)) if step else 0)
        for name, stream in self.streams.items():
            stream.load_state_dict(state.get("streams", {}).get(name), epoch, given[name])

    def _join(self, trainer: Trainer) -> None:
        """Take part in a fit: watch the trainer's steps."""
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        if any(isinstance(callback, GradientAccumulationScheduler) for callback in callbacks):
            raise PlanError(
                "gradient accumulation must stay the same for the whole run, since it divides "
                "the batches of the plan; remove GradientAccumulationScheduler and set "
                "trainer.accumulate_grad_batches"
            )
        if any(backend.window != Window() for backend in self.plan.backends):
            # Else Lightning cuts every epoch to the length of the first one.
            trainer.reload_dataloaders_every_n_epochs = 1  # type: ignore[attr-defined]
        if not any(isinstance(c, _Commits) and c.data is self for c in callbacks):
            if not self._position.restored:
                self._position = Position()
            # First, so that a checkpoint saved in the same hook counts the step.
            callbacks.insert(0, _Commits(self, self._position))
        self._position.divide(self._layout.micros)

    def _check_restored(self) -> None:
        state, self._unchecked = self._unchecked, None
        if state is None:
            return
        if state["fingerprint"] == self.plan.fingerprint or self.accept_changed_plan:
            self._restore_streams(state)
            return
        changes = difference(state["plan"], self.plan.describe())
        lines = "\n".join(f"  {change}" for change in changes)
        raise ResumeError(
            f"the checkpoint belongs to another plan:\n{lines}\nRestore these settings or the "
            "data, or accept the new plan from the same step on with "
            "data.accept_changed_plan=true"
        )


def plan_backend(source: Source) -> PlanBackend:
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


def eval_backend(source: Source, excluded: Mapping[str, Excluded]) -> PlanBackend:
    """Return what validation must know of a backend: without what is excluded, at any step."""
    shape = plan_backend(source)
    return remaining(shape, excluded[shape.name]) if shape.name in excluded else shape


def plan_stream(source: StreamSource, batch_size: int) -> PlanBackend:
    """Return what the plan must know of a stream: how many whole batches an epoch has.

    Rows are numbers in the epoch; which samples they are shows when they are read.
    """
    rows = source.batches_per_pass() * batch_size
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
    )


class _Commits(Callback):
    """Counts what a trainer has completed; a step commits with its last micro-batch."""

    def __init__(self, data: FactoryDataModule, position: Position) -> None:
        self.data, self.position = data, position

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make a trainer that was restored agree with where the run stands."""
        del pl_module
        if not self._watches(trainer):
            return
        if (
            not self.position.restored
            and trainer.current_epoch
            and not any(self.position.committed)
        ):
            self.position.move(trainer.current_epoch, 0)  # restored without a state of this data
        if self.position.restored:
            _, step = self.position.next(self.data.plan.steps)
            _align(trainer, step * trainer.accumulate_grad_batches)

    def on_train_batch_end(self, trainer: Trainer, *hook: Any) -> None:
        """Count one micro-batch."""
        if self._watches(trainer):
            self.data.count_micro_batch()
            self.on_train_epoch_end(trainer, *hook)

    def on_train_epoch_end(self, trainer: Trainer, *hook: Any) -> None:
        """Note the end of an epoch, unless the run merely stops in the middle of one."""
        del hook
        if self._watches(trainer) and trainer.is_last_batch:
            ended = self.position.finish()
            if ended is not None:
                self.data.end_epoch(*ended)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the loaders: Lightning's own end asks them for an epoch that may not exist."""
        del pl_module
        if self._watches(trainer):
            self.data.teardown()

    def _watches(self, trainer: Trainer) -> bool:
        """Tell whether it is this data that the trainer trains on."""
        return trainer.datamodule is self.data  # type: ignore[attr-defined]


def _align(trainer: Trainer, done: int) -> None:
    """Set a restored trainer's count of micro-batches completed in the epoch.

    Its own count is of another accumulation where that was changed, and goes on from the
    middle of a step where a checkpoint was saved there.
    """
    fit, loop = trainer.fit_loop, trainer.fit_loop.epoch_loop
    epochs, batches = fit.epoch_progress, loop.batch_progress
    if batches.is_last_batch and not loop.val_loop.restarted_mid_evaluation:
        # Saved while an epoch was being closed. Lightning would fetch a batch of the next one to
        # find that out, or hold the old epoch's count against the next one's length.
        at: Any = epochs.current
        if at.processed < at.started:
            epochs.increment_processed()
        if at.completed < at.processed:
            epochs.increment_completed()
        for each in (fit, loop, loop.val_loop):
            each.on_iteration_done()
    elif not batches.is_last_batch:
        # The loop adds the batch that was being closed when the checkpoint was saved.
        batches.current.completed = done - int(loop.restarted_on_train_batch_end)
