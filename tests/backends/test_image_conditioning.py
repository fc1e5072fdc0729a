"""Pictures are encoded a second time, to embeddings a model is conditioned on."""

import io
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console

from factory import (
    Batch,
    ConditioningBackend,
    ConfigError,
    EvalBackend,
    FactoryDataModule,
    ImageBackend,
    ImageEmbedBackend,
    Prefetch,
    VisionEmbedBackend,
    Workspace,
)
from factory.backends.streaming.source import StreamSource
from factory.cache.store import UnusableRowsError
from factory.encoder.dct import BlockDCT
from factory.engine.local_engine import LocalEngine
from factory.errors import CacheError
from factory.registry.prepare import prepare
from factory.registry.registry import Registry
from factory.reports.preview.dry_run import preview_run
from factory.reports.preview.page import page
from factory.reports.preview.terminal import show
from factory.runtime.batches.collate import batch_bytes
from factory.runtime.batches.request import BatchRequest
from factory.runtime.batches.stream_collate import stream_batch
from factory.sampling.plan import PlanStep
from factory.storage.local import LocalStorage
from tests.support.pictures import colour, write_pictures

SMALL: dict[str, Any] = {"resolution": 64, "alignment": 16}
ROW_BYTES = (2 * 3 + 3) * 4


@dataclass(frozen=True)
class MeanColour:
    """A vision encoder: the mean colour of each half of a picture, and of the whole."""

    name: str = "1"

    @property
    def fingerprint(self) -> str:
        """Its name."""
        return f"MeanColour/{self.name}"

    def row_bytes(self) -> int:
        """Three vectors of three numbers."""
        return ROW_BYTES

    def encode(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the means."""
        halves = pixels.float().chunk(2, dim=1)
        embeds = torch.stack([half.mean(dim=(1, 2)) for half in halves], dim=1)
        return {"embeds": embeds, "pooled": embeds.mean(dim=1)}

    def release(self) -> None:
        """Hold nothing."""


def place(root: Path) -> Workspace:
    return Workspace(LocalStorage(str(root)), scratch_dir=str(root / "scratch"))


def vision(root: Path, name: str = "looks", **settings: Any) -> VisionEmbedBackend:
    return VisionEmbedBackend(
        **{"name": name, "cache": place(root), "encoder": MeanColour(), **settings}
    )


def backends(root: Path, **for_a: Any) -> list[Any]:
    """Return a backend, its partners, one to validate on, and a store of latents."""
    storage = LocalStorage(str(root))
    latents = ImageEmbedBackend(name="latents", cache=place(root), encoder=BlockDCT())
    return [
        ImageBackend(name="a", prefix="a", storage=storage, **SMALL, **for_a),
        ConditioningBackend(
            name="edges", prefix="edges", storage=storage, source="a",
            conditioning_image_embeds="looks",
        ),
        EvalBackend(name="held", prefix="held", storage=storage, **SMALL),
        latents,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("conditioned")
    write_pictures(folder / "a", 6)
    (folder / "edges").mkdir()
    for number, file in enumerate(sorted((folder / "a").glob("*.png"))):
        with Image.open(file) as picture:
            size = picture.size
        Image.new("RGB", size, colour(100 + number)).save(folder / "edges" / file.name)
    write_pictures(folder / "held", 2, first=50)
    return folder


def module(root: Path, *more: Any, mode: str = "inline", **for_a: Any) -> FactoryDataModule:
    return FactoryDataModule(
        [*backends(root, **for_a), *more], cache=place(root), batch_size=2, seed=1,
        prefetch=Prefetch(mode=mode),
    )  # fmt: skip


def batches(data: FactoryDataModule, loader: str = "train_dataloader") -> Iterator[Batch]:
    data.prepare_data()
    data.setup()
    yield from getattr(data, loader)()


def close_to(rows: torch.Tensor, numbers: list[int]) -> bool:
    wanted = torch.tensor([colour(number) for number in numbers]).float()
    return bool((rows - wanted).abs().max() <= 1)


def test_batches_hold_embeddings_of_samples_and_of_their_partners(root: Path) -> None:
    data = module(root, vision(root, default=True))
    seen = list(batches(data))
    for batch in seen:
        numbers = [int(Path(key).stem) for key in batch.keys]
        assert sorted(batch.image_embeds) == [
            "edges.embeds", "edges.pooled", "embeds", "pooled",
        ]  # fmt: skip
        assert batch.image_embeds["embeds"].shape == (2, 2, 3)
        assert close_to(batch.image_embeds["pooled"], numbers)
        assert close_to(batch.image_embeds["edges.pooled"], [100 + n for n in numbers])
        rest = batch_bytes(batch) - 2 * 2 * ROW_BYTES
        assert batch.latents is not None
        assert rest == batch.latents.nbytes + batch.conditioning["edges"].nbytes
    held = list(batches(data, "val_dataloader"))
    assert all("pooled" in batch.image_embeds for batch in held)
    data.close()


def test_they_are_encoded_once_in_a_place_of_their_own(root: Path, tmp_path: Path) -> None:
    own = Workspace(LocalStorage(str(tmp_path)), scratch_dir=str(tmp_path / "scratch"))
    counts = []
    for encoder in (MeanColour(), MeanColour(), MeanColour("2")):
        store = vision(root, default=True, cache=own, encoder=encoder)
        data = module(root, store)
        data.prepare_data()
        stages = {stage.name: stage.counts for stage in data.registry.telemetry.stages}
        counts.append([stages[f"encode {name} for looks"]["encoded"] for name in ("a", "edges")])
        data.close()
    assert counts == [[6, 6], [0, 0], [6, 6]]
    assert list(tmp_path.rglob("*.safetensors"))


def test_there_are_none_unless_a_store_is_named_or_the_default(root: Path) -> None:
    def used(*stores: VisionEmbedBackend, **for_a: Any) -> list[str | None]:
        made = Registry(
            [*backends(root, **for_a), vision(root), *stores], cache=place(root),
            engine=LocalEngine(1),
        )  # fmt: skip
        found = (made.vision_store(made.samples[name]) for name in ("a", "held", "edges"))
        return [None if store is None else store.name for store in found]

    assert used() == [None, None, "looks"]
    assert used(conditioning_image_embeds="looks") == ["looks", None, "looks"]
    assert used(vision(root, "usual", default=True)) == ["usual", "usual", "looks"]


def test_wrong_names_and_two_defaults_are_refused(root: Path) -> None:
    def problems(*stores: Any, **for_a: Any) -> str:
        with pytest.raises(ConfigError) as caught:
            Registry([*backends(root, **for_a), *stores], cache=place(root), engine=LocalEngine(1))
        return str(caught.value)

    assert "names 'looks', which is no backend" in problems()
    said = problems(vision(root), conditioning_image_embeds="latents")
    assert "data.backends.a.conditioning_image_embeds names 'latents' of type" in said
    assert "name one of looks" in said
    said = problems(vision(root, default=True), vision(root, "more", default=True))
    assert "are both the default of their kind" in said


def test_another_process_delivers_the_same(root: Path) -> None:
    seen: dict[str, list[Batch]] = {}
    for mode in ("inline", "process"):
        data = module(root, vision(root, default=True), mode=mode)
        seen[mode] = list(batches(data))
        data.close()
    for one, other in zip(seen["inline"], seen["process"], strict=True):
        assert one.keys == other.keys
        assert one.image_embeds.keys() == other.image_embeds.keys()
        for name, rows in one.image_embeds.items():
            assert torch.equal(rows, other.image_embeds[name])


def test_a_dry_run_counts_them(root: Path) -> None:
    summary = preview_run(module(root, vision(root, default=True))).summary
    costs = {each.name: each.costs for each in summary.backends}
    assert costs["a"].image_embeds_bytes == 6 * ROW_BYTES
    assert costs["a"].encode_requests == 12
    assert costs["a"].latents_bytes is not None
    parts = [each.latents_bytes + each.image_embeds_bytes for each in costs.values()]  # type: ignore[operator]
    assert summary.cache_bytes == sum(parts)
    for without in (False, True):
        stores = [] if without else [vision(root, default=True)]
        given = [b for b in backends(root) if not (without and b.name == "edges")]
        made = preview_run(FactoryDataModule([*given, *stores], cache=place(root), batch_size=2))
        console = Console(record=True, width=200, file=io.StringIO())
        show(made.summary, console)
        for text in (console.export_text(), page(made, LocalEngine(1))):
            assert ("embeds" in text) != without  # a heading may be broken in two


def test_of_a_clip_the_first_frame_is_encoded(tmp_path: Path) -> None:
    clips = torch.randint(0, 256, (3, 4, 16, 16, 3), dtype=torch.uint8)
    store = vision(tmp_path, batch_size=2)
    fields = store.encode(clips, ["a", "b", "c"])
    assert torch.equal(fields["embeds"], MeanColour().encode(clips[:, 0])["embeds"])
    assert store.row_bytes(16, 16, 4) == ROW_BYTES


def test_an_encoder_that_gives_nan_is_named_with_a_picture(root: Path, tmp_path: Path) -> None:
    class Broken(MeanColour):
        def encode(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"embeds": torch.full((len(pixels), 1, 3), float("nan"))}

    own = Workspace(LocalStorage(str(tmp_path)), scratch_dir=str(tmp_path / "scratch"))
    store = vision(root, default=True, cache=own, encoder=Broken("broken"))
    made = Registry([*backends(root), store], cache=own, engine=LocalEngine(1))
    with pytest.raises(CacheError, match=r"field 'embeds' holds NaN or infinity for 'a/"):
        prepare(made, seed=0)


def test_a_stream_encodes_its_pictures_as_they_come(tmp_path: Path) -> None:
    import numpy as np

    from tests.support.streams import stream, write_shards

    folder = write_shards(tmp_path / "set", 1, 4, sizes=[(96, 64)])
    source = StreamSource(
        stream(folder, shuffle_buffer=0), batch_size=4, seed=1, vision=vision(tmp_path)
    )
    step = PlanStep(0, 0, 0, "big", "stream", np.arange(4), 0, 0, 0)
    batch = stream_batch(source, BatchRequest(step, np.arange(4)), LocalEngine(1), 1)
    source.close()
    assert close_to(batch.image_embeds["pooled"], [0, 1, 2, 3])


def spoil(root: Path) -> int:
    """Change a byte in the first row of every shard of image embeddings; return how many."""
    shards = sorted((root / "cache/tensors/looks/shards").iterdir())
    for file in shards:
        data = bytearray(file.read_bytes())
        data[8 + int.from_bytes(data[:8], "little")] ^= 1
        file.write_bytes(data)
    return len(shards)


@pytest.fixture
def own(root: Path, tmp_path: Path) -> Path:
    """The pictures in a folder that a test may spoil."""
    for name in ("a", "edges", "held"):
        shutil.copytree(root / name, tmp_path / name)
    return tmp_path


def test_embeddings_that_were_damaged_are_encoded_anew_and_counted(
    own: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = module(own, vision(own, default=True))
    data.prepare_data()
    spoilt = spoil(own)
    seen = list(batches(module(own, vision(own, default=True))))

    for batch in seen:
        numbers = [int(Path(key).stem) for key in batch.keys]
        assert close_to(batch.image_embeds["pooled"], numbers)
        assert close_to(batch.image_embeds["edges.pooled"], [100 + n for n in numbers])
    assert sum(batch.rebuilt for batch in seen) > 0
    assert sum(batch.rebuilt for batch in seen) <= spoilt
    assert "looks: 1 rows of a cannot be used and are encoded anew" in caplog.text


def test_a_damaged_embedding_whose_picture_is_gone_stops_the_run(own: Path) -> None:
    data = module(own, vision(own, default=True))
    data.prepare_data()
    data.setup()
    spoil(own)
    for file in (own / "a").glob("*.png"):
        file.unlink()
    with pytest.raises(UnusableRowsError, match="does not match its checksum") as caught:
        list(data.train_dataloader())
    assert "of 'a' cannot be encoded anew: read failed" in "".join(caught.value.__notes__)


@pytest.mark.parametrize("again", [False, True])
def test_where_embeddings_lie_is_known_before_the_first_batch(
    own: Path, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    data = module(own, vision(own, default=True))
    data.prepare_data()
    if again:  # as another process opens what was prepared
        data = module(own, vision(own, default=True))
    data.setup()

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("no key is to be made for a batch")

    monkeypatch.setattr(VisionEmbedBackend, "keys", refuse)
    for batch in data.train_dataloader():
        assert close_to(batch.image_embeds["pooled"], [int(Path(key).stem) for key in batch.keys])
