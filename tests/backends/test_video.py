"""Backends of videos: clips of one length, each with its own frames, encoded once."""

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from factory import ConditioningBackend, ImageEmbedBackend, VideoBackend, Workspace
from factory.backends.prepared import PreparedBackend, UnusableSample
from factory.catalog.captions.sources import FilenameCaptions
from factory.catalog.facts import Facts
from factory.catalog.scan.discovery import Discovery
from factory.catalog.scan.table import ParquetTable
from factory.encoder.dct import BlockDCT
from factory.errors import CacheError, EmptyBackendError, MissingExtraError
from factory.registry.prepare import prepare
from factory.registry.registry import Registry
from factory.storage.local import LocalStorage
from tests.backends.test_embeddings import Counting, fill
from tests.catalog.fakes import ENGINE, Watched
from tests.support.clips import read_numbers, shows, write_clip, write_clips
from tests.support.pictures import colour, write_pictures
from tests.support.pixels import pixels_of

VIDEOS = Path(__file__).parents[1] / "media" / "videos"
SHARED: dict[str, Any] = {"resolution": 64, "alignment": 16, "caption": FilenameCaptions()}


def backend(storage: LocalStorage, **settings: Any) -> VideoBackend:
    """Return the folder "v" as a backend of clips of 4 frames."""
    return VideoBackend(
        **{"name": "clips", "prefix": "v", "storage": storage, "frames": 4, **SHARED, **settings}
    )


def source_of(storage: LocalStorage, encoder: Any = None, **settings: Any) -> PreparedBackend:
    """Return the backend scanned, with a store of latents if there is an encoder."""
    made = backend(storage, **settings)
    catalog = made.catalog(made.scan(None, ENGINE), 0)
    if encoder is None:
        return PreparedBackend(made, catalog)
    place = Workspace(storage, scratch_dir=f"{storage.root}/scratch")
    store = ImageEmbedBackend(name="latents", cache=place, encoder=encoder, batch_size=6)
    return PreparedBackend(made, catalog, store)


@pytest.fixture
def storage(tmp_path: Path) -> Watched:
    write_clips(tmp_path / "v", 5, 13)
    return Watched(str(tmp_path))


def test_clips_are_dropped_or_named_by_their_length(storage: Watched, tmp_path: Path) -> None:
    write_clips(tmp_path / "v", 2, 9, first=50)
    write_pictures(tmp_path / "v", 2, first=90)
    (tmp_path / "v" / "fake.mp4").write_text("no video")
    made = source_of(storage, frame_interval=3).catalog.decisions
    assert made.dropped() == {"too few frames": 2, "not a video": 1}
    assert [(bucket.name, len(bucket.rows)) for bucket in made.buckets] == [("80x48@4", 5)]
    assert source_of(storage, frames=9).catalog.decisions.kept == 7
    with pytest.raises(EmptyBackendError, match=r"a clip needs 14 frames: lower .*\.frames=14"):
        source_of(storage, frames=14)


def test_clips_of_variable_rate_and_of_edit_lists_are_kept(tmp_path: Path) -> None:
    shutil.copytree(VIDEOS, tmp_path / "v")
    for name, frames in (("v06_vfr.mkv", 16), ("v25_elst.mp4", 15)):
        for wanted in (frames, 8):
            only = Discovery(include=[name])
            source = source_of(LocalStorage(str(tmp_path)), metadata=only, frames=wanted)
            (clip,) = pixels_of(source, source.catalog.decisions.order, ENGINE)
            assert len(clip) == wanted


def test_facts_measured_by_older_rules_are_measured_again(storage: Watched) -> None:
    made = backend(storage)
    known = made.scan(None, ENGINE)
    old = Facts(
        known.with_column("frames", np.full(len(known), 99)).table,
        known.origin | {"medium": known.origin["medium"].replace(", measurement=2", "")},
    )
    assert set(made.scan(old, ENGINE).column("frames").tolist()) == {13}


