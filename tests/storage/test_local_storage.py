"""A folder as a storage: links, full disks, forbidden folders, names."""

import errno
import logging
import os
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from factory.errors import (
    AccessDeniedError,
    ObjectNotFoundError,
    StorageError,
    UnsafeKeyError,
)
from factory.storage import LocalStorage
from factory.testing.storage import keys


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_bytes(b"secret")
    return folder


def everything_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_identity_and_local_path(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = LocalStorage(str(root))
    assert storage.identity == f"file://{root}"
    assert storage.local_path("a/b") == root / "a" / "b"
    monkeypatch.chdir(root.parent)
    assert LocalStorage("root").identity == storage.identity
    assert LocalStorage("./root/../root").identity == storage.identity


def test_empty_root_is_refused() -> None:
    with pytest.raises(ValueError, match=r"storage\.root"):
        LocalStorage("")


def test_etag_is_time_and_size(root: Path) -> None:
    storage = LocalStorage(str(root))
    storage.write("a", b"12345")
    found = (root / "a").stat()
    assert storage.head("a").etag == f"{found.st_mtime_ns:x}-5"


def test_missing_root(root: Path) -> None:
    storage = LocalStorage(str(root / "typo"))
    for call in (storage.check, lambda: list(storage.objects())):
        with pytest.raises(ObjectNotFoundError, match=r"typo.*storage\.root"):
            call()


def test_root_that_is_a_file(root: Path) -> None:
    (root / "file").write_bytes(b"x")
    storage = LocalStorage(str(root / "file"))
    for call in (storage.check, lambda: list(storage.objects())):
        with pytest.raises(ObjectNotFoundError, match="file"):
            call()


def test_check_write_makes_the_root(root: Path) -> None:
    storage = LocalStorage(str(root / "new" / "cache"))
    storage.check(write=True)
    assert list(storage.objects()) == []
    assert everything_in(root) == []


def test_a_folder_is_no_object(root: Path) -> None:
    (root / "a").mkdir()
    storage = LocalStorage(str(root))
    for call in (storage.read, storage.head):
        with pytest.raises(ObjectNotFoundError):
            call("a")
    with pytest.raises(StorageError, match="cannot delete"):
        storage.delete("a")
    with pytest.raises(StorageError, match="cannot write"):
        storage.write("a", b"x")
    assert list(storage.objects("a")) == []
    assert everything_in(root) == []


def test_writing_below_a_file(root: Path) -> None:
    storage = LocalStorage(str(root))
    storage.write("a", b"x")
    with pytest.raises(StorageError, match="cannot write"):
        storage.write("a/b", b"x")
    assert everything_in(root) == ["a"]


def test_links_out_of_the_root_are_left_alone(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    outside = root.parent / "outside"
    (root / "folder").symlink_to(outside)
    (root / "file").symlink_to(outside / "secret")
    (root / "kept").write_bytes(b"x")
    storage = LocalStorage(str(root))
    with caplog.at_level(logging.WARNING):
        assert keys(storage) == {"kept"}
    assert "2 entries not listed" in caplog.text
    for key in ("file", "folder/secret"):
        for call in (storage.read, storage.head, storage.local_path):
            with pytest.raises(UnsafeKeyError, match="follow_links"):
                call(key)
    with pytest.raises(UnsafeKeyError):
        storage.write("folder/new", b"x")
    with pytest.raises(UnsafeKeyError):
        storage.delete("folder/secret")
    with pytest.raises(UnsafeKeyError):
        list(storage.objects("folder"))
    assert everything_in(outside) == ["secret"]


def test_writing_over_a_link_replaces_the_link(root: Path) -> None:
    secret = root.parent / "outside" / "secret"
    (root / "file").symlink_to(secret)
    LocalStorage(str(root)).write("file", b"mine")
    assert secret.read_bytes() == b"secret"
    assert (root / "file").read_bytes() == b"mine"


def test_follow_links(root: Path) -> None:
    outside = root.parent / "outside"
    (root / "folder").symlink_to(outside)
    (outside / "round").symlink_to(root)  # a loop
    (outside / "self").symlink_to(outside)
    storage = LocalStorage(str(root), follow_links=True)
    assert keys(storage) == {"folder/secret"}
    assert storage.read("folder/secret") == b"secret"


def test_links_inside_the_root_are_objects(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / "real").mkdir()
    (root / "real" / "a").write_bytes(b"x")
    (root / "file").symlink_to("real/a")
    (root / "folder").symlink_to("real")  # lists nothing twice
    (root / "real" / "up").symlink_to(root)
    (root / "dangling").symlink_to("nowhere")
    storage = LocalStorage(str(root))
    assert keys(storage) == {"real/a", "file"}
    assert "dangling" in caplog.text
    assert storage.read("file") == storage.read("folder/a") == b"x"


def test_nothing_is_resolved_where_no_part_of_a_key_is_a_link(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = root.parent / "outside"
    (root / "real").mkdir()
    (root / "real" / "a").write_bytes(b"x")
    (root / "link").symlink_to(outside)
    (root / "real" / "b").symlink_to(outside / "secret")
    storage = LocalStorage(str(root))
    resolved = []
    whole = os.path.realpath
    monkeypatch.setattr(os.path, "realpath", lambda path: resolved.append(path) or whole(path))
    assert storage.read("real/a") == b"x"
    assert not storage.exists("real/absent")
    assert not storage.exists("real/a/below")
    assert not resolved
    for key in ("link/secret", "real/b", "link/absent/more"):
        with pytest.raises(UnsafeKeyError):
            storage.read(key)
        with pytest.raises(UnsafeKeyError):
            storage.exists(key)
    assert resolved


def test_a_root_that_is_a_link(root: Path) -> None:
    (root.parent / "alias").symlink_to(root)
    storage = LocalStorage(str(root.parent / "alias"))
    storage.write("a", b"x")
    assert keys(storage) == {"a"}
    assert storage.read("a") == b"x"


def test_pipes_are_no_objects(root: Path) -> None:
    os.mkfifo(root / "pipe")
    storage = LocalStorage(str(root))
    assert keys(storage) == set()
    with pytest.raises(ObjectNotFoundError):
        storage.head("pipe")


def test_names_that_are_not_utf8_are_reported(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (Path(os.fsdecode(bytes(root) + b"/\xff.jpg"))).write_bytes(b"x")
    assert keys(LocalStorage(str(root))) == set()
    assert "udcff" in caplog.text


def refuse(monkeypatch: pytest.MonkeyPatch, name: str, code: int) -> None:
    def refused(*args: object, **kwargs: object) -> None:
        raise OSError(code, os.strerror(code), str(args[0]))

    monkeypatch.setattr(os, name, refused)


def test_forbidden_folder_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "open").mkdir()
    (root / "closed").mkdir()
    real = os.scandir

    def scandir(path: str) -> object:
        if Path(path).name == "closed":
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(AccessDeniedError, match="closed"):
        list(LocalStorage(str(root)).objects())


@pytest.mark.skipif(os.getuid() == 0, reason="nothing is forbidden to root")
def test_really_forbidden(root: Path) -> None:
    (root / "closed").mkdir(mode=0)
    storage = LocalStorage(str(root))
    with pytest.raises(AccessDeniedError, match="closed"):
        list(storage.objects())
    with pytest.raises(AccessDeniedError, match="closed"):
        storage.write("closed/a", b"x")


def test_forbidden_root(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, "scandir", errno.EACCES)
    with pytest.raises(AccessDeniedError, match="permission denied"):
        LocalStorage(str(root)).check()


def test_read_only_file_system(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, "fsync", errno.EROFS)
    with pytest.raises(AccessDeniedError):
        LocalStorage(str(root)).check(write=True)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_leaves_the_old_object(
    root: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    storage = LocalStorage(str(root))
    storage.write("a", b"old")
    refuse(monkeypatch, "fsync", code)
    with pytest.raises(StorageError, match=r"no space left for 5 bytes; free some") as caught:
        storage.write("a", b"newer")
    assert str(root / "a") in str(caught.value)
    assert everything_in(root) == ["a"]
    assert storage.read("a") == b"old"


def test_interrupt_while_writing_leaves_nothing(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        LocalStorage(str(root)).write("a", b"x")
    assert everything_in(root) == []


def test_a_file_is_flushed_before_it_is_moved_and_its_folder_after(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = os.fsync, []

    def fsync(descriptor: int) -> None:
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
        seen.append((name == "root", (root / "a").exists()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    LocalStorage(str(root)).write("a", b"x")
    assert seen == [(False, False), (True, True)]


def test_files_that_vanish_while_listing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = LocalStorage(str(root))
    for number in range(10):
        storage.write(f"{number}/a", b"x")
    listing = storage.objects()
    first = next(listing)
    for number in range(10):
        (root / str(number) / "a").unlink()
        (root / str(number)).rmdir()
    assert list(listing) == []
    assert first.size == 1


def test_writers_in_threads_use_their_own_temporary_file(root: Path) -> None:
    storage = LocalStorage(str(root))
    gate = threading.Barrier(4)

    def write(letter: bytes) -> None:
        gate.wait()
        storage.write("a", letter * 100_000)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in (b"a", b"b", b"c")]
    for thread in threads:
        thread.start()
    gate.wait()
    for thread in threads:
        thread.join()
    assert len(set(storage.read("a"))) == 1
    assert everything_in(root) == ["a"]


PARTS = st.one_of(
    st.sampled_from(["..", ".", "", "/", "~", "link", "a", "-", "\0", "..."]), st.text(max_size=5)
)


@given(st.lists(PARTS, max_size=5).map("/".join))
@example("link/../../outside/secret")
@example("a/./../..")
@example("link")
@example("link/secret")
@settings(deadline=None)
def test_no_key_leaves_the_root(key: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root, outside = Path(folder, "root"), Path(folder, "outside")
        outside.mkdir()
        root.mkdir()
        (outside / "secret").write_bytes(b"secret")
        (root / "link").symlink_to(outside)
        storage = LocalStorage(str(root))
        with suppress(StorageError):
            storage.delete(key)
        with suppress(StorageError):
            storage.write(key, b"mine")
        with suppress(StorageError):
            assert storage.read(key) == b"mine"
            assert storage.local_path(key).resolve().is_relative_to(root.resolve())
        assert everything_in(outside) == ["secret"]
        assert (outside / "secret").read_bytes() == b"secret"
        assert sorted(path.name for path in Path(folder).iterdir()) == ["outside", "root"]
        assert not list(root.rglob(".factory-tmp-*"))
