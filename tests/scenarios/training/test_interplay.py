"""Other processes, damage, exclusion, validation, ledger and resume, all of them at once."""

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

from factory import Batch, FactoryDataModule
from factory.ledger.reader import read_ledger
from factory.runtime.batches.quarantine import QuarantineLimit
from factory.runtime.prefetch.batch_fetcher import Prefetch
from factory.sampling.exclusion import Exclude
from tests.scenarios.training.building import Watching, data_module, trainer
from tests.support.pictures import write_pictures

pytestmark = pytest.mark.filterwarnings(
    "ignore:The '.*_dataloader' does not have many workers",
    "ignore:.*treespec, LeafSpec.*",
    "ignore:Be aware that when using `ckpt_path`",
)
STEPS, STOP = 12, 5  # an epoch has 8: the run stops in the first and ends in the second
MODES = ("inline", "thread", "process")
# Out from the beginning, from the fourth step on, and of validation.
EXCLUDED = {"b/0101.png": 1, "a/0003.png": 4, "held/0203.png": 1000}
DAMAGED = ("a/0004.png", "a/0009.png", "b/0106.png", "held/0200.png")


class Both(Watching):
    """Keeps the batches of validation, too."""

    def __init__(self) -> None:
        """Start with nothing seen."""
        super().__init__()
        self.validated: list[Batch] = []

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Keep the batch."""
        self.validated.append(batch)


def told(batches: list[Batch]) -> list[tuple[Any, ...]]:
    return [
        (
            b.epoch, b.step, b.backend, b.keys, b.captions, b.replaced, b.valid.tolist(),
            None if b.pixels is None else b.pixels.double().sum(dim=(1, 2, 3)).tolist(),
        )
        for b in batches
    ]  # fmt: skip


def scanned(root: Path, mode: str, **settings: Any) -> FactoryDataModule:
    data = data_module(
        root,
        encoded=False,
        prefetch=Prefetch(mode=mode),
        exclude=[Exclude([key], since) for key, since in EXCLUDED.items()],
        quarantine=QuarantineLimit(at_least=5),
        **settings,
    )
    data.prepare_data()
    return data


def spoil(root: Path) -> None:
    """Damage some pictures, and take one away."""
    for key in DAMAGED[1:]:
        (root / key).write_bytes((root / key).read_bytes()[:60])
    (root / DAMAGED[0]).unlink()


def fit(data: FactoryDataModule, root: Path, steps: int, **settings: Any) -> Both:
    model = Both()
    checkpoint = settings.pop("ckpt_path", None)
    trainer(root, max_steps=steps, val_check_interval=3, **settings).fit(
        model, datamodule=data, ckpt_path=checkpoint
    )
    data.close()
    return model


def used(folder: Path) -> dict[int, tuple[list[int], Any]]:
    """Return what a ledger says of each step."""
    steps = read_ledger(folder)
    return {n: (step.rows.tolist(), step.micros[0].replaced) for n, step in steps.items()}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return folders whose buckets have at least four samples each."""
    folder = tmp_path_factory.mktemp("together")
    write_pictures(folder / "a", 16)
    write_pictures(folder / "b", 12, first=100)
    write_pictures(folder / "held", 9, first=200)
    return folder


def test_wherever_batches_are_made_and_however_often_it_stops_they_are_the_same(
    root: Path, tmp_path: Path
) -> None:
    whole = {mode: scanned(root, mode, ledger=tmp_path / mode) for mode in MODES}
    parts = [scanned(root, mode, ledger=tmp_path / "parts") for mode in ("process", "thread")]
    spoil(root)
    models = {mode: fit(data, root, STEPS) for mode, data in whole.items()}
    batches = models["inline"].batches
    assert {each.key for b in batches for each in b.replaced} == set(DAMAGED[:3])
    for b in batches + models["inline"].validated:
        for key, since in EXCLUDED.items():
            assert key not in b.keys or b.global_step < since - 1
    for mode in MODES[1:]:
        assert told(models[mode].batches) == told(batches)
        assert told(models[mode].validated) == told(models["inline"].validated)
        assert whole[mode].quarantine.found == whole["inline"].quarantine.found
        assert used(tmp_path / mode) == used(tmp_path / "inline")

    saving = ModelCheckpoint(tmp_path / "kept", every_n_train_steps=STOP, save_top_k=-1)
    first = fit(parts[0], root, STOP, callbacks=[saving], enable_checkpointing=True)
    (checkpoint,) = tmp_path.glob("kept/*.ckpt")
    rest = fit(parts[1], root, STEPS, ckpt_path=str(checkpoint))
    assert told(first.batches + rest.batches) == told(batches)
    assert used(tmp_path / "parts") == used(tmp_path / "inline")
    assert sorted(used(tmp_path / "parts")) == list(range(STEPS))