def test_suffixes_say_what_counts(storage: Watched, tmp_path: Path) -> None:
    write_clip(tmp_path / "v" / "other.MKV")
    made = source_of(storage, suffixes=[".mkv"])
    assert made.catalog.facts.table["key"].to_pylist() == ["v/other.MKV"]
    with pytest.raises(EmptyBackendError, match=r"no video .*data\.backends\.clips\.suffixes"):
        source_of(storage, suffixes=[".avi"])


def test_each_row_has_its_own_frames_in_order(storage: Watched) -> None:
    source = source_of(storage, frame_interval=3)
    rows = source.catalog.decisions.order[::-1]
    pixels = pixels_of(source, rows, ENGINE)
    assert (pixels.shape, pixels.dtype) == ((5, 4, 48, 80, 3), torch.uint8)
    for row, clip in zip(rows.tolist(), pixels.numpy(), strict=True):
        assert shows(clip, row)
        assert read_numbers(clip) == [1, 4, 7, 10]


def test_latents_of_every_frame_are_one_row(storage: Watched) -> None:
    encoder = Counting()
    source = source_of(storage, encoder, frame_interval=3)
    assert fill(source) == (5, {})
    # One clip of four frames at a time: two would be more pictures than batch_size.
    assert encoder.batches == [(4, 48, 80, 3)] * 5
    rows = source.catalog.decisions.order[::-1]
    latents = source.gather(source.latents, rows)["latents"]
    assert latents.shape == (5, 4, 16, 6, 10)
    for row, frames in zip(rows.tolist(), latents, strict=True):
        decoded = BlockDCT().decode(frames).numpy()
        assert shows(decoded, row)
        assert read_numbers(decoded) == [1, 4, 7, 10]


def test_a_clip_longer_than_a_batch_is_encoded_in_parts(storage: Watched) -> None:
    encoder = Counting()
    source = source_of(storage, encoder, frames=13)
    assert fill(source) == (5, {})
    assert [batch[0] for batch in encoder.batches] == [6, 6, 1] * 5
    clip = source.gather(source.latents, source.catalog.decisions.order[2:3])["latents"][0]
    assert read_numbers(BlockDCT().decode(clip).numpy()) == list(range(13))


def test_short_clips_share_a_batch(storage: Watched) -> None:
    encoder = Counting()
    assert fill(source_of(storage, encoder, frames=2)) == (5, {})
    assert [batch[0] for batch in encoder.batches] == [6, 4]


def test_other_frames_are_other_rows_and_the_same_ones_are_not(storage: Watched) -> None:
    assert fill(source_of(storage, Counting()))[0] == 5
    assert fill(source_of(storage, Counting()))[0] == 0
    assert fill(source_of(storage, Counting(), frames=5))[0] == 5
    assert fill(source_of(storage, Counting(), frame_interval=2))[0] == 5
    # Of 13 frames both of these begin with the sixth.
    assert fill(source_of(storage, Counting(), frames=2, frame_interval=1))[0] == 5
    assert fill(source_of(storage, Counting(), frames=2, frame_interval=2))[0] == 5


def test_an_encoder_that_loses_a_frame_is_named_with_its_clip(storage: Watched) -> None:
    with pytest.raises(CacheError, match=r"v/000\d\.mp4"):
        fill(source_of(storage, Counting("count")))


def test_a_video_that_breaks_off_is_dropped_when_it_is_encoded(
    storage: Watched, tmp_path: Path
) -> None:
    file = write_clip(tmp_path / "v" / "0009.mp4", 9, 40, movflags="faststart")
    file.write_bytes(file.read_bytes()[:-900])
    verified = source_of(storage, metadata=Discovery(verify=True), frames=13)
    assert set(verified.catalog.decisions.dropped()) <= {"truncated", "damaged"}
    place = Workspace(storage, scratch_dir=str(tmp_path / "scratch"))
    store = ImageEmbedBackend(name="latents", cache=place, encoder=Counting())
    # The last frame wanted is number 38 of 40, which is not there any more.
    made = backend(storage, frames=13, frame_interval=3, suffixes=[".mp4"])
    write_clips(tmp_path / "v", 1, 40, first=70)
    source = prepare(Registry([made, store], cache=place, engine=ENGINE), seed=0)["clips"]
    dropped = source.catalog.decisions.dropped()
    assert dropped.pop("too few frames") == 5
    assert sum(dropped.values()) == 1
    assert set(dropped) <= {"truncated", "damaged"}
    assert len(source.catalog) == 1


