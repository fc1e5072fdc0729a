"""Names of classes in what is persisted: those of version 0.1, wherever the classes lie."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from factory.catalog.scan.column_facts import ColumnFacts
from factory.catalog.scan.media_type import Pictures, Videos
from factory.catalog.scan.table import ParquetTable
from factory.conditioning import Canny, JpegArtifacts, RandomMasks, Superresolution
from factory.encoder.autoencoder import DiffusersImageEncoder, DiffusersVideoEncoder
from factory.encoder.transformers_text import TransformersTextEncoder
from factory.encoder.transformers_vision import TransformersVisionEncoder
from factory.identity import class_identity, settings_identity
from factory.sampling.fingerprint import describe_strategy
from factory.sampling.selection import Balanced, Random
from factory.sampling.strategies import AutoWeighting, UniformWeighting

# Written out, since they are what caches, facts and checkpoints of version 0.1 hold.
IDENTITIES = {
    UniformWeighting: "factory.sampling.weights.UniformWeighting",
    AutoWeighting: "factory.sampling.weights.AutoWeighting",
    Random: "factory.sampling.selection.Random",
    Balanced: "factory.sampling.selection.Balanced",
    Canny: "factory.conditioning.canny.Canny",
    JpegArtifacts: "factory.conditioning.jpeg.JpegArtifacts",
    RandomMasks: "factory.conditioning.masks.RandomMasks",
    Superresolution: "factory.conditioning.superresolution.Superresolution",
    DiffusersImageEncoder: "DiffusersImageEncoder",
    DiffusersVideoEncoder: "DiffusersVideoEncoder",
    TransformersTextEncoder: "TransformersTextEncoder",
    TransformersVisionEncoder: "TransformersVisionEncoder",
    ParquetTable: "ParquetTable",
    ColumnFacts: "ColumnFacts",
    Pictures: "Pictures",
    Videos: "Videos",
}
SETTINGS = [
    (Pictures(), "Pictures(suffixes=None)"),
    (Videos(suffixes=(".mp4",)), "Videos(suffixes=('.mp4',), measurement=2)"),
    (
        ParquetTable("a.parquet"),
        "ParquetTable(path='a.parquet', file_column='file_name', width_column='width', "  # noqa: ISC004
        "height_column='height', frames_column=None, extensionless=False)",
    ),
    (
        ColumnFacts(),
        "ColumnFacts(width_column='width', height_column='height', frames_column=None)",
    ),
]


@contextmanager
def renamed(kind: type) -> Iterator[None]:
    """Give a class another name and module for a while."""
    path = kind.__module__, kind.__qualname__
    kind.__module__, kind.__qualname__ = "factory.elsewhere", "Renamed"
    try:
        yield
    finally:
        kind.__module__, kind.__qualname__ = path


@pytest.mark.parametrize(("kind", "name"), IDENTITIES.items(), ids=str)
def test_a_class_keeps_its_name_when_it_moves(kind: type, name: str) -> None:
    with renamed(kind):
        assert class_identity(kind) == name


@pytest.mark.parametrize(("value", "told"), SETTINGS, ids=str)
def test_settings_are_told_as_before(value: Any, told: str) -> None:
    with renamed(type(value)):
        assert settings_identity(value) == told


def test_fingerprints_take_the_declared_name() -> None:
    with renamed(Balanced), renamed(Canny):
        assert describe_strategy(Balanced())["class"] == "factory.sampling.selection.Balanced"
        assert Canny().fingerprint["class"] == "factory.conditioning.canny.Canny"


def test_a_class_of_ones_own_is_named_by_its_path_and_inherits_no_name() -> None:
    @dataclass(frozen=True)
    class Mine(Balanced):
        pass

    path = f"{__name__}.{Mine.__qualname__}"
    assert class_identity(Mine) == path
    assert class_identity(Mine, short=True) == Mine.__qualname__
    assert settings_identity(Mine()) == repr(Mine())
