"""Configs that cannot be built are refused before any I/O, with the edit that mends them."""

from pathlib import Path

import pytest

from factory import FactoryDataModule, ImageBackend, compose
from factory.errors import ConfigError
from factory.storage.local import LocalStorage
from tests.scenarios.bad_input.building import built, image, refused


@pytest.fixture(autouse=True)
def untouched(tmp_path: Path):
    """Nothing is written or made while a config is refused."""
    yield
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_key_and_an_unknown_option_at_once() -> None:
    with refused(
        ConfigError,
        "Config error: 2 problems",
        "group storage has no option 'locl'; did you mean 'local'?",
        "data has no option 'batchsize'; did you mean 'batch_size'?",
    ):
        compose(["storage=locl", "data.batchsize=3"])


def test_two_backends_of_one_name(tmp_path: Path) -> None:
    with refused(ConfigError, "two backends are named 'b'; give each its own name"):
        built(tmp_path, image("a", "name:b"), image("b"))


def test_two_backends_of_one_name_in_python(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path))
    with refused(ConfigError, "two backends are named 'a'; give each its own name"):
        FactoryDataModule([ImageBackend(name="a", storage=storage) for _ in range(2)])


def test_an_unknown_reference(tmp_path: Path) -> None:
    with refused(
        ConfigError,
        "data.backends.a.image_embeds names 'image_embed', which is no backend; "
        "did you mean 'image_embeds'?",
    ):
        built(tmp_path, image("a", "image_embeds:image_embed"))


def test_a_reference_to_the_wrong_kind(tmp_path: Path) -> None:
    with refused(
        ConfigError,
        "data.backends.a.image_embeds names 'text_embeds' of type TextEmbedBackend; "
        "name one of image_embeds",
    ):
        built(tmp_path, image("a", "image_embeds:text_embeds"))


def test_a_circle(tmp_path: Path) -> None:
    with refused(
        ConfigError,
        "in a circle: x -> y -> x; change data.backends.x.source or data.backends.y.source",
    ):
        built(
            tmp_path,
            image("a"),
            "+data.backends.x={kind:conditioning,source:y}",
            "+data.backends.y={kind:conditioning,source:x}",
        )


def test_negative_weight_and_repeats_are_reported_together(tmp_path: Path) -> None:
    with refused(
        ConfigError,
        "2 problems",
        "data.backends.a.probability must be at least 0, got -0.5",
        "data.backends.a.repeats must be at least 0, got -2",
    ):
        built(tmp_path, image("a", "probability:-0.5,repeats:-2"))


@pytest.mark.parametrize("name", ["probability", "repeats"])
def test_negative_weight_and_repeats_in_python(name: str) -> None:
    with pytest.raises(ValueError, match=f"data.backends.a.{name} must be at least 0, got -1"):
        ImageBackend(name="a", storage=LocalStorage("."), **{name: -1})


def test_no_backend_to_train_on(tmp_path: Path) -> None:
    with refused(ConfigError, "no backend to train on", "+data/backend@data.backends.photos=image"):
        built(tmp_path, "+data.backends.held={kind:eval}")


def test_an_alignment_that_the_encoder_cannot_take(tmp_path: Path) -> None:
    with refused(
        ConfigError,
        "data.backends.a.alignment=12 is no multiple of the downscale 8 of 'image_embeds'",
        "set data.alignment=64",
    ):
        built(tmp_path, image("a", "alignment:12")).prepare_data()


def test_two_default_stores(tmp_path: Path) -> None:
    with refused(
        ConfigError,
        "data.backends.t1 and data.backends.t2 are both the default of their kind; "
        "set default=false for all but one",
    ):
        built(
            tmp_path,
            image("a"),
            "+data.backends.t1={kind:text_embeds,default:true}",
            "+data.backends.t2={kind:text_embeds,default:true}",
        )
