"""The option data/backend=video: composed, checked and built."""

from pathlib import Path

from omegaconf import OmegaConf

import factory
from factory.catalog.scan.media_type import VIDEOS
from factory.config.compose import compose
from factory.config.schema.backends import VideoBackendConfig
from factory.config.schema.help_text import help_text
from tests.config.test_compose import composed, problems

CLIPS = "+data/backend@data.backends.clips=video"


def test_a_video_backend_is_built_from_config(tmp_path: Path) -> None:
    cfg = compose([CLIPS, "data.backends.clips.frames=8", f"storage.root={tmp_path}"])
    data = factory.build(cfg)
    clips = data.registry.data["clips"]
    assert isinstance(clips, factory.VideoBackend)
    assert (clips.frames, clips.frame_interval, clips.suffixes) == (8, 1, VIDEOS)
    assert clips.storage == data.registry.cache.storage
    data.close()


def test_the_short_form_is_a_video_backend_too() -> None:
    cfg = composed("+data.backends.clips={kind:video,frames:8,frame_interval:3}")
    clips = OmegaConf.to_object(cfg.data.backends.clips)
    assert isinstance(clips, VideoBackendConfig)
    assert clips.minimum_frames == 22


def test_bad_values_are_named_all_at_once() -> None:
    where = "data.backends.clips"
    said = problems(
        CLIPS,
        f"{where}.frames=0",
        f"{where}.frame_interval=0",
        f"{where}.suffixes=[mp4]",
        f"{where}.repeats=-1",
    )
    assert f"{where}.frames must be at least 1, got 0" in said
    assert "frame_interval must be at least 1, got 0" in said
    assert "suffixes must start with a dot, got 'mp4'" in said
    assert "repeats must be at least 0, got -1" in said
    assert "suffixes must name at least one" in problems(CLIPS, f"{where}.suffixes=[]")


def test_help_tells_of_clips() -> None:
    assert "data/backend=video" in help_text()
    assert "frame_interval" in help_text()
