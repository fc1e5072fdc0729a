"""Captions in a config: what the former system refuses is refused here, and no more."""

import json
from pathlib import Path
from typing import Any

import pytest

from factory.config.build import verify
from factory.config.compose import compose
from factory.errors import ConfigError

FILE = "config_validation.json"
OPTIONS = {
    "filename": "filename",
    "textfile": "textfile",
    "instanceprompt": "instance",
    "parquet": "parquet",
    "csv": "csv",
    "huggingface": "huggingface",
}
STORAGES = {"csv": ("csv", "table=u.csv"), "huggingface": ("huggingface", "dataset=d")}
# What cannot be written here at all, or means another thing.
OTHERWISE = {
    "prepend_instance_prompt": "the prefix is a text of its own, prepend, and no switch",
    "caption_filter_list": "filters belong to captions here, not to a store of embeddings",
    "csv_caption_column": "columns have a default, and captions are no backend of their own",
    "webshart": "there is no such strategy",
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give the test one case about captions each."""
    file: Path = metafunc.config.getoption("golden_dir") / FILE
    found = json.loads(file.read_text(encoding="utf-8"))["cases"] if file.exists() else []
    about = [c for c in found if "caption" in c["name"] or "instance_prompt" in c["name"]]
    metafunc.parametrize("asked", about, ids=[case["id"] for case in about])


def overrides(entry: dict[str, Any]) -> list[str]:
    at = "data.backends.d"
    lines = [f"+data/backend@{at}=image", f"data/caption@{at}={OPTIONS[entry['caption_strategy']]}"]
    if entry["type"] in STORAGES:
        storage, value = STORAGES[entry["type"]]
        lines += [f"storage@{at}={storage}", f"{at}.storage.{value}"]
    if "instance_prompt" in entry:
        lines.append(f"{at}.caption.prompt='{entry['instance_prompt']}'")
    shuffle = entry.get("caption_shuffle")
    if isinstance(shuffle, dict):
        values = {
            "count": 1,
            **{name: value for name, value in shuffle.items() if name != "enable"},
        }
        lines += [f"{at}.caption.shuffle.{name}={json.dumps(v)}" for name, v in values.items()]
    elif shuffle is not None:
        lines.append(f"{at}.caption.shuffle={json.dumps(shuffle)}")
    return lines


def test_captions_of_a_config(asked: dict[str, Any]) -> None:
    entry = asked["inputs"]["config"][0]
    for word, reason in OTHERWISE.items():
        if word in asked["name"]:
            pytest.skip(reason)
    if entry["caption_strategy"] not in OPTIONS or len(asked["inputs"]["config"]) > 2:
        pytest.skip("the case is about a kind or strategy that does not exist here")
    given = overrides(entry)
    accepted = asked["expected"]["accept"] and "recommended" not in asked
    if accepted:
        verify(compose(given), given)
        return
    with pytest.raises(ConfigError, match=r"data\.backends\.d\.caption") as caught:
        verify(compose(given), given)
    assert "has no option" not in str(caught.value)
