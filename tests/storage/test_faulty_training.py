"""What becomes of training batches whose pictures lie behind a network that misbehaves."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from factory import Batch, FactoryDataModule, ImageBackend, Workspace
from factory.catalog.captions.sources import FilenameCaptions
from factory.errors import FetchError, QuarantineError, StorageUnavailableError
from factory.lightning.data_state import sealed
from factory.runtime.batches.quarantine import QuarantineLimit
from factory.runtime.prefetch.batch_fetcher import Prefetch
from factory.storage import LocalStorage, S3Storage, retry
from tests.storage import proxy as faults
from tests.storage.conftest import BUCKET
from tests.storage.proxy import Fault, Proxy, Script, proxied
from tests.support.pictures import write_pictures

PICTURES = 16


@pytest.fixture(scope="module")
def prefix() -> str:
    return uuid.uuid4().hex


@pytest.fixture
def proxy(weed_endpoint: str, credentials: None, prefix: str, tmp_path: Path) -> Iterator[Proxy]:
    """Yield a proxy before a server that holds some pictures of two shapes."""
    storage = S3Storage(BUCKET, prefix, weed_endpoint)
    if not storage.exists("p/0000.png"):
        for file in write_pictures(tmp_path / "p", PICTURES, sizes=((96, 64), (64, 96))):
            storage.write(f"p/{file.name}", file.read_bytes())
    storage.close()
    yield from proxied(weed_endpoint)


@pytest.fixture
def data(
    proxy: Proxy, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FactoryDataModule]:
    """Yield a data module that has listed the pictures through the proxy."""
    monkeypatch.setattr(retry, "BACKOFF_S", 0.001)
    storage = S3Storage(BUCKET, prefix, proxy.url, timeout_s=1, max_attempts=8, deadline_s=60)
    module = FactoryDataModule(
        [
            ImageBackend(
                name="pics",
                prefix="p",
                caption=FilenameCaptions(),
                storage=storage,
                resolution=64,
                alignment=16,
            )
        ],
        batch_size=4,
        cache=Workspace(LocalStorage(str(tmp_path / "cache"))),
        quarantine=QuarantineLimit(share=0, at_least=2),
    )
    module.prepare_data()
    module.setup()
    yield module
    module.close()


def batches(data: FactoryDataModule) -> list[Batch]:
    return list(data.train_dataloader())


def same(some: list[Batch], others: list[Batch]) -> None:
    """Check that batches hold the same samples and the same pixels."""
    assert [batch.keys for batch in some] == [batch.keys for batch in others]
    for one, other in zip(some, others, strict=True):
        assert one.pixels is not None
        assert other.pixels is not None
        assert torch.equal(one.pixels, other.pixels)
        assert one.replaced == ()


def fresh(data: FactoryDataModule) -> FactoryDataModule:
    """Let the data module begin the first epoch again."""
    data.load_state_dict(sealed({**data.state_dict(), "epoch": 0, "step": 0}))
    return data


@pytest.mark.parametrize(
    "fault",
    [
        faults.hang,
        faults.hang_in_body,
        faults.says(503),
        faults.says(429, Retry_After="0"),
        faults.reset,
        faults.reset_in_body,
        faults.truncated,
        faults.wrong_bytes,
    ],
)
def test_what_passes_leaves_no_trace(data: FactoryDataModule, proxy: Proxy, fault: Fault) -> None:
    wanted = batches(data)
    proxy.script = Script(first=[fault] * 3)
    same(batches(fresh(data)), wanted)
    assert not proxy.script.first


@pytest.mark.parametrize("share", [0.01, 0.1])
def test_some_failing_reads_change_nothing(
    data: FactoryDataModule, proxy: Proxy, share: float
) -> None:
    wanted = batches(data)
    proxy.script = Script(share=share, faulty=faults.says(503))
    same(batches(fresh(data)), wanted)


def test_a_server_that_fails_for_good_ends_the_run_with_one_error(
    data: FactoryDataModule, proxy: Proxy
) -> None:
    proxy.script = Script(always=faults.says(503))
    with pytest.raises(StorageUnavailableError, match="503") as caught:
        batches(data)
    sample, step = caught.value.__notes__[-2:]
    assert sample.startswith("while reading 'p/00")
    assert sample.endswith("of backend 'pics'")
    assert "epoch 0, step 0" in step
    assert not data.quarantine.found


def test_a_read_that_hangs_ends_the_run_before_its_deadline(
    data: FactoryDataModule, proxy: Proxy
) -> None:
    proxy.script = Script(always=faults.hang)
    data.prefetch = Prefetch(timeout_s=0.2)
    with pytest.raises(FetchError, match=r"no batch within prefetch.timeout_s=0.2 s: epoch 0"):
        batches(data)


@pytest.mark.parametrize(
    ("fault", "stage"),
    [(faults.says(404), "read"), (faults.wrong_bytes, "read")],
)
def test_one_object_that_is_gone_or_another_is_replaced(
    data: FactoryDataModule, proxy: Proxy, fault: Fault, stage: str
) -> None:
    wanted = batches(data)
    proxy.script = Script(always=fault, key="p/0005.png")
    made = batches(fresh(data))
    (replaced,) = [each for batch in made for each in batch.replaced]
    assert (replaced.key, replaced.stage) == ("p/0005.png", stage)
    for batch, planned in zip(made, wanted, strict=True):
        moved = [key for key, was in zip(batch.keys, planned.keys, strict=True) if key != was]
        assert moved == [each.substitute_key for each in batch.replaced]


def test_many_objects_that_are_gone_stop_the_run(data: FactoryDataModule, proxy: Proxy) -> None:
    proxy.script = Script(share=1.0, faulty=faults.says(404))
    with pytest.raises(QuarantineError, match="of 16 samples cannot be used, 2 may be"):
        batches(data)
