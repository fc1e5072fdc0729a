"""Encoders compose from their group, reach their classes, and mistakes are told before any I/O."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from factory import ConfigError, build, compose
from factory.config.schema.help_text import help_text
from factory.encoder import (
    DiffusersImageEncoder,
    DiffusersVideoEncoder,
    SeveralTexts,
    TransformersTextEncoder,
    TransformersVisionEncoder,
)

LOOKS = "data/backend@data.backends.looks=conditioning_image_embeds"


@dataclass
class Lettered:
    """A text encoder of some other package."""

    dim: int = 4
    fingerprint: str = "Lettered/1"

    def encode(self, captions: Sequence[str]) -> dict[str, torch.Tensor]:
        """Encode to the captions' lengths."""
        lengths = torch.tensor([len(caption) for caption in captions]).float()
        return {"embeds": lengths[:, None, None].expand(-1, 1, self.dim).contiguous()}

    def release(self) -> None:
        """Hold nothing."""


def encoder(kind: str, *overrides: str) -> Any:
    """Return the encoder of the run's store of a kind."""
    data = build(compose(list(overrides)))
    (store,) = getattr(data.registry, kind).values()
    return store.encoder


def problems(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        build(compose(list(overrides)), list(overrides))
    return str(caught.value)


@pytest.mark.parametrize(
    ("option", "kind", "named"),
    [
        ("autoencoder", DiffusersImageEncoder, None),
        ("autoencoder_kl", DiffusersImageEncoder, "AutoencoderKL"),
        ("video_autoencoder", DiffusersVideoEncoder, None),
    ],
)
def test_autoencoders_by_option(option: str, kind: type, named: str | None) -> None:
    made = encoder(
        "image_embeds", f"encoder/image={option}", "encoder.image.model=a/b",
        "encoder.image.tiling=true", "encoder.image.sample=sample", "encoder.image.dtype=bfloat16",
    )  # fmt: skip
    assert type(made) is kind
    assert (made.model, made.kind, made.tiling, made.dtype) == ("a/b", named, True, "bfloat16")
    plain = {"model": "a/b", "kind": named, "tiling": True, "sample": "sample"}
    assert made.fingerprint == kind(**plain, dtype="bfloat16").fingerprint


def test_text_models_by_option() -> None:
    made = encoder(
        "text_embeds", "encoder/text=transformers", "encoder.text.model=a/b",
        "encoder.text.length_classes=[64,128]", "encoder.text.layer=-2",
        "+encoder.text.tokenizer_options.add_special_tokens=false",
    )  # fmt: skip
    assert isinstance(made, TransformersTextEncoder)
    assert made.length_classes == (64, 128)
    options = {"add_special_tokens": False}
    same = TransformersTextEncoder(
        model="a/b", length_classes=[64, 128], layer=-2, tokenizer_options=options
    )
    assert made.fingerprint == same.fingerprint


@pytest.mark.parametrize(
    ("option", "first", "second"),
    [("clip_and_clip", "small", "large"), ("clip_and_t5", "clip", "t5")],
)
def test_several_text_models_by_option(option: str, first: str, second: str) -> None:
    model = f"encoder.text.parts.{first}.model=a/b"
    made = encoder("text_embeds", f"encoder/text={option}", model)
    assert isinstance(made, SeveralTexts)
    assert list(made.parts) == [first, second]
    assert {part.model for part in made.parts.values()} == {"a/b"}  # type: ignore[attr-defined]
    assert {"embeds", "mask", "pooled"} == set(made.fields)
    said = problems(f"encoder/text={option}")
    assert f"no value for encoder.text.parts.{first}.model; set it" in said


def test_an_encoder_of_another_package_by_its_dotted_path() -> None:
    here = f"{__name__}.Lettered"
    text = f"encoder.text={{_target_:{here},dim:7}}"
    made = encoder("text_embeds", "encoder/text=none", text)
    assert isinstance(made, Lettered)
    assert made.dim == 7
    part = f"+encoder.text.parts.mine={{_target_:{here},dim:3}}"
    both = encoder(
        "text_embeds", "encoder/text=clip_and_t5", "encoder.text.parts.clip.model=a/b", part
    )
    assert isinstance(both.parts["mine"], Lettered)
    assert "NoSuch" in problems("encoder/text=none", "encoder.text={_target_:factory.NoSuch}")


def test_settings_an_encoder_refuses_are_named_with_their_place() -> None:
    with pytest.raises(ConfigError, match="pooled is 'sum'") as caught:
        encoder(
            "text_embeds", "encoder/text=transformers", "encoder.text.model=a/b",
            "encoder.text.pooled=sum",
        )  # fmt: skip
    assert any("data.backends.captions" in note for note in caught.value.__notes__)


def test_a_store_of_image_embeddings_is_added_and_follows_the_latents_batch_size() -> None:
    cfg = compose(
        [f"+{LOOKS}", "encoder/vision=transformers", "encoder.vision.model=a/b",
         "data.backends.latents.batch_size=5", "data.backends.looks.default=true",
         "encoder.vision.layer=-2"]
    )  # fmt: skip
    store = build(cfg).registry.vision_embeds["looks"]
    assert isinstance(store.encoder, TransformersVisionEncoder)
    assert (store.batch_size, store.default, store.encoder.layer) == (5, True, -2)
    assert store.cache.prefix == "cache"
    cfg.data.backends.looks.batch_size = 3
    assert build(cfg).registry.vision_embeds["looks"].batch_size == 3


def test_without_one_no_run_has_image_embeddings() -> None:
    assert build(compose([])).registry.vision_embeds == {}


def test_a_plain_value_becomes_a_store_of_image_embeddings() -> None:
    cfg = compose(
        ["+data.backends.looks={kind:conditioning_image_embeds,batch_size:2}",
         "encoder/vision=transformers", "encoder.vision.model=a/b",
         "data.backends.photos.conditioning_image_embeds=looks"]
    )  # fmt: skip
    registry = build(cfg).registry
    assert registry.vision_embeds["looks"].batch_size == 2
    assert registry.vision_store(registry.data["photos"]) is registry.vision_embeds["looks"]


def test_mistakes_about_image_embeddings_say_what_helps() -> None:
    chosen = ["encoder/vision=transformers", "encoder.vision.model=a/b"]
    said = problems(f"+{LOOKS}")
    assert "data.backends.looks has no encoder; choose one with encoder/vision=transformers" in said
    assert "no value for encoder.vision.model" in problems("encoder/vision=transformers")
    said = problems("data.backends.photos.conditioning_image_embeds=look", f"+{LOOKS}", *chosen)
    assert "names 'look', which is no backend; did you mean 'looks'?" in said
    said = problems(f"+{LOOKS}", *chosen, "data.backends.looks.batch_size=0")
    assert "data.backends.looks.batch_size must be at least 1" in said
    assert "data.backends.latents.batch_size is null" in problems(
        "data.backends.latents.batch_size=null"
    )


def test_help_lists_the_kind_and_its_options() -> None:
    text = help_text()
    assert "data/backend=conditioning_image_embeds (data.backends.NAME.*)" in text
    assert "null: as many as the" in text
    assert re.search(r"^  conditioning_image_embeds  null", text, re.MULTILINE)


def test_a_key_that_follows_one_without_a_value_names_it() -> None:
    said = problems("encoder/text=clip_and_t5")
    assert "set it: encoder.text.parts.clip.model=VALUE" in said
    assert "encoder.text.parts.t5.model follows encoder.text.parts.clip.model, which has no" in said
