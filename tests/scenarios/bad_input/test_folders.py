"""Folders that are missing, empty or wholly filtered out say so, and what to change."""

from pathlib import Path

import pytest
from PIL import Image

from factory.errors import EmptyBackendError, ObjectNotFoundError
from tests.scenarios.bad_input.building import batches, built, image, pinned, refused
from tests.support.pictures import write_pictures


def test_a_missing_folder(tmp_path: Path) -> None:
    with refused(
        ObjectNotFoundError,
        f"cannot list {tmp_path}/pics: No such file or directory",
        "backend 'pics' reads data.backends.pics.prefix='pics' in file://",
        "mend the path, or drop the backend with '~data.backends.pics'",
    ):
        built(tmp_path, image()).prepare_data()


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "pics").write_text("a file")
    with refused(ObjectNotFoundError, "it is a file, not a folder", "data.backends.pics.prefix"):
        built(tmp_path, image()).prepare_data()


def test_a_missing_root_of_one_backend(tmp_path: Path) -> None:
    data = built(
        tmp_path,
        *pinned("pics", storage="local"),
        f"data.backends.pics.storage.root={tmp_path}/nowhere",
    )
    with refused(
        ObjectNotFoundError,
        f"cannot list {tmp_path}/nowhere",
        "create the folder or correct storage.root",
        "while checking the storage of backend 'pics'",
    ):
        data.prepare_data()


def test_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "pics").mkdir()
    with refused(
        EmptyBackendError,
        f"backend 'pics': no picture in 'pics' of file://{tmp_path}",
        "check data.backends.pics.prefix, and metadata.suffixes",
    ):
        built(tmp_path, image()).prepare_data()


@pytest.mark.parametrize(
    ("setting", "mend"),
    [
        ("minimum_image_size:100", "lower data.backends.pics.minimum_image_size=100"),
        ("minimum_aspect_ratio:3", "lower data.backends.pics.minimum_aspect_ratio=3"),
        ("maximum_aspect_ratio:0.5", "raise data.backends.pics.maximum_aspect_ratio=0.5"),
    ],
)
def test_all_samples_filtered(tmp_path: Path, setting: str, mend: str) -> None:
    write_pictures(tmp_path / "pics", 5)
    with refused(
        EmptyBackendError,
        "backend 'pics': all 5 samples are dropped",
        f"5 {setting.partition(':')[0]}",
        mend,
    ):
        built(tmp_path, image("pics", setting)).prepare_data()


def test_all_samples_filtered_for_several_reasons(tmp_path: Path) -> None:
    write_pictures(tmp_path / "pics", 4, captions=False)
    for n in range(4, 6):
        Image.new("RGB", (20, 20)).save(tmp_path / f"pics/{n}.png")
    (tmp_path / "pics/bad.png").write_text("no picture")
    with refused(
        EmptyBackendError,
        "all 7 samples are dropped: 4 no caption, 2 minimum_image_size, 1 not a picture; "
        "choose another data/caption@data.backends.pics, such as filename",
    ):
        built(tmp_path, image("pics", "minimum_image_size:50")).prepare_data()


def test_the_advice_works(tmp_path: Path) -> None:
    """What the message above says to do is done, and there are batches."""
    write_pictures(tmp_path / "pics", 4, captions=False)
    data = built(tmp_path, *pinned("pics", caption="filename"))
    assert sum(len(batch.keys) for batch in batches(data)) >= 4
    data.close()


def test_only_damaged_pictures_come_with_an_example(tmp_path: Path) -> None:
    (tmp_path / "pics").mkdir()
    for n in range(3):
        (tmp_path / f"pics/{n}.jpg").write_bytes(b"")
    with refused(EmptyBackendError, "3 empty file; mend such files as 'pics/0.jpg' (empty file)"):
        built(tmp_path, image()).prepare_data()


def test_a_backend_that_failed_works_once_it_is_mended(tmp_path: Path) -> None:
    data = built(tmp_path, image())
    with refused(ObjectNotFoundError):
        data.prepare_data()
    write_pictures(tmp_path / "pics", 4)
    assert sum(len(batch.keys) for batch in batches(data)) >= 4
    data.close()
