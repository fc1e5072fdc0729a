"""Where does the row of a key lie?"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from factory.cache.container import Bytes, DamagedError, digest, header, parse
from factory.cache.recipe import KEY_BYTES, KEY_DTYPE, Keys
from factory.cache.shard import Layout, describe, layout_from_json, layout_json
from factory.errors import CacheError

# Segments of this many rows are searched where they lie, in the file; smaller ones are
# merged into one table, which takes about 0.2 s for a million rows.
LARGE_SEGMENT = 1_000_000

SHARD_NAME = re.compile(r"[0-9a-f]{32}\.safetensors")
SEGMENT_NAME = re.compile(r"([0-9a-f]{16})-[0-9a-f]{32}\.safetensors")

# Numbers of shards that are none.
_ABSENT = -1
_DEAD = -2

_COLUMNS = {"keys": "U8", "shard": "U32", "row": "U32", "checksum": "U64"}
_CODES = {"U8": np.uint8, "U32": np.uint32, "U64": np.uint64}


@dataclass(frozen=True)
class ShardRecord:
    """What the index knows of a shard.

    Attributes:
        name: File name, unique among all writers.
        size: Bytes of the file.
        rows: Rows in it.
        layout: What each row is made of.
        recipe: Canonical JSON of what its rows have in common.
    """

    name: str
    size: int
    rows: int
    layout: Layout
    recipe: str


@dataclass(frozen=True, eq=False)
class Segment:
    """A published piece of the index: sorted keys and where their rows lie.

    Attributes:
        stamp: Order among segments; of two rows of one key the later segment's counts.
        shards: The shards its rows lie in.
        keys: V16 [n], ascending, each once.
        shard: uint32 [n], number in `shards`; `len(shards)` says that the key was dropped.
        row: uint32 [n], row in the shard.
        checksum: uint64 [n], of the row's bytes in all fields.
        labels: UTF-8 of all labels, one after the other, uint8 [bytes]; empty if none given.
        label_ends: uint64 [n], where each label ends in `labels`.
    """

    stamp: int
    shards: tuple[ShardRecord, ...]
    keys: Keys
    shard: NDArray[np.uint32]
    row: NDArray[np.uint32]
    checksum: NDArray[np.uint64]
    labels: Bytes
    label_ends: NDArray[np.uint64]


def new_segment(
    stamp: int,
    record: ShardRecord | None,
    keys: Keys,
    checksum: NDArray[np.uint64],
    labels: Sequence[str] | None = None,
) -> Segment:
    """Return the segment of one shard's rows in their order, or of dropped keys.

    Args:
        stamp: Order among segments.
        record: The shard, or None to drop the keys.
        keys: V16 [n], each once.
        checksum: uint64 [n].
        labels: What the rows are of, n texts.
    """
    order = np.argsort(keys, kind="stable")
    texts = [labels[n].encode(errors="surrogateescape") for n in order.tolist()] if labels else []
    return Segment(
        stamp=stamp,
        shards=() if record is None else (record,),
        keys=keys[order],
        shard=np.zeros(len(keys), np.uint32),
        row=order.astype(np.uint32),
        checksum=checksum[order],
        labels=np.frombuffer(b"".join(texts), np.uint8),
        label_ends=np.cumsum([len(text) for text in texts], dtype=np.uint64),
    )


def pack_segment(segment: Segment) -> bytes:
    """Return the segment as a safetensors file."""
    arrays: dict[str, tuple[str, NDArray[Any]]] = {
        "checksum": ("U64", segment.checksum),
        "label_ends": ("U64", segment.label_ends),
        "row": ("U32", segment.row),
        "shard": ("U32", segment.shard),
        "keys": ("U8", segment.keys.view(np.uint8).reshape(-1, KEY_BYTES)),
        "labels": ("U8", segment.labels),
    }
    parts = [np.ascontiguousarray(array) for _, array in arrays.values()]
    data = b"".join(part.tobytes() for part in parts)
    shards = [[s.name, s.size, s.rows, layout_json(s.layout), s.recipe] for s in segment.shards]
    table = json.dumps(shards)
    checksum = digest([memoryview(table.encode()), memoryview(data)])
    top = header(
        [(name, code, array.shape) for name, (code, array) in arrays.items()],
        {"shards": table, "checksum": f"{checksum:016x}"},
    )
    return top + data


def read_segment(data: Bytes, name: str, *, thorough: bool = False) -> Segment:
    """Return the segment in a file, its arrays views of the file's bytes.

    Args:
        data: The whole file, uint8 [bytes].
        name: The file's name.
        thorough: Compare the file's checksum even if it is large.

    Raises:
        DamagedError: The file is not what was published.
        CacheError: It was written in a newer format.
    """
    source = f"index segment {name}"
    metadata, tensors = parse(data, source)
    try:
        columns = {
            key: tensors[key].data.view(_CODES[tensors[key].code])
            for key in (*_COLUMNS, "labels", "label_ends")
        }
        shards = tuple(_record(entry) for entry in json.loads(metadata["shards"]))
        expected = int(metadata["checksum"], 16)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise DamagedError(f"{source} is damaged: {error}") from error
    segment = _segment(name, shards, columns, source)
    if thorough or len(segment.keys) < LARGE_SEGMENT:
        size = sum(tensor.data.size for tensor in tensors.values())
        parts = [memoryview(metadata["shards"].encode()), data[data.size - size :].data]
        if digest(parts) != expected:
            raise DamagedError(f"{source} does not match its checksum")
    return segment


def _segment(
    name: str, shards: tuple[ShardRecord, ...], columns: dict[str, NDArray[Any]], source: str
) -> Segment:
    stamp = SEGMENT_NAME.fullmatch(name)
    count = columns["row"].size
    lengths = {columns["shard"].size, columns["checksum"].size, columns["keys"].size // KEY_BYTES}
    if stamp is None or lengths != {count} or columns["label_ends"].size not in (0, count):
        raise DamagedError(f"{source} is damaged: its columns differ in length")
    if count and int(columns["shard"].max()) > len(shards):
        raise DamagedError(f"{source} is damaged: it names a shard that it does not list")
    return Segment(
        stamp=int(stamp[1], 16),
        shards=shards,
        keys=columns["keys"].view(KEY_DTYPE),
        shard=columns["shard"],
        row=columns["row"],
        checksum=columns["checksum"],
        labels=columns["labels"],
        label_ends=columns["label_ends"],
    )


def _record(entry: Sequence[Any]) -> ShardRecord:
    name, size, rows, layout, recipe = entry
    # A name with a path in it would lead out of the cache's folder.
    if not SHARD_NAME.fullmatch(name) or type(size) is not int or type(rows) is not int:
        raise ValueError(f"no shard: {name!r}")
    return ShardRecord(name, size, rows, layout_from_json(layout), str(recipe))


@dataclass(frozen=True, eq=False)
class Found:
    """Where rows lie.

    Attributes:
        shard: int64 [n], number in `Index.shards`; -1 where there is no row.
        row: Row in the shard, integers [n].
        checksum: uint64 [n].
    """

    shard: NDArray[np.int64]
    row: NDArray[Any]
    checksum: NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class _Run:
    """Sorted keys with their places; `ranks` tells how new they are."""

    keys: Keys
    shard: NDArray[Any]
    row: NDArray[np.uint32]
    checksum: NDArray[np.uint64]
    ranks: NDArray[np.int64]
    places: NDArray[np.int64]

    def search(self, keys: Keys) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.int64]]:
        """Return for each key whether it is here, at which entry, and in which shard."""
        entry = self.keys.searchsorted(keys, side="right") - 1
        # Entry -1 wraps to the last key, which is greater than the one asked for.
        hit = self.keys[entry] == keys
        shard = self.places[self.shard[entry]]
        return hit & (shard != _DEAD), entry, shard

    def rank(self, entry: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how new the entries are."""
        one = self.ranks.size == 1
        return np.broadcast_to(self.ranks, entry.shape) if one else self.ranks[entry]


