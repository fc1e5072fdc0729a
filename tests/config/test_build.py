"""Building from a config: it is checked once a start, whoever asks first."""

from pathlib import Path
from unittest.mock import Mock

import pytest
from omegaconf import OmegaConf

import factory.config.build
from factory.config.build import build, preflight, verify
from factory.config.check import check
from factory.config.compose import compose


def test_a_checked_config_is_not_checked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [f"storage.root={tmp_path}", f"paths.run_dir={tmp_path}"]
    cfg = compose(given)
    before = OmegaConf.to_yaml(cfg)
    counted = Mock(side_effect=check)
    monkeypatch.setattr(factory.config.build, "check", counted)
    checked = verify(cfg, given)
    preflight(checked, given)
    build(checked, given).close()
    build(checked).close()
    assert counted.call_count == 1
    assert OmegaConf.to_yaml(cfg) == before
    build(cfg, given).close()
    assert counted.call_count == 2
