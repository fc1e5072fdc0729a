"""Secrets in a config are refused before anything of it is written, and shown nowhere."""

from pathlib import Path
from typing import Any

import pytest

from factory.check import check
from factory.composer import compose
from factory.errors import ConfigError
from factory.schema.run import RayEngineConfig
from factory.secrets import holds_password, masked, names_secret, secrets_in, without_passwords
from tests.dryrun.test_plan_script import run

SECRET = "hunter2-hunter2"


@pytest.mark.parametrize(
    "name",
    ["storage.secret_access_key", "aws_secret_access_key", "access_key_id", "password", "a.apikey",
     "API_KEY", "token", "hf_token", "callbacks.wandb.wandb_token", "auth_token", "db_password"],
)  # fmt: skip
def test_names_of_secrets(name: str) -> None:
    assert names_secret(name)


@pytest.mark.parametrize(
    "name", ["pad_token", "max_tokens", "tokens", "tokenizer", "key_column", "token_length", "keys"]
)
def test_names_of_other_things(name: str) -> None:
    assert not names_secret(name)


@pytest.mark.parametrize(
    "url",
    [f"https://me:{SECRET}@pypi.example/simple", f"https://{SECRET}@github.com/x", f"s3://a:{SECRET}@b",
     f"pkg @ git+https://{SECRET}@host/x.git", f"--index-url http://u:{SECRET}@h"],
)  # fmt: skip
def test_urls_with_passwords(url: str) -> None:
    assert holds_password(url)
    assert SECRET not in without_passwords(url)


@pytest.mark.parametrize(
    "url", ["ssh://git@github.com/x", "https://h/a@b", "a@b.example", "s3://b"]
)
def test_urls_without(url: str) -> None:
    assert not holds_password(url)
    assert without_passwords(url) == url


def test_what_is_read_from_the_environment_is_no_secret() -> None:
    assert not list(secrets_in({"api_key": "${oc.env:KEY}", "password": None, "token": ""}, ""))
    (problem,) = secrets_in({"a": [{"api_key": SECRET}]}, "")
    assert problem.startswith("a.0.api_key holds a secret")
    assert SECRET not in problem


@pytest.mark.parametrize(
    "overrides",
    [
        ["storage=s3", "storage.bucket=b", f"storage.endpoint_url=http://u:{SECRET}@h"],
        [f"+storage.secret_access_key={SECRET}"],
        [f"+model.api_key={SECRET}"],
        ["engine=ray", f"+engine.runtime_env.pip=['https://u:{SECRET}@h/x.whl']"],
        ["engine=ray", f"+engine.runtime_env.env_vars.HF_TOKEN={SECRET}"],
        [f"storage.secret_access_key={SECRET}"],
    ],
)
def test_a_config_with_a_secret_is_refused_without_showing_it(overrides: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        check(compose(overrides), overrides)
    assert SECRET not in str(caught.value)


def test_a_runtime_environment_has_no_password_from_elsewhere() -> None:
    given: dict[str, Any] = {"pip": {"packages": [f"https://u:{SECRET}@h/x.whl"]}}
    (problem,) = RayEngineConfig(runtime_env=given).problems()
    assert problem.startswith("runtime_env.pip.packages.0 holds a URL")
    assert SECRET not in problem


def test_masked() -> None:
    assert masked(f"+a.password={SECRET}") == "+a.password=…"
    assert masked("a.b=1") == "a.b=1"


@pytest.mark.parametrize("flags", [(), ("-m", "seed=1,2")])
def test_nothing_of_a_refused_run_is_left(tmp_path: Path, flags: tuple[str, ...]) -> None:
    made = run(
        tmp_path,
        "train.py",
        *flags,
        "engine=ray",
        f"+engine.runtime_env.env_vars.HF_TOKEN={SECRET}",
    )
    assert made.returncode == 1
    assert "engine.runtime_env.env_vars.HF_TOKEN holds a secret" in made.stderr
    assert SECRET not in made.stdout + made.stderr
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]
    assert not list(tmp_path.rglob("overrides.yaml"))
