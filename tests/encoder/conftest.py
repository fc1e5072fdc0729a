"""Small models with random weights, saved as models are, so that they are loaded from folders."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "cat", "dog", "sat"]
# A tiny autoencoder of pictures with two levels: 2 pixels for each latent cell.
TINY_VAE: dict[str, Any] = {
    "block_out_channels": [8, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "scaling_factor": 0.5,
    "shift_factor": 0.25,
}
# One of clips, of Wan's kind: 4 pixels, and 2 frames, for each latent cell.
TINY_WAN: dict[str, Any] = {
    "base_dim": 4,
    "z_dim": 2,
    "dim_mult": [1, 1, 1],
    "num_res_blocks": 1,
    "temperal_downsample": [False, True],
    "latents_mean": [0.5, -0.5],
    "latents_std": [2.0, 4.0],
}
WIDTH, LAYERS = 16, 2


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the libraries from asking the Hub."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def pixels() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (3, 16, 24, 3), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="session")
def vae_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from diffusers import AutoencoderKL

    folder = tmp_path_factory.mktemp("vae")
    torch.manual_seed(0)
    AutoencoderKL(**TINY_VAE).save_pretrained(folder / "vae")
    return folder


def save_tokenizer(folder: Path, *, special: bool = True) -> None:
    """Save a tokenizer of whole words; without `special` tokens an empty text has none."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    if special:
        raw.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]",
        cls_token="[CLS]", sep_token="[SEP]", eos_token="[SEP]",
        padding_side="right" if special else "left",
    ).save_pretrained(folder)  # fmt: skip


def text_model(family: str) -> Any:
    """Return a text model of a family, with random weights."""
    import transformers as t

    torch.manual_seed(0)
    size = {"vocab_size": len(WORDS), "hidden_size": WIDTH, "num_hidden_layers": LAYERS}
    heads = {"num_attention_heads": 2, "intermediate_size": 32}
    tokens = {"eos_token_id": 3, "bos_token_id": 2, "pad_token_id": 0}
    small = {"d_model": WIDTH, "d_kv": 8, "d_ff": 32, "num_layers": LAYERS, "num_heads": 2}
    clip = t.CLIPTextConfig(**size, **heads, **tokens, projection_dim=8)
    vision = {"hidden_size": WIDTH, **heads, "num_hidden_layers": 1, "image_size": 8}
    both = t.CLIPConfig(
        text_config=clip.to_dict(), vision_config=vision | {"patch_size": 4}, projection_dim=8
    )
    return {
        "bert": lambda: t.BertModel(t.BertConfig(**size, **heads)),
        "t5": lambda: t.T5Model(t.T5Config(vocab_size=len(WORDS), **small)),
        "qwen": lambda: t.Qwen2Model(
            t.Qwen2Config(**size, **heads, **tokens, num_key_value_heads=1)
        ),
        "siglip": lambda: t.SiglipTextModel(t.SiglipTextConfig(**size, **heads, **tokens)),
        "clip": lambda: t.CLIPModel(both),
        "clip_text": lambda: t.CLIPTextModel(clip),
        "clip_projected": lambda: t.CLIPTextModelWithProjection(clip),
    }[family]()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return what gives the folder of a family's model, its parts in folders as pipelines have."""
    made: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind)
            text_model(kind).save_pretrained(made[kind] / "text_encoder")
            save_tokenizer(made[kind] / "tokenizer", special=kind != "qwen")
        return made[kind]

    return folder


@pytest.fixture(scope="session")
def encoder_of(model_folder: Callable[[str], Path]) -> Callable[..., Any]:
    """Return what makes an encoder of a family, float32 rows of 9 tokens unless told otherwise."""
    from factory.encoder import TransformersTextEncoder

    def encoder(family: str, /, **settings: Any) -> TransformersTextEncoder:
        folders = {"subfolder": "text_encoder", "tokenizer_subfolder": "tokenizer"}
        usual: dict[str, Any] = {"max_length": 9, "dtype": "float32", **folders}
        return TransformersTextEncoder(model=str(model_folder(family)), **usual | settings)

    return encoder