def test_a_table_tells_the_frames(storage: Watched, tmp_path: Path) -> None:
    columns = {
        "file_name": ["0000.mp4", "0001.mp4", "0002.mp4"],
        "width": [96, 96, 96],
        "height": [64, 64, 64],
        "length": [13, 3, None],
    }
    pq.write_table(pa.table(columns), tmp_path / "v" / "table.parquet")
    table = ParquetTable("v/table.parquet", frames_column="length")
    source = source_of(storage, metadata=table)
    assert source.catalog.decisions.dropped() == {"too few frames": 1, "no frames in table": 1}
    clip = pixels_of(source, source.catalog.decisions.order, ENGINE).numpy()[0]
    assert read_numbers(clip) == [4, 5, 6, 7]
    with pytest.raises(EmptyBackendError, match=r"metadata\.frames_column"):
        source_of(storage, metadata=ParquetTable("v/table.parquet"))


def test_a_wrong_count_in_a_table_gives_the_middle_of_what_is_there_or_a_reason(
    storage: Watched, tmp_path: Path
) -> None:
    columns = {
        "file_name": ["0000.mp4", "0001.mp4", "0002.mp4"],
        "width": [96] * 3,
        "height": [64] * 3,
        "length": [64, 7, 13],
    }
    pq.write_table(pa.table(columns), tmp_path / "v" / "table.parquet")
    table = ParquetTable("v/table.parquet", frames_column="length")
    source = source_of(storage, metadata=table)
    for clip in pixels_of(source, source.catalog.decisions.order, ENGINE).numpy():
        assert read_numbers(clip) == [4, 5, 6, 7]
    long = source_of(storage, metadata=table, frames=40)
    (found,) = long.samples(long.catalog.decisions.order, ENGINE)
    assert isinstance(found, UnusableSample)
    assert found.reason == (
        "too few frames: it holds 13 frames, of which its catalog claims 64, and a clip needs 40"
    )


def test_pictures_condition_clips(storage: Watched, tmp_path: Path) -> None:
    write_pictures(tmp_path / "first", 4, sizes=[(96, 64)])
    place = Workspace(storage, scratch_dir=str(tmp_path / "scratch"))
    pictures = ConditioningBackend(name="first", source="clips", prefix="first", storage=storage)
    registry = Registry([backend(storage), pictures], cache=place, engine=ENGINE)
    source = prepare(registry, seed=0)["clips"]
    assert source.catalog.decisions.dropped() == {"no partner in first": 1}
    assert [bucket.name for bucket in source.catalog.decisions.buckets] == ["80x48@4"]
    partner, rows = source.conditioning["first"]
    chosen = pixels_of(partner, rows[source.catalog.decisions.order], ENGINE)
    assert chosen.shape == (4, 48, 80, 3)
    assert tuple(chosen[3, 0, 0].tolist()) == colour(3)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"frames": 0}, r"clips.frames must be at least 1, got 0"),
        ({"frame_interval": 0}, r"frame_interval must be at least 1, got 0"),
        ({"suffixes": []}, r"suffixes must name at least one"),
        ({"repeats": -1}, r"repeats must be at least 0, got -1"),
    ],
)
def test_settings_that_make_no_clip_are_refused(
    storage: Watched, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        backend(storage, **settings)


def test_without_pyav_nothing_is_listed(
    storage: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtraError, match=r"\[video\]"):
        backend(storage, prefix="absent").scan(None, ENGINE)
