"""Encoders of the wrong kind are refused by what they encode; toys are named as such."""

from pathlib import Path
from typing import Any

import pytest
import torch

from factory import ImageEmbedBackend, TextEmbedBackend, Workspace
from factory.backends.embeddings import VisionEmbedBackend
from factory.encoder import BlockDCT, HashedText
from factory.encoder.autoencoder import DiffusersImageEncoder
from factory.encoder.kinds import toy_advice
from factory.encoder.pixels import RawPixels
from factory.encoder.transformers_vision import TransformersVisionEncoder
from factory.errors import ConfigError
from factory.reports.cache_usage import recipe_name
from factory.storage.memory import MemoryStorage


def encoders() -> dict[str, Any]:
    """Return one encoder of each kind; none is loaded."""
    return {
        "image": DiffusersImageEncoder(model="nowhere/there-is-none"),
        "text": HashedText(),
        "vision": TransformersVisionEncoder(model="nowhere/there-is-none"),
    }


STORES: dict[str, Any] = {
    "image": ImageEmbedBackend,
    "text": TextEmbedBackend,
    "vision": VisionEmbedBackend,
}


@pytest.mark.parametrize("given", ["image", "text", "vision"])
@pytest.mark.parametrize("wanted", STORES)
def test_an_encoder_of_another_kind_is_refused_before_anything_is_read(
    wanted: str, given: str, tmp_path: Path
) -> None:
    place = Workspace(MemoryStorage("kinds"), scratch_dir=str(tmp_path))
    encoder = encoders()[given]
    if given == wanted:
        assert STORES[wanted](name="s", cache=place, encoder=encoder).takes == wanted
        return
    name = type(encoder).__name__
    with pytest.raises(ConfigError, match=rf"data\.backends\.s\.encoder is {name}, .*encoder/"):
        STORES[wanted](name="s", cache=place, encoder=encoder)


@pytest.mark.parametrize("wanted", STORES)
def test_an_encoder_that_names_what_it_takes_otherwise_is_not_judged(
    wanted: str, tmp_path: Path
) -> None:
    class Own(HashedText):
        def encode(self, texts: Any) -> dict[str, torch.Tensor]:  # type: ignore[override]
            return super().encode(texts)

    place = Workspace(MemoryStorage("kinds"), scratch_dir=str(tmp_path))
    assert isinstance(STORES[wanted](name="s", cache=place, encoder=Own()).encoder, Own)


def test_toys_are_named_in_tables_and_warned_about() -> None:
    assert recipe_name('{"kind": "latents", "encoder": "BlockDCT/1(channels=16)"}') == (
        "latents BlockDCT/1 (toy)"
    )
    assert "(toy)" not in recipe_name('{"kind": "text", "encoder": "TransformersText/1(x)"}')
    assert "HashedText, a toy of the demo" in str(toy_advice("t", HashedText()))
    assert "encoder/image=autoencoder" in str(toy_advice("i", BlockDCT()))
    assert toy_advice("p", RawPixels()) is None