class Index:
    """A snapshot of which keys have rows; never changes.

    Attributes:
        shards: The shards that are there.
    """

    def __init__(self, segments: Sequence[Segment], alive: set[str]) -> None:
        """Merge segments; rows in shards that are not `alive` (by name) do not count."""
        ordered = sorted(segments, key=lambda segment: segment.stamp)
        records = {s.name: s for segment in ordered for s in segment.shards if s.name in alive}
        numbers = {name: n for n, name in enumerate(records)}
        known: dict[Layout, Layout] = {}
        self.shards = [
            replace(record, layout=known.setdefault(record.layout, record.layout))
            for record in records.values()
        ]
        runs = []
        for rank, segment in enumerate(ordered):
            places = [numbers.get(s.name, _DEAD) for s in segment.shards]
            runs.append(
                _Run(
                    segment.keys, segment.shard, segment.row, segment.checksum,
                    np.array([rank]), np.array([*places, _ABSENT]),
                )
            )  # fmt: skip
        self._runs = [run for run in runs if len(run.keys) >= LARGE_SEGMENT]
        small = [run for run in runs if 0 < len(run.keys) < LARGE_SEGMENT]
        if small and len((merged := _merged(small)).keys):
            self._runs.append(merged)

    def find(self, keys: Keys) -> Found:
        """Return where the rows of the keys, V16 [n], lie."""
        count = len(keys)
        found = Found(
            np.full(count, _ABSENT), np.zeros(count, np.int64), np.zeros(count, np.uint64)
        )
        newest = np.full(count, -1)
        for run in self._runs:
            hit, entry, shard = run.search(keys)
            if len(self._runs) == 1:  # the usual case, and the path of every batch
                return Found(np.where(hit, shard, _ABSENT), run.row[entry], run.checksum[entry])
            rank = run.rank(entry)
            hit &= rank > newest
            np.copyto(newest, rank, where=hit)
            np.copyto(found.shard, shard, where=hit)
            np.copyto(found.row, run.row[entry], where=hit)
            np.copyto(found.checksum, run.checksum[entry], where=hit)
        return found

    def layout(self, shards: Iterable[int]) -> Layout:
        """Return the layout that some shards, at least one, share.

        Raises:
            CacheError: They do not; two layouts are named.
        """
        first, *others = (self.shards[number].layout for number in shards)
        for other in others:
            # Equal layouts of one index are one object, so this is quick for a wide batch.
            if other is not first:
                raise CacheError(
                    f"rows of two shapes were asked for at once: ({describe(first)}) and "
                    f"({describe(other)}); a batch is of one bucket"
                )
        return first


