"""BlockDCT: invertible with all channels, faithful with few, scaled by honest constants."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_image

from factory.encoder import BlockDCT, ImageEncoder
from factory.encoder.dct import coefficient_order
from factory.errors import ConfigError


def photographs(edge: int = 192) -> torch.Tensor:
    """Return squares [B, edge, edge, 3] cut from photographs shrunk to that edge."""
    from PIL import Image
    from skimage import data

    sources = [data.astronaut(), data.chelsea(), data.coffee(), data.rocket()]
    sources += [load_sample_image("china.jpg"), load_sample_image("flower.jpg")]
    squares = []
    for source in sources:
        picture = Image.fromarray(source)
        side = min(picture.size)
        square = picture.resize((edge, edge), Image.Resampling.LANCZOS, box=(0, 0, side, side))
        squares.append(np.asarray(square))
    return torch.from_numpy(np.stack(squares))


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    error = (a.double() - b.double()).square().mean().item()
    return 10 * np.log10(255**2 / max(error, 1e-9))


def test_all_channels_lose_nothing() -> None:
    pixels = torch.randint(0, 256, (3, 24, 40, 3), dtype=torch.uint8)
    encoder = BlockDCT(channels=192, dtype="float32")
    assert torch.equal(encoder.decode(encoder.encode(pixels)["latents"]), pixels)


def test_all_channels_in_half_precision_keep_photographs() -> None:
    pixels = photographs()
    encoder = BlockDCT(channels=192)
    assert psnr(pixels, encoder.decode(encoder.encode(pixels)["latents"])) > 55


def test_sixteen_channels_give_a_recognisable_picture() -> None:
    pixels = photographs()
    encoder = BlockDCT()
    restored = encoder.decode(encoder.encode(pixels)["latents"])
    assert min(psnr(a, b) for a, b in zip(pixels, restored, strict=True)) > 22


def test_more_channels_never_look_worse() -> None:
    pixels = photographs()
    quality = [
        psnr(pixels, encoder.decode(encoder.encode(pixels)["latents"]))
        for encoder in map(BlockDCT, (1, 3, 16, 64, 192))
    ]
    assert quality == sorted(quality)


def test_channels_have_about_unit_variance_and_zero_mean() -> None:
    latents = BlockDCT(channels=48, dtype="float32").encode(photographs())["latents"]
    deviation = latents.std(dim=(0, 2, 3))
    assert deviation.min() > 0.5
    assert deviation.max() < 2.0
    assert latents.mean(dim=(0, 2, 3)).abs().max() < 0.4


def test_a_flat_block_is_its_mean_alone() -> None:
    pixels = torch.full((1, 8, 8, 3), 200, dtype=torch.uint8)
    grey = BlockDCT(channels=16, dtype="float32").encode(pixels)["latents"].flatten()
    assert grey[3:].abs().max() < 1e-4


def test_order_is_complete_and_sixteen_is_a_whole_step() -> None:
    order = coefficient_order()
    assert len(set(order)) == 192
    assert {(p, u + v) for p, u, v in order[:16]} == {
        (0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (2, 0), (2, 1),
    }  # fmt: skip
    assert order[:3] == [(0, 0, 0), (1, 0, 0), (2, 0, 0)]


def test_shapes_and_dtypes() -> None:
    pixels = torch.zeros(2, 16, 32, 3, dtype=torch.uint8)
    for name in ("float16", "bfloat16", "float32"):
        latents = BlockDCT(channels=5, dtype=name).encode(pixels)["latents"]
        assert latents.shape == (2, 5, 2, 4)
        assert latents.dtype == getattr(torch, name)
        assert latents.is_contiguous()


def test_a_picture_does_not_depend_on_its_batch() -> None:
    pixels = photographs(64)
    together = BlockDCT().encode(pixels)["latents"]
    alone = torch.cat([BlockDCT().encode(pixels[i : i + 1])["latents"] for i in range(6)])
    assert torch.equal(together, alone)


def test_edges_that_do_not_fit_are_named() -> None:
    with pytest.raises(ConfigError, match="36x20"):
        BlockDCT().encode(torch.zeros(1, 20, 36, 3, dtype=torch.uint8))


@pytest.mark.parametrize(
    "pixels", [torch.zeros(1, 8, 8, 3), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)]
)
def test_other_pixels_are_refused(pixels: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match="uint8 RGB"):
        BlockDCT().encode(pixels)


def test_latents_of_another_encoder_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"channels=16.*\[1, 4, 2, 2\]"):
        BlockDCT().decode(torch.zeros(1, 4, 2, 2))


@pytest.mark.parametrize("settings", [{"channels": 0}, {"channels": 193}, {"dtype": "int8"}])
def test_settings_out_of_range_are_named(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        BlockDCT(**settings)  # type: ignore[arg-type]


def test_fingerprint_tells_settings_apart() -> None:
    encoders = [BlockDCT(), BlockDCT(channels=17), BlockDCT(dtype="float32")]
    assert len({encoder.fingerprint for encoder in encoders}) == 3
    assert BlockDCT().fingerprint == BlockDCT(channels=16, dtype="float16").fingerprint


def test_keeps_the_contract_and_travels() -> None:
    encoder = BlockDCT(channels=7)
    assert isinstance(encoder, ImageEncoder)
    assert encoder.downscale == 8
    assert pickle.loads(pickle.dumps(encoder)) == encoder
    encoder.release()
