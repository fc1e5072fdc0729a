"""Samples damaged or gone after the scan: replaced alike by every layout, within a limit."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from factory import Batch, ConditioningBackend, FactoryDataModule, ImageBackend
from factory.errors import QuarantineError, StorageUnavailableError
from factory.lightning.loaders import TrainLoader
from factory.lightning.position import Position
from factory.runtime.batches.quarantine import QuarantineLimit
from factory.sampling.rank_shares import RankLayout
from factory.storage.local import LocalStorage
from tests.scenarios.training.building import data_module, write_folders
from tests.support.pictures import write_pictures


@pytest.fixture
def data(tmp_path: Path) -> Iterator[FactoryDataModule]:
    """Yield a data module on pixels whose folders were scanned already."""
    write_folders(tmp_path)
    module = data_module(tmp_path, encoded=False, batch_size=4)
    module.prepare_data()
    module.setup()
    yield module
    module.close()


def batches(data: FactoryDataModule, ranks: int = 1, micros: int = 1) -> dict[Any, list[Batch]]:
    """Return the parts of each step of the first epoch, in the order of their places."""
    parts: dict[Any, list[Batch]] = {}
    for rank in range(ranks):
        layout = RankLayout(rank, ranks, micros)
        loader = TrainLoader(
            data.plan, data._collate(), data.prefetch, layout, Position(), records=[data.quarantine]
        )
        for batch in loader:
            parts.setdefault(batch.step, []).append(batch)
    return parts


def keys(parts: dict[Any, list[Batch]]) -> dict[Any, list[str]]:
    return {step: [key for part in made for key in part.keys] for step, made in parts.items()}


def spoil(root: Path) -> set[str]:
    """Damage one picture, empty one and take one away; return their keys."""
    (root / "a/0004.png").write_bytes((root / "a/0004.png").read_bytes()[:60])
    (root / "a/0007.png").write_bytes(b"")
    (root / "b/0103.png").unlink()
    return {"a/0004.png", "a/0007.png", "b/0103.png"}


def test_whoever_asks_gets_the_same_substitutes(data: FactoryDataModule, tmp_path: Path) -> None:
    whole = keys(batches(data))
    spoiled = spoil(tmp_path)
    alone = batches(data)
    for ranks, micros in ((2, 1), (1, 2), (2, 2), (4, 1)):
        assert keys(batches(data, ranks, micros)) == keys(alone)
    now = keys(alone)
    for step, planned in whole.items():
        for was, used in zip(planned, now[step], strict=True):
            assert used not in spoiled
            if was not in spoiled:
                assert used == was  # nothing else has moved
    replaced = [each for (part,) in alone.values() for each in part.replaced]
    assert {each.key for each in replaced} == spoiled
    stages = {each.key: each.stage for each in replaced}
    assert stages == {"a/0004.png": "decode", "a/0007.png": "decode", "b/0103.png": "read"}


def test_a_batch_says_what_it_replaced_and_holds_the_substitute(
    data: FactoryDataModule, tmp_path: Path
) -> None:
    spoil(tmp_path)
    for (part,) in batches(data).values():
        facts = data.sources[part.backend].catalog.facts
        assert part.keys == facts.texts("key", part.rows.numpy())
        assert part.pixels is not None
        assert len({(picture.float().mean().item()) for picture in part.pixels}) == len(
            set(part.keys)
        )
        for each in part.replaced:
            assert part.keys[each.place] == each.substitute_key
            assert facts.key(each.row) == each.key


def test_a_substitute_counts_for_nothing_in_validation(
    data: FactoryDataModule, tmp_path: Path
) -> None:
    catalog = data.sources["held"].catalog
    row = next(b.rows[0] for b in catalog.decisions.buckets if len(b.rows) > 1)
    spoiled = catalog.facts.key(int(row))
    (tmp_path / spoiled).write_bytes(b"nothing")
    counted = [
        key
        for batch in data.val_dataloader()
        for key, valid in zip(batch.keys, batch.valid.tolist(), strict=True)
        if valid
    ]
    assert sorted(counted) == sorted({f"held/020{n}.png" for n in range(5)} - {spoiled})


def test_a_bucket_without_a_whole_sample_says_so(data: FactoryDataModule, tmp_path: Path) -> None:
    bucket = data.sources["b"].catalog.decisions.buckets[0]
    for key in data.sources["b"].catalog.facts.texts("key", bucket.rows):
        (tmp_path / key).unlink()
    with pytest.raises(QuarantineError, match=rf"'b': no sample of bucket {bucket.name} is left"):
        batches(data)


@pytest.mark.parametrize("spoiled", [2, 3])
def test_more_than_are_allowed_stop_the_run(tmp_path: Path, spoiled: int) -> None:
    write_folders(tmp_path)
    two = QuarantineLimit(share=0, at_least=2)
    data = data_module(tmp_path, encoded=False, batch_size=4, quarantine=two)
    data.prepare_data()
    data.setup()
    for number in range(spoiled):
        (tmp_path / f"a/{number:04d}.png").write_bytes(b"nothing")
    if spoiled == 2:
        batches(data)
    else:
        with pytest.raises(QuarantineError, match="backend 'a': 3 of 13 samples cannot be used"):
            batches(data)
    data.close()


def test_none_may_be_allowed(tmp_path: Path) -> None:
    write_folders(tmp_path)
    none = QuarantineLimit(share=0, at_least=0)
    data = data_module(tmp_path, encoded=False, batch_size=4, quarantine=none)
    data.prepare_data()
    data.setup()
    os.truncate(tmp_path / "a/0004.png", 60)
    with pytest.raises(QuarantineError, match=r"a/0004\.png: decode failed: truncated") as caught:
        batches(data)
    assert any("backend 'a'" in note for note in caught.value.__notes__)
    data.close()


def test_a_failing_storage_is_raised_with_its_type_and_place(
    data: FactoryDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(self: LocalStorage, key: str, *_: Any) -> bytes:
        raise StorageUnavailableError(f"cannot read {key}: the server is down")

    monkeypatch.setattr(LocalStorage, "read", down)
    with pytest.raises(StorageUnavailableError, match="the server is down") as caught:
        batches(data)
    first, second = caught.value.__notes__
    assert first.startswith("while reading '")
    assert "epoch 0, step 0" in second
    assert not data.quarantine.found


def test_a_partner_that_is_gone_takes_its_sample_with_it(tmp_path: Path) -> None:
    write_pictures(tmp_path / "src", 6, sizes=((96, 64),))
    write_pictures(tmp_path / "cond", 6, sizes=((96, 64),))
    shared: dict[str, Any] = {
        "storage": LocalStorage(str(tmp_path)), "resolution": 64, "alignment": 16,
    }  # fmt: skip
    data = FactoryDataModule(
        [
            ImageBackend(name="pics", prefix="src", **shared),
            ConditioningBackend(
                name="edges", source="pics", prefix="cond", storage=LocalStorage(str(tmp_path))
            ),
        ],
        batch_size=3,
    )
    data.registry.cache = data.registry.cache.__class__(LocalStorage(str(tmp_path / "cache")))
    data.prepare_data()
    data.setup()
    (tmp_path / "cond/0002.png").unlink()
    made = [part for parts in batches(data).values() for part in parts]
    assert all("src/0002.png" not in part.keys for part in made)
    (replaced,) = [each for part in made for each in part.replaced]
    assert (replaced.key, replaced.stage) == ("src/0002.png", "read")
    assert replaced.reason.startswith("its partner cond/0002.png in edges: ")
    for part in made:
        assert part.pixels is not None
        assert (part.pixels == part.conditioning["edges"]).all()
    data.close()