def _merged(runs: list[_Run]) -> _Run:
    """Return one run with the newest entry of each key; entries in dead shards are left out."""
    shard = np.concatenate([run.places[run.shard] for run in runs])
    rank = np.concatenate([np.full(len(run.keys), run.ranks[0]) for run in runs])
    keys = np.concatenate([run.keys for run in runs])
    kept = np.flatnonzero(shard != _DEAD)
    kept = kept[_stable_order(keys[kept])]
    keys = keys[kept]
    # Later runs come later among equals, so the last of them is the newest.
    last = np.ones(len(keys), np.bool_)
    last[:-1] = keys[1:] != keys[:-1]
    kept, keys = kept[last], keys[last]
    row = np.concatenate([run.row for run in runs])[kept]
    checksum = np.concatenate([run.checksum for run in runs])[kept]
    places = np.arange(_DEAD, shard.max(initial=0) + 1)
    return _Run(keys, shard[kept] - _DEAD, row, checksum, rank[kept], places)


def _stable_order(keys: Keys) -> NDArray[np.int64]:
    """Return what sorts the keys, equal ones in their order.

    Sorting numbers is several times faster than sorting bytes. Half a key tells almost any
    two apart; where it does not, all of it is compared.
    """
    halves = keys.view(">u8").reshape(-1, 2).astype(np.uint64)
    order = np.argsort(halves[:, 0], kind="stable")
    first, second = halves[order].T
    if ((first[1:] == first[:-1]) & (second[1:] < second[:-1])).any():
        return np.argsort(keys, kind="stable")
    return order
