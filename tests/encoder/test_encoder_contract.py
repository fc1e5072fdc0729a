"""Every encoder keeps the contract of its kind."""

from collections.abc import Callable
from typing import Any, ClassVar

import pytest

from factory.encoder import (
    BlockDCT,
    DiffusersImageEncoder,
    HashedText,
    ImageEncoder,
    SeveralTexts,
    TextEncoder,
    TransformersVisionEncoder,
    VisionEncoder,
)
from factory.testing.encoder import (
    ImageEncoderContract,
    TextEncoderContract,
    VisionEncoderContract,
)
from tests.encoder.conftest import TINY_VAE
from tests.encoder.test_transformers_vision import vision_folder  # noqa: F401 - a fixture

# Float32 sums of other orders, where a matrix product is split by the size of the batch.
ROUNDING = 2e-3


class TestBlockDCT(ImageEncoderContract):
    @pytest.fixture
    def encoder(self) -> ImageEncoder:
        return BlockDCT()


class TestDiffusersImage(ImageEncoderContract):
    tolerance: ClassVar[float] = ROUNDING

    @pytest.fixture
    def encoder(self) -> ImageEncoder:
        return DiffusersImageEncoder(config=TINY_VAE)


class TestHashedText(TextEncoderContract):
    @pytest.fixture
    def encoder(self) -> TextEncoder:
        return HashedText(tokens=8, dim=4)


class TestSeveralTexts(TextEncoderContract):
    @pytest.fixture
    def encoder(self) -> TextEncoder:
        return SeveralTexts(parts={"a": HashedText(4, 2), "b": HashedText(8, 4)})


class TestTransformersText(TextEncoderContract):
    tolerance: ClassVar[float] = ROUNDING

    @pytest.fixture(params=["bert", "clip"])
    def encoder(self, request: pytest.FixtureRequest, encoder_of: Callable[..., Any]) -> Any:
        return encoder_of(request.param)


class TestTransformersTextOfClasses(TextEncoderContract):
    tolerance: ClassVar[float] = ROUNDING

    @pytest.fixture
    def encoder(self, encoder_of: Callable[..., Any]) -> Any:
        return encoder_of("bert", length_classes=[3, 9])


class TestTransformersVision(VisionEncoderContract):
    tolerance: ClassVar[float] = ROUNDING

    @pytest.fixture
    def encoder(self, vision_folder: Callable[[str], Any]) -> VisionEncoder:  # noqa: F811
        return TransformersVisionEncoder(model=str(vision_folder("clip")))
