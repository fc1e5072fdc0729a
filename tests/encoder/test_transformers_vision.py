"""Pictures are prepared as a vision model wants them, and become its own output."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from factory.encoder import TransformersVisionEncoder, VisionEncoder
from factory.encoder.base import SizedRowEncoder
from factory.errors import ConfigError

EDGE, WIDTH = 16, 16
MEAN, STD = [0.5, 0.4, 0.3], [0.5, 0.25, 0.2]
CROPPED = {"size": {"shortest_edge": 18}, "crop_size": {"height": EDGE, "width": EDGE},
           "do_center_crop": True, "image_mean": MEAN, "image_std": STD}  # fmt: skip
STRETCHED = {"size": {"height": EDGE, "width": EDGE}, "image_mean": MEAN, "image_std": STD}


def vision_model(family: str) -> Any:
    import transformers as t

    torch.manual_seed(0)
    size = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": EDGE, "patch_size": 8}  # fmt: skip
    if family == "siglip":
        return t.SiglipVisionModel(t.SiglipVisionConfig(**size, intermediate_size=32))
    if family == "dinov2":
        return t.Dinov2Model(t.Dinov2Config(**size))
    config = t.CLIPVisionConfig(**size, intermediate_size=32, projection_dim=8)
    return t.CLIPVisionModelWithProjection(config)


@pytest.fixture(scope="module")
def vision_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            vision_model(family).save_pretrained(made[family])
            told = STRETCHED if family == "siglip" else CROPPED
            (made[family] / "preprocessor_config.json").write_text(json.dumps(told))
        return made[family]

    return folder


@pytest.mark.parametrize(
    ("family", "tokens", "pooled"), [("clip", 5, WIDTH), ("siglip", 4, WIDTH), ("dinov2", 5, WIDTH)]
)
def test_rows_of_every_family(
    family: str, tokens: int, pooled: int, vision_folder: Any, pixels: torch.Tensor
) -> None:
    encoder = TransformersVisionEncoder(model=str(vision_folder(family)), dtype="float32")
    assert isinstance(encoder, VisionEncoder)
    assert isinstance(encoder, SizedRowEncoder)
    foretold = encoder.row_bytes()
    assert encoder._module is None
    fields = encoder.encode(pixels)
    assert fields["embeds"].shape == (3, tokens, WIDTH)
    assert fields["pooled"].shape == (3, pooled)
    made = sum(field[0].nbytes for field in fields.values())
    assert made <= foretold <= made + WIDTH * 4
    torch.testing.assert_close(encoder.encode(pixels[1:2])["embeds"], fields["embeds"][1:2])


def test_rows_are_the_models_own_output_of_prepared_pictures(
    vision_folder: Any, pixels: torch.Tensor
) -> None:
    encoder = TransformersVisionEncoder(
        model=str(vision_folder("clip")), kind="CLIPVisionModelWithProjection", layer=-2,
        pooled="projection", dtype="float32",
    )  # fmt: skip
    fields = encoder.encode(pixels)
    with torch.no_grad():
        output = vision_model("clip").eval()(
            pixel_values=encoder._prepared(pixels), output_hidden_states=True
        )
    assert fields["pooled"].shape == (3, 8)
    torch.testing.assert_close(fields["pooled"], output.image_embeds)
    torch.testing.assert_close(fields["embeds"], output.hidden_states[-2])


@pytest.mark.parametrize(("family", "box"), [("clip", (8, 0, 40, 32)), ("siglip", None)])
def test_pictures_are_prepared_as_the_model_s_files_say(
    family: str, box: tuple[int, ...] | None, vision_folder: Any
) -> None:
    y, x = np.mgrid[0:32, 0:48]
    picture = np.stack([x * 5, y * 7, (x + y) * 3], axis=-1).astype(np.uint8)
    encoder = TransformersVisionEncoder(model=str(vision_folder(family)))
    found = encoder._prepared(torch.from_numpy(picture)[None])[0]
    resized = Image.fromarray(picture).resize((EDGE, EDGE), Image.Resampling.BICUBIC, box=box)
    scaled = torch.from_numpy(np.asarray(resized).copy()).permute(2, 0, 1) / 255
    wanted = (scaled - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    assert found.shape == (3, EDGE, EDGE)
    # Pillow rounds to whole levels, twice; the bounds are three of them, by the deviations.
    assert ((found - wanted).abs() <= 3 / 255 / min(STD) + 1e-6).all()


def test_settings_win_over_the_model_s_files(vision_folder: Any, pixels: torch.Tensor) -> None:
    model = str(vision_folder("clip"))
    wide = pixels[:, :8]
    own = TransformersVisionEncoder(model=model)._prepared(wide)
    stretched = TransformersVisionEncoder(model=model, resize="stretch")._prepared(wide)
    assert own.shape == stretched.shape == (3, 3, EDGE, EDGE)
    assert not torch.allclose(own, stretched)
    assert TransformersVisionEncoder(model=model, edge=8)._prepared(wide).shape[-2:] == (8, 8)


def test_a_model_without_a_preprocessor_is_prepared_for_as_clip_is(
    tmp_path: Path, pixels: torch.Tensor
) -> None:
    vision_model("clip").save_pretrained(tmp_path)
    preparation = TransformersVisionEncoder(model=str(tmp_path))._preparation
    assert (preparation.edge, preparation.resize) == (EDGE, "crop")
    assert preparation.mean[0] == pytest.approx(0.48145466)


def test_the_vision_half_of_a_model_of_both_is_used(model_folder: Any) -> None:
    folder = model_folder("clip")
    encoder = TransformersVisionEncoder(model=str(folder), subfolder="text_encoder")
    fields = encoder.encode(torch.zeros(1, 8, 8, 3, dtype=torch.uint8))
    assert fields["embeds"].shape == (1, 5, WIDTH)
    assert encoder.row_bytes() >= sum(field.nbytes for field in fields.values())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"resize": "pad"}, r"resize is 'pad'; allowed are None, 'crop', 'stretch'"),
        ({"edge": 0}, "edge is 0"),
        ({"layer": 2}, "layer is 2"),
    ],
)
def test_settings_out_of_range_are_named(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        TransformersVisionEncoder(model="a", **settings)


def test_a_class_that_is_no_model_is_refused(vision_folder: Any) -> None:
    encoder = TransformersVisionEncoder(model=str(vision_folder("clip")), kind="CLIPProcessor")
    with pytest.raises(ConfigError, match="'CLIPProcessor', which is no model of transformers"):
        encoder.encode(torch.zeros(1, 8, 8, 3, dtype=torch.uint8))
