"""Secrets in a config are refused before anything of it is written, and shown nowhere."""

from pathlib import Path
from typing import Any

import pytest

from factory.commands.cli import describe
from factory.config.check import check
from factory.config.compose import compose
from factory.config.schema.run import RayEngineConfig
from factory.config.secrets import (
    holds_password,
    masked,
    names_secret,
    secrets_in,
    without_passwords,
    without_secrets,
)
from factory.errors import ConfigError
from tests.commands.test_plan import run

SECRET = "hunter2-hunter2"


@pytest.mark.parametrize(
    "name",
    ["storage.secret_access_key", "aws_secret_access_key", "access_key_id", "password", "a.apikey",
     "API_KEY", "token", "hf_token", "callbacks.wandb.wandb_token", "auth_token", "db_password",
     "env_vars.MY_TOKEN", "DB_PWD", "SERVICE_KEY", "apiKey", "accessKeyId", "x-api-key",
     "a.api_key.0", "Authorization", "account_key", "sas_token"],
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
     f"pkg @ git+https://{SECRET}@host/x.git", f"--index-url http://u:{SECRET}@h",
     f"https://u:p@{SECRET}@h", f"https://u:'{SECRET}'x@h", f"https://h/x?a=1&token={SECRET}&b=2",
     f"https://h/b?X-Amz-Credential=a&X-Amz-Signature={SECRET}", f"https://h?sv=1&sig={SECRET}%3D",
     f"https://h/#access_token={SECRET}", f"https://u:{SECRET}@${{oc.env:HOST}}/x",
     f"${{oc.env:URL,'https://u:{SECRET}@h'}}", f"https://h/x?apiKey={SECRET}"],
)  # fmt: skip
def test_urls_with_passwords(url: str) -> None:
    assert holds_password(url)
    assert SECRET not in without_passwords(url)


@pytest.mark.parametrize(
    "url",
    ["ssh://git@github.com/x", "https://h/a@b", "a@b.example", "s3://b", "https://h/x?page=2&size=3",
     "https://h/x?mail=a@b.c", "['https://h','a@b']", "https://h/x?token=${oc.env:T}"],
)  # fmt: skip
def test_urls_without(url: str) -> None:
    assert not holds_password(url)
    assert without_passwords(url) == url


def test_what_is_read_from_the_environment_is_no_secret() -> None:
    config = {
        "api_key": "${oc.env:KEY}", "password": None, "token": "", "hf_token": "${oc.env:A,null}",
        "secret": "${oc.decode:${oc.env:B,''}}", "url": "https://${oc.env:U}:${oc.env:P}@host",
        "passphrase": "${vault:some/path}", "credentials": "${paths.mine}",
    }  # fmt: skip
    assert not list(secrets_in(config, ""))
    (found,) = secrets_in({"a": [{"api_key": SECRET}]}, "")
    assert found.problem.startswith("a.0.api_key holds a secret")
    assert found.value == SECRET
    assert SECRET not in found.problem


@pytest.mark.parametrize(
    "value", [f"${{oc.env:KEY,{SECRET}}}", f"${{oc.env:KEY,'{SECRET}'}}", f"{SECRET}${{a}}", 123456]
)
def test_what_stands_beside_the_environment_is_a_secret(value: Any) -> None:
    (found,) = secrets_in({"password": value}, "")
    assert SECRET not in found.problem


@pytest.mark.parametrize(
    "token", ["hf_" + "x" * 34, "AKIA" + "A" * 16, "ghp_" + "a" * 36, "Bearer abcdefghijkl"]
)
def test_tokens_known_by_their_form_are_secrets_anywhere(token: str) -> None:
    (found,) = secrets_in({"note": f"use {token}"}, "")
    assert token not in found.problem
    assert token not in without_passwords(f"cannot use {token!r}")


