"""Arrow files with a checksum before them: damage is refused before Arrow sees it."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import xxhash

from factory.errors import ContentMismatchError
from factory.storage import checksummed_arrow
from factory.storage.mapped_length import Extent

MAGIC = b"a test 1\n"
TABLE = pa.table({"n": range(1000), "word": ["some"] * 1000}).replace_schema_metadata({"a": "b"})


@pytest.fixture(params=["read whole", "mapped"])
def path(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if request.param == "mapped":
        monkeypatch.setattr(checksummed_arrow, "READ_WHOLE", 100)
    file = tmp_path / "folder/a.arrow"
    checksummed_arrow.write_sealed(file, MAGIC, TABLE.schema, TABLE.to_batches())
    return file


def opened(path: Path) -> pa.Table:
    return checksummed_arrow.open_sealed(path, MAGIC)[0]


def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows with every checksum that is worked out from now on."""
    seen: list[int] = []
    plain = xxhash.xxh3_128

    def noted(*data: Any) -> Any:
        seen.append(1)
        return plain(*data)

    monkeypatch.setattr(checksummed_arrow.xxhash, "xxh3_128", noted)
    return seen


def test_a_table_comes_back(path: Path) -> None:
    assert opened(path).equals(TABLE, check_metadata=True)
    assert path.read_bytes() == checksummed_arrow.sealed(MAGIC, TABLE)
    assert checksummed_arrow.unsealed(pa.py_buffer(path.read_bytes()), MAGIC).equals(TABLE)


@pytest.mark.parametrize("at", [0, 10, 63, 64, 100, 5000, -1, -300])
def test_a_flipped_bit_is_found_wherever_it_is(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)
    with pytest.raises(ContentMismatchError):
        opened(path)


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 5000])
def test_a_cut_file_is_refused(path: Path, size: int) -> None:
    os.truncate(path, size)
    with pytest.raises(ContentMismatchError):
        opened(path)


def test_another_magic_is_refused(path: Path) -> None:
    with pytest.raises(ContentMismatchError):
        checksummed_arrow.open_sealed(path, b"a test 2\n")


def test_a_large_file_is_compared_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksummed_arrow, "READ_WHOLE", 100)
    path = tmp_path / "a.arrow"
    checksummed_arrow.write_sealed(path, MAGIC, TABLE.schema, TABLE.to_batches())
    counted = hashed(monkeypatch)
    opened(path)
    assert not counted  # who wrote it knows
    path.with_name("a.arrow.sound").write_bytes(b"{")
    opened(path)
    opened(path)
    assert len(counted) == 1
    os.utime(path, ns=(1, 1))  # another state of the file, for all that can be seen of it
    opened(path)
    assert len(counted) == 2


def test_a_large_file_that_was_written_in_place_is_compared_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checksummed_arrow, "READ_WHOLE", 100)
    path = tmp_path / "a.arrow"
    checksummed_arrow.write_sealed(path, MAGIC, TABLE.schema, TABLE.to_batches())
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(4000)
        file.write(b"\xff" * 8)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as some tools set it back
    with pytest.raises(ContentMismatchError):
        opened(path)


def test_what_is_mapped_says_when_it_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(100))
    extent = Extent.of(path)
    assert not extent.shrunk
    os.truncate(path, 99)
    assert extent.shrunk
    path.unlink()
    assert not extent.shrunk  # whoever has it mapped keeps all of it
    path.write_bytes(b"")
    assert not extent.shrunk or path.stat().st_ino == extent.inode


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def batches() -> Iterator[pa.RecordBatch]:
        yield from TABLE.to_batches()
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        checksummed_arrow.write_sealed(tmp_path / "a.arrow", MAGIC, TABLE.schema, batches())
    assert list(tmp_path.iterdir()) == []
