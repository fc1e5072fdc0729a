"""What version 0.1 wrote is opened by every later one: nothing is measured or encoded again."""

import hashlib
import json
import os
import runpy
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from lightning.pytorch import Trainer

from factory import Batch
from factory.storage import LocalStorage
from tests.compatibility.encoders import OneNumber
from tests.compatibility.hashing import digest
from tests.compatibility.kept import CACHES, FIXTURES, NAME, ROOT, fill_memory, module, overrides
from tests.compatibility.world import HERE

SCRIPTS = HERE.parent.parent / "scripts"
KEPT = json.loads((FIXTURES / "kept.json").read_text())
# The last step of the checkpoint; hashes of batches go on after it.
SAVED_AT = 16
pytestmark = [
    pytest.mark.xdist_group("compatibility"),
    pytest.mark.filterwarnings(
        "ignore:The '.*_dataloader' does not have many workers",
        "ignore:.*treespec, LeafSpec.*",
        "ignore:Be aware that when using `ckpt_path`",
    ),
]


@pytest.fixture(scope="module", autouse=True)
def memory() -> Iterator[None]:
    """Let the samples be in memory."""
    fill_memory()
    yield
    fsspec.filesystem("memory").rm(f"/{NAME}", recursive=True)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of all that was written, which no test changes for another."""
    shutil.copytree(FIXTURES, tmp_path, dirs_exist_ok=True)
    shutil.copytree(HERE / "conf", tmp_path / "conf")
    for file in (tmp_path / "run/.hydra").iterdir():
        file.write_text(file.read_text().replace(ROOT, str(tmp_path)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(folder: Path) -> dict[str, str]:
    """Return a hash of every file that is published in a cache."""
    return {
        str(file.relative_to(folder)): hashlib.blake2b(file.read_bytes()).hexdigest()
        for file in folder.rglob("*")
        if file.is_file() and not (file.parent.name == "catalog" and file.suffix == ".arrow")
    }


def hashes(batches: list[Batch]) -> list[str]:
    return [digest([batch]).hex()[:16] for batch in batches]


def call(monkeypatch: pytest.MonkeyPatch, script: str, *arguments: str) -> int:
    """Run a script in this process, whose memory has the samples; return its exit status."""
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    try:
        runpy.run_path(str(SCRIPTS / script), run_name="__main__")
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


@pytest.mark.parametrize("mode", ["inline", "thread"])
@pytest.mark.parametrize("cache", CACHES)
def test_every_row_is_there_and_nothing_is_written(root: Path, cache: str, mode: str) -> None:
    before = contents(root / cache)
    with module(root, cache, "data.ledger=null", f"prefetch={mode}") as data:
        batches = []
        for batch in data.batches(max_steps=len(KEPT[cache])):
            batches.append(batch)
            data.commit()
        data.write_metrics(root)
    assert hashes(batches) == KEPT[cache]
    assert [(batch.encoded, batch.rebuilt) for batch in batches] == [(0, 0)] * len(batches)
    stages = json.loads((root / "metrics.json").read_text())["stages"]
    counts = {stage["name"]: stage["counts"] for stage in stages}
    assert {count["encoded"] for count in counts.values() if "encoded" in count} == {0}
    assert sum(count.get("cached", 0) for count in counts.values()) == 81
    scans = {name: count for name, count in counts.items() if name.startswith("scan ")}
    assert len(scans) == 5
    for count in scans.values():
        assert count["changes"] == f"{count['samples']} unchanged"
    assert contents(root / cache) == before


@pytest.mark.parametrize("cache", CACHES)
def test_the_cache_is_sound(root: Path, cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["--config-dir", "conf", *overrides(root, cache)]
    assert call(monkeypatch, "cache.py", "verify", *given) == 0
    shard = max((root / cache).glob("tensors/latents/shards/*"))
    damaged = bytearray(shard.read_bytes())
    damaged[-1] ^= 1
    shard.write_bytes(damaged)
    assert call(monkeypatch, "cache.py", "verify", *given) == 1


def test_a_checkpoint_goes_on_at_its_step(root: Path) -> None:
    model, data = OneNumber(), module(root, "plain", "data.ledger=null")
    trainer = Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, max_steps=len(KEPT["plain"]),
        default_root_dir=root,
    )  # fmt: skip
    try:
        trainer.fit(model, datamodule=data, ckpt_path=str(root / "run/checkpoints/last.ckpt"))
    finally:
        data.close()
    assert [batch.global_step for batch in model.batches] == list(range(SAVED_AT, 30))
    assert hashes(model.batches) == KEPT["plain"][SAVED_AT:]
    assert sum(batch.encoded for batch in model.batches) == 0


def test_a_ledger_is_explained(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["run", f"step=1..{SAVED_AT}", "--json", "steps.json"]
    assert call(monkeypatch, "explain.py", *asked) == 0
    found = json.loads((root / "steps.json").read_text())
    with module(root, "plain", "data.ledger=null", "prefetch=inline") as data:
        batches = list(data.batches(max_steps=SAVED_AT))
    assert found["notes"] == []
    assert [step["notes"] for step in found["steps"]] == [[]] * SAVED_AT
    assert [
        (step["number"], step["ranks"], step["backend"], [each["key"] for each in step["samples"]])
        for step in found["steps"]
    ] == [(batch.global_step + 1, 1, batch.backend, batch.keys) for batch in batches]


def test_options_of_a_run_count_as_they_were(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(monkeypatch, "explain.py", "run", "step=1", "--json", "step.json") == 0
    assert json.loads((root / "step.json").read_text())["notes"] == []


def test_files_are_known_by_their_path_and_version(tmp_path: Path) -> None:
    """Caches of pictures on a disk hang on it, and those above are of pictures in memory."""
    file = tmp_path / "a/b.png"
    file.parent.mkdir()
    file.write_bytes(b"picture")
    os.utime(file, ns=(0, 0x0123_4567_89AB))
    storage = LocalStorage(str(tmp_path))
    found = storage.head("a/b.png")
    assert storage.identity == f"file://{tmp_path}"
    assert (found.key, found.size, found.etag) == ("a/b.png", 7, "123456789ab-7")
