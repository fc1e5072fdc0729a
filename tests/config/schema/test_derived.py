"""Schemas of classes: what stands there once is the config's name, type, default and sentence."""

import sys
from collections.abc import Iterator
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import get_class
from omegaconf import OmegaConf
from omegaconf.errors import ValidationError

from factory.config.schema import SCHEMAS, backends, crop, data, metadata, run, storage
from factory.config.schema.derived import limit_problems, settings_of
from factory.config.schema.options import opt

NESTED = [
    backends.WindowConfig,
    crop.CompositeConfig,
    data.ExcludeConfig,
    data.LimitsConfig,
    data.QuarantineConfig,
    metadata.RowFilterConfig,
]
DERIVED = [cls for cls in [*SCHEMAS.values(), *NESTED] if hasattr(cls, "declared_limits")]
# Defaults that only a config has.
DIFFERING: dict[Any, set[str]] = {
    storage.S3Config: {"bucket"},
    storage.FsspecConfig: {"url"},
    storage.HttpConfig: {"url"},
    storage.CsvConfig: {"cache_dir"},
    run.CacheConfig: {"scratch_dir"},
    data.QuarantineConfig: {"path"},
}

SOURCE = '''
from dataclasses import dataclass
import no_such_package  # read, never imported

@dataclass(frozen=True)
class Part:
    """Some part.

    Attributes:
        root: Folder of it. More of that,
            in a second sentence.
        tries: GPUs it takes; None: all
        names: Names, such as a.b.
        other: Another part.
    """

    kinds: ClassVar[int] = 2
    root: str
    tries: Annotated[int | None, AtLeast(1)] = None
    seconds: Annotated[float, Above(0)] = 3
    names: Sequence[str] = ("*.tar",)
    other: Part | None = None

    def method(self) -> None:
        extra: int = 3
'''


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "derived_part.py").write_text(SOURCE)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield "derived_part.Part"
    assert "derived_part" not in sys.modules


def test_a_class_is_read_from_its_source(target: str) -> None:
    @settings_of(target)
    class Config:
        names: list[str] = opt(factory=list, meaning="own")

    found: Any = Config
    cfg = OmegaConf.structured(found)
    assert OmegaConf.to_container(cfg) == {
        "_target_": target, "root": "???", "tries": None, "seconds": 3.0, "names": [],
        "other": None,
    }  # fmt: skip
    meanings = {field.name: field.metadata.get("meaning") for field in fields(found)}
    assert meanings == {
        "_target_": None, "root": "folder of it", "tries": "GPUs it takes; null: all",
        "seconds": "", "names": "own", "other": "another part",
    }  # fmt: skip
    with pytest.raises(ValidationError):
        cfg.tries = "many"
    config = found(root="r", tries=0, seconds=0)
    assert [text.split(",")[0] for text in limit_problems(config)] == [
        "tries must be at least 1",
        "seconds must be above 0",
    ]


def test_a_class_that_is_not_there_is_named() -> None:
    with pytest.raises(ImportError, match=r"factory\.storage\.local defines no class Nothing"):
        settings_of("factory.storage.local.Nothing")(type("Config", (), {}))


@pytest.mark.parametrize("schema", DERIVED)
def test_defaults_are_those_of_the_class_itself(schema: Any) -> None:
    """What is read from the source is what Python makes of it."""
    runtime = {field.name: field for field in fields(get_class(schema._target_)) if field.init}
    own = [field.name for field in fields(schema) if field.name != "_target_"]
    assert own == list(runtime)
    assert set(schema.declared_limits) <= set(own)
    for field in fields(schema):
        if field.name == "_target_" or field.name in DIFFERING.get(schema, ()):
            continue
        expected = runtime[field.name]
        made = expected.default_factory
        value = expected.default if made is NO_DEFAULT else made()
        value = "???" if value is NO_DEFAULT else value
        given = field.default if field.default_factory is NO_DEFAULT else field.default_factory()
        assert given == (list(value) if isinstance(value, tuple) else value), field.name
        assert field.metadata["meaning"], field.name
