"""What batches have of each type of conditioning, and what becomes of missing partners."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from factory import Batch, ConfigError, FactoryDataModule, ImageBackend
from factory.backends.conditioning import KINDS
from factory.backends.image import Crop
from factory.errors import EmptyBackendError, PairingError
from factory.runtime.batches.batch import each_tensor
from factory.runtime.batches.collate import batch_bytes
from tests.conditioning.building import beside, ready, write_sources
from tests.runtime.crossing import Crossing
from tests.support.pictures import colour, write_pictures

LABELS = (10, 100, 200)


def batches(data: FactoryDataModule) -> list[Batch]:
    made = list(data.train_dataloader())
    data.close()
    return made


def number(key: str) -> int:
    return int(Path(key).stem)


def write_labels(folder: Path, count: int) -> None:
    """Write maps in which every pixel has one of three values, and neighbours differ."""
    folder.mkdir(parents=True)
    for n in range(count):
        drawn = np.random.default_rng(n).choice(LABELS, (64, 96)).astype(np.uint8)
        Image.fromarray(drawn).save(folder / f"{n:04d}.png")


@pytest.mark.parametrize("kind", ["mask", "segmentation"])
def test_labels_are_never_mixed(tmp_path: Path, kind: str) -> None:
    write_sources(tmp_path)
    write_labels(tmp_path / "cond", 8)
    for batch in batches(ready(tmp_path, beside(tmp_path, type=kind), encoded=True)):
        given = batch.conditioning["cond"]
        assert isinstance(given, torch.Tensor)
        assert given.shape == (len(batch), 48, 80, KINDS[kind].channels)
        assert set(given.unique().tolist()) == set(LABELS)


@pytest.mark.parametrize(
    ("kind", "encoded", "shape"),
    [
        ("controlnet", True, (16, 6, 10)),
        ("reference_strict", True, (16, 6, 10)),
        ("controlnet", False, (48, 80, 3)),
        ("mask", False, (48, 80, 1)),
    ],
)
def test_a_type_says_what_is_delivered(
    tmp_path: Path, kind: str, encoded: bool, shape: tuple[int, ...]
) -> None:
    write_sources(tmp_path)
    write_pictures(tmp_path / "cond", 8, sizes=((96, 64),), captions=False)
    (first, *_) = batches(ready(tmp_path, beside(tmp_path, type=kind), encoded=encoded))
    given = first.conditioning["cond"]
    assert isinstance(given, torch.Tensor)
    assert given.shape[1:] == shape


def half_masks(root: Path) -> None:
    """Write masks whose left half is white, and a column of which lies within a cell."""
    (root / "cond").mkdir()
    mask = np.zeros((64, 96), dtype=np.uint8)
    mask[:, :48] = 255
    for n in range(8):
        Image.fromarray(mask).save(root / f"cond/{n:04d}.png")


@pytest.mark.parametrize(
    ("settings", "dtype", "shape", "left", "right"),
    [
        ({}, torch.uint8, (48, 80, 1), 255, 0),
        ({"values": "bool"}, torch.bool, (48, 80, 1), 1, 0),
        ({"values": "float"}, torch.float32, (48, 80, 1), 1, 0),
        ({"deliver": "cells"}, torch.uint8, (1, 6, 10), 255, 0),
        ({"deliver": "cells", "values": "float"}, torch.float32, (1, 6, 10), 1, 0),
        ({"stored": True}, torch.uint8, (48, 80, 1), 255, 0),
    ],
)
def test_masks_come_as_they_are_asked_for(
    tmp_path: Path, settings: dict[str, object], dtype: torch.dtype, shape: tuple[int, ...],
    left: float, right: float,
) -> None:  # fmt: skip
    write_sources(tmp_path)
    half_masks(tmp_path)
    mask = beside(tmp_path, type="mask", **settings)
    for batch in batches(ready(tmp_path, mask, encoded=True)):
        given = batch.conditioning["cond"]
        assert isinstance(given, torch.Tensor)
        assert (given.dtype, given.shape[1:]) == (dtype, shape)
        across = given.movedim(1, -1) if "deliver" in settings else given
        middle = across.shape[2] // 2
        assert (across[:, :, :middle] == left).all()
        assert (across[:, :, middle:] == right).all()


def test_a_cell_of_a_mask_is_its_mean_and_of_labels_its_middle() -> None:
    pixels = torch.zeros(1, 16, 8, 3, dtype=torch.uint8)
    pixels[0, :4] = 200
    pixels[0, 12:, 4:] = 90
    cell = beside(Path(), type="mask", deliver="cells")
    source = ImageBackend(name="pics", storage=cell.storage)
    mask = cell.bonded(source, 0, 8).delivered(pixels)
    assert mask.tolist() == [[[[100], [22]]]]
    labels = beside(Path(), type="segmentation", deliver="cells").bonded(source, 0, 8)
    assert labels.delivered(pixels)[0, :, :, 0].tolist() == [[0, 90]] * 3


def test_loose_references_keep_their_own_shapes(tmp_path: Path) -> None:
    write_sources(tmp_path)
    write_pictures(tmp_path / "cond", 8, sizes=((64, 96), (80, 80)), captions=False)
    loose = beside(tmp_path, type="reference_loose", resolution=48)
    for encoded in (False, True):
        data = ready(tmp_path, loose, encoded=encoded)
        names = {b.name for b in data.sources["cond"].catalog.decisions.buckets}
        assert names == {"32x64", "48x48"}
        for batch in batches(data):
            given = batch.conditioning["cond"]
            assert isinstance(given, list)
            for key, one in zip(batch.keys, given, strict=True):
                wide, tall = (48, 48) if number(key) % 2 else (32, 64)
                if encoded:
                    assert one.shape == (16, tall // 8, wide // 8)
                else:
                    assert one.shape == (tall, wide, 3)
                    assert tuple(one[5, 5].tolist()) == colour(number(key))


def test_loose_references_have_the_size_of_the_source_where_they_set_none(
    tmp_path: Path,
) -> None:
    write_sources(tmp_path)
    write_pictures(tmp_path / "cond", 8, sizes=((64, 96),), captions=False)
    data = ready(tmp_path, beside(tmp_path, type="reference_loose"))
    assert {b.name for b in data.sources["cond"].catalog.decisions.buckets} == {"48x80"}
    data.close()


def test_lists_are_counted_copied_and_sent_as_tensors_are(tmp_path: Path) -> None:
    write_sources(tmp_path)
    write_pictures(tmp_path / "cond", 8, sizes=((64, 96), (80, 80)), captions=False)
    batch = batches(ready(tmp_path, beside(tmp_path, type="reference_loose")))[0]
    given = batch.conditioning["cond"]
    assert batch.pixels is not None
    assert batch_bytes(batch) == batch.pixels.nbytes + sum(one.nbytes for one in given)
    moved = each_tensor(batch, lambda tensor: tensor.float())
    assert all(one.dtype == torch.float32 for one in moved.conditioning["cond"])
    back = Crossing().through(batch)
    assert all(map(torch.equal, back.conditioning["cond"], given))


@pytest.mark.parametrize("setting", [{"resolution": 32}, {"crop": Crop()}, {"max_samples": 3}])
def test_strict_types_refuse_sizes_of_their_own(setting: dict[str, object]) -> None:
    (name,) = setting
    with pytest.raises(ValueError, match=rf"'cond': {name} cannot be set.*data\.backends\.pics"):
        beside(Path(), **setting)
    beside(Path(), type="reference_loose", **setting)


def test_unknown_types_are_refused_with_what_may_be_meant() -> None:
    with pytest.raises(ValueError, match=r"got 'masc'; did you mean 'mask'\?"):
        beside(Path(), type="masc")


def without_some(root: Path) -> None:
    """Write 8 pictures, of which two have no partner, and one partner of nobody."""
    write_sources(root)
    write_pictures(root / "cond", 6, sizes=((96, 64),), captions=False)
    write_pictures(root / "cond", 1, first=99, sizes=((96, 64),), captions=False)


def test_missing_partners_are_told_on_both_sides(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    without_some(tmp_path)
    with caplog.at_level(logging.WARNING):
        data = ready(tmp_path, beside(tmp_path))
    assert [record.message for record in caplog.records if "no " in record.message] == [
        "2 of 8 samples of 'pics' have no partner in 'cond' (src/0006.png, src/0007.png)",
        "1 of 7 pictures of 'cond' belong to no sample of 'pics' (cond/0099.png)",
    ]
    assert data.sources["pics"].catalog.decisions.dropped() == {"no partner in cond": 2}
    data.close()


def test_missing_partners_may_be_an_error(tmp_path: Path) -> None:
    without_some(tmp_path)
    with pytest.raises(PairingError, match=r"2 of 8 samples have no partner in cond \(src/0006"):
        ready(tmp_path, beside(tmp_path, missing_partner="error"))


@pytest.mark.parametrize("encoded", [False, True])
@pytest.mark.parametrize("kind", ["controlnet", "mask", "reference_loose"])
def test_missing_partners_may_be_zeros_that_are_marked(
    tmp_path: Path, kind: str, encoded: bool
) -> None:
    without_some(tmp_path)
    cond = beside(tmp_path, type=kind, missing_partner="keep")
    seen = set()
    for batch in batches(ready(tmp_path, cond, encoded=encoded)):
        valid, given = batch.conditioning_valid["cond"], batch.conditioning["cond"]
        assert len(given) == len(batch)
        for key, there, one in zip(batch.keys, valid.tolist(), given, strict=True):
            seen.add(number(key))
            assert there == (number(key) < 6)
            if not there:
                assert not one.any()
                assert (one.numel() == 0) == (kind == "reference_loose")
            elif kind == "controlnet" and not encoded:
                assert tuple(one[5, 5].tolist()) == colour(number(key))
    assert seen == set(range(8))


def test_a_batch_without_any_partner_has_zeros_only(tmp_path: Path) -> None:
    write_sources(tmp_path, 8)
    write_pictures(tmp_path / "cond", 1, sizes=((96, 64),), captions=False)
    cond = beside(tmp_path, missing_partner="keep")
    for encoded in (False, True):
        made = batches(ready(tmp_path, cond, encoded=encoded))
        (alone,) = [batch for batch in made if not batch.conditioning_valid["cond"].any()]
        given = alone.conditioning["cond"]
        assert isinstance(given, torch.Tensor)
        assert not given.any()
        assert given.shape == (alone.latents if encoded else alone.pixels).shape  # type: ignore[union-attr]


def test_no_partner_at_all_is_an_error_whatever_is_done_about_missing_ones(
    tmp_path: Path,
) -> None:
    write_sources(tmp_path)
    write_pictures(tmp_path / "cond", 1, first=99, captions=False)
    with pytest.raises(EmptyBackendError, match="no sample has a partner in 'cond'"):
        ready(tmp_path, beside(tmp_path, missing_partner="keep"))


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"deliver": "latents"}, r"cond\.deliver=latents needs an image encoder.*encoder/image"),
        ({"deliver": "cells"}, r"cond\.deliver=cells .* has no image encoder"),
    ],
)
def test_deliveries_that_no_encoder_makes_are_refused(setting: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ready(Path(), beside(Path(), **setting))


@pytest.mark.parametrize("setting", [{"values": "bool"}, {"stored": False}])
def test_settings_of_pixels_are_refused_where_latents_are_delivered(
    setting: dict[str, object],
) -> None:
    (name,) = setting
    with pytest.raises(ConfigError, match=rf"{name}=.* is for pixels.*deliver=pixels"):
        ready(Path(), beside(Path(), **setting), encoded=True)
