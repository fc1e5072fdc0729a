"""Whatever the modes and settings: everything in a batch belongs to the samples it names.

In each picture the red of a column is the column's own number, the green tells which picture it
is, and the blue which folder it is from. So pixels say whose they are and where they were cut.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from factory import (
    Batch,
    ConditioningBackend,
    Crop,
    EvalBackend,
    FactoryDataModule,
    ImageBackend,
    ImageEmbedBackend,
    TextEmbedBackend,
    VisionEmbedBackend,
    Workspace,
)
from factory.catalog.captions.sources import TextFileCaptions
from factory.encoder.dct import BlockDCT
from factory.encoder.hashed_text import HashedText
from factory.engine.local_engine import LocalEngine
from factory.runtime.batches.quarantine import QuarantineLimit
from factory.runtime.prefetch.batch_fetcher import Prefetch
from factory.storage.local import LocalStorage
from tests.conditioning.building import Negative, beside, write_sources
from tests.conditioning.building import ready as conditioned
from tests.support.pictures import write_pictures

# All channels: decoding gives the very pixels.
EXACT = BlockDCT(channels=192, dtype="float32")
PICTURES = 10
WIDE, TALL = 160, 64
# Each folder's blue, and the pictures that are not in it.
FOLDERS: Mapping[str, tuple[int, tuple[int, ...]]] = {
    "src": (10, ()), "held": (20, ()), "strict": (60, (1, 2)), "loose": (110, (2, 5)),
    "mask": (210, (0, 5, 7)),
}  # fmt: skip
# Damaged once everything is made ready: a sample, and a partner of two kinds.
DAMAGED = ("src/0004.png", "strict/0006.png", "mask/0003.png")


@dataclass(frozen=True)
class Middle:
    """A vision encoder that says which picture it was shown, by the colour in the middle."""

    fingerprint: str = "Middle"

    def encode(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the colour, [B, 1, 3]."""
        return {"embeds": pixels[:, 8, 8].float()[:, None]}

    def release(self) -> None:
        """Hold nothing."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the pictures; nothing else writes there."""
    root = tmp_path_factory.mktemp("folders")
    for name, (blue, missing) in FOLDERS.items():
        write_pictures(root / name, PICTURES, sizes=((WIDE, TALL),))
        # A loose reference has another shape, and two of them differ.
        for n in range(PICTURES):
            wide = WIDE - 32 * (n % 2) if name == "loose" else WIDE
            picture = np.zeros((TALL, wide, 3), np.uint8)
            picture[:] = (0, number_green(n), blue)
            picture[..., 0] = np.arange(wide)
            file = root / name / f"{n:04d}.png"
            Image.fromarray(picture).save(file)
            if n in missing:
                file.unlink()
    return root


def number_green(number: int) -> int:
    return 20 * number + 10


def ready(root: Path, cache: Path, mode: str, **made: Any) -> FactoryDataModule:
    """Return a data module of all folders, made ready, whose pictures are encoded in a mode."""
    place = Workspace(LocalStorage(str(cache)), scratch_dir=str(cache / "scratch"))
    storage = LocalStorage(str(root))
    shared: dict[str, Any] = {
        "storage": storage, "resolution": 64, "alignment": 16, "caption": TextFileCaptions(),
        "crop": Crop(aspect="square", style="random"),
    }  # fmt: skip
    sampling = made.pop("sampling")
    keep = {} if sampling == "random" else {"missing_partner": "keep"}
    partner_mode = made.pop("partner_mode", None)

    def partner(name: str, **settings: Any) -> ConditioningBackend:
        own = {"encode_mode": partner_mode, "conditioning_image_embeds": "looks", **settings}
        return ConditioningBackend(name=name, prefix=name, source="src", storage=storage, **own)

    loose = {
        "type": "reference_loose", "alignment": 16, "crop": Crop(aspect="preserve"),
        "resolution": 64, "resolution_type": "pixel",
    }  # fmt: skip
    backends: list[Any] = [
        ImageBackend(name="src", prefix="src", conditioning_sampling=sampling, **shared),
        EvalBackend(name="held", prefix="held", **shared),
        partner("strict", **keep),
        partner("loose", **loose, **keep),
        partner("made", generate=Negative(), type="reference_strict"),
        TextEmbedBackend(name="text", cache=place, encoder=HashedText(), encode_mode="on_demand"),
        VisionEmbedBackend(name="looks", cache=place, encoder=Middle(), default=True),
    ]
    if made.pop("encoded", True):
        backends.append(
            ImageEmbedBackend(name="latents", cache=place, encoder=EXACT, encode_mode=mode)
        )
    if made.pop("masks", True):
        backends.append(partner("mask", type="segmentation", **keep))
    engine = LocalEngine(workers=1)
    data = FactoryDataModule(backends, cache=place, batch_size=4, seed=7, engine=engine, **made)
    data.prepare_data()
    data.setup()
    return data


