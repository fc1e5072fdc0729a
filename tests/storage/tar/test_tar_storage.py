"""Tar shards as a storage: keys, patterns, indexes, and what happens when a shard changes."""

import itertools
import logging
import multiprocessing
import os
import tarfile
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.errors import AccessDeniedError, ObjectNotFoundError, StorageError
from factory.records import ObjectInfo
from factory.storage import LocalStorage, MemoryStorage, Storage, TarStorage
from factory.storage.tar.index import DamagedIndexError, MemberIndex, ShardId
from factory.storage.tar.shard_names import ShardNames
from factory.storage.tar.tar_headers import Members
from factory.testing.storage import keys
from tests.storage.tar.tars import archive
from tests.support.examples import examples


@dataclass(frozen=True)
class Watched(MemoryStorage):
    """Memory that writes down what is read, and may refuse to be written to."""

    reads: list[tuple[str, int, int | None]] = field(default_factory=list, compare=False)
    read_only: bool = False

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        self.reads.append((key, start, length))
        return super().read(key, start, length)

    def write(self, key: str, data: bytes | memoryview) -> None:
        if self.read_only:
            raise AccessDeniedError(f"{key} may not be written")
        super().write(key, data)


@pytest.fixture
def inner() -> Iterator[Watched]:
    storage = Watched(uuid.uuid4().hex)
    yield storage
    for info in list(storage.objects()):
        storage.delete(info.key)


@pytest.fixture
def index(tmp_path: Path) -> LocalStorage:
    return LocalStorage(str(tmp_path / "index"))


def files(index: LocalStorage) -> list[Path]:
    return sorted((Path(index.root) / "tar-index").iterdir())


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_equal_names_in_two_shards_are_two_objects(inner: Watched) -> None:
    inner.write("p/0.tar", archive({"1.jpg": b"one", "sub/2.jpg": b"two"}))
    inner.write("p/1.tar", archive({"1.jpg": b"uno"}))
    inner.write("0.tar", archive({"1.jpg": b"eins"}))
    inner.write("p/readme.txt", b"no shard")
    storage = TarStorage(inner)
    assert [info.key for info in storage.objects()] == [
        "0.tar/1.jpg", "p/0.tar/1.jpg", "p/0.tar/sub/2.jpg", "p/1.tar/1.jpg",
    ]  # fmt: skip
    assert storage.read("p/0.tar/1.jpg") == b"one"
    assert storage.read("p/1.tar/1.jpg") == b"uno"
    assert storage.read("p/0.tar/sub/2.jpg", 1, 9) == b"wo"
    assert storage.local_path("p/0.tar/1.jpg") is None
    assert storage.problems() == []


def test_prefixes_are_folders_shards_and_folders_in_shards(inner: Watched) -> None:
    inner.write("p/0.tar", archive({"1.jpg": b"one", "sub/2.jpg": b"two", "subs": b""}))
    inner.write("p/1.tar", archive({"1.jpg": b"uno"}))
    inner.write("q/1.tar", archive({"1.jpg": b"uno"}))
    storage = TarStorage(inner)
    assert keys(storage, "p") == {
        "p/0.tar/1.jpg", "p/0.tar/sub/2.jpg", "p/0.tar/subs", "p/1.tar/1.jpg",
    }  # fmt: skip
    assert keys(storage, "p/1.tar") == {"p/1.tar/1.jpg"}
    assert keys(storage, "p/0.tar/sub") == {"p/0.tar/sub/2.jpg"}
    for nowhere in ("r", "p/2.tar", "p/0.tar/su", "p/0.tar/1.jpg/x"):
        with pytest.raises(ObjectNotFoundError):
            keys(storage, nowhere)
    for absent in ("p/0.tar", "p/0.tar/sub", "p/0.tar/3.jpg", "p/2.tar/1.jpg", "p", "1.jpg"):
        assert not storage.exists(absent)
        with pytest.raises(ObjectNotFoundError, match=r"keys are SHARD/MEMBER"):
            storage.read(absent)


