"""The contract of storages: keys, spans, listings, writes, odd names, errors, processes."""

import pickle
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from typing import ClassVar

import pytest

from factory.errors import ObjectNotFoundError, StorageError, UnsafeKeyError
from factory.storage import Storage

ODD_NAMES = [
    "a b.jpg",
    "ünï/çödé.png",
    "日本.png",
    "100%25.jpg",
    "a+b&c=d;e.jpg",
    "what?.jpg",
    "v?versionId=3.jpg",
    "x#y.jpg",
    "a::b.jpg",
    "q'uote\".jpg",
    "[1]*.jpg",
    "~tilde.jpg",
    ".hidden.jpg",
    "deep/er/and/deeper.jpg",
]


class StorageContract:
    """What every storage does, whatever it keeps its bytes in.

    Give a fixture `storage` that returns an empty storage which can be written to.

    Attributes:
        crosses_processes: Whether another process sees the same objects.
    """

    crosses_processes: ClassVar[bool] = True

    def test_reads_back_what_was_written(self, storage: Storage) -> None:
        storage.write("a/b.bin", b"hello")
        assert storage.read("a/b.bin") == b"hello"

    def test_writes_empty_and_memoryview(self, storage: Storage) -> None:
        storage.write("empty", b"")
        storage.write("view", memoryview(b"0123456789")[2:5])
        assert storage.read("empty") == b""
        assert storage.read("empty", 0, 10) == b""
        assert storage.read("view") == b"234"

    def test_a_listing_holds_the_same_as_columns_sorted_by_key(self, storage: Storage) -> None:
        for name in ("b/2.bin", "a/1.bin", "a.bin", "c/é.bin"):
            storage.write(name, name.encode())
        for prefix in ("", "a"):
            table = storage.listing(prefix)
            assert table.column_names == ["key", "size", "etag"]
            rows = list(zip(*(column.to_pylist() for column in table.columns), strict=True))
            found = [(info.key, info.size, info.etag) for info in storage.objects(prefix)]
            assert rows == sorted(found)
        with pytest.raises(ObjectNotFoundError):
            storage.listing("nowhere")

    def test_reads_many_spans_in_order_and_fails_one_by_one(self, storage: Storage) -> None:
        names = [f"f{n}/{n}.bin" for n in range(40)]
        for n, name in enumerate(names):
            storage.write(name, b"0123456789"[: n % 10 + 1])
        spans = [(name, 1, 4) for name in reversed(names)]
        spans[7:7] = [("absent", 0, 5), ("../out", 0, 5), ("f3", 0, 5)]
        found = list(storage.read_many(spans))
        assert [type(found[n]) for n in (7, 8)] == [ObjectNotFoundError, UnsafeKeyError]
        assert isinstance(found[9], StorageError)
        assert "absent" in str(found[7])
        assert found[:7] + found[10:] == [storage.read(n, 1, 4) for n in reversed(names)]
        assert list(storage.read_many([])) == []
        assert next(iter(storage.read_many([(names[9], 0, 0), ("nowhere/a", 0, 0)]))) == b""

    def test_reads_many_to_the_end(self, storage: Storage) -> None:
        for n in range(12):
            storage.write(f"f/{n}", b"0123456789"[: n % 11])
        spans = [(f"f/{n}", start, None) for n in range(12) for start in (0, 3, 99)]
        spans[4:4] = [("absent", 0, None), ("f", 0, None)]
        found = list(storage.read_many(spans))
        assert [type(each) for each in found[4:6]] == [ObjectNotFoundError] * 2
        assert found[:4] + found[6:] == [storage.read(*span) for span in spans[:4] + spans[6:]]

    def test_reads_many_may_be_left_early(self, storage: Storage) -> None:
        for n in range(20):
            storage.write(f"f/{n}", b"%d" % n)
        spans = [(f"f/{n}", 0, None) for n in range(20)]
        reads = storage.read_many(spans)
        assert next(reads) == b"0"
        reads.close()
        assert list(reads) == []
        storage.read_many(spans).close()
        assert list(storage.read_many(spans)) == [b"%d" % n for n in range(20)]

    def test_hands_many_spans_on(self, storage: Storage) -> None:
        names = [f"f{n}/{n}.bin" for n in range(12)]
        for n, name in enumerate(names):
            storage.write(name, b"0123456789"[: n % 10 + 1])
        spans = [(name, 1, 4) for name in names] + [(names[4], 2, None), (names[4], 0, 0)]
        spans[3:3] = [("absent", 0, 5), ("../out", 0, 5)]
        got = [bytearray() for _ in spans]
        full = StorageError("no room")

        def put(number: int, offset: int, pieces: Sequence[bytes | memoryview]) -> None:
            if number == 7:
                raise full
            got[number][offset:] = b"".join(pieces)

        found = list(storage.read_to(spans, put))
        assert [type(found[n]) for n in (3, 4)] == [ObjectNotFoundError, UnsafeKeyError]
        assert found[7] is full
        for n in {*range(len(spans))} - {3, 4, 7}:
            assert found[n] == len(got[n])
            assert bytes(got[n]) == storage.read(*spans[n])
        assert list(storage.read_to([], put)) == []

    def test_handing_on_may_be_left_early(self, storage: Storage) -> None:
        for n in range(20):
            storage.write(f"f/{n}", b"%d" % n)
        spans = [(f"f/{n}", 0, None) for n in range(20)]
        handed = storage.read_to(spans, lambda *_: None)
        assert next(handed) == 1
        handed.close()
        assert list(handed) == []

    def test_overwrites(self, storage: Storage) -> None:
        storage.write("a", b"one")
        storage.write("a", b"second")
        assert storage.read("a") == b"second"
        assert [info.size for info in storage.objects()] == [6]

    @pytest.mark.parametrize(
        ("start", "length", "expected"),
        [
            (0, 4, b"0123"), (3, 4, b"3456"), (8, 5, b"89"), (4, None, b"456789"),
            (10, 3, b""), (99, 3, b""), (99, None, b""), (5, 0, b""), (0, 99, b"0123456789"),
        ],
    )  # fmt: skip
    def test_reads_spans(
        self, storage: Storage, start: int, length: int | None, expected: bytes
    ) -> None:
        storage.write("digits", b"0123456789")
        assert storage.read("digits", start, length) == expected

    def test_refuses_negative_spans(self, storage: Storage) -> None:
        storage.write("a", b"one")
        for start, length in [(-1, None), (0, -1)]:
            with pytest.raises(ValueError, match="negative"):
                storage.read("a", start, length)

    @pytest.mark.parametrize(("start", "length"), [(0, None), (2, 3), (0, 0)])
    def test_missing_object(self, storage: Storage, start: int, length: int | None) -> None:
        storage.write("there/is", b"x")
        for key in ("there/is-not", "no/folder/either", "there"):
            with pytest.raises(ObjectNotFoundError, match=key.split("/")[-1]):
                storage.read(key, start, length)
            with pytest.raises(ObjectNotFoundError, match=key.split("/")[-1]):
                storage.head(key)
            assert not storage.exists(key)

    def test_head_agrees_with_listing(self, storage: Storage) -> None:
        storage.write("a/b", b"12345")
        (listed,) = storage.objects()
        assert (listed.key, listed.size) == ("a/b", 5)
        assert storage.head("a/b") == listed
        assert listed.etag
        assert '"' not in listed.etag
        assert storage.exists("a/b")

    def test_etag_follows_the_content(self, storage: Storage) -> None:
        storage.write("a", b"1")
        first = storage.head("a").etag
        assert storage.head("a").etag == first
        storage.write("a", b"2")
        assert storage.head("a").etag != first

    def test_lists_below_a_prefix_only(self, storage: Storage) -> None:
        for key in ("a/1", "a/b/2", "ab/3", "a.txt", "4"):
            storage.write(key, b"x")
        assert keys(storage) == {"a/1", "a/b/2", "ab/3", "a.txt", "4"}
        for prefix in ("a", "a/"):
            assert keys(storage, prefix) == {"a/1", "a/b/2"}
        assert keys(storage, "a/b") == {"a/b/2"}

    def test_missing_prefix(self, storage: Storage) -> None:
        storage.write("ab/1", b"x")
        with pytest.raises(ObjectNotFoundError, match="nowhere"):
            list(storage.objects("nowhere"))
        with pytest.raises(ObjectNotFoundError):
            list(storage.objects("a"))

    def test_listing_is_never_stale(self, storage: Storage) -> None:
        storage.write("a/1", b"x")
        assert keys(storage) == {"a/1"}
        storage.write("a/2", b"x")
        assert keys(storage) == {"a/1", "a/2"}
        storage.delete("a/1")
        assert keys(storage) == {"a/2"}

    def test_lists_all_but_what_is_half_written(self, storage: Storage) -> None:
        trash = {".DS_Store", "a/Thumbs.db", "@eaDir/x.jpg", "a/._b.jpg", "__MACOSX/._b.jpg"}
        for key in (*trash, ".factory-tmp-1-2", "a/.factory-tmp-1-2", "a/b.jpg"):
            storage.write(key, b"x")
        assert keys(storage) == {*trash, "a/b.jpg"}

    def test_delete(self, storage: Storage) -> None:
        storage.write("a/b", b"x")
        storage.delete("a/b")
        storage.delete("a/b")
        storage.delete("never/was")
        assert not storage.exists("a/b")

    @pytest.mark.parametrize(
        "key", ["", "/etc/passwd", "//etc/passwd", "///x", "../x", "a/../../x", "a\0b", ".."]
    )
    def test_refuses_keys_that_leave_the_root(self, storage: Storage, key: str) -> None:
        for call in (
            lambda: storage.read(key),
            lambda: storage.head(key),
            lambda: storage.write(key, b""),
            lambda: storage.delete(key),
            lambda: storage.exists(key),
        ):
            with pytest.raises(UnsafeKeyError):
                call()
        if key:
            with pytest.raises(UnsafeKeyError):
                list(storage.objects(key))

    @pytest.mark.parametrize("key", ODD_NAMES)
    def test_odd_names(self, storage: Storage, key: str) -> None:
        storage.write(key, key.encode())
        assert storage.read(key) == key.encode()
        assert storage.read(key, 1, 2) == key.encode()[1:3]
        assert [info.key for info in storage.objects()] == [key]
        storage.delete(key)
        assert not storage.exists(key)

    def test_readers_never_see_a_part(self, storage: Storage) -> None:
        contents = {letter * 300_000 for letter in (b"a", b"b")}
        storage.write("a", min(contents))

        def flip() -> None:
            for _ in range(5):
                for content in contents:
                    storage.write("a", content)

        with ThreadPoolExecutor(4) as pool:
            writing = pool.submit(flip)
            seen = set()
            while not writing.done():
                seen |= set(pool.map(storage.read, ["a"] * 3))
            writing.result()
        assert seen <= contents

    def test_many_threads(self, storage: Storage) -> None:
        def round_trip(number: int) -> bytes:
            storage.write(f"n/{number}", b"%d" % number)
            return storage.read(f"n/{number}")

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(round_trip, range(64))) == [b"%d" % n for n in range(64)]
        assert len(keys(storage, "n")) == 64

    def test_is_a_value(self, storage: Storage) -> None:
        storage.write("a", b"x")  # opened things must not change what it is
        copy = pickle.loads(pickle.dumps(storage))
        assert copy == storage
        assert hash(copy) == hash(storage)
        assert eval(repr(copy), {type(copy).__name__: type(copy)}) == storage
        assert copy.identity == storage.identity
        assert copy.read("a") == b"x"

    def test_check_passes_and_leaves_nothing(self, storage: Storage) -> None:
        storage.write("a", b"x")
        storage.check()
        storage.check(write=True)
        assert keys(storage) == {"a"}

    def test_works_again_after_close(self, storage: Storage) -> None:
        storage.write("a", b"x")
        storage.close()
        storage.close()
        assert storage.read("a") == b"x"

    @pytest.mark.parametrize("method", ["fork", "spawn"])
    def test_another_process_reads_after_the_parent_did(
        self, storage: Storage, method: str
    ) -> None:
        if not self.crosses_processes:
            pytest.skip("lives in one process")
        storage.write("a", b"x")
        assert storage.read("a") == b"x"
        with ProcessPoolExecutor(1, mp_context=get_context(method)) as pool:
            assert pool.submit(storage.read, "a").result(30) == b"x"
            pool.submit(storage.write, "b", b"y").result(30)
        assert storage.read("b") == b"y"


def keys(storage: Storage, prefix: str = "") -> set[str]:
    """Return the keys that a listing shows."""
    return {info.key for info in storage.objects(prefix)}
