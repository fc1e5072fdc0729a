"""Old `_target_` paths: each is followed to where its class is now, with a line that says so."""

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from hydra.utils import get_class, get_method
from omegaconf import DictConfig, OmegaConf

from factory.config import moved_targets
from factory.config.build import build, make
from factory.config.compose import compose
from factory.config.moved_targets import MOVED
from factory.lightning.datamodule import FactoryDataModule

VISION = "tests.compatibility.encoders.Looks"
# Together they name every class of the table that a config composes to.
RUNS = [
    [
        "data=multi",
        "storage=s3",
        "storage.bucket=b",
        "engine=ray",
        "sampling=auto",
        "metadata@data.backends.hub=columns",
    ],
    [
        "data=single",
        "storage=memory",
        "storage@data.backends.photos=webdataset",
        "data/caption@data.backends.photos=jsonfile",
        "+data/backend@data.backends.named=image",
        "data/caption@data.backends.named=filename",
        "+data/backend@data.backends.looks=conditioning_image_embeds",
        f"data.backends.looks.encoder={{_target_: {VISION}}}",
    ],
    [
        "data=single",
        "data/caption=instance",
        "data.caption.prompt=a",
        "+data/backend@data.backends.hub=stream",
        "storage@data.backends.hub=huggingface",
        "data.backends.hub.storage.dataset=d",
        "data/caption@data.backends.hub=huggingface",
    ],
]


@pytest.fixture(autouse=True)
def _unsaid() -> Iterator[None]:
    moved_targets._announce.cache_clear()
    yield
    moved_targets._announce.cache_clear()


def targets(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from [value["_target_"]] if "_target_" in value else []
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from targets(part)


def plain(cfg: DictConfig) -> Any:
    return OmegaConf.to_container(cfg, resolve=False)


def kinds(built: FactoryDataModule) -> dict[str, type]:
    return {name: type(backend) for name, backend in built.registry.backends.items()}


def as_before(cfg: DictConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Name the classes of a composed config as version 0.1 did."""
    with monkeypatch.context() as reverse:
        reverse.setattr(moved_targets, "MOVED", {new: old for old, new in MOVED.items()})
        moved_targets.follow(cfg)
    moved_targets._announce.cache_clear()


@pytest.mark.parametrize("old", MOVED)
def test_each_new_path_is_there(old: str) -> None:
    found = get_method if MOVED[old].rpartition(".")[2][0].islower() else get_class
    assert found(MOVED[old]).__name__ == MOVED[old].rpartition(".")[2]


def test_runs_name_every_class() -> None:
    named = {target for run in RUNS for target in targets(plain(compose(run)))}
    # What `shuffle_of` makes, which nobody's config composes to.
    assert set(MOVED.values()) - named == {"factory.catalog.captions.shuffle.Shuffle"}


@pytest.mark.parametrize("overrides", RUNS, ids=["multi", "tar", "stream"])
def test_a_config_of_old_paths_is_built(
    overrides: list[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = compose(overrides)
    new = build(cfg)
    assert "is now" not in caplog.text
    as_before(cfg, monkeypatch)
    OmegaConf.set_readonly(cfg, True)
    caplog.clear()
    given = plain(cfg)
    used = {target for target in targets(given) if target in MOVED}
    for _ in range(2):
        built = build(cfg)
    assert kinds(built) == kinds(new)
    assert plain(cfg) == given
    said = [record.message for record in caplog.records if "is now" in record.message]
    assert sorted(line.split()[1] for line in said) == sorted(used)
    assert len(used) > 10


def test_a_users_yaml_and_overrides_may_name_them(caplog: pytest.LogCaptureFixture) -> None:
    old = "factory.catalog.captions.FilenameCaptions"
    overrides = [
        f"+data.backends.mine={{kind: image, caption: {{_target_: {old}}}}}",
        "prefetch._target_=factory.runtime.fetcher.Prefetch",
    ]
    cfg = compose(overrides)
    built = build(cfg, overrides)
    mine = built.registry.data["mine"]
    assert type(mine.caption).__name__ == "FilenameCaptions"
    assert f"_target_: {old} is now {MOVED[old]}; " in caplog.text


@pytest.mark.parametrize("old", MOVED)
def test_each_old_path_is_made(old: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        made = make(DictConfig({"_target_": old, "_partial_": True}), "part")
    assert f"{made.func.__module__}.{made.func.__name__}" == MOVED[old]
    (line,) = caplog.messages
    assert line == (
        f"_target_: {old} is now {MOVED[old]}; the old path works in this version and is gone in "
        "the next: write the new one"
    )