def test_one_read_a_member_and_headers_once(inner: Watched, index: LocalStorage) -> None:
    inner.write("0.tar", archive({"a": b"x" * 5000, "b": b"123456"}))
    storage = TarStorage(inner, index=index)
    assert keys(storage) == {"0.tar/a", "0.tar/b"}
    assert [(key, start) for key, start, _ in inner.reads] == [("0.tar", 0)]
    inner.reads.clear()
    storage.close()
    assert storage.read("0.tar/b") == b"123456"
    assert storage.read("0.tar/b", 2, 3) == b"345"
    assert storage.read("0.tar/b", 6, 3) == b""
    assert inner.reads == [("0.tar", 6144, 6), ("0.tar", 6146, 3)]
    assert len(list(storage.objects())) == 2
    assert len(inner.reads) == 2


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "foreign"])
def test_a_damaged_index_is_built_anew(
    inner: Watched, index: LocalStorage, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    inner.write("0.tar", archive({"a": b"1", "b": b"2"}))
    storage = TarStorage(inner, index=index)
    assert len(keys(storage)) == 2
    (file,) = files(index)
    good = file.read_bytes()
    flipped = good[:-200] + bytes([good[-200] ^ 1]) + good[-199:]
    spoiled = {"cut": good[:-1], "flipped": flipped, "empty": b"", "foreign": b"PAR1" * 99}
    file.write_bytes(spoiled[damage])
    storage.close()
    assert storage.read("0.tar/b") == b"2"
    assert "built anew" in caplog.text
    assert file.read_bytes() == good


def test_an_index_of_an_earlier_state_is_replaced(inner: Watched, index: LocalStorage) -> None:
    inner.write("0.tar", archive({"a": b"1", "b": b"2"}))
    storage = TarStorage(inner, index=index)
    before = {info.key: info.etag for info in storage.objects()}
    storage.close()
    inner.write("0.tar", archive({"b": b"22", "c": b"3"}))
    after = {info.key: info.etag for info in storage.objects()}
    assert after.keys() == {"0.tar/b", "0.tar/c"}
    assert after["0.tar/b"] != before["0.tar/b"]
    assert storage.read("0.tar/b") == b"22"
    assert len(files(index)) == 1


def test_an_index_that_cannot_be_kept_is_said_once(
    inner: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(3):
        inner.write(f"{number}.tar", archive({"a": b"%d" % number}))
    storage = TarStorage(inner, index=Watched("refusing", read_only=True), connections=1)
    assert len(keys(storage)) == 3
    assert storage.read("2.tar/a") == b"2"
    assert caplog.text.count("not kept for the next run") == 1


def test_local_shards_are_looked_at_before_each_read(tmp_path: Path) -> None:
    shard = tmp_path / "0.tar"
    shard.write_bytes(archive({"a": b"first", "b": b"x"}))
    storage = TarStorage(LocalStorage(str(tmp_path)))
    assert storage.read("0.tar/a") == b"first"
    new = tmp_path / "new"
    new.write_bytes(archive({"b": b"x" * 700, "a": b"second"}))
    new.replace(shard)
    assert storage.read("0.tar/a") == b"second"
    shard.write_bytes(archive({"a": b"3"}))
    os.utime(shard, ns=(1, 1))
    assert storage.read("0.tar/a") == b"3"
    shard.unlink()
    with pytest.raises(ObjectNotFoundError):
        storage.read("0.tar/a")
    storage.close()


def test_more_shards_than_files_kept_open(tmp_path: Path) -> None:
    for number in range(200):
        (tmp_path / f"{number}.tar").write_bytes(archive({"a": b"%d" % number}))
    storage = TarStorage(LocalStorage(str(tmp_path)))
    before = open_files()
    with ThreadPoolExecutor(8) as pool:
        names = [f"{number}.tar/a" for number in range(200)] * 2
        assert list(pool.map(storage.read, names)) == [name[:-6].encode() for name in names]
    assert open_files() <= before + 130
    storage.close()
    assert open_files() <= before


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_share_the_index(tmp_path: Path, index: LocalStorage, method: str) -> None:
    (tmp_path / "0.tar").write_bytes(archive({"a": b"1", "b": b"22"}))
    storage = TarStorage(LocalStorage(str(tmp_path)), index=index)
    assert len(keys(storage)) == 2
    (file,) = files(index)
    written = file.stat().st_mtime_ns
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.apply(storage.read, ("0.tar/b",)) == b"22"
    assert file.stat().st_mtime_ns == written


def test_what_is_left_out_is_said(inner: Watched, caplog: pytest.LogCaptureFixture) -> None:
    whole = archive({"a.jpg": b"1" * 600, "b.jpg": b"2" * 600})
    inner.write("0.tar", whole)
    inner.write("1.tar", whole[:2400])
    inner.write("2.tar", whole[:2400])
    inner.write("3.tar", archive({"../x.jpg": b"1"}))
    inner.write("4.tar", b"\x1f\x8b" + bytes(99))
    storage = TarStorage(inner)
    assert len(keys(storage)) == 4
    assert storage.problems() == [
        "1.tar: 1 truncated member, such as 'b.jpg'",
        "2.tar: 1 truncated member, such as 'b.jpg'",
        "3.tar: 1 name leaves the archive, such as '../x.jpg'",
        "4.tar: 1 compressed (gzip): decompress it, for members are read where they lie",
    ]
    assert storage.problems("3.tar") == storage.problems()[2:3]
    (said,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "left out of 5 shards: 2 truncated member, such as '1.tar/b.jpg'; 1 name" in said


def test_no_shard_says_what_is_there(inner: Watched) -> None:
    storage = TarStorage(inner)
    for call in (storage.check, lambda: keys(storage)):
        with pytest.raises(ObjectNotFoundError, match="it is empty"):
            call()
    inner.write("p/a.jpg", b"x")
    for call in (storage.check, lambda: keys(storage), lambda: keys(storage, "p")):
        with pytest.raises(ObjectNotFoundError, match=r"1 other objects, such as 'p/a\.jpg'"):
            call()
    inner.write("p/0.tar.gz", b"x")
    for call in (storage.check, lambda: keys(storage, "p")):
        with pytest.raises(ObjectNotFoundError, match=r"'p/0\.tar\.gz' is compressed"):
            call()
    inner.write("q.tar", b"\x1f\x8b" + bytes(99))
    with pytest.raises(StorageError, match=r"compressed \(gzip\): decompress it"):
        keys(storage)


def test_a_check_does_not_list_for_ever() -> None:
    class Endless(MemoryStorage):
        """A bucket of more objects than can be listed within a check's time."""

        def objects(self, prefix: str = "") -> Iterator[ObjectInfo]:
            return (ObjectInfo(f"{n}.jpg", 1, "") for n in itertools.count())

    TarStorage(Endless()).check()


def test_a_shard_below_a_shard_is_left_out(
    inner: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    inner.write("0.tar", archive({"1.tar/a": b"outer"}))
    inner.write("0.tar-1.tar", archive({"a": b"inner"}))
    listed = list(inner.objects())

    class Listed(MemoryStorage):
        """As an object store, where a key may go on below another."""

        def objects(self, prefix: str = "") -> Iterator[ObjectInfo]:
            for info in listed:
                yield ObjectInfo(info.key.replace("-", "/"), info.size, info.etag)

    storage = TarStorage(Listed(inner.name))
    assert keys(storage) == {"0.tar/1.tar/a"}
    assert storage.read("0.tar/1.tar/a") == b"outer"
    assert "1 shards below another shard, such as '0.tar/1.tar'" in caplog.text


def test_named_shards_that_are_absent_are_said(
    inner: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    for number in (0, 1, 3, 12):
        inner.write(f"p/{number:03d}.tar", archive({"a": b"x"}))
    storage = TarStorage(inner, ("p/{000..004}.tar",))
    assert keys(storage) == {f"p/{number:03d}.tar/a" for number in (0, 1, 3)}
    assert "2 shards named but not there, such as 'p/002.tar'" in caplog.text


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("*.tar", ["a.tar", "p/a.tar", "p/q/.tar"], ["a.tar.gz", "a.tar/b", "atar", "p/a.tgz"]),
        ("**.tar", ["a.tar", "p/a.tar"], ["._a.tar", "p/._a.tar"]),
        ("p/._*.tar", ["p/._a.tar"], ["p/a.tar"]),
        ("p/*.tar", ["p/a.tar"], ["a.tar", "p/q/a.tar", "x/p/a.tar"]),
        ("**/*.tar", ["a.tar", "p/q/a.tar"], ["a"]),
        ("p/**.tar", ["p/a.tar", "p/q/a.tar"], ["a.tar"]),
        ("s-{08..11}.tar", ["s-08.tar", "p/s-11.tar"], ["s-8.tar", "s-12.tar", "s-07.tar"]),
        ("s-{8..11}.tar", ["s-8.tar", "s-11.tar"], ["s-08.tar", "s-12.tar"]),
        ("{a,b}/{0..1}?.tar", ["a/0x.tar", "b/1y.tar"], ["a/2x.tar", "c/0x.tar", "a/0.tar"]),
        ("a+[1].tar", ["a+[1].tar"], ["a1.tar", "aa1.tar"]),
    ],
)
def test_patterns(pattern: str, matching: list[str], others: list[str]) -> None:
    names = ShardNames([pattern])
    assert [key for key in matching + others if names.match(key)] == matching


def test_braces_are_expanded_as_webdataset_does() -> None:
    import braceexpand

    for pattern in ("{000..099}.tar", "{7..12}-{a,b}.tar", "{09..11}", "x{0..3}y{00..02}.tar"):
        assert sorted(braceexpand.braceexpand(pattern)) == ShardNames([pattern]).absent([])


@pytest.mark.parametrize(
    "pattern",
    [
        "", "/a.tar", "../*.tar", "{a}.tar", "{1..2", "1}", "{9..1}.tar", "{0..9999999}",
        "{{1,2}}", "{000..999}{000..999}{0..9}.tar",
    ],
)  # fmt: skip
def test_patterns_that_mean_nothing_are_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"storage\.shards"):
        TarStorage(MemoryStorage(), (pattern,))


def test_other_settings_are_refused() -> None:
    with pytest.raises(TypeError, match=r"must be a list"):
        TarStorage(MemoryStorage(), "*.tar")
    for wrong in ({"shards": []}, {"index_prefix": "/"}, {"connections": 0}):
        with pytest.raises(ValueError, match=f"storage.{next(iter(wrong))}"):
            TarStorage(MemoryStorage(), **wrong)  # type: ignore[arg-type]


def test_identity_tells_storages_and_patterns_apart() -> None:
    storages: list[Storage] = [
        TarStorage(MemoryStorage("a")), TarStorage(MemoryStorage("b")),
        TarStorage(MemoryStorage("a"), ["p/*.tar"]), MemoryStorage("a"),
    ]  # fmt: skip
    assert len({storage.identity for storage in storages}) == 4
    assert TarStorage(MemoryStorage("a"), ["*.tar"]) == storages[0]


SHARD = ShardId("memory://a", "0.tar", "etag", 10**9)


@settings(max_examples=examples(60), deadline=None)
@given(st.dictionaries(st.text(max_size=20), st.integers(0, 10**8), max_size=30))
def test_an_index_finds_every_name_and_no_other(names: dict[str, int]) -> None:
    places = {name: (at, at + 1) for name, at in names.items()}
    packed = MemberIndex.of(Members(places, {"odd": (2, "x")})).pack(SHARD)
    index = MemberIndex.unpack(pa.py_buffer(packed), SHARD)
    assert index is not None
    assert {name: (start, size) for name, start, size in index.items()} == places
    assert all(index.find(name) == place for name, place in places.items())
    assert index.find("no such name, for it is too long") is None
    assert index.problems == {"odd": (2, "x")}
    assert len(index) == len(names)


def test_an_index_is_small() -> None:
    places = {f"{number:012d}.jpg": (number * 1024, 500) for number in range(50_000)}
    assert MemberIndex.of(Members(places)).nbytes < 60 * len(places)


def test_an_index_of_another_shard_or_that_points_outside_is_not_used() -> None:
    packed = pa.py_buffer(MemberIndex.of(Members({"a": (5, 10**9 - 5)})).pack(SHARD))
    assert MemberIndex.unpack(packed, SHARD) is not None
    other = ShardId(SHARD.storage, SHARD.key, "another", SHARD.size)
    assert MemberIndex.unpack(packed, other) is None
    for place in ((5, 10**9), (2**63, 2**63), (10**9 + 1, 0)):
        outside = pa.py_buffer(MemberIndex.of(Members({"a": place})).pack(SHARD))
        with pytest.raises(DamagedIndexError, match="outside"):
            MemberIndex.unpack(outside, SHARD)


@settings(max_examples=examples(60), deadline=None)
@given(st.data())
def test_damaged_shards_raise_nothing_but_storage_errors(data: st.DataObject) -> None:
    spoiled = bytearray(archive({"a": b"1" * 600, "b" * 120: b"2"}, tarfile.PAX_FORMAT))
    for _ in range(data.draw(st.integers(1, 5))):
        spoiled[data.draw(st.integers(0, 3000))] = data.draw(st.integers(0, 255))
    inner = MemoryStorage("damaged")
    inner.write("0.tar", spoiled[: data.draw(st.integers(0, len(spoiled)))])
    storage = TarStorage(inner)
    try:
        for info in storage.objects():
            assert len(storage.read(info.key)) == info.size
    except StorageError as error:
        assert "0.tar" in str(error) or "no member" in str(error)
    finally:
        inner.delete("0.tar")
