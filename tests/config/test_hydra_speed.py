"""Configs are what Hydra composes when nothing is left out and every value is set by itself."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import omegaconf
import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal import defaults_list
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, Node, OmegaConf, grammar_parser

from factory.config import compose as composing
from factory.config import hydra_speed
from factory.config.compose import HYDRA_VERSION, compose, conf_dir, register


@pytest.fixture
def as_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hydra and OmegaConf without what `apply` changes."""
    register()
    plain = hydra_speed._choices_so_far
    monkeypatch.setattr(defaults_list, "_create_interpolation_map", plain)
    monkeypatch.setattr(omegaconf.base, "parse", grammar_parser.parse)
    monkeypatch.delattr(ConfigStore.instance(), "__deepcopy__")


def of_hydra(overrides: list[str]) -> DictConfig:
    with initialize_config_dir(str(conf_dir()), version_base=HYDRA_VERSION):
        return hydra_compose("config", overrides=overrides)


def described(node: Node, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the types and flags of a node and of all below it."""
    about = node._metadata
    yield key, {**vars(about), "resolver_cache": None}  # it holds the time of day
    plain = node._is_none() or node._is_missing() or node._is_interpolation()
    if isinstance(node, DictConfig) and not plain:
        for name in node:
            yield from described(node._get_node(name), f"{key}.{name}")


@pytest.mark.usefixtures("as_it_comes")
@pytest.mark.parametrize(
    "overrides",
    [
        ["data=multi", "data.backends.photos.prefix=x", "seed=3", "+a={b:1}", "a.b=2"],
        ["data.batch_size=3", "hydra.job.name=x", "encoder/image=none", "++trainer.extra=1"],
        ["+data/backend@data.backends.e=conditioning", "data.backends.e.source=photos"],
    ],
)
def test_a_config_is_the_same_node_by_node(overrides: list[str]) -> None:
    plain, composed = of_hydra(overrides), composing.Composer("config", None).compose(overrides)
    assert OmegaConf.to_yaml(composed) == OmegaConf.to_yaml(plain)
    assert list(described(composed)) == list(described(plain))


@pytest.mark.usefixtures("as_it_comes")
@pytest.mark.parametrize(
    "refused",
    ["data.batch_size=1,2", "data.nope=1", "~trainer.max_steps=3", "data.batch_size=many"],
)  # fmt: skip
def test_what_hydra_refuses_is_refused_in_its_words(refused: str) -> None:
    overrides = ["data.resolution=64", refused]
    with pytest.raises(Exception) as plain:
        of_hydra(overrides)
    with pytest.raises(type(plain.value)) as told:
        composing.Composer("config", None).compose(overrides)
    assert str(told.value) == str(plain.value)
    assert repr(told.value.__cause__) == repr(plain.value.__cause__)


def test_values_stay_where_they_stand_if_others_hold_them() -> None:
    assert hydra_speed.apart(["a.b=2", "+a={b:1}"]) == (["a.b=2", "+a={b:1}"], [])
    options, values = hydra_speed.apart(["a.b=2", "data=multi", "x/y@a.b=z", "hydra.a.b=1"])
    assert options == ["data=multi", "x/y@a.b=z", "hydra.a.b=1"]
    assert [value.input_line for value in values] == ["a.b=2"]


def test_an_option_may_follow_another_by_its_name(tmp_path: Path) -> None:
    for name, text in {
        "extra/mine": "# @package _global_\ndefaults:\n  - /kind: a\n  - /other: ${kind}\n",
        "kind/a": "# @package model\nkind_of_mine: a\n",
        "other/a": "# @package model\nother_of_mine: a, too\n",
    }.items():
        file = tmp_path / f"{name}.yaml"
        file.parent.mkdir()
        file.write_text(text)
    config = compose(["+extra=mine"], config_dir=tmp_path)
    assert (config.model.kind_of_mine, config.model.other_of_mine) == ("a", "a, too")
