"""Tar shards and datasets with damage inside: the rest is trained on, and what is left out said."""

import logging
from pathlib import Path
from typing import Any

import pytest

from factory.catalog.captions.sources import ColumnCaptions, FilenameCaptions, TextFileCaptions
from factory.errors import EmptyBackendError, ObjectNotFoundError, StorageError, TableError
from factory.storage import HuggingFaceStorage, LocalStorage, TarStorage
from tests.scenarios.bad_input.building import refused
from tests.scenarios.bad_input.making import batches, dropped, kept, pixels, place, png, prepared
from tests.storage.tar.tars import archive


def shards(root: Path, **files: bytes) -> dict[str, Any]:
    """Write shards by name; return the settings of a backend that reads them."""
    place(root, {f"pics/{name}.tar": data for name, data in files.items()})
    return {"storage": TarStorage(LocalStorage(str(root))), "caption": TextFileCaptions()}


def pair(name: str, picture: bytes | None = None) -> list[tuple[str, bytes]]:
    """Return a sample's members: a picture and its caption."""
    caption = name.rpartition("/")[2].replace("\n", " ").encode()
    return [(f"{name}.png", png() if picture is None else picture), (f"{name}.txt", caption)]


@pytest.mark.parametrize("encoded", [False, True])
def test_members_with_tricks_in_their_names(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, encoded: bool
) -> None:
    place(tmp_path, {"secret.png": png()})
    names = ["a", "sub/b", "./c", "../secret", "/etc/d", "x/../../e", "new\nline", "back\\slash"]
    members = [member for name in names for member in pair(name)]
    settings = shards(tmp_path, s=archive(members + pair("empty", b"") + pair("page", b"<html>")))
    caplog.set_level(logging.WARNING)
    with prepared(tmp_path, encoded=encoded, **settings) as data:
        assert kept(data) == [
            f"pics/s.tar/{name}.png" for name in ("a", "back\\slash", "c", "new\nline", "sub/b")
        ]
        assert dropped(data) == [
            "pics: 1 empty file (empty.png)", "pics: 1 not a picture (page.png)",
        ]  # fmt: skip
        seen = {text for batch in batches(data) for text in batch.captions}
    assert seen == {"a", "b", "c", "new line", "back\\slash"}
    assert any("name leaves the archive, such as" in one.getMessage() for one in caplog.records)


def test_a_truncated_member_costs_itself_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = archive([("a.png", png()), ("b.png", png(500, 400))])
    settings = shards(tmp_path, s=whole[: 512 * 6], t=archive(pair("c")))
    settings["caption"] = FilenameCaptions()
    with caplog.at_level(logging.WARNING), prepared(tmp_path, **settings) as data:
        assert kept(data) == ["pics/s.tar/a.png", "pics/t.tar/c.png"]
        assert dropped(data) == []
        assert len(pixels(data)) == 2
    said = "1 truncated member, such as 'pics/s.tar/b.png'"
    assert any(said in record.getMessage() for record in caplog.records)


def test_shards_that_are_none(tmp_path: Path) -> None:
    with (
        refused(StorageError, "pics/s.tar", "compressed (gzip)"),
        prepared(tmp_path, **shards(tmp_path, s=b"\x1f\x8b" + bytes(999))),
    ):
        pass


def test_shards_without_pictures(tmp_path: Path) -> None:
    with (
        refused(EmptyBackendError, "no picture in 'pics' of tar+file://", "metadata.suffixes"),
        prepared(tmp_path, **shards(tmp_path, s=archive({"a.txt": b"words"}))),
    ):
        pass


def test_a_folder_without_shards(tmp_path: Path) -> None:
    place(tmp_path, {"pics/a.png": png()})
    with (
        refused(ObjectNotFoundError, "such as 'pics/a.png'"),
        prepared(tmp_path, storage=TarStorage(LocalStorage(str(tmp_path)))),
    ):
        pass


def dataset(root: Path, images: list[bytes | None], **more: list[Any]) -> HuggingFaceStorage:
    """Save a dataset with a column "image"; return the storage over it."""
    from datasets import Dataset, Features, Image, Value

    cells = [None if data is None else {"bytes": data, "path": None} for data in images]
    features = Features({"image": Image(), **{name: Value("string") for name in more}})
    Dataset.from_dict({"image": cells, **more}, features=features).save_to_disk(str(root / "set"))
    return HuggingFaceStorage(str(root / "set"))


def test_rows_of_a_dataset_that_hold_no_picture(tmp_path: Path) -> None:
    cells = [png(), None, b"", b"<html>", png()[:20], png()]
    captions = ["a", "b", "c", "d", "e", None]
    storage = dataset(tmp_path, cells, caption=captions)
    with prepared(tmp_path, storage=storage, prefix="", caption=ColumnCaptions()) as data:
        assert kept(data) == ["000000000.img"]
        assert len(pixels(data)) == 1
        lines = dropped(data)
    reasons = {line.partition(" (")[0]: line for line in lines}
    assert sum(int(line.split()[1]) for line in lines) == 5
    assert "000000003.img" in reasons["pics: 1 not a picture"]
    assert "000000004.img" in reasons["pics: 1 truncated header"]
    assert "000000005.img" in reasons["pics: 1 no caption"]


def test_a_dataset_without_the_columns(tmp_path: Path) -> None:
    storage = dataset(tmp_path, [png()], text=["words"])
    other = HuggingFaceStorage(storage.dataset, image_column="img")
    with (
        refused(TableError, "has no column 'img'", "image, text", "backend 'pics'"),
        prepared(tmp_path, storage=other, prefix=""),
    ):
        pass
    with (
        refused(
            TableError,
            "has no column 'caption'",
            "image.path, text",
            "backend 'pics'",
            "data.backends.pics.caption.columns",
        ),  # fmt: skip
        prepared(tmp_path, storage=storage, prefix="", caption=ColumnCaptions()),
    ):
        pass
