"""Backends of pictures check their settings at once, and say why nothing is left of them."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from factory import ConditioningBackend, Crop, EvalBackend, ImageBackend
from factory.backends.image import SampleBackend
from factory.catalog.captions.sources import FilenameCaptions, TextFileCaptions
from factory.catalog.scan.discovery import Discovery
from factory.errors import EmptyBackendError, ObjectNotFoundError
from factory.storage.local import LocalStorage
from tests.catalog.fakes import ENGINE, facts_of
from tests.support.pictures import write_pictures


def backend(
    root: Path | str = ".", kind: type[SampleBackend] = ImageBackend, **settings: Any
) -> Any:
    """Return a backend "pics" of a folder "p"."""
    shared: dict[str, Any] = {
        "name": "pics", "prefix": "p", "resolution": 64, "alignment": 16,
        "caption": FilenameCaptions(),
    }  # fmt: skip
    return kind(storage=LocalStorage(str(root)), **{**shared, **settings})


def refusal(**settings: Any) -> str:
    with pytest.raises(ValueError) as caught:
        backend(**settings)
    return str(caught.value)


@pytest.mark.parametrize("name", ["probability", "repeats"])
def test_negative_numbers_are_refused(name: str) -> None:
    assert f"data.backends.pics.{name} must be at least 0, got -1" in refusal(**{name: -1})


def test_keeping_nothing_is_refused() -> None:
    assert "data.backends.pics.max_samples must be at least 1, got 0" in refusal(max_samples=0)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"resolution": 0}, "resolution"),
        ({"alignment": 0}, "alignment must be a whole number of px, at least 1"),
        ({"resolution_type": "miles"}, "miles"),
        ({"crop": Crop(aspect="closest")}, "crop_aspect_buckets must not be empty"),
        ({"crop": Crop(style="left")}, "left"),
        ({"minimum_aspect_ratio": 3, "maximum_aspect_ratio": 2}, "must not be above"),
    ],
)
def test_geometry_is_checked_at_once(settings: dict[str, Any], said: str) -> None:
    assert said in refusal(**settings)


@pytest.mark.parametrize("prefix", ["p", "/p/", "p/"])
def test_slashes_around_a_prefix_mean_nothing(tmp_path: Path, prefix: str) -> None:
    write_pictures(tmp_path / "p", 1)
    facts = backend(tmp_path, prefix=prefix).scan(None, ENGINE)
    assert facts.key(0) == "p/0000.png"


def test_a_prefix_means_what_it_lists_however_it_is_spelt(tmp_path: Path) -> None:
    write_pictures(tmp_path / "p/raw", 1)
    metadata = Discovery(include=("raw/*",))
    facts = backend(tmp_path, prefix="./p//", metadata=metadata).scan(None, ENGINE)
    assert facts.key(0) == "p/raw/0000.png"
    assert backend(tmp_path, prefix="p/./").prefix == "p"


@pytest.mark.parametrize("prefix", ["", ".", "/"])
def test_the_root_is_a_prefix(tmp_path: Path, prefix: str) -> None:
    write_pictures(tmp_path, 1)
    assert backend(tmp_path, prefix=prefix).scan(None, ENGINE).key(0) == "0000.png"


def test_backends_are_values() -> None:
    for one in (
        backend(),
        backend(kind=EvalBackend),
        ConditioningBackend(name="edges", source="a"),
    ):
        assert pickle.loads(pickle.dumps(one)) == one
    assert backend() == backend()
    assert backend() != backend(resolution=128)


def test_a_missing_folder_names_the_setting_and_how_to_leave_the_backend_out(
    tmp_path: Path,
) -> None:
    with pytest.raises(ObjectNotFoundError, match=r"cannot list .*/p: ") as caught:
        backend(tmp_path).scan(None, ENGINE)
    (note,) = caught.value.__notes__
    assert "data.backends.pics.prefix='p' in file://" in note
    assert "'~data.backends.pics'" in note


def test_a_folder_without_pictures_names_the_settings(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p/a.txt").write_text("no picture")
    with pytest.raises(EmptyBackendError) as caught:
        backend(tmp_path).scan(None, ENGINE)
    text = str(caught.value)
    assert text.startswith("backend 'pics': no picture in 'p' of file://")
    assert "check data.backends.pics.prefix, and metadata.suffixes" in text


SIZES = [(96, 64)] * 3 + [(64, 96)]


def nothing_left(**settings: Any) -> str:
    facts = facts_of(*SIZES, errors=settings.pop("errors", None))
    with pytest.raises(EmptyBackendError) as caught:
        backend(**settings).catalog(facts, 0)
    return str(caught.value)


def test_too_small() -> None:
    assert nothing_left(minimum_image_size=100) == (
        "backend 'pics': all 4 samples are dropped: 4 minimum_image_size; "
        "lower data.backends.pics.minimum_image_size=100"
    )


def test_too_wide_and_too_narrow_the_commonest_first() -> None:
    text = nothing_left(minimum_aspect_ratio=0.9, maximum_aspect_ratio=1.1)
    assert "all 4 samples are dropped: 3 maximum_aspect_ratio, 1 minimum_aspect_ratio" in text
    assert text.endswith("raise data.backends.pics.maximum_aspect_ratio=1.1")
    text = nothing_left(minimum_aspect_ratio=9)
    assert text.endswith("lower data.backends.pics.minimum_aspect_ratio=9")


def test_without_captions() -> None:
    text = nothing_left(caption=TextFileCaptions())
    assert "4 no caption" in text
    assert text.endswith("choose another data/caption@data.backends.pics, such as filename")


def test_unusable_files_come_with_an_example() -> None:
    errors = {0: "empty file", **dict.fromkeys((1, 2, 3), "truncated: it breaks off")}
    assert nothing_left(errors=errors) == (
        "backend 'pics': all 4 samples are dropped: 3 truncated, 1 empty file; "
        "mend such files as 'p/0001.png' (truncated: it breaks off)"
    )


def test_a_catalog_has_the_seed_and_the_limit() -> None:
    facts = facts_of(*[(640, 64)] * 20)
    crop = Crop(aspect="square", style="random")
    made = [backend(crop=crop, max_samples=5).catalog(facts, seed) for seed in (1, 2)]
    assert [len(catalog) for catalog in made] == [5, 5]
    crops = [catalog.crops(np.arange(20)).offset.tolist() for catalog in made]
    assert crops[0] != crops[1]
    assert made[0].decisions.order.tolist() == made[1].decisions.order.tolist()


def test_metadata_settings_reach_the_scan(tmp_path: Path) -> None:
    write_pictures(tmp_path / "p", 1)
    with pytest.raises(EmptyBackendError):
        backend(tmp_path, metadata=Discovery(suffixes=(".jpg",))).scan(None, ENGINE)


def test_captions_are_text_files_by_default_as_in_a_composed_config(tmp_path: Path) -> None:
    from factory import EvalBackend, VideoBackend, build, compose

    storage = LocalStorage(str(tmp_path))
    cfg = compose(
        ["data=single", f"storage.root={tmp_path}", "+data/backend@data.backends.clips=video",
         "data.backends.clips.frames=4"]
    )  # fmt: skip
    composed = build(cfg).registry.backends
    made = [
        ImageBackend(name="photos", storage=storage),
        EvalBackend(name="holdout", storage=storage),
        VideoBackend(name="clips", storage=storage, frames=4),
    ]
    for one in made:
        assert one.caption == composed[one.name].caption
    write_pictures(tmp_path / "p", 2)
    plain = ImageBackend(name="pics", prefix="p", storage=storage, resolution=64, alignment=16)
    catalog = plain.catalog(plain.scan(None, ENGINE), 0)
    assert catalog.caption(0, seed=1, epoch=0) == "picture 0"
