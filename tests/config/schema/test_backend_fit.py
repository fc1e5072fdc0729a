"""Settings that ask for what a backend cannot give are refused before anything is read."""

import pytest

from factory import ImageBackend, VideoBackend
from factory.backends.image import Crop
from factory.media.composite import Composite
from factory.storage.memory import MemoryStorage
from tests.config.test_compose import composed, problems

PHOTOS = "data.backends.photos"
FILTER = f"{PHOTOS}.filters=[{{column:score,minimum:0.5}}]"
FACES = f"data/crop@{PHOTOS}=face"
TABLE = (f"metadata@{PHOTOS}=parquet", f"{PHOTOS}.metadata.path=a.parquet")
NO_SIZES = (f"{PHOTOS}.metadata.width_column=null", f"{PHOTOS}.metadata.height_column=null")


def test_filters_need_a_table() -> None:
    said = problems(FILTER)
    assert "filters look at the columns score of a table, and metadata=discovery" in said
    composed(FILTER, *TABLE)


def test_faces_need_pictures_that_are_opened() -> None:
    assert "metadata=parquet opens none where the table has sizes" in problems(FACES, *TABLE)
    composed(FACES)
    composed(FACES, *TABLE, *NO_SIZES)
    columns = (
        f"metadata@{PHOTOS}=columns",
        f"storage@{PHOTOS}=csv",
        f"{PHOTOS}.storage.table=a.csv",
    )
    assert "metadata=columns opens none" in problems(FACES, *columns)


def test_faces_are_not_those_of_a_part() -> None:
    assert "composite uses a part" in problems(FACES, f"{PHOTOS}.composite.image_count=2")
    crop = Crop("square", "face")
    with pytest.raises(ValueError, match="parts of composites"):
        ImageBackend(name="a", storage=MemoryStorage("m"), crop=crop, composite=Composite(2))


def test_faces_are_not_looked_for_in_videos() -> None:
    with pytest.raises(ValueError, match="not at videos"):
        VideoBackend(name="a", storage=MemoryStorage("m"), crop=Crop("square", "face"))
