"""The contracts of encoders: rows are a function of their sample and of the fingerprint alone."""

import pickle
from typing import ClassVar

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


class ImageEncoderContract:
    """What every image encoder does. Give a fixture `encoder`.

    Attributes:
        tolerance: Largest difference of a row encoded alone and among others; 0 where no
            matrix product is split by the size of the batch.
    """

    tolerance: ClassVar[float] = 0.0

    @pytest.fixture
    def pixels(self, encoder: ImageEncoder) -> torch.Tensor:
        """Return three pictures that it takes."""
        return pictures(3, 8 * encoder.downscale)

    def test_is_an_image_encoder(self, encoder: ImageEncoder) -> None:
        assert isinstance(encoder, ImageEncoder)

    def test_latents_are_a_cell_for_each_downscale(
        self, encoder: ImageEncoder, pixels: torch.Tensor
    ) -> None:
        latents = encoder.encode(pixels)["latents"]
        assert latents.ndim == 4
        assert (len(latents), *latents.shape[2:]) == (3, 8, 8)

    def test_every_field_has_a_row_for_each_picture(
        self, encoder: ImageEncoder, pixels: torch.Tensor
    ) -> None:
        assert {len(field) for field in encoder.encode(pixels).values()} == {3}

    def test_decodes_to_pictures_of_the_same_size(
        self, encoder: ImageEncoder, pixels: torch.Tensor
    ) -> None:
        decoded = encoder.decode(encoder.encode(pixels)["latents"])
        assert (decoded.dtype, decoded.shape) == (torch.uint8, pixels.shape)

    def test_a_row_follows_from_its_picture_alone(
        self, encoder: ImageEncoder, pixels: torch.Tensor
    ) -> None:
        given = pixels.clone()
        together = encoder.encode(pixels)
        assert torch.equal(pixels, given), "the pixels given were changed"
        for number in reversed(range(len(pixels))):
            alone = encoder.encode(pixels[number : number + 1])
            for name, field in alone.items():
                assert same(field[0], together[name][number], self.tolerance), name

    def test_is_the_same_after_release_and_in_another_process(
        self, encoder: ImageEncoder, pixels: torch.Tensor
    ) -> None:
        first, name = encoder.encode(pixels), encoder.fingerprint
        copy = pickle.loads(pickle.dumps(encoder))
        encoder.release()
        for other in (encoder, copy):
            assert other.fingerprint == name
            for field, rows in other.encode(pixels).items():
                assert torch.equal(rows, first[field]), field

    def test_rows_are_of_the_bytes_foretold(
        self, encoder: ImageEncoder, pixels: torch.Tensor
    ) -> None:
        if not isinstance(encoder, SizedImageEncoder):
            pytest.skip("tells no sizes beforehand")
        edge = pixels.shape[1]
        assert nbytes(encoder.encode(pixels[:1])) == encoder.row_bytes(edge, edge)


class TextEncoderContract:
    """What every text encoder does. Give a fixture `encoder`.

    Attributes:
        tolerance: As for `ImageEncoderContract`.
    """

    tolerance: ClassVar[float] = 0.0

    def test_is_a_text_encoder(self, encoder: TextEncoder) -> None:
        assert isinstance(encoder, TextEncoder)

    def test_every_field_has_a_row_for_each_caption(self, encoder: TextEncoder) -> None:
        for captions in (CAPTIONS[:1], CAPTIONS[1:2]):
            assert {len(field) for field in encoder.encode(captions).values()} == {1}

    def test_a_row_follows_from_its_caption_alone(self, encoder: TextEncoder) -> None:
        if isinstance(encoder, LengthClassEncoder):
            pytest.skip("the length of its rows depends on those beside them")
        together = encoder.encode(CAPTIONS)
        for number in reversed(range(len(CAPTIONS))):
            alone = encoder.encode(CAPTIONS[number : number + 1])
            for name, field in alone.items():
                assert same(field[0], together[name][number], self.tolerance), name

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

    def test_is_the_same_after_release_and_in_another_process(self, encoder: TextEncoder) -> None:
        first, name = encoder.encode(CAPTIONS[:1]), encoder.fingerprint
        copy = pickle.loads(pickle.dumps(encoder))
        encoder.release()
        for other in (encoder, copy):
            assert other.fingerprint == name
            for field, rows in other.encode(CAPTIONS[:1]).items():
                assert torch.equal(rows, first[field]), field

    def test_rows_take_no_more_bytes_than_foretold(self, encoder: TextEncoder) -> None:
        if not isinstance(encoder, SizedRowEncoder):
            pytest.skip("tells no sizes beforehand")
        for caption in CAPTIONS:
            assert nbytes(encoder.encode([caption])) <= encoder.row_bytes()


class VisionEncoderContract:
    """What every encoder of pictures to condition on does. Give a fixture `encoder`.

    Attributes:
        tolerance: As for `ImageEncoderContract`.
    """

    tolerance: ClassVar[float] = 0.0

    def test_is_a_vision_encoder(self, encoder: VisionEncoder) -> None:
        assert isinstance(encoder, VisionEncoder)

    def test_pictures_of_all_sizes_have_rows_of_one_shape(self, encoder: VisionEncoder) -> None:
        small, large = (encoder.encode(pictures(1, edge)) for edge in (32, 96))
        assert small.keys() == large.keys()
        for name in small:
            assert small[name].shape == large[name].shape, name

    def test_a_row_follows_from_its_picture_alone(self, encoder: VisionEncoder) -> None:
        pixels = pictures(3, 64)
        together = encoder.encode(pixels)
        for number in reversed(range(len(pixels))):
            for name, field in encoder.encode(pixels[number : number + 1]).items():
                assert same(field[0], together[name][number], self.tolerance), name

    def test_is_the_same_after_release_and_in_another_process(self, encoder: VisionEncoder) -> None:
        first, name = encoder.encode(pictures(1, 64)), encoder.fingerprint
        copy = pickle.loads(pickle.dumps(encoder))
        encoder.release()
        for other in (encoder, copy):
            assert other.fingerprint == name
            for field, rows in other.encode(pictures(1, 64)).items():
                assert torch.equal(rows, first[field]), field
