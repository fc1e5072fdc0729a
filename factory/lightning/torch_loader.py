"""Loaders that torch, and Fabric's `setup_dataloaders`, accept as a DataLoader."""

from collections.abc import Iterator
from typing import Any, NoReturn

from torch.utils.data import DataLoader, IterableDataset

from factory.lightning.loaders import EvalLoader, Loader, TrainLoader
from factory.runtime.batches.batch import Batch


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
