"""What a dry run counts, and what it leaves alone."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from factory import EvalBackend, ImageEmbedBackend, TextEmbedBackend, Workspace
from factory.catalog import facts as facts_module
from factory.catalog.captions.sources import InstanceCaptions, TextFileCaptions
from factory.encoder.autoencoder import DiffusersImageEncoder
from factory.encoder.base import SizedImageEncoder, SizedRowEncoder
from factory.encoder.dct import BlockDCT
from factory.encoder.hashed_text import HashedText
from factory.media.formats.png import TAIL_BYTES
from factory.reports.preview import catalog_rows
from factory.reports.preview.dry_run import preview_run
from factory.reports.preview.summary import RunLimits
from factory.storage.local import LocalStorage
from tests.catalog.fakes import Watched
from tests.reports.preview.building import dry_run, module, one_backend, write
from tests.scenarios.training.building import data_module, write_folders
from tests.support.pictures import write_pictures


def test_it_plans_what_the_run_then_trains_on(tmp_path: Path) -> None:
    write_folders(tmp_path)
    planned = preview_run(data_module(tmp_path)).summary
    data = data_module(tmp_path)
    data.prepare_data()
    data.setup()
    assert planned.plan is not None
    assert planned.plan.fingerprint == data.plan.fingerprint
    assert planned.plan.epochs[0].steps == data.plan.steps(0)
    stages = {stage.name: stage.counts for stage in data.registry.telemetry.stages}
    assert stages["encode a"]["encoded"] == planned.backends[0].costs.encode_requests
    assert stages["scan a"]["changes"] == "13 unchanged"  # the dry run's facts are of use
    rows_bytes = 0
    for file in tmp_path.rglob("cache/tensors/latents/shards/*.safetensors"):
        with safe_open(file, "np") as shard:
            rows_bytes += shard.get_tensor("latents").nbytes
    assert rows_bytes == sum(each.costs.latents_bytes or 0 for each in planned.backends)


def test_nothing_is_encoded(tmp_path: Path) -> None:
    write_folders(tmp_path)
    preview_run(data_module(tmp_path))
    assert sorted(p.name for p in (tmp_path / "cache").rglob("*") if p.is_file()) == [
        "a.arrow", "a.parquet", "b.arrow", "b.parquet", "held.arrow", "held.parquet",
    ]  # fmt: skip


def test_counts_of_found_kept_and_dropped(tmp_path: Path) -> None:
    write(tmp_path, {"a": 8})
    (tmp_path / "a/bad.png").write_text("no picture")
    backend = dry_run(tmp_path, one_backend(tmp_path)).summary.backends[0]
    assert (backend.found, backend.kept) == (9, 8)
    [dropped] = backend.dropped
    assert (dropped.reason, dropped.count, dropped.examples) == ("not a picture", 1, ("bad.png",))
    assert backend.bytes == sum(f.stat().st_size for f in (tmp_path / "a").glob("0*.png"))
    assert backend.where == f"{LocalStorage(str(tmp_path)).identity}/a"
    assert backend.examples == ("0000.png", "0001.png", "0002.png")


def test_the_first_scan_reads_as_much_as_was_foretold(tmp_path: Path) -> None:
    write(tmp_path, {"a": 5})
    large = b"\0" * Watched.head_bytes * 2
    (tmp_path / "a/0001.png").write_bytes((tmp_path / "a/0001.png").read_bytes() + large)
    watched = Watched(str(tmp_path))
    backend = one_backend(tmp_path, storage=watched, caption=TextFileCaptions())
    costs = dry_run(tmp_path, backend).summary.backends[0].costs
    assert costs.scan_requests == watched.reads.total() == 10
    sizes = [f.stat().st_size for f in (tmp_path / "a").glob("*.png")]
    assert costs.scan_bytes == sum(min(size, watched.head_bytes) for size in sizes)


def test_the_ends_of_large_pngs_are_foretold(tmp_path: Path) -> None:
    write(tmp_path, {"a": 2})
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a/large.png")
    Image.fromarray(noise[:100, :100]).save(tmp_path / "a/one_chunk.png")
    Image.fromarray(noise).save(tmp_path / "a/large.jpg", quality=95)
    watched = Watched(str(tmp_path))
    backend = one_backend(tmp_path, storage=watched, caption=InstanceCaptions("a"))
    costs = dry_run(tmp_path, backend).summary.backends[0].costs
    assert costs.scan_requests == watched.reads.total() == 6
    assert watched.reads["a/large.png"] == 2
    sizes = [f.stat().st_size for f in (tmp_path / "a").iterdir() if f.suffix != ".txt"]
    heads = sum(min(size, watched.head_bytes) for size in sizes)
    assert costs.scan_bytes == heads + TAIL_BYTES


def test_pixels_are_read_every_epoch_and_latents_once(tmp_path: Path) -> None:
    write(tmp_path, {"a": 9})
    pixels = dry_run(tmp_path, one_backend(tmp_path, repeats=1)).summary
    costs = pixels.backends[0].costs
    assert (costs.encode_requests, costs.latents_bytes, costs.epoch_cache_bytes) == (0, 0, 0)
    assert costs.epoch_requests == 2 * 12  # two passes of three batches of four
    assert costs.epoch_bytes == pytest.approx(24 / 9 * pixels.backends[0].bytes, abs=1)
    assert not pixels.texts.encoded
    data = module(tmp_path, one_backend(tmp_path))
    place = data.registry.cache
    stores = (
        ImageEmbedBackend(name="latents", cache=place, encoder=BlockDCT()),
        TextEmbedBackend(name="text", cache=place, encoder=HashedText()),
    )
    summary = dry_run(tmp_path, one_backend(tmp_path), *stores).summary
    costs = summary.backends[0].costs
    row = BlockDCT().row_bytes(64, 64)
    assert (costs.encode_requests, costs.encode_bytes) == (9, summary.backends[0].bytes)
    assert (costs.epoch_requests, costs.epoch_cache_bytes) == (0, 12 * row)
    assert costs.latents_bytes == 9 * row
    assert summary.texts.bytes == 10 * HashedText().row_bytes()  # the empty caption too
    assert summary.cache_bytes == 9 * row + 10 * HashedText().row_bytes()


class Untold:
    """An encoder that cannot tell the size of its rows."""

    fingerprint = "untold"
    downscale = 8


def test_space_is_unknown_where_an_encoder_cannot_tell(tmp_path: Path) -> None:
    write(tmp_path, {"a": 8})
    place = module(tmp_path, one_backend(tmp_path)).registry.cache
    store = ImageEmbedBackend(name="latents", cache=place, encoder=Untold())  # type: ignore[arg-type]
    summary = dry_run(tmp_path, one_backend(tmp_path), store).summary
    assert summary.backends[0].costs.latents_bytes is None
    assert summary.cache_bytes is None


def test_encoders_foretell_the_rows_they_make() -> None:
    import torch

    config = {"block_out_channels": [32, 32], "norm_num_groups": 8, "latent_channels": 3,
              "down_block_types": ["DownEncoderBlock2D"] * 2,
              "up_block_types": ["UpDecoderBlock2D"] * 2}  # fmt: skip
    pixels = torch.zeros(1, 32, 48, 3, dtype=torch.uint8)
    dtype = "float32"
    for encoder in (BlockDCT(dtype=dtype), DiffusersImageEncoder(config=config, dtype=dtype)):
        assert isinstance(encoder, SizedImageEncoder)
        made = sum(field.nbytes for field in encoder.encode(pixels).values())
        assert encoder.row_bytes(48, 32) == made
    text = HashedText(dtype=dtype)
    assert isinstance(text, SizedRowEncoder)
    assert text.row_bytes() == sum(field.nbytes for field in text.encode(["a b"]).values())


def test_a_wrong_alignment_is_a_problem(tmp_path: Path) -> None:
    write(tmp_path, {"a": 8})
    place = module(tmp_path, one_backend(tmp_path)).registry.cache
    store = ImageEmbedBackend(name="latents", cache=place, encoder=BlockDCT())
    summary = dry_run(tmp_path, one_backend(tmp_path, alignment=4), store).summary
    assert summary.problems[0].fix == "set data.alignment=64"
    assert not summary.trainable


def test_a_cache_larger_than_the_disk_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folders(tmp_path)
    monkeypatch.setattr("factory.reports.preview.dry_run._free", lambda place: 100)
    summary = preview_run(data_module(tmp_path)).summary
    assert summary.problems[0].text.startswith("the cache needs")
    assert summary.trainable


def test_validation_reads_each_sample_once(tmp_path: Path) -> None:
    write(tmp_path, {"a": 8, "held": 5})
    held = EvalBackend(
        name="held", prefix="held", storage=LocalStorage(str(tmp_path)), resolution=64
    )
    summary = dry_run(tmp_path, one_backend(tmp_path), held).summary
    assert summary.backends[1].costs.epoch_requests == 5
    assert summary.backends[1].buckets[0].filled == 0


def test_the_numbers_are_json(tmp_path: Path) -> None:
    write(tmp_path, {"a": 8})
    summary = dry_run(tmp_path, one_backend(tmp_path), run=RunLimits(max_steps=4)).summary
    read = json.loads(json.dumps(summary.as_json()))
    assert (read["format"], read["trainable"], read["problems"]) == (1, True, [])
    assert read["plan"]["run_epochs"] == 2
    assert read["backends"][0]["buckets"][0]["samples"] == 8


def test_a_large_catalog_is_not_walked_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {"a": 60})
    monkeypatch.setattr(catalog_rows, "CAPTION_ROWS", 10)
    asked: list[int] = []
    original = facts_module.Facts.key

    def key(self: facts_module.Facts, row: int) -> str:
        asked.append(row)
        return original(self, row)

    monkeypatch.setattr(facts_module.Facts, "key", key)
    texts = dry_run(tmp_path, one_backend(tmp_path)).summary.texts
    assert (texts.captions, texts.exact) == (60, False)
    assert len(asked) < 20


def test_rows_to_look_at_are_the_same_every_time_and_of_every_bucket(tmp_path: Path) -> None:
    write(tmp_path, {"a": 60})
    write_pictures(tmp_path / "a", 1, sizes=[(96, 64)], first=900)
    source = dry_run(tmp_path, one_backend(tmp_path)).sources["a"]
    chosen = catalog_rows.contact_rows(source.catalog, 10).tolist()
    assert chosen == catalog_rows.contact_rows(source.catalog, 10).tolist()
    assert len(chosen) == len(set(chosen)) == 10
    assert 60 in chosen  # the only one of its bucket
    assert catalog_rows.contact_rows(source.catalog, 100).size == 61


@pytest.mark.parametrize(
    ("mode", "once", "each", "rows", "kept"),
    [
        ("precompute", 9, 0, 12, 9),
        ("on_demand", 0, 9, 12, 9),
        ("transient", 0, 12, 0, 0),
    ],
)
def test_only_what_is_encoded_before_the_first_step_counts_as_such(
    tmp_path: Path, mode: str, once: int, each: int, rows: int, kept: int
) -> None:
    """Nine pictures of one bucket in batches of four: three of them come twice in an epoch."""
    write(tmp_path, {"a": 9})
    place = Workspace(LocalStorage(str(tmp_path)))
    store = ImageEmbedBackend(name="latents", cache=place, encoder=BlockDCT(), encode_mode=mode)
    texts = TextEmbedBackend(name="text", cache=place, encoder=HashedText(), encode_mode=mode)
    summary = dry_run(tmp_path, one_backend(tmp_path), store, texts).summary
    costs, row = summary.backends[0].costs, BlockDCT().row_bytes(64, 64)
    assert costs.encode_mode == mode
    assert (costs.encode_requests, costs.epoch_requests) == (once, each)
    assert bool(costs.encode_bytes) == bool(once)
    assert (costs.epoch_cache_bytes, costs.latents_bytes) == (rows * row, kept * row)
    assert bool(summary.texts.bytes) == bool(kept)
