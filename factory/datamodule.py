"""Where Lightning enters: backends in, batches of the plan out."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, Trainer

from factory.backends.image import ImageBackend
from factory.backends.source import Source
from factory.bulk import Engine
from factory.cache.place import CachePlace
from factory.engine.local import LocalEngine
from factory.errors import ConfigError, PlanError, ResumeError
from factory.preparation import load, prepare
from factory.registry import Backend, Registry
from factory.runtime.collate import Collate
from factory.runtime.fetcher import Prefetch
from factory.runtime.iterator import EvalLoader, Layout, Position, TrainLoader
from factory.sampling.evaluation import EvalPlan
from factory.sampling.fingerprint import difference
from factory.sampling.mixture import Mixture
from factory.sampling.passes import PlanBackend
from factory.sampling.plan import Plan
from factory.storage.local import LocalStorage
from factory.telemetry import Telemetry


class FactoryDataModule(LightningDataModule):
    """Training data from named backends, in the order of a plan that resumes exactly.

    `prepare_data` (one process) measures, decides and encodes; `setup` (every process) makes
    the plan. Batches are `factory.runtime.batch.Batch`. The state in a Lightning checkpoint
    is the plan's fingerprint, the epoch and the last optimizer step that was completed.

    Args:
        backends: Sources of samples, and of embeddings.
        batch_size: Samples per optimizer step, over all ranks and accumulation.
        seed: Seed of the plan, of random crops and of the choice among captions.
        sampling: Weights, selection and short batches; uniform and balanced if None.
        cache: Where facts and tensors are kept; the folder "cache" if None.
        prefetch: How far batches are prepared ahead; 4 batches in threads if None.
        engine: Where bulk work runs; this machine's threads if None.
        accept_changed_plan: Continue from a checkpoint that belongs to another plan.
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
        self._plan: Plan | None = None
        self._loaders: list[TrainLoader | EvalLoader] = []
        self._restored: dict[str, Any] | None = None
        self._begun = (0, 0)
        self._micros_done = 0
        self._ended = -1
        self._layout = Layout()

    @property
    def plan(self) -> Plan:
        """The plan; there is one after `setup`."""
        if self._plan is None:
            raise PlanError("there is no plan yet; call prepare_data() and setup() first")
        return self._plan

    def prepare_data(self) -> None:
        """Measure, decide and encode what is new; Lightning calls it in one process a node."""
        if not self.sources:
            self.sources = prepare(self.registry, seed=self.seed)

    def setup(self, stage: str = "fit") -> None:
        """Make the plan from the catalogs; Lightning calls it in every process.

        Raises:
            PlanError: The mixture cannot be planned.
            ResumeError: The checkpoint loaded before belongs to another plan.
        """
        del stage  # one plan serves fitting and validation
        if not self.sources:
            self.sources = load(self.registry, seed=self.seed)
        if self._plan is None:
            with self.registry.telemetry.stage("plan") as record:
                self._plan = Plan(
                    [plan_backend(self.sources[name]) for name in self.registry.data],
                    batch_size=self.batch_size,
                    seed=self.seed,
                    weighting=self.sampling.weighting,
                    selection=self.sampling.selection,
                    short_batch=self.sampling.short_batch,
                )
                record.counts["steps"] = self._plan.steps(0)
            self._check_restored()
        if self.trainer is not None:
            self._join(self.trainer)

    def train_dataloader(self) -> TrainLoader:
        """Return this rank's micro-batches, epoch after epoch."""
        position = Position(self._next, self._begin, self._end)
        loader = TrainLoader(self.plan, self._collate(), self.prefetch, self._layout, position)
        self._loaders.append(loader)
        return loader

    def val_dataloader(self) -> EvalLoader:
        """Return every sample of the eval backends once; not called where there are none."""
        plans = [
            EvalPlan(plan_backend(self.sources[name]), batch_size=self.batch_size)
            for name in self.registry.eval
        ]
        loader = EvalLoader(plans, self._collate(), self.prefetch, self._layout)
        self._loaders.append(loader)
        return loader

    def state_dict(self) -> dict[str, Any]:
        """Return the plan's fingerprint and the last completed optimizer step."""
        epoch, step = self.committed
        return {
            "fingerprint": self.plan.fingerprint,
            "plan": self.plan.describe(),
            "epoch": epoch,
            "step": step,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue after the last completed step of a checkpoint.

        Raises:
            ResumeError: The checkpoint belongs to another plan; the message shows the
                difference, key by key.
        """
        self._restored = dict(state_dict)
        self._begun, self._micros_done = (state_dict["epoch"], state_dict["step"]), 0
        if self._plan is not None:
            self._check_restored()

    @property
    def committed(self) -> tuple[int, int]:
        """The epoch, and the number of its optimizer steps that are completed."""
        epoch, first = self._begun
        return epoch, first + self._micros_done // self._layout.micros

    def count_micro_batch(self) -> None:
        """Note that the trainer has completed one more micro-batch.

        Lightning's trainer is watched already; a loop of your own calls this after each one.
        """
        self._micros_done += 1

    def teardown(self, stage: str = "fit") -> None:
        """Stop prefetching; the stores stay open for another fit until `close`."""
        del stage
        for loader in self._loaders:
            loader.close()
        self._loaders.clear()

    def close(self) -> None:
        """Stop prefetching and close every store and storage."""
        self.teardown()
        self.registry.close()

    def write_metrics(self, folder: Path) -> None:
        """Write what each stage took to `metrics.json` in a folder."""
        self.registry.write_metrics(folder)

    def _collate(self) -> Collate:
        return Collate(self.sources, self.registry.engine, self.seed)

    def _join(self, trainer: Trainer) -> None:
        """Take the layout from a trainer, and watch its steps."""
        micros = trainer.accumulate_grad_batches
        self._layout = Layout(trainer.global_rank, trainer.world_size, micros)
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        watching = [c for c in callbacks if isinstance(c, _Commits) and c.data is self]
        if not watching:
            self._begun, self._micros_done, self._ended = (0, 0), 0, -1
            # First, so that a checkpoint saved in the same hook counts the step.
            callbacks.insert(0, _Commits(self))

    def _next(self) -> tuple[int, int]:
        """Say which (epoch, step) comes next."""
        epoch = 0 if self.trainer is None else self.trainer.current_epoch
        if self._restored is not None:
            at, step = self._restored["epoch"], self._restored["step"]
            if at >= epoch and step < self.plan.steps(at):
                return at, step
            self._ended = max(self._ended, at)
        # A trainer that stops by steps may count an epoch as open that was given out whole.
        return max(epoch, self._ended + 1), 0

    def _begin(self, epoch: int, step: int) -> None:
        self._restored = None
        self._begun, self._micros_done = (epoch, step), 0

    def _end(self, epoch: int) -> None:
        self._ended = epoch

    def _check_restored(self) -> None:
        if self._restored is None or self._restored["fingerprint"] == self.plan.fingerprint:
            return
        if self.accept_changed_plan:
            return
        changes = difference(self._restored["plan"], self.plan.describe())
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
    if not isinstance(backend, ImageBackend):
        return shape
    return replace(
        shape,
        probability=backend.probability,
        repeats=backend.repeats,
        window=backend.window,
    )


class _Commits(Callback):
    """Counts micro-batches the trainer has completed; a step commits with its last one."""

    def __init__(self, data: FactoryDataModule) -> None:
        self.data = data

    def on_train_batch_end(self, *hook: Any) -> None:
        """Count one micro-batch."""
        del hook
        self.data.count_micro_batch()
