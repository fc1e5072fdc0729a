"""The contracts of encoders: rows are a function of their sample and of the fingerprint alone."""

import pickle
from typing import Any, ClassVar

import pytest
import torch

from factory.encoder.base import (
    ImageEncoder,
    LengthClassEncoder,
    SizedImageEncoder,
    SizedRowEncoder,
    TextEncoder,
    VisionEncoder,
)

CAPTIONS = ["a red fox in the snow", "", "ein Fuchs, 狐 🦊", "word " * 40, "a red fox in the snow"]


def pictures(count: int, edge: int, seed: int = 0) -> torch.Tensor:
    """Return noise as pictures, uint8 RGB [count, edge, edge, 3]."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, edge, edge, 3), dtype=torch.uint8, generator=draw)


def same(one: torch.Tensor, other: torch.Tensor, tolerance: float) -> bool:
    """Whether two tensors are of one dtype and shape and differ by no more than a tolerance."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.allclose(one.double(), other.double(), rtol=0, atol=tolerance)


def nbytes(row: dict[str, torch.Tensor]) -> int:
    """Return the bytes of one row, given its fields [1, ...]."""
    return sum(field.numel() * field.element_size() for field in row.values())


class _RowsContract:
    """What encoders of all kinds do. Give fixtures `encoder`, and `samples` that it takes.

    Attributes:
        tolerance: Largest difference of a row encoded alone and among others; 0 where no
            matrix product is split by the size of the batch.
    """

    tolerance: ClassVar[float] = 0.0

    def test_every_field_has_a_row_for_each_sample(self, encoder: Any, samples: Any) -> None:
        assert {len(field) for field in encoder.encode(samples).values()} == {len(samples)}

    def test_a_row_follows_from_its_sample_alone(self, encoder: Any, samples: Any) -> None:
        together = encoder.encode(samples)
        for number in reversed(range(len(samples))):
            for name, field in encoder.encode(samples[number : number + 1]).items():
                assert same(field[0], together[name][number], self.tolerance), name

    def test_is_the_same_after_release_and_in_another_process(
        self, encoder: Any, samples: Any
    ) -> None:
        first, name = encoder.encode(samples), encoder.fingerprint
        copy = pickle.loads(pickle.dumps(encoder))
        encoder.release()
        for other in (encoder, copy):
            assert other.fingerprint == name
            for field, rows in other.encode(samples).items():
                assert torch.equal(rows, first[field]), field


class ImageEncoderContract(_RowsContract):
    """What every image encoder does. Give a fixture `encoder`."""

    @pytest.fixture
    def samples(self, encoder: ImageEncoder) -> torch.Tensor:
        """Return three pictures that it takes."""
        return pictures(3, 8 * encoder.downscale)

    def test_is_an_image_encoder(self, encoder: ImageEncoder) -> None:
        assert isinstance(encoder, ImageEncoder)

    def test_latents_are_a_cell_for_each_downscale(
        self, encoder: ImageEncoder, samples: torch.Tensor
    ) -> None:
        latents = encoder.encode(samples)["latents"]
        assert latents.ndim == 4  # [B, C, h, w]
        assert (len(latents), *latents.shape[2:]) == (3, 8, 8)

    def test_decodes_to_pictures_of_the_same_size(
        self, encoder: ImageEncoder, samples: torch.Tensor
    ) -> None:
        decoded = encoder.decode(encoder.encode(samples)["latents"])
        assert (decoded.dtype, decoded.shape) == (torch.uint8, samples.shape)

    def test_the_pixels_given_stay_as_they_are(
        self, encoder: ImageEncoder, samples: torch.Tensor
    ) -> None:
        given = samples.clone()
        encoder.encode(samples)
        assert torch.equal(samples, given)

    def test_rows_are_of_the_bytes_foretold(
        self, encoder: ImageEncoder, samples: torch.Tensor
    ) -> None:
        if not isinstance(encoder, SizedImageEncoder):
            pytest.skip("tells no sizes beforehand")
        edge = samples.shape[1]
        assert nbytes(encoder.encode(samples[:1])) == encoder.row_bytes(edge, edge)


class TextEncoderContract(_RowsContract):
    """What every text encoder does. Give a fixture `encoder`."""

    @pytest.fixture
    def samples(self, encoder: TextEncoder) -> list[str]:
        """Return captions; one alone where the length of a row depends on those beside it."""
        return CAPTIONS[:1] if isinstance(encoder, LengthClassEncoder) else CAPTIONS

    def test_is_a_text_encoder(self, encoder: TextEncoder) -> None:
        assert isinstance(encoder, TextEncoder)

    def test_a_caption_has_one_row_also_if_it_is_empty(self, encoder: TextEncoder) -> None:
        for captions in (CAPTIONS[:1], CAPTIONS[1:2]):
            assert {len(field) for field in encoder.encode(captions).values()} == {1}

    def test_captions_of_one_length_class_have_rows_of_one_shape(
        self, encoder: TextEncoder
    ) -> None:
        if not isinstance(encoder, LengthClassEncoder):
            pytest.skip("all its rows are of one length")
        classes = encoder.length_classes_of(CAPTIONS)
        assert len(classes) == len(CAPTIONS)
        for one in set(classes.tolist()):
            group = [CAPTIONS[n] for n in range(len(CAPTIONS)) if classes[n] == one]
            assert {len(field) for field in encoder.encode(group).values()} == {len(group)}

    def test_rows_take_no_more_bytes_than_foretold(self, encoder: TextEncoder) -> None:
        if not isinstance(encoder, SizedRowEncoder):
            pytest.skip("tells no sizes beforehand")
        for caption in CAPTIONS:
            assert nbytes(encoder.encode([caption])) <= encoder.row_bytes()


class VisionEncoderContract(_RowsContract):
    """What every encoder of pictures to condition on does. Give a fixture `encoder`."""

    @pytest.fixture
    def samples(self) -> torch.Tensor:
        """Return three pictures."""
        return pictures(3, 64)

    def test_is_a_vision_encoder(self, encoder: VisionEncoder) -> None:
        assert isinstance(encoder, VisionEncoder)

    def test_pictures_of_all_sizes_have_rows_of_one_shape(self, encoder: VisionEncoder) -> None:
        small, large = (encoder.encode(pictures(1, edge)) for edge in (32, 96))
        assert small.keys() == large.keys()
        for name in small:
            assert small[name].shape == large[name].shape, name
