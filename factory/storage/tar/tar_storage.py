"""Tar shards, as WebDataset writes them, as a storage."""

import logging
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, ClassVar

from factory.errors import ObjectNotFoundError, StorageError, UnsafeKeyError
from factory.limits import AtLeast, check_limits
from factory.records import ObjectInfo
from factory.storage.base import ReadOnlyStorage, Span, Storage, safe_key
from factory.storage.keys import below, check_span, safe_prefix, strip_prefix
from factory.storage.per_process import PerProcess
from factory.storage.tar.shard_names import ShardNames, is_packed
from factory.storage.tar.shards import Shards, TarShard

logger = logging.getLogger(__name__)

# Objects that a check looks at for a shard: ten pages of an object store, about a second. If
# none is one, the listing has the last word.
_LOOKED_AT = 10_000


@dataclass(frozen=True)
class TarStorage(ReadOnlyStorage):
    """The members of tar archives ("shards") that lie in another storage; read-only.

    A key is the shard's key, "/", and the member's path: "train/00017.tar/000123.jpg". Only
    headers are read to find members, once for each state of a shard; a member is then read
    where it lies, by one ranged read. What is damaged, leaves the archive by its name or has
    no bytes of its own (links, devices) is not listed; `problems` says how many and why.

    A local shard that changes is noticed at the next read, a remote one when it is listed
    or described again.

    Attributes:
        storage: Storage the shards lie in.
        shards: Patterns of shards: names at any depth, or keys; {000..099} is a range. "*.tar" is
            any file so named, and "train/{000..099}.tar" the hundred below the root.
        index: Storage that keeps where members lie; None finds them at each start. Each process
            then does.
        index_prefix: Folder of `index`.
        connections: Shards whose headers are read at once.
    """

    described: ClassVar[str] = "tar shards are"

    # Several times what is read side by side, so that the last ones of a call cost little.
    spans_at_once: ClassVar[int] = 128

    storage: Storage
    shards: Sequence[str] = ("*.tar",)
    index: Storage | None = None
    index_prefix: str = "tar-index"
    connections: Annotated[int, AtLeast(1)] = 16

    def __post_init__(self) -> None:
        """Refuse patterns that name no shard, and settings that let nothing through.

        Raises:
            ValueError: A setting is wrong; the message names it.
            TypeError: The patterns are one text.
        """
        if isinstance(self.shards, str):
            raise TypeError(f"storage.shards={self.shards!r} must be a list: [{self.shards!r}]")
        object.__setattr__(self, "shards", tuple(self.shards))
        if not self.shards:
            raise ValueError("storage.shards is empty; set it to patterns such as ['*.tar']")
        ShardNames(self.shards)
        if not strip_prefix(self.index_prefix):
            raise ValueError("storage.index_prefix must not be empty; set it to a folder")
        check_limits(self, "storage")

    @property
    def identity(self) -> str:
        """The inner storage's URI after "tar+", and the patterns."""
        return f"tar+{self.storage.identity}#{'|'.join(self.shards)}"

    @property
    def remote(self) -> bool:
        """Whether the shards lie on a server."""
        return self.storage.remote

    def objects(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield every member of the shards below a folder, of a shard, or of a folder in one.

        Shards come in the order of their keys, members in the archive's.

        Raises:
            ObjectNotFoundError: There is no such folder, no shard, or no member below it.
            StorageError: No shard holds a member that can be read.
        """
        folder = safe_prefix(prefix)
        opened = _OPENED.get(self)
        shard, inside = opened.inside(folder)
        listed = [shard] if shard else opened.listed(folder)
        left_out = _LeftOut()
        found = False
        for one in opened.shards.open_all(listed):
            left_out.add(one)
            for info in _members(one, inside):
                found = True
                yield info
        left_out.warn(self.identity, len(listed))
        if not found and inside:
            raise ObjectNotFoundError(f"nothing lies below {prefix!r} in {self.identity}")
        if not found and left_out.reasons:
            raise StorageError(f"{self.identity} has no member: {'; '.join(left_out.sentences())}")

    def head(self, key: str) -> ObjectInfo:
        """Describe one member; the etag is the shard's, with the member's place.

        Raises:
            ObjectNotFoundError: There is no such shard or member.
        """
        opened = _OPENED.get(self)
        for shard, name in opened.names.cuts(safe_key(key)):
            try:
                one = opened.shards.opened(self.storage.head(shard))
            except ObjectNotFoundError:
                continue
            place = one.index.find(name)
            if place is not None:
                return _info(one, name, *place)
        raise self._absent(key)

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """Return a member's bytes, or a span of them, by one ranged read of its shard.

        Raises:
            ObjectNotFoundError: There is no such shard or member.
            StorageError: The shard changes while it is read.
        """
        check_span(start, length)
        opened = _OPENED.get(self)
        for shard, name in opened.names.cuts(safe_key(key)):
            try:
                return opened.shards.read(shard, name, start, length)
            except ObjectNotFoundError:
                continue
        raise self._absent(key)

    def read_many(self, spans: Sequence[Span]) -> Generator[bytes | StorageError, None, None]:
        """Yield several spans in their order, from servers several at once; see `Storage`."""
        if not self.remote or len(spans) <= 1:
            yield from super().read_many(spans)
            return
        places = self._places(spans)
        found = self.storage.read_many([place for place in places if place is not None])
        try:
            for span, place in zip(spans, places, strict=True):
                data = ObjectNotFoundError(span[0]) if place is None else next(found)
                changed = isinstance(data, bytes) and place is not None and len(data) != place[2]
                # The long way says what is wrong, and looks again whether the shard changed.
                lost = changed or isinstance(data, ObjectNotFoundError)
                yield self._read_or_error(span) if lost else data
        finally:
            found.close()

    def _places(self, spans: Sequence[Span]) -> list[Span | None]:
        """Return each span's place in the storage of the shards; None where there is none.

        Shards that were not opened yet are, side by side.
        """
        shards = _OPENED.get(self).shards
        pool = ThreadPoolExecutor(self.connections, thread_name_prefix="factory-tar")
        try:
            cuts = [self._first_cut(key) for key, _, _ in spans]
            keys = {cut[0] for cut in cuts if cut is not None}
            opened = dict(zip(keys, pool.map(shards.current_or_none, keys), strict=True))
        finally:
            # Not joined: the garbage collector may be what closes this, in the midst of
            # another thread's start.
            pool.shutdown(wait=False, cancel_futures=True)
        return [
            None if cut is None else _place(opened[cut[0]], cut[1], start, length)
            for cut, (_, start, length) in zip(cuts, spans, strict=True)
        ]

    def _first_cut(self, key: str) -> tuple[str, str] | None:
        try:
            return next(iter(_OPENED.get(self).names.cuts(safe_key(key))), None)
        except UnsafeKeyError:
            return None

    def _absent(self, key: str) -> ObjectNotFoundError:
        return ObjectNotFoundError(
            f"{key!r} is no member of a shard in {self.identity}; keys are SHARD/MEMBER"
        )

    def problems(self, prefix: str = "") -> list[str]:
        """Return what the shards below a folder hold and a listing does not show.

        One sentence for each shard and reason: "a.tar: 1 truncated member, such as '7.jpg'".
        """
        folder = safe_prefix(prefix)
        opened = _OPENED.get(self)
        shard, _ = opened.inside(folder)
        listed = [shard] if shard else opened.listed(folder)
        return [
            f"{one.key}: {sentence}"
            for one in opened.shards.open_all(listed)
            for sentence in _sentences(one.index.problems)
        ]

    def check(self, *, write: bool = False) -> None:
        """Look for a shard among the first objects; its members are not looked at.

        Raises:
            ObjectNotFoundError: There is no shard.
            StorageError: `write` was asked for, or the inner storage fails.
        """
        super().check(write=write)
        self.storage.check()
        names = _OPENED.get(self).names
        others: list[str] = []
        for info in self.storage.objects():
            if names.match(info.key) or len(others) == _LOOKED_AT:
                return
            others.append(info.key)
        raise _no_shard(self, "", others)

    def close(self) -> None:
        """Forget indexes and close this process's files; they open again on use."""
        _OPENED.pop(self)
        self.storage.close()
        if self.index is not None:
            self.index.close()


class _OpenStorage:
    """What one process knows of one storage of shards."""

    def __init__(self, storage: TarStorage) -> None:
        self._storage = storage
        self.names = ShardNames(storage.shards)
        self.shards = Shards(
            storage.storage, storage.index, strip_prefix(storage.index_prefix), storage.connections
        )

    def inside(self, folder: str) -> tuple[ObjectInfo | None, str]:
        """Return the shard that a prefix names or leads into, and the folder inside it."""
        for shard, inside in self.names.cuts(folder) if folder else ():
            try:
                return self._storage.storage.head(shard), inside
            except ObjectNotFoundError:
                continue
        return None, ""

    def listed(self, folder: str) -> list[ObjectInfo]:
        """Return the shards below a folder, sorted.

        Raises:
            ObjectNotFoundError: There is no such folder, or no shard in it.
        """
        everything = list(self._storage.storage.objects(folder))
        found = {info.key: info for info in everything if self.names.match(info.key)}
        if not found:
            raise _no_shard(self._storage, folder, [info.key for info in everything])
        # An object store may hold "a.tar" and "a.tar/b.tar"; keys of the latter would be the
        # former's.
        hidden = [key for key in found if any(cut in found for cut in _above(key))]
        absent = [] if folder else self.names.absent(found)
        for what, keys in (("below another shard", hidden), ("named but not there", absent)):
            if keys:
                logger.warning(
                    "%s: %d shards %s, such as %r",
                    self._storage.identity, len(keys), what, keys[0],
                )  # fmt: skip
        return [found[key] for key in sorted(found.keys() - set(hidden))]


_OPENED: PerProcess[TarStorage, _OpenStorage] = PerProcess(_OpenStorage)


class _LeftOut:
    """What the shards of one listing hold and it does not show."""

    def __init__(self) -> None:
        self.reasons: dict[str, tuple[int, str]] = {}

    def add(self, shard: TarShard) -> None:
        for reason, (count, example) in shard.index.problems.items():
            known, first = self.reasons.get(reason, (0, f"{shard.key}/{example}".rstrip("/")))
            self.reasons[reason] = (known + count, first)

    def sentences(self) -> list[str]:
        return _sentences(self.reasons)

    def warn(self, identity: str, shards: int) -> None:
        if self.reasons:
            logger.warning(
                "%s: left out of %d shards: %s", identity, shards, "; ".join(self.sentences())
            )


def _sentences(reasons: dict[str, tuple[int, str]]) -> list[str]:
    return [
        f"{count} {reason}" + (f", such as {example!r}" if example else "")
        for reason, (count, example) in reasons.items()
    ]


def _members(shard: TarShard, folder: str) -> Iterator[ObjectInfo]:
    start = f"{folder}/" if folder else ""
    for name, at, size in shard.index.items():
        if name.startswith(start):
            yield _info(shard, name, at, size)


def _info(shard: TarShard, name: str, start: int, size: int) -> ObjectInfo:
    return ObjectInfo(f"{shard.key}/{name}", size, f"{shard.etag}-{start:x}-{size:x}")


def _place(shard: TarShard | None, name: str, start: int, length: int | None) -> Span | None:
    """Return where a span of a member lies; None if it is empty, or there is no such member."""
    place = None if shard is None else shard.index.find(name)
    if shard is None or place is None or start < 0:
        return None
    left = max(0, place[1] - start)
    wanted = left if length is None else min(left, length)
    return (shard.key, place[0] + start, wanted) if wanted > 0 else None


def _above(key: str) -> Iterator[str]:
    parts = key.split("/")
    for end in range(1, len(parts)):
        yield "/".join(parts[:end])


def _no_shard(storage: TarStorage, folder: str, others: Iterable[str]) -> ObjectNotFoundError:
    """Return the error for a folder without a shard; it says what is there instead."""
    keys = below(others, folder)
    packed = [key for key in keys if is_packed(key)]
    if packed:
        hint = f"{packed[0]!r} is compressed, and its members cannot be reached; decompress it"
    elif keys:
        hint = f"there are {len(keys)} other objects, such as {keys[0]!r}; correct storage.shards"
    else:
        hint = "it is empty"
    where = f"{storage.storage.identity}/{folder}".rstrip("/")
    return ObjectNotFoundError(
        f"no shard matches storage.shards={list(storage.shards)} in {where}: {hint}"
    )
