"""Tar archives for tests, and a storage that rewrites one at each change."""

import io
import tarfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from factory.errors import ObjectNotFoundError
from factory.records import ObjectInfo
from factory.storage import TarStorage, safe_key

_WRITING = threading.Lock()


def archive(
    members: Mapping[str, bytes] | list[tuple[str, bytes]], dialect: int = tarfile.PAX_FORMAT
) -> bytes:
    """Return an uncompressed archive of regular files."""
    pairs = members.items() if isinstance(members, Mapping) else members
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=dialect) as tar:
        for name, data in pairs:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return target.getvalue()


def as_tarfile_reads(data: bytes) -> dict[str, bytes]:
    """Return the regular files of an archive; of equal names the last."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {entry.name: tar.extractfile(entry).read() for entry in tar if entry.isreg()}  # type: ignore[union-attr]


def mended(header: bytes) -> bytes:
    """Return a header block with its checksum made right."""
    blank = header[:148] + b" " * 8 + header[156:]
    return blank[:148] + b"%06o\0 " % sum(blank) + blank[156:]


@dataclass(frozen=True)
class Rewritten(TarStorage):
    """The inside of one shard as a storage that can be written to, so that the contract fits."""

    def _members(self) -> dict[str, bytes]:
        try:
            return as_tarfile_reads(self.storage.read("s.tar"))
        except ObjectNotFoundError:
            return {}

    def objects(self, prefix: str = "") -> Iterator[ObjectInfo]:
        folder = f"s.tar/{safe_key(prefix)}" if prefix else "s.tar"
        if prefix or self.storage.exists("s.tar"):
            for info in super().objects(folder):
                yield ObjectInfo(info.key.removeprefix("s.tar/"), info.size, info.etag)

    def head(self, key: str) -> ObjectInfo:
        info = super().head("s.tar/" + safe_key(key))
        return ObjectInfo(safe_key(key), info.size, info.etag)

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        return super().read("s.tar/" + safe_key(key), start, length)

    def write(self, key: str, data: bytes | memoryview) -> None:  # type: ignore[override]
        key = safe_key(key)
        with _WRITING:
            self.storage.write("s.tar", archive(self._members() | {key: bytes(data)}))

    def delete(self, key: str) -> None:  # type: ignore[override]
        key = safe_key(key)
        with _WRITING:
            members = self._members()
            members.pop(key, None)
            self.storage.write("s.tar", archive(members))

    def check(self, *, write: bool = False) -> None:
        super().check()
