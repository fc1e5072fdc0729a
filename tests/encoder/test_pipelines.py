"""The composed examples give what diffusers' own pipelines encode prompts to."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from factory import build, compose
from factory.encoder import SeveralTexts

PROMPTS = ["a cat sat", "dog"]


@pytest.fixture(scope="module")
def pipeline_folder(tmp_path_factory: pytest.TempPathFactory, model_folder: Any) -> Any:
    """Return what lays the models of two families out as a pipeline's folder."""

    def folder(first: str, second: str) -> Path:
        made = tmp_path_factory.mktemp("pipeline")
        for family, suffix in ((first, ""), (second, "_2")):
            for part in ("text_encoder", "tokenizer"):
                shutil.copytree(model_folder(family) / part, made / f"{part}{suffix}")
        return made

    return folder


def parts_of(folder: Path, second: str) -> dict[str, Any]:
    """Return the models and tokenizers of a folder, for a pipeline."""
    import transformers as t

    kinds = {"text_encoder": t.CLIPTextModel, "text_encoder_2": getattr(t, second)}
    models = {name: kind.from_pretrained(folder / name).eval() for name, kind in kinds.items()}
    tokenizers = {
        name: t.AutoTokenizer.from_pretrained(folder / name, model_max_length=20)
        for name in ("tokenizer", "tokenizer_2")
    }
    return models | tokenizers


def composed(option: str, first: str, second: str, folder: Path, **lengths: int) -> SeveralTexts:
    """Return the option's encoder for a folder, in full precision on the CPU."""
    overrides = [f"encoder/text={option}", f"encoder.text.parts.{first}.model={folder}"]
    for part in (first, second):
        key = f"encoder.text.parts.{part}"
        overrides += [f"{key}.dtype=float32", f"{key}.compute_dtype=float32", f"{key}.device=cpu"]
        overrides += [f"++{key}.max_length={lengths[part]}"]
    (store,) = build(compose(overrides)).registry.text_embeds.values()
    assert isinstance(store.encoder, SeveralTexts)
    return store.encoder


def test_two_clips_are_those_of_stable_diffusion_xl(pipeline_folder: Any) -> None:
    from diffusers import StableDiffusionXLPipeline

    folder = pipeline_folder("clip_text", "clip_projected")
    parts = parts_of(folder, "CLIPTextModelWithProjection")
    pipeline = StableDiffusionXLPipeline(vae=None, unet=None, scheduler=None, **parts)
    with torch.no_grad():
        embeds, _, pooled, _ = pipeline.encode_prompt(
            PROMPTS, do_classifier_free_guidance=False, device="cpu"
        )
    encoder = composed("clip_and_clip", "small", "large", folder, small=20, large=20)
    fields = encoder.encode(PROMPTS)
    torch.testing.assert_close(fields["embeds"], embeds)
    torch.testing.assert_close(fields["pooled"], pooled)
    assert fields["mask"].sum(dim=1).tolist() == [5, 3]


def test_clip_and_t5_are_those_of_flux(pipeline_folder: Any) -> None:
    from diffusers import FluxPipeline

    folder = pipeline_folder("clip_text", "t5")
    parts = parts_of(folder, "T5EncoderModel")
    pipeline = FluxPipeline(scheduler=None, vae=None, transformer=None, **parts)
    with torch.no_grad():
        embeds, pooled, _ = pipeline.encode_prompt(
            PROMPTS, None, device="cpu", max_sequence_length=12
        )
    fields = composed("clip_and_t5", "clip", "t5", folder, clip=20, t5=12).encode(PROMPTS)
    torch.testing.assert_close(fields["embeds"], embeds)
    torch.testing.assert_close(fields["pooled"], pooled)
    assert fields["mask"].shape == (2, 12)