@pytest.mark.parametrize(
    "overrides",
    [
        ["storage=s3", "storage.bucket=b", f"storage.endpoint_url=http://u:{SECRET}@h"],
        [f"+storage.secret_access_key={SECRET}"],
        [f"+model.api_key={SECRET}"],
        ["engine=ray", f"+engine.runtime_env.pip=['https://u:{SECRET}@h/x.whl']"],
        ["engine=ray", f"+engine.runtime_env.env_vars.HF_TOKEN={SECRET}"],
        [f"storage.secret_access_key={SECRET}"],
        ["storage=s3", "storage.bucket=b", f"storage.endpoint_url='https://h/x?token={SECRET}'"],
        [f"storage.root=https://a.example/c?sig={SECRET}"],
        [f"+callbacks.mine.token={SECRET}"],
        [f"+callbacks.mine={{password:{SECRET}}}"],
        [f"+callbacks.password={SECRET}"],
        [f"+foo={{a:[{{password:{SECRET}}}]}}"],
        [f"data.batch_size={{password:{SECRET}}}"],
        [f"+hydra.foo.password={SECRET}"],
        [f'+model.password="({SECRET}"', f"data.password=({SECRET}"],
        [f"+model.api_key=${{oc.env:NO_SUCH,{SECRET}}}"],
        [f"++data.backends.photos.token={SECRET}"],
    ],
)
def test_a_config_with_a_secret_is_refused_without_showing_it(overrides: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        check(compose(overrides), overrides)
    assert SECRET not in describe(caught.value)


def test_a_runtime_environment_has_no_password_from_elsewhere() -> None:
    given: dict[str, Any] = {"pip": {"packages": [f"https://u:{SECRET}@h/x.whl"]}}
    (problem,) = RayEngineConfig(runtime_env=given).problems()
    assert problem.startswith("runtime_env.pip.packages.0 holds a URL")
    assert SECRET not in problem


def test_masked() -> None:
    assert masked(f"+a.password={SECRET}") == "+a.password=…"
    assert masked("a.b=1") == "a.b=1"
    assert masked("a.token=${oc.env:T}") == "a.token=${oc.env:T}"
    assert masked(f"a={{b: {{api_key: '{SECRET} x'}}}}") == "a={b: {api_key: …}}"
    assert (
        without_secrets("set a.token='${oc.env:T}'; got 'x'")
        == "set a.token='${oc.env:T}'; got 'x'"
    )


@pytest.fixture
def own_options(tmp_path: Path) -> Path:
    folder = tmp_path / "conf/experiment"
    folder.mkdir(parents=True)
    (folder / "plain.yaml").write_text("# @package _global_\nseed: 3\n")
    text = f"# @package _global_\nmodel:\n  api_key: {SECRET}\n"
    (folder / "secret.yaml").write_text(text)
    return tmp_path / "conf"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["engine=ray", f"+engine.runtime_env.env_vars.HF_TOKEN={SECRET}"],
         "engine.runtime_env.env_vars.HF_TOKEN holds a secret"),
        (["-m", "seed=1,2", f"+model.api_key={SECRET}"], "model.api_key holds a secret"),
        (["-m", f"+model={{api_key:{SECRET}}},{{api_key:b}}"], "model holds a secret"),
        ([f"+hydra.job.env_set.HF_TOKEN={SECRET}"], "hydra.job.env_set.HF_TOKEN holds a secret"),
        ([f"+hydra.launcher.token={SECRET}"], "hydra.launcher.token holds a secret"),
        (["experiment=secret"], "model.api_key holds a secret"),
        (["-m", "experiment=secret,plain"], "model.api_key holds a secret"),
    ],
)  # fmt: skip
def test_nothing_of_a_refused_run_is_left(
    tmp_path: Path, own_options: Path, arguments: list[str], said: str
) -> None:
    own = ["--config-dir", str(own_options)] if "secret" in arguments[-1].partition("=")[2] else []
    where = tmp_path / "run"
    where.mkdir()
    made = run(where, "train.py", *own, *arguments, "paths.data_dir=/nowhere/to/be/found")
    assert made.returncode == 1
    assert said in made.stderr
    assert SECRET not in made.stdout + made.stderr
    files = [path for path in where.rglob("*") if path.is_file()]
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]
