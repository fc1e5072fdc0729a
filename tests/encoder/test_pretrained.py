"""Weights are loaded at the first use from safetensors alone, and are gone once released."""

import gc
import pickle
import shutil
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from factory.encoder import (
    DiffusersImageEncoder,
    TransformersTextEncoder,
    TransformersVisionEncoder,
)
from factory.encoder.base import Offloading
from factory.errors import MissingExtraError
from tests.encoder.conftest import TINY_VAE


def test_constructing_loads_nothing_and_release_frees(encoder_of: Any) -> None:
    encoder = encoder_of("bert")
    assert encoder._module is None
    first = encoder.encode(["a"])["embeds"]
    module = weakref.ref(encoder._module)
    weights = [weakref.ref(weight) for weight in encoder._module.parameters()]
    assert weights
    encoder.release()
    assert module() is None
    assert not any(weight() is not None for weight in weights)
    assert torch.equal(encoder.encode(["a"])["embeds"], first)


def test_release_collects_what_refers_to_itself() -> None:
    encoder = DiffusersImageEncoder(config=TINY_VAE)
    encoder.encode(torch.zeros(1, 8, 8, 3, dtype=torch.uint8))
    module = weakref.ref(encoder._module)
    encoder._module.itself = [encoder._module]
    gc.disable()
    try:
        encoder.release()
        assert module() is None
    finally:
        gc.enable()


def test_release_and_offload_empty_the_device_s_allocator(
    encoder_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    emptied = []
    encoder = encoder_of("bert")
    encoder.encode(["a"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(encoder._module))
    encoder.offload()
    encoder.release()
    assert [module is None for module in emptied] == [False, True]


def test_offloaded_weights_wait_on_the_cpu_and_come_back(encoder_of: Any) -> None:
    encoder = encoder_of("bert")
    encoder.offload()  # nothing is loaded yet
    first = encoder.encode(["a"])["embeds"]
    module = encoder._module
    assert isinstance(encoder, Offloading)
    encoder.device = "meta"  # a device that any machine has, and that keeps no numbers
    encoder._ready()
    assert {weight.device.type for weight in module.parameters()} == {"meta"}
    encoder.release()
    encoder.device = "cpu"
    assert torch.equal(encoder.encode(["a"])["embeds"], first)
    kept = encoder._module
    encoder.offload()
    assert encoder._module is kept
    assert {weight.device.type for weight in kept.parameters()} == {"cpu"}


def test_weights_are_frozen_and_of_the_compute_dtype(encoder_of: Any) -> None:
    encoder = encoder_of("clip_text", compute_dtype="bfloat16", dtype="bfloat16")
    assert encoder.encode(["a"])["embeds"].dtype == torch.bfloat16
    weights = list(encoder._module.parameters())
    assert {weight.dtype for weight in weights} == {torch.bfloat16}
    assert not any(weight.requires_grad for weight in weights)
    assert not encoder._module.training


def test_it_travels_without_its_weights(pixels: torch.Tensor, encoder_of: Any) -> None:
    encoder = DiffusersImageEncoder(config=TINY_VAE)
    latents = encoder.encode(pixels)["latents"]
    copy = pickle.loads(pickle.dumps(encoder))
    assert copy == encoder
    assert copy._module is None
    assert torch.equal(copy.encode(pixels)["latents"], latents)
    text = encoder_of("bert", length_classes=[4, 8])
    text.encode(["a"])
    assert len(pickle.dumps(text)) < 2000
    assert pickle.loads(pickle.dumps(text)) == text


def test_pickled_weights_are_refused(model_folder: Any, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(model_folder("bert"), folder)
    (folder / "text_encoder/model.safetensors").unlink()
    torch.save({}, folder / "text_encoder/pytorch_model.bin")
    folders = {"subfolder": "text_encoder", "tokenizer_subfolder": "tokenizer"}
    with pytest.raises(OSError, match="safetensors"):
        TransformersTextEncoder(model=str(folder), **folders).encode(["a"])


def test_code_that_comes_with_a_model_is_not_run(model_folder: Any, tmp_path: Path) -> None:
    folder = tmp_path / "remote"
    shutil.copytree(model_folder("bert"), folder)
    (folder / "text_encoder/evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    config = folder / "text_encoder/config.json"
    own = '"auto_map": {"AutoConfig": "evil.C", "AutoModel": "evil.M"}, "model_type": "unheard"'
    config.write_text(config.read_text().replace('"model_type": "bert"', own))
    folders = {"subfolder": "text_encoder", "tokenizer_subfolder": "tokenizer"}
    with pytest.raises((ValueError, OSError)):
        TransformersTextEncoder(model=str(folder), **folders).encode(["a"])
    assert not (tmp_path / "ran").exists()


def test_a_variant_of_the_weights_is_read(model_folder: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "variants"
    shutil.copytree(model_folder("bert"), folder)
    weights = folder / "text_encoder/model.safetensors"
    halved = {name: tensor / 2 for name, tensor in load_file(weights).items()}
    save_file(halved, weights.with_name("model.half.safetensors"), metadata={"format": "pt"})
    folders = {"subfolder": "text_encoder", "tokenizer_subfolder": "tokenizer"}
    plain, half = (
        TransformersTextEncoder(model=str(folder), variant=variant, max_length=4, **folders)
        for variant in (None, "half")
    )
    assert not torch.equal(plain.encode(["a"])["embeds"], half.encode(["a"])["embeds"])


def test_absent_packages_name_their_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    monkeypatch.setitem(sys.modules, "transformers", None)
    picture = torch.zeros(1, 8, 8, 3, dtype=torch.uint8)
    with pytest.raises(MissingExtraError, match=r"diffusers.*\[models\]"):
        DiffusersImageEncoder(config=TINY_VAE).encode(picture)
    with pytest.raises(MissingExtraError, match=r"transformers.*\[models\]"):
        TransformersTextEncoder(model="a").encode(["a"])
    with pytest.raises(MissingExtraError, match=r"transformers.*\[models\]"):
        TransformersVisionEncoder(model="a").encode(picture)


def test_the_modules_import_no_model_library() -> None:
    code = (
        "from factory.encoder import *; import sys;"
        "sys.exit('transformers' in sys.modules or 'diffusers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=500, check=False).returncode == 0
