"""A fingerprint changes with everything that shapes rows, and with nothing else."""

import os
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from factory.encoder import (
    DiffusersImageEncoder,
    DiffusersVideoEncoder,
    TransformersTextEncoder,
    TransformersVisionEncoder,
)
from factory.encoder.pretrained import Pretrained
from tests.encoder.conftest import TINY_VAE

SHARED: dict[str, Any] = {
    "dtype": "float32", "compute_dtype": "bfloat16", "device": "auto", "revision": "abc",
    "variant": "fp16", "kind": "AutoencoderKL", "model": "someone/else", "subfolder": "part",
}  # fmt: skip
IMAGE = SHARED | {
    "config": TINY_VAE, "sample": "sample", "tiling": True, "slicing": True, "seed": 7,
}  # fmt: skip
# For every setting of every class: a value that is not its default.
OTHER: dict[type[Pretrained], dict[str, Any]] = {
    DiffusersImageEncoder: IMAGE,
    DiffusersVideoEncoder: IMAGE,
    TransformersTextEncoder: SHARED | {
        "tokenizer_subfolder": "part", "max_length": 9, "length_classes": [9], "layer": -2,
        "final_norm": True, "pooled": "mean", "zero_mask": True, "attend_padding": True,
        "template": "a {caption}", "drop_tokens": 1, "padding_side": "left",
        "tokenizer_options": {"add_special_tokens": False},
    },
    TransformersVisionEncoder: SHARED | {
        "processor_subfolder": "part", "edge": 8, "resize": "crop", "layer": -2,
        "final_norm": True, "pooled": "mean",
    },
}  # fmt: skip
# What shapes no row. A seed does where something is drawn by it, see below.
IRRELEVANT = {"device", "slicing", "seed"}


@pytest.mark.parametrize("kind", OTHER, ids=lambda kind: kind.__name__)
def test_every_setting_shows_or_is_listed_as_irrelevant(kind: type[Pretrained]) -> None:
    settings = [each.name for each in fields(kind) if each.init]
    assert set(settings) <= OTHER[kind].keys(), "say of the new setting what shapes rows"
    plain = kind(model="someone/model").fingerprint
    for name in settings:
        given = {"model": "someone/model", name: OTHER[kind][name]}
        if name == "config":
            given["model"] = None
        if name == "final_norm":
            given["layer"], plain = -2, kind(model="someone/model", layer=-2).fingerprint
        shows = kind(**given).fingerprint != plain
        assert shows == (name not in IRRELEVANT), name
        plain = kind(model="someone/model").fingerprint


def test_a_seed_shows_where_something_is_drawn_by_it() -> None:
    drawn = [
        {"config": TINY_VAE}, {"config": TINY_VAE, "seed": 1},
        {"model": "a/b", "sample": "sample"}, {"model": "a/b", "sample": "sample", "seed": 1},
    ]  # fmt: skip
    prints = {DiffusersImageEncoder(**settings).fingerprint for settings in drawn}
    assert len(prints) == len(drawn)


def test_classes_that_differ_do_not_share_rows() -> None:
    image, video = (kind(model="a/b") for kind in (DiffusersImageEncoder, DiffusersVideoEncoder))
    assert image.fingerprint != video.fingerprint


def test_the_longest_length_shows_only_where_it_is_used() -> None:
    classes = {"model": "a/b", "length_classes": [16, 32]}
    one, other = (TransformersTextEncoder(**classes, max_length=n) for n in (77, 99))
    assert one.fingerprint == other.fingerprint


def test_it_follows_weights_and_tokenizer_and_not_their_place(
    model_folder: Any, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    def print_of(folder: Path) -> str:
        folders = {"subfolder": "text_encoder", "tokenizer_subfolder": "tokenizer"}
        return TransformersTextEncoder(model=str(folder), **folders).fingerprint

    moved = tmp_path / "moved"
    shutil.copytree(model_folder("bert"), moved)
    before = print_of(moved)
    assert print_of(model_folder("bert")) == before
    weights = load_file(moved / "text_encoder/model.safetensors")
    next(iter(weights.values())).view(-1)[0] += 1
    save_file(weights, moved / "text_encoder/model.safetensors", metadata={"format": "pt"})
    changed = print_of(moved)
    assert changed != before
    words = moved / "tokenizer/tokenizer.json"
    words.write_text(words.read_text().replace("dog", "cow"))
    assert print_of(moved) not in (before, changed)


def test_it_covers_the_ends_of_large_files(tmp_path: Path, monkeypatch: Any) -> None:
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
