"""Encoders of real models in their stores: classes of length, whole clips, overflow, one by one."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from factory import (
    ConfigError,
    ImageBackend,
    ImageEmbedBackend,
    TextEmbedBackend,
    VideoBackend,
    Workspace,
)
from factory.catalog.captions.sources import InstanceCaptions
from factory.encoder import DiffusersImageEncoder, DiffusersVideoEncoder, HashedText, SeveralTexts
from factory.encoder.pretrained import Pretrained
from factory.engine.local_engine import LocalEngine
from factory.errors import CacheError
from factory.registry.precompute import fill_captions
from factory.registry.prepare import prepare
from factory.registry.registry import Registry
from factory.storage.local import LocalStorage
from tests.encoder.conftest import TINY_VAE, TINY_WAN, WIDTH
from tests.support.clips import write_clips
from tests.support.pictures import write_pictures

SMALL: dict[str, Any] = {"resolution": 32, "alignment": 16}


def place(root: Path) -> Workspace:
    return Workspace(LocalStorage(str(root)), scratch_dir=str(root / "scratch"))


def registry(root: Path, *backends: Any) -> Registry:
    return Registry(backends, cache=place(root), engine=LocalEngine(workers=1))


def texts(root: Path, encoder: Any, **settings: Any) -> TextEmbedBackend:
    return TextEmbedBackend(name="text", cache=place(root), encoder=encoder, **settings)


def test_captions_of_one_length_are_encoded_and_kept_together(
    tmp_path: Path, encoder_of: Callable[..., Any]
) -> None:
    store = texts(tmp_path, encoder_of("bert", length_classes=[3, 5, 9]), batch_size=2)
    captions = ["a cat", "a", "", "a dog", "cat", "a cat sat"]
    assert list(store.batches(captions)) == [[1, 2], [4], [0, 3], [5]]
    assert fill_captions(store, captions, LocalEngine()).encoded == 6
    assert fill_captions(store, captions[::-1], LocalEngine()).encoded == 0
    short = store.gather(["cat", "a"])
    assert short["embeds"].shape == (2, 3, WIDTH)
    assert store.gather(["a dog", "a cat sat"])["embeds"].shape == (2, 5, WIDTH)
    torch.testing.assert_close(short["embeds"], store.encoder.encode(["cat", "a"])["embeds"])


class Classed(HashedText):
    """Rows as long as the captions have letters."""

    def length_classes_of(self, captions: Sequence[str]) -> NDArray[np.int64]:
        return np.array([len(caption) for caption in captions], dtype=np.int64)


@given(st.lists(st.text("ab", max_size=4), max_size=30), st.integers(1, 5))
def test_batches_have_each_caption_once_and_one_length(captions: list[str], size: int) -> None:
    store = TextEmbedBackend(
        name="text", cache=Workspace(LocalStorage(".")), encoder=Classed(), batch_size=size
    )
    batches = list(store.batches(captions))
    assert sorted(place for batch in batches for place in batch) == list(range(len(captions)))
    for batch in batches:
        assert 1 <= len(batch) <= size
        assert len({len(captions[place]) for place in batch}) == 1
    fewest = Counter(map(len, captions)).values()
    assert len(batches) == sum(-(-count // size) for count in fewest)


def test_captions_without_classes_keep_their_order(tmp_path: Path) -> None:
    assert list(texts(tmp_path, HashedText(), batch_size=2).batches(["b", "a", "c"])) == [
        [0, 1],
        [2],
    ]


def test_what_was_cut_is_said_once_with_the_longest(
    tmp_path: Path, encoder_of: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    write_pictures(tmp_path / "p", 2)
    backend = ImageBackend(
        name="p", storage=LocalStorage(str(tmp_path)), prefix="p", **SMALL,
        caption=InstanceCaptions(prompt="a cat sat a dog"),
    )  # fmt: skip
    several = SeveralTexts(parts={"short": encoder_of("bert", max_length=4), "long": HashedText()})
    made = registry(tmp_path, backend, texts(tmp_path, several))
    with caplog.at_level(logging.WARNING, logger="factory"):
        prepare(made, seed=0)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1
    assert "cut 1 of 2 captions to 4 tokens; the longest has 7: 'a cat sat a dog'" in said[0]
    stages = {stage.name: stage.counts for stage in made.telemetry.stages}
    assert stages["encode text"].pop("bytes") > 0
    assert stages["encode text"] == {"encoded": 2, "cached": 0, "cut": 1}


def videos(root: Path, frames: int) -> VideoBackend:
    storage = LocalStorage(str(root))
    return VideoBackend(name="clips", prefix="v", storage=storage, frames=frames, **SMALL)


def clip_store(root: Path) -> ImageEmbedBackend:
    encoder = DiffusersVideoEncoder(kind="AutoencoderKLWan", config=TINY_WAN, dtype="float32")
    return ImageEmbedBackend(name="latents", cache=place(root), encoder=encoder, batch_size=8)


def test_clips_reach_the_store_whole(tmp_path: Path) -> None:
    pytest.importorskip("av")
    write_clips(tmp_path / "v", 2, 7)
    store = clip_store(tmp_path)
    source = prepare(registry(tmp_path, videos(tmp_path, 5), store), seed=0)["clips"]
    (bucket,) = source.catalog.decisions.buckets
    latents = source.gather(source.latents, bucket.rows)["latents"]
    assert latents.shape == (2, 2, 3, bucket.height // 4, bucket.width // 4)
    assert store.row_bytes(bucket.width, bucket.height, 5) == latents[0].nbytes
    assert store.encoder._module is None  # type: ignore[attr-defined]
    pixels = torch.stack([torch.from_numpy(p) for p in source.samples(bucket.rows, LocalEngine(1))])
    torch.testing.assert_close(latents, store.encoder.encode_clips(pixels)["latents"])  # type: ignore[attr-defined]


def test_frames_that_do_not_divide_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    made = registry(tmp_path, videos(tmp_path, 4), clip_store(tmp_path))
    with pytest.raises(
        ConfigError, match=r"frames=4 is no number .* set data\.backends\.clips"
    ) as e:
        prepare(made, seed=0)  # there is no folder to read
    assert str(e.value).endswith("frames=5")


def test_clips_are_encoded_as_many_at_once_as_the_batch_holds_frames(tmp_path: Path) -> None:
    store = clip_store(tmp_path)
    calls: list[int] = []

    def encode(pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        calls.append(len(pixels))
        return {"latents": torch.zeros(len(pixels), 2, 2, 4, 4)}

    store.encoder.encode_clips = encode  # type: ignore[attr-defined]
    fields = store.encode(torch.zeros(5, 3, 16, 16, 3, dtype=torch.uint8), list("abcde"))
    assert calls == [2, 2, 1]
    assert fields["latents"].shape == (5, 2, 2, 4, 4)


def test_latents_beyond_float16_are_refused_with_what_helps(tmp_path: Path) -> None:
    write_pictures(tmp_path / "p", 2)
    backend = ImageBackend(name="p", prefix="p", storage=LocalStorage(str(tmp_path)), **SMALL)
    huge = TINY_VAE | {"scaling_factor": 1e9}

    def store(dtype: str) -> ImageEmbedBackend:
        encoder = DiffusersImageEncoder(config=huge, dtype=dtype)
        return ImageEmbedBackend(name="latents", cache=place(tmp_path), encoder=encoder)

    with pytest.raises(
        CacheError, match=r"holds NaN or infinity for 'p/.* encode in a wider dtype"
    ):
        prepare(registry(tmp_path, backend, store("float16")), seed=0)
    prepare(registry(tmp_path, backend, store("bfloat16")), seed=0)


def test_one_encoder_is_loaded_at_a_time(
    tmp_path: Path, encoder_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoders = {
        "one": DiffusersImageEncoder(config=TINY_VAE),
        "other": DiffusersImageEncoder(config=TINY_VAE, seed=1),
        "text": encoder_of("bert"),
    }
    loaded: list[list[str]] = []
    ready = Pretrained._ready

    def watched(self: Pretrained) -> Any:
        module = ready(self)
        loaded.append([name for name, each in encoders.items() if each._module is not None])
        return module

    monkeypatch.setattr(Pretrained, "_ready", watched)
    storage, stores = LocalStorage(str(tmp_path)), {}
    for name in ("one", "other"):
        stores[name] = ImageEmbedBackend(name=name, cache=place(tmp_path), encoder=encoders[name])
    backends = []
    for name, used in (("a", "one"), ("b", "other"), ("c", "one")):
        write_pictures(tmp_path / name, 2)
        backends.append(
            ImageBackend(name=name, prefix=name, storage=storage, image_embeds=used, **SMALL)
        )
    prepare(
        registry(tmp_path, *backends, *stores.values(), texts(tmp_path, encoders["text"])), seed=0
    )
    order = [names for at, names in enumerate(loaded) if not at or names != loaded[at - 1]]
    assert order == [["one"], ["other"], ["text"]]
    assert all(encoder._module is None for encoder in encoders.values())
