"""Processes that fill one cache at the same time encode each row once."""

import subprocess
import sys
from pathlib import Path

import pytest

from factory.cache.maintenance.lease import in_turn
from factory.errors import AccessDeniedError
from factory.storage.local import LocalStorage
from factory.storage.memory import MemoryStorage
from tests.support.pictures import write_pictures

# Fills a cache with the latents of the pictures in a folder; with "hang" it says so at the
# first batch, and never ends.
FILL = """
import sys, time
from tests.backends.test_turns import filled
filled(sys.argv[1], hang=sys.argv[2] == "hang")
"""
ROOT = Path(__file__).parents[2]


def filled(root: str, *, hang: bool) -> None:
    """Fill the cache; print when encoding begins, and what was done at the end."""
    import logging
    import time

    from factory import ImageBackend, ImageEmbedBackend, Workspace
    from factory.encoder import BlockDCT
    from factory.engine.local_engine import LocalEngine
    from factory.registry.prepare import prepare
    from factory.registry.registry import Registry

    class Slow(BlockDCT):
        """Takes as long as a small model does, or for ever."""

        def encode(self, pixels):  # type: ignore[no-untyped-def]
            print("encoding", flush=True)  # noqa: T201
            time.sleep(10**6 if hang else 0.02)
            return super().encode(pixels)

    logging.basicConfig(stream=sys.stdout, format="%(message)s")
    storage = LocalStorage(root)
    place = Workspace(storage, scratch_dir=f"{root}/scratch")
    store = ImageEmbedBackend(name="latents", cache=place, encoder=Slow(), batch_size=4)
    pictures = ImageBackend(name="p", storage=storage, prefix="p", resolution=64, alignment=16)
    registry = Registry([pictures, store], cache=place, engine=LocalEngine())
    prepare(registry, seed=0)
    done = next(s.counts for s in registry.telemetry.stages if s.name == "encode p")
    print("encoded", done["encoded"], flush=True)  # noqa: T201
    registry.close()


def start(root: Path, mode: str) -> subprocess.Popen[str]:
    """Start a process that fills the cache."""
    return subprocess.Popen(
        [sys.executable, "-c", FILL, str(root), mode],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def until(process: subprocess.Popen[str], word: str) -> str:
    """Return the first line of a process that has a word in it."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if word in line:
            return line
    raise AssertionError("".join(lines))


@pytest.mark.long
def test_two_processes_at_once_encode_each_row_once(tmp_path: Path) -> None:
    write_pictures(tmp_path / "p", 60, sizes=[(96, 64)])
    both = [start(tmp_path, "go") for _ in range(2)]
    encoded = [int(until(each, "encoded ").split()[1]) for each in both]
    for each in both:
        each.communicate()
    assert sum(encoded) == 60


@pytest.mark.long
def test_who_waits_for_a_process_that_is_killed_goes_on(tmp_path: Path) -> None:
    write_pictures(tmp_path / "p", 12, sizes=[(96, 64)])
    first = start(tmp_path, "hang")
    until(first, "encoding")
    second = start(tmp_path, "go")
    assert f"by process {first.pid}" in until(second, "waiting for its rows")
    first.kill()
    assert until(second, "encoded ") == "encoded 12\n"
    for each in (first, second):
        each.communicate()
    assert not list((tmp_path / "cache").rglob("encoding/**/*.json"))


def test_a_turn_is_taken_where_no_claim_can_be_written(tmp_path: Path) -> None:
    class ReadOnly(MemoryStorage):
        def write(self, key: str, data: bytes) -> None:
            raise AccessDeniedError(key)

    with in_turn(ReadOnly("closed"), "claims", "encoding", lambda: 1):
        pass
    storage = LocalStorage(str(tmp_path))
    with in_turn(storage, "claims", "encoding", lambda: 1):
        assert len(list(storage.objects("claims"))) == 1
        # Another process has done it all meanwhile: nothing is waited for.
        with in_turn(storage, "claims", "encoding", lambda: 0):
            pass
    assert not list(storage.objects("claims"))
