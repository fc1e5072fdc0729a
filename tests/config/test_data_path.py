"""A path or URL chooses the storage by itself, unless one is chosen."""

from typing import Any

import pytest

import factory
from factory.config.build import verify
from factory.config.data_path import Choice, choice_of
from factory.errors import ConfigError


@pytest.mark.parametrize(
    ("path", "choice"),
    [
        ("/pictures/cats", Choice("local", {"root": "/pictures/cats"})),
        ("cats", Choice("local", {"root": "cats"})),
        ("file:///pictures/a b", Choice("local", {"root": "/pictures/a b"})),
        ("s3://bucket", Choice("s3", {"bucket": "bucket", "prefix": ""})),
        ("s3://bucket/a/b/", Choice("s3", {"bucket": "bucket", "prefix": "a/b"})),
        ("gs://bucket/a", Choice("gcs", {"bucket": "bucket", "prefix": "a"})),
        ("az://box/a", Choice("azure", {"bucket": "box", "prefix": "a"})),
        (
            "abfss://box@mine.dfs.core.windows.net/a",
            Choice("azure", {"bucket": "box", "account": "mine", "prefix": "a"}),
        ),
        ("https://host/a", Choice("http", {"url": "https://host/a"}, False)),
        (
            "hf://datasets/me/cats@main",
            Choice("huggingface", {"dataset": "me/cats", "revision": "main"}, False),
        ),
        (
            "hf://datasets/me/cats/folder",
            Choice("fsspec", {"url": "hf://datasets/me/cats/folder"}, False),
        ),
        ("sftp://me@nas/a", Choice("fsspec", {"url": "sftp://me@nas/a"})),
        ("zip::/a/cats.zip", Choice("fsspec", {"url": "zip::/a/cats.zip"}, False)),
    ],
)
def test_the_scheme_chooses(path: str, choice: Choice) -> None:
    assert choice_of(path) == choice


def composed(*overrides: str) -> Any:
    return verify(factory.compose(overrides), overrides)


def test_what_can_be_written_to_holds_the_cache_too() -> None:
    cfg = composed("data.path=s3://bucket/a/b")
    assert (cfg.storage.bucket, cfg.storage.prefix) == ("bucket", "a/b")
    assert cfg.data.backends.photos.storage == cfg.cache.storage == cfg.storage
    assert composed("data.path=/pictures").storage.root == "/pictures"


def test_what_is_only_read_leaves_the_cache_where_it_was() -> None:
    cfg = composed("data.path=https://host/pictures")
    for name in ("photos", "holdout"):
        assert cfg.data.backends[name].storage.url == "https://host/pictures"
    assert cfg.cache.storage == cfg.storage
    assert cfg.storage.root == composed().storage.root


def test_a_pinned_storage_stays() -> None:
    cfg = composed("data.path=https://host/p", "storage@data.backends.holdout=memory")
    assert cfg.data.backends.holdout.storage._target_.endswith("MemoryStorage")
    assert cfg.data.backends.photos.storage.url == "https://host/p"


def test_a_storage_that_is_chosen_wins() -> None:
    cfg = composed("data.path=s3://bucket/a", "storage=s3", "storage.max_attempts=9")
    assert (cfg.storage.bucket, cfg.storage.max_attempts) == ("bucket", 9)
    cfg = composed("data.path=s3://bucket/a", "storage=fsspec")
    assert cfg.storage.url == "s3://bucket/a"
    with pytest.raises(ConfigError, match="storage=memory is chosen; take one of them away"):
        composed("data.path=s3://bucket/a", "storage=memory")


@pytest.mark.parametrize(
    ("path", "told"),
    [("sftpp://host", "did you mean 'sftp'"), ("sftp://me:secret@host/x", "data.path holds a URL")],
)
def test_what_nothing_reads_is_refused(path: str, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        composed(f"data.path={path}")
    assert told in str(error.value)
    assert "secret@" not in str(error.value)