def pixels_of(values: torch.Tensor) -> torch.Tensor:
    """Return pixels as they are, and latents as those they were made of."""
    return values if values.dtype == torch.uint8 else EXACT.decode(values[None])[0]


def near(given: torch.Tensor, wanted: Any) -> bool:
    return bool((given.int() - torch.tensor(wanted)).abs().max() <= 1)


def check(batch: Batch) -> None:
    """See that everything in a batch belongs to the samples that it names."""
    own = batch.latents if batch.pixels is None else batch.pixels
    assert own is not None
    assert len(own) == len(batch.keys)
    assert not {each.key for each in batch.replaced} & set(batch.keys)
    assert batch.conditioning_set or isinstance(batch.conditioning.get("loose", []), list)
    for place, (key, corner) in enumerate(
        zip(batch.keys, batch.crop_top_left.tolist(), strict=True)
    ):
        folder, number = key.split("/")[0], int(Path(key).stem)
        assert batch.captions[place] == f"picture {number}"
        at = (corner[1] + 8, number_green(number), FOLDERS[folder][0])
        assert near(pixels_of(own[place])[8, 8], at)
        assert near(batch.image_embeds["embeds"][place, 0, 1:], at[1:])
        check_beside(batch, place, number, at)
    for name, field in HashedText().encode(batch.captions).items():
        assert torch.equal(batch.text[name], field)


def check_beside(batch: Batch, place: int, number: int, at: tuple[int, int, int]) -> None:
    """See that what a sample has beside it is its own, and cut where the sample is."""
    drawn = batch.conditioning_set
    names = drawn[place : place + 1] if drawn else batch.conditioning
    for name in names:
        given = batch.conditioning["drawn" if drawn else name][place]
        blue, missing = FOLDERS.get(name, (0, ()))
        if number in missing:
            assert not drawn
            assert not batch.conditioning_valid[name][place]
            assert not given.any()
            continue
        if name in batch.conditioning_valid:
            assert batch.conditioning_valid[name][place]
        wanted = (at[0], at[1], blue)
        if name == "made":
            wanted = (255 - at[0], 255 - at[1], 255 - at[2])
        picture = pixels_of(given)
        if name == "loose":
            assert near(picture[8, 8, 1:], wanted[1:])
        else:
            assert near(picture[8, 8], wanted)
    for name in FOLDERS.keys() & {name.partition(".")[0] for name in batch.image_embeds}:
        blue, missing = FOLDERS[name]
        has = drawn[place] == name if drawn else number not in missing
        looks = (number_green(number), blue) if has else (0, 0)
        assert near(batch.image_embeds[f"{name}.embeds"][place, 0, 1:], looks)


def run(data: FactoryDataModule, epochs: int = 2) -> list[Batch]:
    """Return the batches of some epochs and of validation, each seen to belong together."""
    loader, batches = data.train_dataloader(), []
    for epoch in range(epochs):
        batches += list(loader)
        data.end_epoch(epoch, data.plan.steps(epoch))
    batches += list(data.val_dataloader())
    for batch in batches:
        check(batch)
    return batches


MODES = ("precompute", "on_demand", "transient", "each_epoch")
SAMPLINGS = ("combined", "random")


