"""When the demo writes its data and starts servers, and that it takes everything back."""

import os
import urllib.request
from pathlib import Path

import pytest
from omegaconf import DictConfig

from factory import ConfigError, compose
from factory.config.build import verify
from factory.demo.session import S3_SETTINGS, demo_session, promised, wants_s3_server


@pytest.fixture(autouse=True)
def nothing_configured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in S3_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "data"))


def composed(*overrides: str) -> DictConfig:
    return compose(list(overrides))


def test_an_s3_run_of_the_demo_with_nothing_configured_gets_a_server() -> None:
    assert wants_s3_server(composed("storage=s3"))


@pytest.mark.parametrize(
    "overrides",
    [
        ("storage=local",),
        ("storage=s3", "data.demo=false"),
        ("storage=s3", "storage.bucket=mine"),
        ("storage=s3", "paths.bucket=mine"),
        ("storage=s3", "storage.endpoint_url=http://host"),
    ],
)
def test_anything_configured_means_no_server(overrides: tuple[str, ...]) -> None:
    assert not wants_s3_server(composed(*overrides))


@pytest.mark.parametrize("name", S3_SETTINGS)
def test_any_variable_set_means_no_server(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "x")
    assert not wants_s3_server(composed("storage=s3"))


@pytest.mark.parametrize("file", ["credentials", "config"])
def test_a_file_of_the_sdk_means_no_server(file: str, tmp_path: Path) -> None:
    folder = tmp_path / "home" / ".aws"
    folder.mkdir(parents=True)
    (folder / file).write_text("[default]\n")
    assert not wants_s3_server(composed("storage=s3"))


def test_own_data_is_left_alone(tmp_path: Path) -> None:
    with demo_session(composed("data.demo=false")):
        assert not (tmp_path / "data").exists()
        assert "DEMO_URL" not in os.environ


def test_urls_are_served_while_the_session_lasts(tmp_path: Path) -> None:
    with demo_session(composed("data=multi")):
        url = os.environ["DEMO_URL"]
        with urllib.request.urlopen(f"{url}urls.csv") as answer:
            assert answer.read().startswith(b"url,caption")
    assert "DEMO_URL" not in os.environ
    assert (tmp_path / "data" / "demo" / "photos").is_dir()


def test_variables_are_taken_back_when_the_run_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEMO_URL", "http://before")

    def fail() -> None:
        with demo_session(composed("data=multi")):
            assert os.environ["DEMO_URL"] != "http://before"
            raise RuntimeError("stopped here")

    with pytest.raises(RuntimeError, match="stopped here"):
        fail()
    assert os.environ["DEMO_URL"] == "http://before"


def test_a_config_can_be_checked_before_anything_is_written(tmp_path: Path) -> None:
    cfg = composed("data=multi", "storage=s3", "data.batch_size=0")
    with promised(cfg), pytest.raises(ConfigError) as caught:
        verify(cfg)
    assert len(caught.value.problems) == 1
    assert "batch_size must be at least 1" in str(caught.value)
    assert not (tmp_path / "data").exists()
    assert "DATA_BUCKET" not in os.environ
