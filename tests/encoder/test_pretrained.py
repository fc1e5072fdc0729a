"""Pretrained encoders: real classes with small random weights, offline."""

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from factory.encoder import (
    AutoencoderKLEncoder,
    ImageEncoder,
    TextEncoder,
    TransformersTextEncoder,
)
from factory.errors import ConfigError, MissingExtraError

TINY: dict[str, Any] = {
    "block_out_channels": [8, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "scaling_factor": 0.5,
    "shift_factor": 0.25,
}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "cat", "dog", "sat"]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (3, 16, 24, 3), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def vae_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from diffusers import AutoencoderKL

    folder = tmp_path_factory.mktemp("vae")
    torch.manual_seed(0)
    AutoencoderKL(**TINY).save_pretrained(folder / "vae")
    return folder


@pytest.fixture(scope="module")
def tokenizer_of() -> Any:
    """Return what saves a tokenizer of whole words into a folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]",
        cls_token="[CLS]", sep_token="[SEP]", eos_token="[SEP]",
    )  # fmt: skip
    return fast.save_pretrained


def save_text_model(kind: str, folder: Path) -> None:
    import transformers as t

    torch.manual_seed(0)
    size = {"vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "intermediate_size": 32}
    if kind == "bert":
        model: Any = t.BertModel(t.BertConfig(**size, **heads))
    elif kind == "t5":
        model = t.T5Model(
            t.T5Config(
                vocab_size=len(WORDS), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2
            )
        )
    else:
        text = t.CLIPTextConfig(**size, **heads, eos_token_id=3, bos_token_id=2, pad_token_id=0)
        vision = {"hidden_size": 16, **heads, "num_hidden_layers": 1, "image_size": 8}
        whole = t.CLIPConfig(
            text_config=text.to_dict(), vision_config=vision | {"patch_size": 4}, projection_dim=8
        )
        model = t.CLIPModel(whole) if kind == "clip" else t.CLIPTextModel(text)
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer_of: Any) -> Path:
    folder = tmp_path_factory.mktemp("text")
    save_text_model("bert", folder)
    tokenizer_of(folder)
    return folder


def test_vae_latents_are_shifted_and_scaled(vae_folder: Path, pixels: torch.Tensor) -> None:
    from diffusers import AutoencoderKL

    encoder = AutoencoderKLEncoder(model=str(vae_folder), subfolder="vae", dtype="float32")
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


def test_vae_means_per_channel_are_applied(pixels: torch.Tensor) -> None:
    plain = AutoencoderKLEncoder(config=TINY | {"shift_factor": None}, dtype="float32")
    mean, std = [0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 3.0, 4.0]
    normed = AutoencoderKLEncoder(
        config=TINY | {"latents_mean": mean, "latents_std": std}, dtype="float32"
    )
    raw = plain.encode(pixels)["latents"] / 0.5
    shape = (1, 4, 1, 1)
    expected = (raw - torch.tensor(mean).view(shape)) * 0.5 / torch.tensor(std).view(shape)
    torch.testing.assert_close(normed.encode(pixels)["latents"], expected)


def test_vae_samples_by_content_in_any_batch(pixels: torch.Tensor) -> None:
    encoder = AutoencoderKLEncoder(config=TINY, sample="sample", dtype="float32")
    mode = AutoencoderKLEncoder(config=TINY, dtype="float32").encode(pixels)["latents"]
    together = encoder.encode(pixels)["latents"]
    alone = encoder.encode(pixels[1:2])["latents"]
    torch.testing.assert_close(together[1:2], alone)
    assert not torch.allclose(together, mode)
    other = AutoencoderKLEncoder(config=TINY, sample="sample", dtype="float32", seed=1)
    assert not torch.allclose(together, other.encode(pixels)["latents"])


def test_vae_tiles_and_keeps_the_callers_randomness(pixels: torch.Tensor) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    encoder = AutoencoderKLEncoder(config=TINY, tiling=True)
    assert encoder.encode(pixels)["latents"].dtype == torch.float16
    assert torch.equal(torch.rand(1), expected)


def test_vae_refuses_edges_that_do_not_fit() -> None:
    with pytest.raises(ConfigError, match="15x16"):
        AutoencoderKLEncoder(config=TINY).encode(torch.zeros(1, 16, 15, 3, dtype=torch.uint8))


@pytest.mark.parametrize("kind", ["bert", "t5", "clip", "clip_text"])
def test_text_rows_of_every_family(kind: str, tmp_path: Path, tokenizer_of: Any) -> None:
    save_text_model(kind, tmp_path / "text_encoder")
    tokenizer_of(tmp_path / "tokenizer")
    encoder = TransformersTextEncoder(
        model=str(tmp_path), subfolder="text_encoder", tokenizer_subfolder="tokenizer",
        max_length=9,
    )  # fmt: skip
    fields = encoder.encode(["a cat sat", ""])
    assert fields["embeds"].shape == (2, 9, 16)
    assert fields["embeds"].dtype == torch.float16
    assert fields["mask"].dtype == torch.bool
    assert fields["mask"].sum(dim=1).tolist() == [5, 2]
    assert ("pooled" in fields) == (kind != "t5")
    alone = encoder.encode(["a cat sat"])
    for name, rows in fields.items():
        torch.testing.assert_close(rows[:1], alone[name], atol=2e-3, rtol=1e-2)


def test_text_is_the_models_own_output(text_folder: Path) -> None:
    from transformers import AutoModel

    encoder = TransformersTextEncoder(model=str(text_folder), max_length=6, dtype="float32")
    fields = encoder.encode(["a dog"])
    mask = torch.tensor([[1, 1, 1, 1, 0, 0]])
    with torch.no_grad():
        output = AutoModel.from_pretrained(text_folder).eval()(
            input_ids=torch.tensor([[2, 4, 6, 3, 0, 0]]), attention_mask=mask
        )
    torch.testing.assert_close(fields["embeds"], output.last_hidden_state)
    torch.testing.assert_close(fields["pooled"], output.pooler_output)
    assert torch.equal(fields["mask"], mask.bool())


def test_text_longer_than_the_length_is_cut(text_folder: Path) -> None:
    encoder = TransformersTextEncoder(model=str(text_folder), max_length=3)
    assert encoder.encode(["a cat sat a dog sat"])["embeds"].shape == (1, 3, 16)


def test_pickle_weights_are_refused(text_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(text_folder, folder)
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        TransformersTextEncoder(model=str(folder)).encode(["a"])


def test_constructing_loads_nothing_and_release_frees(text_folder: Path) -> None:
    encoder = TransformersTextEncoder(model=str(text_folder), max_length=4)
    assert encoder._loaded is None
    first = encoder.encode(["a"])["embeds"]
    assert encoder._loaded is not None
    encoder.release()
    assert encoder._loaded is None
    assert torch.equal(encoder.encode(["a"])["embeds"], first)


def test_travels_without_its_weights(pixels: torch.Tensor) -> None:
    encoder = AutoencoderKLEncoder(config=TINY)
    latents = encoder.encode(pixels)["latents"]
    copy = pickle.loads(pickle.dumps(encoder))
    assert copy == encoder
    assert copy._loaded is None
    assert torch.equal(copy.encode(pixels)["latents"], latents)


def test_fingerprints_tell_settings_apart(vae_folder: Path, text_folder: Path) -> None:
    vae = {"model": str(vae_folder), "subfolder": "vae"}
    text = {"model": str(text_folder)}
    encoders: list[ImageEncoder | TextEncoder] = [
        AutoencoderKLEncoder(config=TINY),
        AutoencoderKLEncoder(config=TINY, seed=1),
        AutoencoderKLEncoder(config=TINY | {"scaling_factor": 0.7}),
        AutoencoderKLEncoder(**vae),
        AutoencoderKLEncoder(**vae, dtype="float32"),
        AutoencoderKLEncoder(**vae, compute_dtype="bfloat16"),
        AutoencoderKLEncoder(**vae, sample="sample"),
        AutoencoderKLEncoder(**vae, sample="sample", seed=1),
        AutoencoderKLEncoder(**vae, tiling=True),
        AutoencoderKLEncoder(model="someone/vae"),
        AutoencoderKLEncoder(model="someone/vae", revision="abc"),
        TransformersTextEncoder(**text),
        TransformersTextEncoder(**text, max_length=5),
        TransformersTextEncoder(**text, dtype="float32"),
        TransformersTextEncoder(**text, compute_dtype="bfloat16"),
        TransformersTextEncoder(model="someone/clip"),
        TransformersTextEncoder(model="someone/clip", revision="abc"),
        TransformersTextEncoder(model="someone/clip", tokenizer_subfolder="t"),
    ]
    assert len({encoder.fingerprint for encoder in encoders}) == len(encoders)
    # What does not shape the output does not show in it.
    elsewhere = AutoencoderKLEncoder(**vae, device="auto", seed=7)
    assert elsewhere.fingerprint == AutoencoderKLEncoder(**vae).fingerprint


def test_fingerprint_follows_weights_and_not_their_place(text_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    before = TransformersTextEncoder(model=str(text_folder)).fingerprint
    moved = tmp_path / "moved"
    shutil.copytree(text_folder, moved)
    assert TransformersTextEncoder(model=str(moved)).fingerprint == before
    weights = load_file(moved / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] += 1
    save_file(weights, moved / "model.safetensors", metadata={"format": "pt"})
    assert TransformersTextEncoder(model=str(moved)).fingerprint != before


def test_fingerprint_of_large_files_covers_their_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from factory.encoder import pretrained

    monkeypatch.setattr(pretrained, "_WHOLE_BYTES", 4 * 1024)
    monkeypatch.setattr(pretrained, "_BLOCK_BYTES", 1024)
    folder = tmp_path / "large"
    folder.mkdir()
    content = bytearray(64 * 1024)
    prints = set()
    for place in (None, 0, len(content) - 1):
        if place is not None:
            content[place] ^= 1
        (folder / "model.safetensors").write_bytes(content)
        os.utime(folder / "model.safetensors", ns=(len(prints), len(prints)))
        prints.add(TransformersTextEncoder(model=str(folder)).fingerprint)
    assert len(prints) == 3


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({}, "model=None"),
        ({"model": "a", "config": TINY}, "model='a'"),
        ({"model": "a", "sample": "mean"}, "sample"),
        ({"model": "a", "dtype": "int8"}, "dtype"),
        ({"model": "a", "compute_dtype": "fp8"}, "compute_dtype"),
    ],
)
def test_settings_out_of_range_are_named(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        AutoencoderKLEncoder(**settings)


def test_text_length_out_of_range_is_named() -> None:
    with pytest.raises(ConfigError, match="max_length"):
        TransformersTextEncoder(model="a", max_length=0)


def test_keep_the_contracts() -> None:
    assert isinstance(AutoencoderKLEncoder(config=TINY), ImageEncoder)
    assert isinstance(TransformersTextEncoder(model="a"), TextEncoder)


def test_absent_packages_name_their_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"diffusers.*\[models\]"):
        AutoencoderKLEncoder(config=TINY).encode(torch.zeros(1, 8, 8, 3, dtype=torch.uint8))
    with pytest.raises(MissingExtraError, match=r"transformers.*\[models\]"):
        TransformersTextEncoder(model="a").encode(["a"])


def test_the_module_imports_no_model_library() -> None:
    code = (
        "import factory.encoder.pretrained, sys;"
        "sys.exit('transformers' in sys.modules or 'diffusers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
