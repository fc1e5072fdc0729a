"""A disk that fills up while a cache is written leaves nothing half-written behind."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from factory import (
    FactoryDataModule,
    ImageBackend,
    ImageEmbedBackend,
    TextEmbedBackend,
    Workspace,
)
from factory.catalog.captions.sources import TextFileCaptions
from factory.encoder.dct import BlockDCT
from factory.encoder.hashed_text import HashedText
from factory.errors import StorageError
from factory.storage import local
from factory.storage.keys import TEMPORARY
from factory.storage.local import LocalStorage
from tests.scenarios.bad_input.building import batches, built, image, refused
from tests.support.pictures import write_pictures

Fill = Callable[[int], None]


@pytest.fixture
def full_after(monkeypatch: pytest.MonkeyPatch) -> Fill:
    """Return a function that lets so many files be written, and then none."""

    def set_room(count: int) -> None:
        left = [count]

        def fsync(descriptor: int) -> None:
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                return  # a folder takes no more room
            if left[0] <= 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            left[0] -= 1

        monkeypatch.setattr(local.os, "fsync", fsync)

    return set_room


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return what is encoded from now on: a caption, or a picture's shape."""
    seen: list[str] = []
    image_encode, text_encode = BlockDCT.encode, HashedText.encode

    def images(self: BlockDCT, pixels):
        seen.extend([f"picture {tuple(pixels.shape[1:])}"] * len(pixels))
        return image_encode(self, pixels)

    def texts(self: HashedText, captions):
        seen.extend(f"text {caption}" for caption in captions)
        return text_encode(self, captions)

    monkeypatch.setattr(BlockDCT, "encode", images)
    monkeypatch.setattr(HashedText, "encode", texts)
    return seen


# One shard holds two pictures' latents, so that some are published before the disk is full.
def module(root: Path) -> FactoryDataModule:
    storage = LocalStorage(str(root))
    place = Workspace(storage, scratch_dir=str(root / "scratch"), shard_mb=0.002)
    pics = ImageBackend(
        name="pics",
        prefix="pics",
        storage=storage,
        caption=TextFileCaptions(),
        resolution=64,
        alignment=16,
    )
    latents = ImageEmbedBackend(name="image_embeds", cache=place, encoder=BlockDCT(), batch_size=2)
    text = TextEmbedBackend(name="text_embeds", cache=place, encoder=HashedText(), batch_size=2)
    return FactoryDataModule([pics, latents, text], cache=place, batch_size=2)


def given_out(data: FactoryDataModule) -> list[tuple[list[str], list[str], bytes, bytes]]:
    """Return everything that the batches of an epoch hold."""
    found = []
    for batch in batches(data):
        assert batch.latents is not None
        found.append(
            (
                batch.keys,
                batch.captions,
                batch.latents.numpy().tobytes(),
                batch.text["embeds"].numpy().tobytes(),
            )
        )
    data.close()
    return found


def failure(data: FactoryDataModule) -> str:
    """Prepare; return the message of what went wrong, or nothing."""
    try:
        data.prepare_data()
    except StorageError as error:
        return str(error)
    finally:
        data.close()
    return ""


ROWS = 7 + 8  # pictures, and captions with the empty one


def test_wherever_the_disk_fills_up_the_next_run_does_what_is_missing(
    tmp_path: Path, full_after: Fill, encoded: list[str]
) -> None:
    write_pictures(tmp_path / "whole/pics", 7)
    reference = given_out(module(tmp_path / "whole"))
    assert len(encoded) == ROWS
    failures = repeated = 0
    for room in range(100):
        root = tmp_path / f"room{room}"
        root.mkdir()
        write_pictures(root / "pics", 7)
        full_after(room)
        encoded.clear()
        data = module(root)
        said = failure(data)
        if not said:
            break
        failures += 1
        assert f"cannot write {root}/" in said
        assert "no space left for " in said
        before = list(encoded)
        assert not list(root.rglob(f"{TEMPORARY}*"))
        full_after(1000)
        encoded.clear()
        assert given_out(module(root)) == reference
        # At most the batch in flight and one open shard's rows are encoded twice.
        repeated = max(repeated, len(before) + len(encoded) - ROWS)
        assert len(encoded) <= ROWS
    # The probe, the catalog, and shard and segment of several shards.
    assert failures > 8
    assert repeated <= 8


def test_what_a_user_is_told(tmp_path: Path, full_after: Fill) -> None:
    write_pictures(tmp_path / "pics", 3)
    full_after(0)
    with refused(
        StorageError,
        f"cannot write {tmp_path}/",
        "no space left for 0 bytes; free some on the file system of",
        "(old caches and runs first) or choose another folder",
    ):
        built(tmp_path, image()).prepare_data()
    full_after(2)
    with refused(StorageError, f"cannot write {tmp_path}/cache/tensors/image_embeds/"):
        built(tmp_path, image()).prepare_data()
