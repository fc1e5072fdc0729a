"""A dataset of a hub, over its file protocol: revisions, downloads, refusals."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.storage.test_huggingface_storage import PICTURES, table
from tests.support.hub import Hub, commit, hub

SCRIPT = """
import hashlib, json
from factory.errors import FactoryError
from factory.storage import HuggingFaceStorage

def read(**settings):
    storage = HuggingFaceStorage("acme/set", **settings)
    return [hashlib.sha1(storage.read(info.key)).hexdigest() for info in storage.objects()]

def refused(storage):
    try:
        storage.check()
    except FactoryError as error:
        return f"{type(error).__name__}: {error}"

HuggingFaceStorage("acme/set", revision="v1").check()
print(json.dumps({
    "v1": read(revision="v1"),
    "commit": read(revision=COMMIT),
    "main": read(),
    "bad revision": refused(HuggingFaceStorage("acme/set", revision="v9")),
    "bad name": refused(HuggingFaceStorage("acme/other")),
}))
"""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Hub]:
    for name, count in (("v1", 2), ("main", 3)):
        (tmp_path / name).mkdir()
        table(count).to_parquet(tmp_path / name / "train.parquet")
    with hub({"v1": tmp_path / "v1", "main": tmp_path / "main"}) as server:
        yield server


def test_revisions_are_read_byte_for_byte(served: Hub, tmp_path: Path) -> None:
    script = SCRIPT.replace("COMMIT", repr(commit("v1")))
    found = served.run(script, tmp_path / "home")
    expected = [hashlib.sha1(data).hexdigest() for data in PICTURES]
    assert found["v1"] == found["commit"] == expected[:2]
    assert found["main"] == expected
    assert found["bad revision"].startswith("ObjectNotFoundError: ")
    assert found["bad name"].startswith("ObjectNotFoundError: ")
    assert "storage.revision" in found["bad revision"]
