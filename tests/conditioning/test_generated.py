"""Conditioning made from a source's own pictures: no files, and what is stored of it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from factory import Batch, ConditioningBackend, FactoryDataModule, VideoBackend
from factory.backends.prepared import PreparedBackend
from factory.backends.sample_ids import find_sample, near_names
from factory.catalog.captions.sources import FilenameCaptions
from factory.conditioning import Canny, JpegArtifacts, RandomMasks, Superresolution
from factory.conditioning.generator import as_rgb, drawing
from factory.encoder.dct import BlockDCT
from factory.lightning.loaders import TrainLoader
from factory.lightning.position import Position
from factory.sampling.rank_shares import RankLayout
from factory.storage.local import LocalStorage
from tests.backends.test_prepared import Remote
from tests.catalog.fakes import ENGINE
from tests.conditioning.building import Negative, ready, write_sources
from tests.support.clips import write_clip
from tests.support.pixels import pixels_of


def made(generate: Any, **settings: Any) -> ConditioningBackend:
    """Return a conditioning backend that is generated; it needs no place of its own."""
    return ConditioningBackend(
        **{"name": "made", "source": "pics", "generate": generate, **settings}
    )


def write_noise(root: Path, count: int = 6) -> None:
    """Write photographs of nothing, which no two generators leave alike."""
    (root / "src").mkdir()
    for n in range(count):
        noise = np.random.default_rng(n).integers(0, 255, (64, 96, 3), dtype=np.uint8)
        Image.fromarray(noise).save(root / f"src/{n:04d}.png")


def batches(data: FactoryDataModule) -> list[Batch]:
    found = list(data.train_dataloader())
    data.close()
    return found


def counts(data: FactoryDataModule) -> dict[str, dict[str, Any]]:
    """Return what each stage counted."""
    return {stage.name: stage.counts for stage in data.registry.telemetry.stages}


@pytest.mark.parametrize(
    "generate", [Canny(), JpegArtifacts(), Superresolution(), RandomMasks()],
    ids=lambda each: type(each).__name__,
)  # fmt: skip
def test_pixels_are_made_of_the_picture_as_it_is_trained_on(tmp_path: Path, generate: Any) -> None:
    write_noise(tmp_path)
    for batch in batches(ready(tmp_path, made(generate))):
        assert batch.pixels is not None
        wanted = [
            as_rgb(generate(picture, drawing(7, key)))
            for key, picture in zip(batch.keys, batch.pixels.numpy(), strict=True)
        ]
        assert torch.equal(batch.conditioning["made"], torch.from_numpy(np.stack(wanted)))
    assert not (tmp_path / "cache/catalog/made.parquet").exists()


def test_the_key_of_what_is_generated_stands_for_its_source(tmp_path: Path) -> None:
    write_noise(tmp_path)
    data = ready(tmp_path, made(Canny()))
    for name in ("src/0003.png", "made:src/0003.png", "pics:src/0003.png"):
        assert find_sample(name, data.sources) == [("pics", 3)]
    assert near_names("src/0003.jpg", data.sources)[0].startswith("pics:src/000")
    assert not any(name.startswith("made:") for name in near_names("src/0003.jpg", data.sources))
    data.close()


def test_latents_are_those_of_what_is_made(tmp_path: Path) -> None:
    write_noise(tmp_path)
    plain = {key: one for batch in batches(ready(tmp_path)) for key, one in keyed(batch)}
    for batch in batches(ready(tmp_path, made(Canny()), encoded=True)):
        edges = [as_rgb(Canny()(plain[key].numpy(), drawing(7, key))) for key in batch.keys]
        wanted = BlockDCT().encode(torch.from_numpy(np.stack(edges)))["latents"]
        assert torch.equal(batch.conditioning["made"], wanted)


def keyed(batch: Batch) -> list[tuple[str, torch.Tensor]]:
    assert batch.pixels is not None
    return list(zip(batch.keys, batch.pixels, strict=True))


def test_a_change_of_one_setting_makes_its_own_rows_anew_and_no_others(tmp_path: Path) -> None:
    write_noise(tmp_path)

    def encoded(*sets: ConditioningBackend) -> dict[str, int]:
        data = ready(tmp_path, *sets, encoded=True)
        data.close()
        found = counts(data)
        return {n.removeprefix("encode "): c["encoded"] for n, c in found.items() if "encode " in n}

    edges, masks = made(Canny(), name="edges"), made(RandomMasks(), name="masks", type="mask")
    assert encoded(edges, masks) == {"pics": 6, "edges": 6, "masks": 6}
    assert encoded(edges, masks) == {"pics": 0, "edges": 0, "masks": 0}
    other = made(Canny(low=60), name="edges")
    assert encoded(other, masks) == {"pics": 0, "edges": 6, "masks": 0}
    more = made(RandomMasks(most=0.6), name="masks", type="mask")
    assert encoded(edges, more) == {"pics": 0, "edges": 0, "masks": 6}


def test_pixels_are_stored_where_the_source_is_and_masks_take_a_byte_a_pixel(
    tmp_path: Path,
) -> None:
    write_noise(tmp_path)
    data = ready(tmp_path, made(RandomMasks(), type="mask", values="bool"), encoded=True)
    (tmp_path / "src").rename(tmp_path / "away")  # nothing is read from it any more
    for batch in batches(data):
        given = batch.conditioning["made"]
        assert isinstance(given, torch.Tensor)
        assert (given.dtype, given.shape[1:]) == (torch.bool, (48, 80, 1))
        assert 0.05 < given.float().mean() < 0.55
    store = data.registry.pixel_store(data.registry.samples["made"])  # type: ignore[arg-type]
    assert store.encoder.row_bytes(80, 48) == 80 * 48  # type: ignore[attr-defined]


def test_pixels_are_made_when_read_where_that_is_asked_for(tmp_path: Path) -> None:
    write_noise(tmp_path)
    data = ready(tmp_path, made(RandomMasks(), type="mask", stored=False), encoded=True)
    assert "encode made" not in counts(data)
    stored = {}
    for batch in batches(data):
        stored |= dict(zip(batch.keys, batch.conditioning["made"], strict=True))
    again = ready(tmp_path, made(RandomMasks(), type="mask", stored=True), encoded=True)
    for batch in batches(again):
        for key, mask in zip(batch.keys, batch.conditioning["made"], strict=True):
            assert torch.equal(mask, stored[key])


@pytest.mark.parametrize("encoded", [True, False])
def test_a_model_is_given_batches_and_asked_before_training_only(
    tmp_path: Path, encoded: bool
) -> None:
    write_sources(tmp_path, 6)
    Negative.calls.clear()
    data = ready(tmp_path, made(Negative()), encoded=encoded)
    assert sum(Negative.calls) == 6
    assert max(Negative.calls) > 1
    for batch in batches(data):
        given = batch.conditioning["made"]
        assert isinstance(given, torch.Tensor)
        if encoded:
            assert batch.latents is not None
            there, here = BlockDCT().decode(given), BlockDCT().decode(batch.latents)
            assert (there.int() + here.int() - 255).abs().max() <= 3
        else:
            assert torch.equal(given, 255 - batch.pixels)  # type: ignore[operator]
    assert sum(Negative.calls) == 6


def test_a_picture_that_cannot_be_read_is_lost_to_both_and_named_once(tmp_path: Path) -> None:
    write_noise(tmp_path)
    broken = tmp_path / "src/0002.png"
    broken.write_bytes(broken.read_bytes()[:-3000])
    data = ready(tmp_path, made(Canny()), encoded=True)
    assert data.sources["pics"].catalog.decisions.dropped() == {"truncated": 1}
    assert len(data.sources["made"].catalog) == 5
    assert {key for batch in batches(data) for key in batch.keys} == {
        f"src/{n:04d}.png" for n in (0, 1, 3, 4, 5)
    }


def test_frames_of_a_clip_are_made_one_by_one_with_the_same_chance(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path))
    write_clip(tmp_path / "v/0000.mp4", 8)
    clips = VideoBackend(name="pics", prefix="v", storage=storage, frames=4, resolution=64,
                         alignment=16, caption=FilenameCaptions())  # fmt: skip
    source = PreparedBackend(clips, clips.catalog(clips.scan(None, ENGINE), 0))
    rows = source.catalog.decisions.order
    frames = pixels_of(source, rows, ENGINE).numpy()[0]
    for generate in (RandomMasks(), Canny()):
        bonded = made(generate).bonded(clips, 3)
        given = pixels_of(PreparedBackend(bonded, source.catalog), rows, ENGINE).numpy()[0]
        key = source.catalog.facts.key(int(rows[0]))
        wanted = [as_rgb(generate(frame, drawing(3, key))) for frame in frames]
        assert np.array_equal(given, np.stack(wanted))
    masks = pixels_of(
        PreparedBackend(made(RandomMasks()).bonded(clips, 3), source.catalog), rows, ENGINE
    )
    assert (masks[0] == masks[0, :1]).all()


def test_a_remote_source_is_asked_for_all_pictures_at_once(tmp_path: Path) -> None:
    write_noise(tmp_path)
    data = ready(tmp_path, made(Canny()))
    partner = data.sources["made"]
    rows = np.array([4, 1])
    wanted = pixels_of(partner, rows, ENGINE)
    pics = replace(data.sources["pics"].backend, storage=Remote(str(tmp_path)))
    afar = PreparedBackend(made(Canny()).bonded(pics, 7), partner.catalog)
    assert torch.equal(pixels_of(afar, rows, ENGINE), wanted)
    data.close()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"type": "reference_loose"}, "cut as the picture it is made from"),
        ({"filters": [None]}, "filters and composite are for stored pictures"),
    ],
)
def test_settings_of_stored_pictures_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        made(Canny(), **settings)


def test_what_is_generated_is_read_once_its_source_is_known() -> None:
    with pytest.raises(TypeError, match="once it is paired with its source"):
        _ = made(Canny()).reader


def test_another_process_makes_the_same(tmp_path: Path) -> None:
    write_noise(tmp_path)
    data = ready(tmp_path, made(JpegArtifacts()), made(Canny(), name="edges"), encoded=True)
    again = data._reopen_spec()()
    one, other = (
        list(TrainLoader(data.plan, make, data.prefetch, RankLayout(), Position()))
        for make in (data._collate(), again)
    )
    for mine, theirs in zip(one, other, strict=True):
        for name in ("made", "edges"):
            assert torch.equal(mine.conditioning[name], theirs.conditioning[name])
    again.close()
    data.close()
