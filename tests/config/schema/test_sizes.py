"""Crops and sizes from the command line and YAML to the geometry; mistakes before any I/O."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from factory import Crop, ImageBackend
from factory.config.check import check
from factory.config.compose import compose
from factory.errors import ConfigError
from factory.media.geometry.geometry import Geometry
from factory.storage.local import LocalStorage

PHOTOS = "data.backends.photos"


def checked(*overrides: str, config_dir: Path | None = None) -> DictConfig:
    """Compose and complete, as `build` does."""
    cfg = compose(["storage.root=data", *overrides], config_dir=config_dir)
    OmegaConf.set_struct(cfg, False)
    check(cfg, overrides)
    return cfg


def geometry(cfg: DictConfig, name: str = "photos") -> Geometry:
    """Return the geometry of a backend."""
    made: Geometry = instantiate(cfg.data.backends[name], _convert_="all").geometry
    return made


@pytest.fixture(scope="module")
def plain() -> DictConfig:
    """A config that any test may copy, as it was composed."""
    cfg = compose(["storage.root=data"])
    OmegaConf.set_struct(cfg, False)
    return cfg


def problems(plain: DictConfig, key: str, settings: dict[str, Any]) -> str:
    """Return what is said about settings that are merged in below a key."""
    cfg = copy.deepcopy(plain)
    for name, value in settings.items():
        OmegaConf.update(cfg, f"{key}.{name}", value)
    with pytest.raises(ConfigError) as caught:
        check(cfg)
    return str(caught.value)


def test_weights_and_the_largest_enlargement_reach_the_geometry() -> None:
    weighted = "data.crop.aspect_buckets=[{aspect:0.5,weight:0.25},{aspect:2,weight:0.75}]"
    limit = "data.crop.max_upscale_threshold=0.5"
    made = geometry(checked("data/crop=random_aspect", weighted, limit, "data.crop.style=centre"))
    assert made.crop_style == "center"
    assert made.crop_aspect_buckets == (0.5, 2.0)
    assert made.crop_aspect_weights == (0.25, 0.75)
    # At 128 px the targets are 96x192 and 192x96: too much for the portrait, in one direction.
    edges = np.full(40, 90), np.full(40, 130)
    chosen = made.targets(*edges, np.random.default_rng(1).random((40, 3)))
    assert np.unique(chosen.target, axis=0).tolist() == [[96, 192]]


def test_options_can_be_pinned() -> None:
    pins = {"photos": "face", "table": "corner", "web": "random_aspect", "hub": "random"}
    pinned = (f"data/crop@data.backends.{name}={option}" for name, option in pins.items())
    cfg = checked("data=multi", *pinned)
    made = {pins[name]: geometry(cfg, name) for name in ("photos", "table")}
    assert {name: (one.crop_aspect, one.crop_style) for name, one in made.items()} == {
        "face": ("preserve", "face"),
        "corner": ("preserve", "corner"),
    }
    assert cfg.data.backends.web.crop.aspect == "random"
    assert cfg.data.backends.hub.crop.style == "random"


def test_limits_and_forced_sizes_from_the_command_line() -> None:
    cfg = checked(
        f"{PHOTOS}.maximum_image_size=1536",
        f"{PHOTOS}.target_downsample_size=1280",
        "data.maximum_canvas=0.01",
        "data.aspect_sizes={0.5:[64,128],2:[128,64]}",
        "data.backends.holdout.maximum_canvas=2",
        "data.backends.holdout.aspect_sizes={1:[64,64]}",
    )
    photos, holdout = geometry(cfg), geometry(cfg, "holdout")
    assert (photos.maximum_image_size, photos.target_downsample_size) == (1536, 1280)
    assert (photos.maximum_canvas, holdout.maximum_canvas) == (0.01, 2)
    assert photos.aspect_sizes == ((0.5, (64, 128)), (2.0, (128, 64)))
    assert holdout.aspect_sizes == ((1.0, (64, 64)),)


def test_forced_sizes_from_yaml(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.yaml").write_text(
        "defaults: [base, backend@backends.photos: image, _self_]\nalignment: 32\n"
        "aspect_sizes:\n  '0.75': [96, 128]\n  1.5: [192, 128]\n"
    )
    made = geometry(checked("data=mine", config_dir=tmp_path))
    assert made.aspect_sizes == ((0.75, (96, 128)), (1.5, (192, 128)))


# Settings of a backend at resolution 128 px and alignment 32, and what is said about them.
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"maximum_image_size": 1024}, "maximum_image_size=1024 needs target_downsample_size beside"),
    ({"target_downsample_size": 1024}, "target_downsample_size=1024 needs maximum_image_size"),
    (
        {"maximum_image_size": 1024, "target_downsample_size": 1536},
        "target_downsample_size=1536 must not be above maximum_image_size=1024",
    ),
    (
        {"maximum_image_size": 4, "target_downsample_size": 1},
        "maximum_image_size=4 means px with resolution_type=pixel_area and must be at least 128",
    ),
    (
        {"resolution": 1024, "maximum_image_size": 1024, "target_downsample_size": 511},
        "target_downsample_size=511 means px with resolution_type=pixel_area and must be at least",
    ),
    (
        {
            "resolution_type": "area",
            "resolution": 1,
            "target_downsample_size": 1,
            "maximum_image_size": 20,
        },
        "maximum_image_size=20 means megapixels with resolution_type=area and must be below 20",
    ),
    (
        {"resolution_type": "area", "resolution": 1, "minimum_image_size": 5.1},
        "minimum_image_size=5.1 means megapixels with resolution_type=area and must be at most 5",
    ),
    ({"minimum_image_size": -5}, "minimum_image_size must be a number above 0 or null, got -5"),
    ({"maximum_canvas": 0.001}, "maximum_canvas=0.001 MP is below one square of alignment=32"),
    ({"maximum_canvas": 4096}, "maximum_canvas=4096 means megapixels and must be below 1000"),
    ({"maximum_canvas": 0}, "maximum_canvas must be a number above 0 or null, got 0"),
    ({"aspect_sizes": {0.75: [100, 128]}}, "in multiples of alignment=32, got [100, 128]"),
    ({"aspect_sizes": {0.75: [96]}}, "got [96] for 0.75"),
    ({"aspect_sizes": {0.755: [96, 128]}}, "aspect_sizes has the label 0.755"),
    ({"aspect_sizes": {"wide": [96, 128]}}, "aspect_sizes has the label 'wide'"),
    ({"aspect_sizes": "all"}, "aspect_sizes must map labels to [width, height], got 'all'"),
]
WRONG_CROPS: list[tuple[dict[str, Any], str]] = [
    (
        {"aspect_buckets": [{"aspect": 1, "weight": 0.5}, {"aspect": 2, "weight": 0.6}]},
        "aspect_buckets has weights that must sum to 1, they sum to 1.1",
    ),
    ({"aspect_buckets": [1, {"aspect": 2, "weight": 1}]}, "every ratio a weight, or none"),
    ({"aspect_buckets": [{"ratio": 2, "weight": 1}]}, "numbers, or {aspect: RATIO, weight: SHARE}"),
    ({"aspect_buckets": [{"aspect": 2, "weight": -1}]}, "weights that are numbers from 0, got -1"),
    ({"aspect_buckets": [{"aspect": "a", "weight": 1}]}, "ratios width/height above 0, got 'a'"),
    ({"aspect_buckets": [0]}, "ratios width/height above 0, got 0"),
    ({"aspect_buckets": ["one"]}, "ratios width/height above 0, got 'one'"),
    ({"aspect_buckets": []}, "aspect_buckets must not be empty with aspect=random"),
    ({"max_upscale_threshold": -1}, "max_upscale_threshold must be at least 0, got -1"),
    (
        {"aspect": "square", "max_upscale_threshold": 1},
        "got aspect=square; set data.crop.max_upscale_threshold=null",
    ),
]


@pytest.mark.parametrize(("settings", "said"), WRONG)
def test_wrong_sizes_are_refused_by_the_config_and_by_the_class(
    plain: DictConfig, settings: dict[str, Any], said: str
) -> None:
    assert said in problems(plain, PHOTOS, settings)
    usual = {"name": "photos", "resolution": 128, "alignment": 32, "storage": LocalStorage("data")}
    with pytest.raises(ValueError, match=next(reversed(settings))):
        ImageBackend(**usual | settings)


@pytest.mark.parametrize(("settings", "said"), WRONG_CROPS)
def test_wrong_crops_are_refused_by_the_config_and_by_the_class(
    plain: DictConfig, settings: dict[str, Any], said: str
) -> None:
    assert said in problems(plain, "data.crop", {"aspect": "random"} | settings)
    crop = Crop(**{"aspect": "random", "aspect_buckets": [1.0]} | settings)
    with pytest.raises(ValueError, match=next(reversed(settings))):
        ImageBackend(name="photos", storage=LocalStorage("data"), crop=crop)


def test_all_wrong_sizes_are_named_at_once(plain: DictConfig) -> None:
    settings = {"maximum_image_size": 100, "maximum_canvas": -1, "aspect_sizes": {0.5: 1}}
    assert problems(plain, PHOTOS, settings).startswith("4 problems")
