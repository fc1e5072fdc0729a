"""Settings of resume and of many processes: from a config to the data module, and refused."""

from typing import Any

import pytest
from omegaconf import OmegaConf

from factory import FactoryDataModule, ImageBackend
from factory.config.build import build
from factory.config.check import check
from factory.config.compose import compose
from factory.errors import ConfigError
from factory.storage.local import LocalStorage


def test_they_reach_the_data_module() -> None:
    overrides = [
        "storage.root=data", "data.accept_changed_plan=[batch_size,backends.web]",
        "data.context_parallel=2", "data.peer_timeout_s=null",
    ]  # fmt: skip
    data = build(compose(overrides), overrides)
    assert data.accept_changed_plan == ["batch_size", "backends.web"]
    assert (data.context_parallel, data.peer_timeout_s) == (2, None)
    data.close()
    data = build(compose(["storage.root=data", "data.accept_changed_plan=true"]))
    assert data.accept_changed_plan is True
    assert data.peer_timeout_s == 120
    data.close()


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("accept_changed_plan", "yes", "must be true, false or a list of keys such as"),
        ("accept_changed_plan", [1], "must be true, false or a list of keys such as"),
        ("context_parallel", 0, "context_parallel must be at least 1, got 0"),
        ("peer_timeout_s", 0, "peer_timeout_s must be above 0, got 0"),
    ],
)
def test_what_they_cannot_be(key: str, value: Any, said: str) -> None:
    cfg = compose(["storage.root=data"])
    OmegaConf.set_struct(cfg, False)
    OmegaConf.update(cfg, f"data.{key}", value)
    with pytest.raises(ConfigError) as caught:
        check(cfg)
    assert f"data.{key}" in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"context_parallel": 0}, "context_parallel must be at least 1"),
        ({"peer_timeout_s": -1.0}, "peer_timeout_s must be above 0"),
    ],
)
def test_notebooks_are_checked_too(settings: dict[str, Any], said: str) -> None:
    backend = ImageBackend(name="a", storage=LocalStorage("."))
    with pytest.raises(ConfigError, match=f"data.{said}"):
        FactoryDataModule([backend], **settings)
