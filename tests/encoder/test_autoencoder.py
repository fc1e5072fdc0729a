"""Pictures and clips become the latents that diffusers' own autoencoders make of them."""

from pathlib import Path
from typing import Any

import pytest
import torch

from factory.encoder import ClipEncoder, DiffusersImageEncoder, DiffusersVideoEncoder, ImageEncoder
from factory.encoder.base import SizedImageEncoder
from factory.errors import ConfigError
from tests.encoder.conftest import TINY_VAE, TINY_WAN

TINY_TAESD: dict[str, Any] = {
    "encoder_block_out_channels": [8, 8], "decoder_block_out_channels": [8, 8],
    "num_encoder_blocks": [1, 1], "num_decoder_blocks": [1, 1],
    "latent_channels": 3, "scaling_factor": 2.0,
}  # fmt: skip
TINY_DC: dict[str, Any] = {
    "latent_channels": 4, "attention_head_dim": 4, "scaling_factor": 0.5,
    "encoder_block_types": ["ResBlock"] * 3, "decoder_block_types": ["ResBlock"] * 3,
    "encoder_block_out_channels": [4, 8, 8], "decoder_block_out_channels": [4, 8, 8],
    "encoder_layers_per_block": [1] * 3, "decoder_layers_per_block": [1] * 3,
    "encoder_qkv_multiscales": [[]] * 3, "decoder_qkv_multiscales": [[]] * 3,
}  # fmt: skip
TINY_HUNYUAN: dict[str, Any] = {
    "block_out_channels": [8, 8, 8, 8], "norm_num_groups": 2, "latent_channels": 4,
    "layers_per_block": 1, "scaling_factor": 0.5,
}  # fmt: skip


@pytest.fixture(scope="module")
def clips() -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (2, 5, 16, 24, 3), dtype=torch.uint8, generator=generator)


def test_latents_are_shifted_and_scaled(vae_folder: Path, pixels: torch.Tensor) -> None:
    from diffusers import AutoencoderKL

    encoder = DiffusersImageEncoder(model=str(vae_folder), subfolder="vae", dtype="float32")
    latents = encoder.encode(pixels)["latents"]
    module = AutoencoderKL.from_pretrained(vae_folder, subfolder="vae").eval()
    with torch.no_grad():
        raw = module.encode(pixels.permute(0, 3, 1, 2) / 127.5 - 1).latent_dist.mode()
    assert encoder.downscale == 2
    assert latents.shape == (3, 4, 8, 12)
    torch.testing.assert_close(latents, (raw - 0.25) * 0.5)
    decoded = encoder.decode(latents)
    assert decoded.dtype == torch.uint8
    assert decoded.shape == pixels.shape
    with torch.no_grad():
        expected = ((module.decode(raw).sample + 1) * 127.5).round().clamp(0, 255)
    torch.testing.assert_close(decoded.float(), expected.permute(0, 2, 3, 1), atol=1.0, rtol=0)


def test_means_per_channel_are_applied(pixels: torch.Tensor) -> None:
    plain = DiffusersImageEncoder(config=TINY_VAE | {"shift_factor": None}, dtype="float32")
    mean, std = [0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 3.0, 4.0]
    normed = DiffusersImageEncoder(
        config=TINY_VAE | {"latents_mean": mean, "latents_std": std}, dtype="float32"
    )
    raw = plain.encode(pixels)["latents"] / 0.5
    shape = (1, 4, 1, 1)
    expected = (raw - torch.tensor(mean).view(shape)) * 0.5 / torch.tensor(std).view(shape)
    torch.testing.assert_close(normed.encode(pixels)["latents"], expected)


