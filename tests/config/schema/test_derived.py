"""Schemas of classes: what stands there once is the config's name, type, default and sentence."""

import inspect
import pickle
import sys
from collections.abc import Iterator
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import get_class
from omegaconf import OmegaConf
from omegaconf.errors import ValidationError

from factory.catalog.captions.shuffle import Shuffle
from factory.config.schema import (
    SCHEMAS,
    backends,
    captions,
    crop,
    data,
    embeds,
    metadata,
    run,
    storage,
)
from factory.config.schema.derived import Derived, SettingChoice, problems_of, settings_of
from factory.config.schema.options import opt

NESTED = [
    backends.WindowConfig,
    crop.CompositeConfig,
    data.ExcludeConfig,
    data.LimitsConfig,
    data.QuarantineConfig,
    metadata.RowFilterConfig,
    captions.ShuffleConfig,
]
DERIVED = [cls for cls in [*SCHEMAS.values(), *NESTED] if hasattr(cls, "declared_limits")]
# Defaults that only a config has: what the run decides, and what its groups fill.
RUN_WIDE = {"resolution", "resolution_type", "alignment", "maximum_canvas", "aspect_sizes"}
SAMPLES = {*RUN_WIDE, "name", "prefix", "metadata", "caption", "crop", "limits"}
DIFFERING: dict[Any, set[str]] = {
    storage.S3Config: {"bucket"},
    storage.GcsConfig: {"bucket"},
    storage.AzureConfig: {"bucket"},
    storage.FsspecConfig: {"url"},
    storage.HttpConfig: {"url"},
    storage.CsvConfig: {"cache_dir"},
    run.CacheConfig: {"scratch_dir"},
    run.SamplingConfig: {"weighting", "selection"},
    data.QuarantineConfig: {"path"},
    data.DataConfig: {"seed", "sampling", "cache", "prefetch", "engine", "quarantine", "ledger"},
    metadata.DiscoveryConfig: {"max_megapixels"},
    captions.ShuffleConfig: {"count", "seed"},
    captions.CaptionConfig: {"shuffle"},
    backends.SampleBackendConfig: {*SAMPLES, "conditioning_sampling", "storage"},
    embeds.EmbedBackendConfig: {"name"},
    embeds.ConditioningImageEmbedBackendConfig: {"batch_size"},
}
# Options that only a config has, and what only Python can give.
OWN = {
    data.DataConfig: {
        "path",
        "backends",
        "demo",
        "caption",
        "crop",
        "limits",
        "conditioning_sampling",
    }
    | RUN_WIDE
}
NOT_SET = {"bond", "telemetry", "rank", "world_size", "accumulate_grad_batches", "backends"}

SOURCE = '''
from dataclasses import dataclass
import no_such_package  # read, never imported

Mode = Literal["on", "off"]
LEAST = "on"

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
    kind: Annotated[str | None, OneOf("a", "b")] = None
    mode: Mode = LEAST

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
        "other": None, "kind": None, "mode": "on",
    }  # fmt: skip
    meanings = {field.name: field.metadata.get("meaning") for field in fields(found)}
    assert meanings == {
        "_target_": None, "root": "folder of it", "tries": "GPUs it takes; null: all",
        "seconds": "", "names": "own", "other": "another part", "kind": "", "mode": "",
    }  # fmt: skip
    with pytest.raises(ValidationError):
        cfg.tries = "many"
    with pytest.raises(ValidationError, match=r"expected one of \[on, off\]"):
        cfg.mode = "of"
    config = found(root="r", tries=0, seconds=0)
    assert [text.split(",")[0] for text in problems_of(config)] == [
        "tries must be at least 1",
        "seconds must be above 0",
    ]


def test_a_class_that_is_not_there_is_named() -> None:
    with pytest.raises(ImportError, match=r"factory\.storage\.local defines no class Nothing"):
        settings_of("factory.storage.local.Nothing")(type("Config", (), {}))


def test_a_schema_may_name_the_settings_it_takes(target: str) -> None:
    @settings_of(target, listed=True)
    class Config:
        seconds: Derived
        own: int = opt(2, "its own")
        root: Derived = opt(meaning="where it is")

    found: Any = Config
    assert {field.name: field.type for field in fields(found)} == {
        "_target_": str, "seconds": float, "own": int, "root": str,
    }  # fmt: skip
    assert OmegaConf.to_container(OmegaConf.structured(found)) == {
        "_target_": target, "seconds": 3.0, "own": 2, "root": "???",
    }  # fmt: skip
    assert found.__dataclass_fields__["root"].metadata["meaning"] == "where it is"


def test_a_choice_is_a_plain_text_wherever_it_is_stored() -> None:
    choice: Any = SettingChoice("SettingChoice", {"fast": "fast"})  # type: ignore[arg-type]
    assert repr(choice.fast) == repr("fast")
    assert type(pickle.loads(pickle.dumps(choice.fast))) is str


@pytest.mark.parametrize("schema", DERIVED)
def test_defaults_are_those_of_the_class_itself(schema: Any) -> None:
    """What is read from the source is what Python makes of it."""
    if schema is captions.ShuffleConfig:
        runtime = defaults(Shuffle)
    else:
        runtime = defaults(get_class(schema._target_))
    differing = set().union(*(DIFFERING.get(cls, set()) for cls in schema.__mro__))
    own = [field.name for field in fields(schema) if field.name != "_target_"]
    assert set(own) - OWN.get(schema, set()) == set(runtime) - NOT_SET
    assert set(schema.declared_limits) <= set(own)
    for field in fields(schema):
        if field.name in {"_target_", *differing, *OWN.get(schema, ())}:
            continue
        value = runtime[field.name]
        given = field.default if field.default_factory is NO_DEFAULT else field.default_factory()
        if is_dataclass(given):
            assert get_class(given._target_)() == value  # type: ignore[union-attr]
        else:
            assert given == (list(value) if isinstance(value, tuple) else value), field.name


def defaults(cls: Any) -> dict[str, Any]:
    """Return the default of each setting of a class; "???" where there is none."""
    if not is_dataclass(cls):
        given = inspect.signature(cls).parameters.values()
        return {each.name: each.default for each in given}
    found = {}
    for field in fields(cls):
        made = field.default_factory
        value = field.default if made is NO_DEFAULT else made()
        if field.init:
            found[field.name] = "???" if value is NO_DEFAULT else value
    return found
