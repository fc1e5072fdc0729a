"""What the storages share: keys, prefixes, opened things, and cheap imports."""

import multiprocessing
import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

import factory.storage
from factory.errors import UnsafeKeyError
from factory.storage.base import safe_key
from factory.storage.keys import (
    is_listed,
    missing_column,
    safe_prefix,
    slice_bytes,
    strip_prefix,
    temporary_name,
)
from factory.storage.per_process import PerProcess

PARTS = st.one_of(st.sampled_from(["..", ".", "", "/", "a"]), st.text(max_size=4))
KEYS = st.lists(PARTS, max_size=5).map("/".join)


@given(KEYS)
def test_a_safe_key_stays_below_its_root(key: str) -> None:
    try:
        safe = safe_key(key)
    except UnsafeKeyError:
        return
    parts = safe.split("/")
    assert safe_key(safe) == safe
    assert not safe.startswith("/")
    assert all(part not in ("", ".", "..") for part in parts)
    assert "\0" not in safe


@given(KEYS)
def test_a_prefix_is_a_key_or_the_root(prefix: str) -> None:
    try:
        safe = safe_prefix(prefix)
    except UnsafeKeyError:
        return
    assert safe == "" or safe_key(safe) == safe


def test_root_prefixes() -> None:
    assert strip_prefix("/a/b/") == strip_prefix("a//b") == "a/b"
    assert strip_prefix("") == strip_prefix("/") == ""
    with pytest.raises(UnsafeKeyError, match="prefix"):
        strip_prefix("a/../../b")


@given(st.binary(max_size=20), st.integers(0, 30), st.none() | st.integers(0, 30))
def test_cut_is_a_slice(data: bytes, start: int, length: int | None) -> None:
    expected = data[start:] if length is None else data[start : start + length]
    assert slice_bytes(data, start, length) == expected


def test_temporary_names_are_never_listed() -> None:
    name = temporary_name()
    assert name != temporary_name()
    assert not is_listed(name)
    assert not is_listed(f"a/{name}")


def test_missing_column_lists_what_there_is() -> None:
    message = str(missing_column("x", [], "t.csv"))
    assert message == "t.csv has no column 'x'; it has: none"


def test_threads_open_one_value() -> None:
    opened: list[str] = []
    gate = threading.Barrier(8)
    per_process: PerProcess[str, object] = PerProcess(lambda key: opened.append(key) or object())
    found = []

    def get() -> None:
        gate.wait(10)
        found.append(per_process.get("a"))

    threads = [threading.Thread(target=get) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert opened == ["a"]
    assert len({id(value) for value in found}) == 1
    assert per_process.pop("a") is found[0]
    assert per_process.pop("a") is None
    assert per_process.peek("a") is None


def test_what_fails_to_open_is_not_kept() -> None:
    answers = iter([ValueError("no"), "yes"])

    def opener(key: str) -> str:
        answer = next(answers)
        if isinstance(answer, ValueError):
            raise answer
        return answer

    per_process: PerProcess[str, str] = PerProcess(opener)
    with pytest.raises(ValueError, match="no"):
        per_process.get("a")
    assert per_process.get("a") == "yes"


def test_a_fork_while_another_thread_opens() -> None:
    """The child must not wait for a lock that its parent's other thread holds."""
    opening, go_on = threading.Event(), threading.Event()

    def opener(key: str) -> str:
        if key == "slow":
            opening.set()
            go_on.wait(10)
        return key

    per_process: PerProcess[str, str] = PerProcess(opener)
    slow = threading.Thread(target=per_process.get, args=("slow",))
    slow.start()
    opening.wait(10)
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    child = context.Process(target=lambda: answers.put(per_process.get("quick")), daemon=True)
    child.start()
    child.join(10)
    go_on.set()
    slow.join()
    assert child.exitcode == 0
    assert answers.get() == "quick"


def test_names_are_imported_when_first_used() -> None:
    program = (
        "import sys, factory.storage;"
        "heavy = {'s3fs', 'pandas', 'datasets', 'pyarrow', 'aiohttp', 'fsspec', 'torch'};"
        "from factory.storage import LocalStorage;"
        "LocalStorage('.').check();"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules);"
        "from factory.storage import HuggingFaceStorage, S3Storage, TarStorage, UrlListStorage;"
        "TarStorage(LocalStorage('.'));"
        "S3Storage('b'); HuggingFaceStorage('d'); UrlListStorage('t', LocalStorage('.'));"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)


def test_every_public_name_is_there() -> None:
    for name in factory.storage.__all__:
        assert getattr(factory.storage, name).__name__ == name
    with pytest.raises(AttributeError, match="FtpStorage"):
        _ = factory.storage.FtpStorage
