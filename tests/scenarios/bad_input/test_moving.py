"""Files that vanish, grow or turn into something else between the listing and the read."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pytest

from factory.catalog.captions.sources import TextFileCaptions
from factory.errors import (
    AccessDeniedError,
    CacheError,
    EmptyBackendError,
    QuarantineError,
)
from factory.storage.local import LocalStorage
from tests.media.pictures import exif, plain
from tests.scenarios.bad_input.building import refused
from tests.scenarios.bad_input.making import (
    batches,
    details,
    dropped,
    forbidding,
    kept,
    module,
    pixels,
    place,
    png,
    prepared,
)


@dataclass(frozen=True)
class Moving(LocalStorage):
    """A folder in which something happens as soon as it is listed."""

    then: Callable[[], object] = field(default=lambda: None, compare=False)

    def listing(self, prefix: str = "") -> pa.Table:
        """List, then let it happen."""
        found = super().listing(prefix)
        self.then()
        return found


def pictures(root: Path, names: str = "abc") -> Path:
    """Write pictures with caption files; return their folder."""
    files = {f"pics/{name}.png": png() for name in names}
    return place(root, {**files, **{f"pics/{name}.txt": b"words" for name in names}}) / "pics"


@pytest.mark.parametrize("encoded", [False, True])
def test_a_file_that_vanishes_costs_itself_until_it_is_back(tmp_path: Path, encoded: bool) -> None:
    gone = pictures(tmp_path) / "b.png"
    storage = Moving(str(tmp_path), then=gone.unlink)
    with prepared(tmp_path, encoded=encoded, storage=storage) as data:
        assert kept(data) == ["pics/a.png", "pics/c.png"]
        assert dropped(data) == ["pics: 1 not readable (b.png)"]
        assert details(data)["pics/b.png"].endswith("b.png: No such file or directory")
    gone.write_bytes(png())
    with prepared(tmp_path, encoded=encoded) as data:
        assert dropped(data) == []
        assert sorted(pixels(data)) == ["pics/a.png", "pics/b.png", "pics/c.png"]


def test_all_files_vanish(tmp_path: Path) -> None:
    folder = pictures(tmp_path)

    def remove() -> None:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()

    storage = Moving(str(tmp_path), then=remove)
    with (
        refused(
            EmptyBackendError,
            "backend 'pics': all 3 samples are dropped: 3 not readable; mend such files as "
            "'pics/a.png' (not readable: cannot read ",
            "No such file or directory",
        ),
        prepared(tmp_path, storage=storage, caption=TextFileCaptions()),
    ):
        pass


def test_files_that_vanish_after_the_scan(tmp_path: Path) -> None:
    folder = pictures(tmp_path)
    with prepared(tmp_path) as data:
        for file in folder.iterdir():
            file.unlink()
        with refused(
            QuarantineError,
            "backend 'pics': no sample of bucket 80x48 is left to stand in",
            "pics/a.png: read failed: cannot read ",
            "No such file or directory",
            "start anew, so that they are not planned",
        ):
            batches(data)


@pytest.mark.parametrize("verb", ["scan", "read"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "circle"])
def test_what_takes_a_files_place_is_not_waited_for(tmp_path: Path, verb: str, kind: str) -> None:
    path = pictures(tmp_path) / "b.png"

    def replace() -> None:
        path.unlink()
        {
            "pipe": lambda: os.mkfifo(path),
            "folder": path.mkdir,
            "circle": lambda: path.symlink_to("b.png"),
        }[kind]()

    if verb == "scan":
        with prepared(tmp_path, storage=Moving(str(tmp_path), then=replace)) as data:
            assert dropped(data) == ["pics: 1 not readable (b.png)"]
            assert kept(data) == ["pics/a.png", "pics/c.png"]
        return
    with prepared(tmp_path) as data:
        replace()
        made = batches(data)
        assert {each.key for batch in made for each in batch.replaced} == {"pics/b.png"}
        assert {key for batch in made for key in batch.keys} == {"pics/a.png", "pics/c.png"}


@pytest.mark.parametrize("encoded", [False, True])
@pytest.mark.parametrize("listed", [0, 20, 60])
def test_a_file_that_grows_while_it_is_looked_at(
    tmp_path: Path, listed: int, encoded: bool
) -> None:
    path = pictures(tmp_path) / "b.png"
    whole = png(2000, 1500)
    path.write_bytes(whole[:listed])
    storage = Moving(str(tmp_path), then=lambda: path.write_bytes(whole))
    with prepared(tmp_path, encoded=encoded, storage=storage) as data:
        assert dropped(data) == []
        assert set(pixels(data)) == set(kept(data))
    with prepared(tmp_path, encoded=encoded) as data:
        assert dropped(data) == []
        assert pixels(data)["pics/b.png"].shape == (48, 80, 3)


def test_a_file_that_grew_beyond_what_was_listed_is_looked_at_again(tmp_path: Path) -> None:
    path = pictures(tmp_path) / "b.jpg"
    block = exif(6)
    block[0x010E] = "x" * 60_000  # the size stands behind it, where the file was not listed yet
    whole = plain("JPEG", exif=block)
    path.write_bytes(whole[:5000])
    storage = Moving(str(tmp_path), then=lambda: path.write_bytes(whole))
    with prepared(tmp_path, storage=storage) as data:
        assert dropped(data) == ["pics: 1 truncated header (b.jpg)"]
    with prepared(tmp_path) as data:
        assert dropped(data) == []
        assert pixels(data)["pics/b.jpg"].shape == (80, 48, 3)


@pytest.mark.parametrize("encoded", [False, True])
def test_a_file_that_shrinks_while_it_is_looked_at(tmp_path: Path, encoded: bool) -> None:
    path = pictures(tmp_path) / "b.png"
    storage = Moving(str(tmp_path), then=lambda: path.write_bytes(png()[:20]))
    with prepared(tmp_path, encoded=encoded, storage=storage) as data:
        assert dropped(data) == ["pics: 1 truncated header (b.png)"]


@pytest.mark.parametrize("what", ["pics/closed", "pics/b.png", "pics/b.txt"])
def test_what_may_not_be_read_ends_the_scan_and_is_named(tmp_path: Path, what: str) -> None:
    pictures(tmp_path)
    place(tmp_path, {"pics/closed/d.png": png()})
    path = tmp_path / what
    mode = path.stat().st_mode
    path.chmod(0)
    data = module(tmp_path, caption=TextFileCaptions())
    try:
        with forbidding(), refused(AccessDeniedError, f"{path}: permission denied", "ls -ld"):
            data.prepare_data()
    finally:
        data.close()
        path.chmod(mode)
    with prepared(tmp_path, caption=TextFileCaptions()) as data:
        assert dropped(data) == ["pics: 1 no caption (d.png)"]


def catalog_file(root: Path) -> Path:
    """Return the catalog that was published."""
    (found,) = root.rglob("pics.parquet")
    return found


def test_a_cache_that_may_not_be_read(tmp_path: Path) -> None:
    pictures(tmp_path)
    with prepared(tmp_path):
        pass
    folder = catalog_file(tmp_path).parent
    mode = folder.stat().st_mode
    folder.chmod(0)
    data = module(tmp_path)
    try:
        with forbidding(), refused(AccessDeniedError, f"{folder}/pics.parquet", "ls -ld"):
            data.prepare_data()
    finally:
        data.close()
        folder.chmod(mode)


@pytest.mark.parametrize("damage", [b"", b"PAR1", bytes(5000)])
def test_a_damaged_catalog_says_to_delete_it_and_that_helps(tmp_path: Path, damage: bytes) -> None:
    pictures(tmp_path)
    with prepared(tmp_path):
        pass
    file = catalog_file(tmp_path)
    file.write_bytes(damage)
    advice = "is damaged", "delete it and start again: the samples are then measured anew"
    with refused(CacheError, "pics.parquet", *advice), prepared(tmp_path):
        pass
    file.unlink()
    with prepared(tmp_path) as data:
        assert len(kept(data)) == 3


def test_latents_that_are_cut_off_are_made_again(tmp_path: Path) -> None:
    pictures(tmp_path)
    with prepared(tmp_path, encoded=True) as data:
        before = batches(data)
    files = [path for path in tmp_path.rglob("*.safetensors") if path.stat().st_size > 100]
    assert files
    for file in files:
        file.write_bytes(file.read_bytes()[:100])
    with prepared(tmp_path, encoded=True) as data:
        after = batches(data)
    for one, other in zip(before, after, strict=True):
        assert one.keys == other.keys
        assert one.latents is not None
        assert other.latents is not None
        assert one.latents.equal(other.latents)