@pytest.mark.parametrize("masks", [False, True])  # with masks samples are read one by one
@pytest.mark.parametrize(
    ("mode", "sampling", "prefetch"),
    [
        *((mode, sampling, "inline") for mode in MODES for sampling in SAMPLINGS),
        ("precompute", "combined", "thread"),
        ("each_epoch", "combined", "thread"),
    ],
)
def test_everything_in_a_batch_belongs_together(
    folders: Path, tmp_path: Path, mode: str, sampling: str, prefetch: str, masks: bool
) -> None:
    how = {"sampling": sampling, "prefetch": Prefetch(mode=prefetch), "masks": masks}
    data = ready(folders, tmp_path, mode, **how)
    seen = {key for batch in run(data) for key in batch.keys}
    assert len(seen) == 2 * PICTURES
    data.close()


def test_batches_of_another_process_belong_together(folders: Path, tmp_path: Path) -> None:
    process = Prefetch(mode="process")
    data = ready(folders, tmp_path, "each_epoch", sampling="random", prefetch=process)
    seen = {key for batch in run(data) for key in batch.keys}
    assert len(seen) == 2 * PICTURES
    data.close()


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("mode", MODES)
def test_what_stands_in_for_the_damaged_brings_its_own(
    folders: Path, tmp_path: Path, mode: str, sampling: str
) -> None:
    shutil.copytree(folders, tmp_path / "own")
    limit = QuarantineLimit(at_least=5)
    data = ready(tmp_path / "own", tmp_path, mode, sampling=sampling, quarantine=limit)
    for key in DAMAGED:
        (tmp_path / "own" / key).write_bytes(b"junk")
    replaced = {each.key for batch in run(data) for each in batch.replaced}
    # Of sets that are drawn not every one may be asked for.
    read = {"src/0003.png", *(() if mode == "precompute" else ("src/0004.png", "src/0006.png"))}
    assert replaced == read if sampling == "combined" else replaced <= read
    data.close()


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_pixels_belong_together_too(folders: Path, tmp_path: Path, sampling: str) -> None:
    data = ready(folders, tmp_path, "precompute", sampling=sampling, encoded=False)
    assert all(batch.latents is None for batch in run(data))
    data.close()


def test_partners_that_are_never_kept_are_cut_as_their_samples_in_each_epoch(
    folders: Path, tmp_path: Path
) -> None:
    data = ready(folders, tmp_path, "each_epoch", sampling="combined", partner_mode="transient")
    run(data)
    data.close()


def test_partners_follow_cuts_that_change_with_the_names_of_their_samples(
    folders: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    shutil.copytree(folders, own)
    how = {"sampling": "combined", "masks": False}
    ready(own, tmp_path, "precompute", **how).close()
    for file in sorted((own / "src").glob("*.png")):
        file.rename(file.with_suffix(".webp"))  # random cuts follow from a sample's key
    # Nothing is encoded first, so that the cache is as it was when rows were located in it.
    data = ready(own, tmp_path, "on_demand", **how)
    assert all(key.endswith(".webp") for b in run(data) for key in b.keys if b.backend == "src")
    data.close()


def test_kept_pixels_and_loose_references_may_lack_partners_without_an_encoder_of_their_own(
    tmp_path: Path,
) -> None:
    write_sources(tmp_path, 4)
    for name in ("pixels", "loose"):
        write_pictures(tmp_path / name, 2, sizes=((96, 64),), captions=False)
    place = Workspace(LocalStorage(str(tmp_path)), scratch_dir=str(tmp_path / "scratch"))
    other = ImageEmbedBackend(name="other", cache=place, encoder=EXACT)
    keep = {"missing_partner": "keep"}
    data = conditioned(
        tmp_path,
        beside(tmp_path, "pixels", deliver="pixels", stored=True, **keep),
        beside(tmp_path, "loose", type="reference_loose", image_embeds="other", **keep),
        other,
        encoded=True,
    )
    for batch in data.train_dataloader():
        there = [int(Path(key).stem) < 2 for key in batch.keys]
        for name, given in batch.conditioning.items():
            assert batch.conditioning_valid[name].tolist() == there
            assert not any(one.any() for one, known in zip(given, there, strict=True) if not known)
    data.close()
