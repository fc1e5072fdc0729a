"""The encoders of upstream's model are carried, or what is missing is said first."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import factory
from factory.config.build import verify
from factory.importers.simpletuner.encoders import FAMILIES
from factory.importers.simpletuner.files import Import, write
from factory.importers.simpletuner.output import show
from tests.importers.simpletuner.building import converted, entry

TOY = "factory.encoder.dct.BlockDCT"


def composed(folder: Path, args: dict[str, Any], **keys: Any) -> Any:
    made = Import("old", "m.json", converted(entry(**keys), args=args))
    write(made, folder)
    overrides = [*made.command(str(folder)).split()[4:], "paths.data_dir=x"]
    cfg = factory.compose(overrides, config_dir=folder)
    verify(cfg, overrides)
    return cfg


def first_lines(args: dict[str, Any], **keys: Any) -> list[str]:
    file = io.StringIO()
    show(
        Import("old", "m.json", converted(entry(**keys), args=args)), Console(file=file, width=1000)
    )
    return file.getvalue().splitlines()


def test_two_clips(tmp_path: Path) -> None:
    cfg = composed(tmp_path, {"model_family": "sdxl", "max_train_steps": "1000"})
    assert cfg.encoder.image.model == "stabilityai/stable-diffusion-xl-base-1.0"
    assert cfg.encoder.image.subfolder == "vae"
    assert cfg.encoder.text.parts.large.model == "stabilityai/stable-diffusion-xl-base-1.0"
    assert cfg.encoder.text.parts.large.subfolder == "text_encoder_2"
    assert cfg.trainer.max_steps == 1000


def test_clip_and_t5(tmp_path: Path) -> None:
    args = {"model_family": "flux", "model_flavour": "schnell", "num_train_epochs": 3}
    cfg = composed(tmp_path, {**args, "max_train_steps": 0})
    assert cfg.encoder.text.parts.t5.model == "black-forest-labs/FLUX.1-schnell"
    assert cfg.encoder.text.parts.t5.max_length == 256
    assert (cfg.trainer.max_steps, cfg.trainer.max_epochs) == (-1, 3)


def test_an_autoencoder_of_its_own(tmp_path: Path) -> None:
    named = "madebyollin/sdxl-vae-fp16-fix"
    args = {"model_family": "sdxl", "pretrained_vae_model_name_or_path": named}
    image = composed(
        tmp_path, {**args, "vae_dtype": "bf16", "vae_enable_tiling": True}
    ).encoder.image
    assert image.model == named
    assert (image.subfolder, image.compute_dtype, image.tiling) == ("", "bfloat16", True)


def test_an_autoencoder_alone(tmp_path: Path) -> None:
    args = {"pretrained_vae_model_name_or_path": "stabilityai/sd-vae-ft-mse"}
    cfg = composed(tmp_path, args)
    assert cfg.encoder.image._target_ == "factory.encoder.autoencoder.DiffusersImageEncoder"
    assert cfg.encoder.image.model == "stabilityai/sd-vae-ft-mse"
    (said, *_) = first_lines(args)
    assert "captions by its hashed text" in said
    assert "encoder/text=" in said
    assert "DCT" not in said


def test_a_model_of_ones_own_and_a_file(tmp_path: Path) -> None:
    own = {"model_family": "pixart_sigma", "pretrained_model_name_or_path": "me/${mine}"}
    text = composed(tmp_path / "own", own).encoder.text
    assert (text.model, text.max_length, text.subfolder) == ("me/${mine}", 300, "text_encoder")
    file = {"model_family": "sd1x", "pretrained_model_name_or_path": "/m/sd.safetensors"}
    assert composed(tmp_path / "file", file).encoder.text.model == "Lykon/dreamshaper-8"


def test_clips_need_an_autoencoder_of_clips(tmp_path: Path) -> None:
    video = {"dataset_type": "video", "video": {"num_frames": 9}}
    args = {"model_family": "wan"}
    cfg = composed(tmp_path / "clips", args, **video)
    assert cfg.encoder.image._target_.endswith("DiffusersVideoEncoder")
    assert cfg.encoder.text.zero_mask is True
    assert composed(tmp_path / "pictures", args).encoder.image._target_ == TOY
    assert "pictures by its block DCT" in first_lines(args)[0]


@pytest.mark.parametrize("args", [{}, {"model_family": "qwen_image"}, {"model_family": "??"}])
def test_toys_are_named_before_anything_else(args: dict[str, Any], tmp_path: Path) -> None:
    lines = first_lines(args)
    assert lines[0].startswith("! toy encoders: this run would encode pictures by its block DCT")
    assert "encoder/image=autoencoder_kl encoder.image.model=MODEL encoder/text=" in lines[0]
    assert any("trainer.max_steps=N" in line for line in lines[:3])
    made = Import("old", "m.json", converted(entry(), args=args))
    texts = made.files(str(tmp_path))
    assert "toy encoders" in texts["data/old.yaml"]
    assert "toy encoders" in texts["data/old.IMPORT.md"].splitlines()[2]


def test_every_family_composes(tmp_path: Path) -> None:
    for name, family in FAMILIES.items():
        for flavour in [None, *list(family.repositories)[1:2]]:
            made = converted(entry(), args={"model_family": name, "model_flavour": flavour})
            texts = Import("old", "m.json", made).files(str(tmp_path))
            assert ("encoder/text/old-text.yaml" in texts) == bool(family.text)
    cfg = composed(tmp_path, {"model_family": "deepfloyd"})
    assert cfg.encoder.image is None