@pytest.mark.parametrize(
    ("kind", "config", "downscale", "channels"),
    [
        ("AutoencoderTiny", TINY_TAESD, 2, 3),
        ("AutoencoderDC", TINY_DC, 4, 4),
        ("VQModel", {"block_out_channels": [32], "latent_channels": 2}, 1, 2),
    ],
)
def test_any_autoencoder_of_the_library_encodes(
    kind: str, config: dict[str, Any], downscale: int, channels: int, pixels: torch.Tensor
) -> None:
    encoder = DiffusersImageEncoder(kind=kind, config=config, dtype="float32")
    assert isinstance(encoder, ImageEncoder)
    assert isinstance(encoder, SizedImageEncoder)
    assert not isinstance(encoder, ClipEncoder)
    assert encoder.downscale == downscale
    foretold = encoder.row_bytes(24, 16)
    assert encoder._module is None  # the outline tells, without weights
    latents = encoder.encode(pixels)["latents"]
    assert latents.shape == (3, channels, 16 // downscale, 24 // downscale)
    assert foretold == latents[0].nbytes
    assert encoder.decode(latents).shape == pixels.shape
    factor = config.get("scaling_factor", 0.18215)
    unscaled = DiffusersImageEncoder(
        kind=kind, config=config | {"scaling_factor": 1.0}, dtype="float32"
    )
    torch.testing.assert_close(latents, unscaled.encode(pixels)["latents"] * factor)


def test_the_model_s_config_names_its_class(tmp_path: Path, pixels: torch.Tensor) -> None:
    from diffusers import AutoencoderTiny

    AutoencoderTiny(**TINY_TAESD).save_pretrained(tmp_path)
    encoder = DiffusersImageEncoder(model=str(tmp_path))
    assert encoder.encode(pixels)["latents"].shape == (3, 3, 8, 12)
    with pytest.raises(ConfigError, match=r"kind is 'AutoencoderKL', and .* an AutoencoderTiny"):
        _ = DiffusersImageEncoder(model=str(tmp_path), kind="AutoencoderKL").downscale


@pytest.mark.parametrize("kind", ["AutoencoderKLWann", "DDIMScheduler"])
def test_a_class_that_is_no_model_is_refused(kind: str) -> None:
    with pytest.raises(ConfigError, match=f"kind is '{kind}', which is no model of diffusers"):
        _ = DiffusersImageEncoder(config={}, kind=kind).downscale
    with pytest.raises(ConfigError, match="did you mean AutoencoderKLWan"):
        _ = DiffusersImageEncoder(config={}, kind="AutoencoderKLWann").downscale


def test_samples_are_drawn_by_content_in_any_batch(pixels: torch.Tensor) -> None:
    encoder = DiffusersImageEncoder(config=TINY_VAE, sample="sample", dtype="float32")
    mode = DiffusersImageEncoder(config=TINY_VAE, dtype="float32").encode(pixels)["latents"]
    together = encoder.encode(pixels)["latents"]
    alone = encoder.encode(pixels[1:2])["latents"]
    torch.testing.assert_close(together[1:2], alone)
    assert not torch.allclose(together, mode)
    other = DiffusersImageEncoder(config=TINY_VAE, sample="sample", dtype="float32", seed=1)
    assert not torch.allclose(together, other.encode(pixels)["latents"])
    with pytest.raises(ConfigError, match="AutoencoderTiny predicts no distribution"):
        DiffusersImageEncoder(kind="AutoencoderTiny", config=TINY_TAESD, sample="sample").encode(
            pixels
        )


def test_it_tiles_and_slices_and_keeps_the_caller_s_randomness(pixels: torch.Tensor) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    encoder = DiffusersImageEncoder(config=TINY_VAE, tiling=True, slicing=True)
    assert encoder.encode(pixels)["latents"].dtype == torch.float16
    assert torch.equal(torch.rand(1), expected)
    assert encoder._module.use_tiling
    assert encoder._module.use_slicing


def test_edges_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="15x16"):
        DiffusersImageEncoder(config=TINY_VAE).encode(torch.zeros(1, 16, 15, 3, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({}, "model=None"),
        ({"model": "a", "config": TINY_VAE}, "model='a'"),
        ({"model": "a", "sample": "mean"}, "sample"),
        ({"model": "a", "dtype": "int8"}, "dtype"),
        ({"model": "a", "compute_dtype": "fp8"}, "compute_dtype"),
    ],
)
def test_settings_out_of_range_are_named(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        DiffusersImageEncoder(**settings)


@pytest.mark.parametrize(
    ("kind", "config", "shared", "cell"),
    [
        ("AutoencoderKLWan", TINY_WAN, 2, 4),
        ("AutoencoderKLHunyuanVideo", TINY_HUNYUAN, 4, 8),
    ],
)
def test_clips_are_encoded_whole(
    kind: str, config: dict[str, Any], shared: int, cell: int, clips: torch.Tensor
) -> None:
    encoder = DiffusersVideoEncoder(kind=kind, config=config, dtype="float32")
    assert isinstance(encoder, ImageEncoder)
    assert isinstance(encoder, ClipEncoder)
    assert encoder.downscale == cell
    foretold = encoder.clip_bytes(24, 16, 5)
    assert [encoder.nearest_frames(n) for n in (1, 5, shared + 1)] == [1, 5, shared + 1]
    assert encoder._module is None
    clips = clips[:, :, : 16 // cell * cell, : 24 // cell * cell]
    latents = encoder.encode_clips(clips)["latents"]
    assert latents.shape[2:] == (1 + 4 // shared, 16 // cell, 24 // cell)
    assert foretold == latents[0].nbytes
    assert encoder.decode(latents).shape == clips.shape
    torch.testing.assert_close(encoder.encode_clips(clips[1:])["latents"], latents[1:])


def test_a_picture_is_a_clip_of_one_frame(clips: torch.Tensor) -> None:
    encoder = DiffusersVideoEncoder(kind="AutoencoderKLWan", config=TINY_WAN, dtype="float32")
    still = encoder.encode(clips[:, 0])["latents"]
    assert still.shape == (2, 2, 4, 6)
    torch.testing.assert_close(still, encoder.encode_clips(clips[:, :1])["latents"][:, :, 0])
    assert encoder.row_bytes(24, 16) == still[0].nbytes
    assert encoder.decode(still).shape == clips[:, 0].shape


def test_means_per_channel_are_applied_to_clips(clips: torch.Tensor) -> None:
    plain = {"latents_mean": [0.0, 0.0], "latents_std": [1.0, 1.0]}
    raw, normed = (
        DiffusersVideoEncoder(kind="AutoencoderKLWan", config=config, dtype="float32")
        .encode_clips(clips)["latents"]
        for config in (TINY_WAN | plain, TINY_WAN)
    )  # fmt: skip
    mean, std = (torch.tensor(v).view(1, 2, 1, 1, 1) for v in ([0.5, -0.5], [2.0, 4.0]))
    torch.testing.assert_close(normed, (raw - mean) / std)


def test_frames_that_would_be_left_out_are_refused(clips: torch.Tensor) -> None:
    encoder = DiffusersVideoEncoder(kind="AutoencoderKLWan", config=TINY_WAN)
    assert [encoder.nearest_frames(n) for n in (1, 2, 4, 16)] == [1, 1, 5, 17]
    with pytest.raises(ConfigError, match=r"clips of 2n\+1 frames; given 4: .* frames to 5"):
        encoder.encode_clips(clips[:, :4])


def test_the_wrong_class_for_pictures_or_clips_names_the_right_one() -> None:
    with pytest.raises(ConfigError, match=r"AutoencoderKLWan cannot .* encoder/image=video_auto"):
        _ = DiffusersImageEncoder(kind="AutoencoderKLWan", config=TINY_WAN).downscale
    with pytest.raises(ConfigError, match=r"AutoencoderKL cannot .* encoder/image=autoencoder"):
        _ = DiffusersVideoEncoder(kind="AutoencoderKL", config=TINY_VAE).downscale
