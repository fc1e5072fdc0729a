"""Index segments: published pieces of the index, with what each row was made of."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from factory.cache.format.compression import packed, unpacked
from factory.cache.format.recipe import KEY_BYTES, KEY_DTYPE, Keys, canonical
from factory.cache.format.safetensors_file import (
    HEADER_LIMIT,
    Bytes,
    DamagedError,
    digest,
    header,
    parse,
)
from factory.cache.format.shard import RowLayout, layout_from_json, layout_json, row_bytes

SHARD_NAME = re.compile(r"[0-9a-f]{32}\.safetensors(\.zst)?")
SEGMENT_NAME = re.compile(r"([0-9a-f]{16})-[0-9a-f]{32}\.safetensors")

CODES: Mapping[str, Any] = {"U8": np.uint8, "U32": np.uint32, "U64": np.uint64}


@dataclass(frozen=True)
class ShardRecord:
    """What the index knows of a shard.

    Attributes:
        name: File name, unique among all writers.
        size: Bytes of the published file.
        rows: Rows in it.
        layout: What each row is made of.
        recipe: Canonical JSON of what its rows have in common.
        plain_size: Bytes of the shard itself; another number than `size` if it is packed.
    """

    name: str
    size: int
    rows: int
    layout: RowLayout
    recipe: str
    plain_size: int


@dataclass(frozen=True)
class ShardStamp:
    """Where a row lies, as far as many rows of a segment share it.

    Attributes:
        stamp: Order among the rows of one key; the highest counts.
        shard: The shard; None says that the key was dropped.
    """

    stamp: int
    shard: ShardRecord | None


@dataclass(frozen=True, eq=False)
class IndexSegment:
    """A published piece of the index: sorted keys and where their rows lie.

    Attributes:
        stamp: Order among segments; decides between rows of one key and equal stamps.
        places: What the rows' places are numbered after.
        keys: V16 [n], ascending, each once.
        place: uint32 [n], number in `places`.
        row: uint32 [n], row in the shard.
        checksum: uint64 [n], of the row's bytes in all fields.
        notes: What each row is of, packed; see `notes_of`. Empty if nothing is known.
        notes_size: Bytes of the notes unpacked.
    """

    stamp: int
    places: tuple[ShardStamp, ...]
    keys: Keys
    place: NDArray[np.uint32]
    row: NDArray[np.uint32]
    checksum: NDArray[np.uint64]
    notes: Bytes
    notes_size: int

    @property
    def shards(self) -> tuple[ShardRecord, ...]:
        """The shards its rows lie in, each once."""
        return tuple(dict.fromkeys(p.shard for p in self.places if p.shard is not None))


def note(label: str, parts: Mapping[str, object] | None) -> str:
    """Return what a row is of as one line of text: its label, and what its own recipe was."""
    return canonical([label, parts])


# Of a row that nothing is known of.
NO_NOTE = note("", None)


def new_segment(
    stamp: int,
    places: Sequence[ShardStamp],
    keys: Keys,
    place: NDArray[Any],
    row: NDArray[Any],
    checksum: NDArray[np.uint64],
    notes: Sequence[str] = (),
) -> IndexSegment:
    """Return the segment of rows in any order.

    Args:
        stamp: Order among segments.
        places: Where rows lie.
        keys: V16 [n], each once.
        place: Number in `places`, integers [n].
        row: Row in the shard, integers [n].
        checksum: uint64 [n].
        notes: What `note` gives for each row; or nothing.
    """
    order = np.argsort(keys, kind="stable")
    known = any(text != NO_NOTE for text in notes)
    text = "\n".join(notes[n] for n in order.tolist()).encode() if known else b""
    return IndexSegment(
        stamp=stamp,
        places=tuple(places),
        keys=keys[order],
        place=place[order].astype(np.uint32),
        row=row[order].astype(np.uint32),
        checksum=checksum[order],
        notes=np.frombuffer(packed(text) if text else b"", np.uint8),
        notes_size=len(text),
    )


def notes_of(segment: IndexSegment, source: str) -> list[str]:
    """Return what `note` gave for each row of a segment, in the order of its keys.

    Raises:
        DamagedError: The notes are not what was published.
    """
    if not segment.notes_size:
        return [NO_NOTE] * len(segment.keys)
    data = unpacked(segment.notes, segment.notes_size, f"index segment {source}")
    return data.tobytes().decode().split("\n")


def pack_segment(segment: IndexSegment) -> bytes:
    """Return the segment as a safetensors file."""
    arrays: dict[str, tuple[str, NDArray[Any]]] = {
        "checksum": ("U64", segment.checksum),
        "place": ("U32", segment.place),
        "row": ("U32", segment.row),
        "keys": ("U8", segment.keys.view(np.uint8).reshape(-1, KEY_BYTES)),
        "notes": ("U8", segment.notes),
    }
    data = b"".join(np.ascontiguousarray(array).tobytes() for _, array in arrays.values())
    shards = segment.shards
    numbers = {shard: n for n, shard in enumerate(shards)}
    content = json.dumps(
        {
            **records_json(shards),
            "places": [[p.stamp, None if p.shard is None else numbers[p.shard]]
                       for p in segment.places],
            "notes_size": segment.notes_size,
        }
    )  # fmt: skip
    top = header(
        [(name, code, array.shape) for name, (code, array) in arrays.items()],
        {"content": content, "checksum": checksum_text(content, data)},
    )
    return top + data


def read_segment(data: Bytes, name: str) -> IndexSegment:
    """Return the segment in a file, its arrays views of the file's bytes.

    Args:
        data: The whole file, uint8 [bytes].
        name: The file's name.

    Raises:
        DamagedError: The file is not what was published.
        CacheError: It was written in another format.
    """
    source = f"index segment {name}"
    content, columns = columns_of(data, ("checksum", "place", "row", "keys", "notes"), source)
    try:
        shards = records_from_json(content)
        places = tuple(
            ShardStamp(whole(stamp), None if number is None else shards[whole(number)])
            for stamp, number in content["places"]
        )
        notes_size = whole(content["notes_size"])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise DamagedError(f"{source} is damaged: {error}") from error
    stamp, count = SEGMENT_NAME.fullmatch(name), columns["row"].size
    lengths = {columns["place"].size, columns["checksum"].size, columns["keys"].size // KEY_BYTES}
    if stamp is None or lengths != {count}:
        raise DamagedError(f"{source} is damaged: its columns differ in length")
    if count and int(columns["place"].max()) >= len(places):
        raise DamagedError(f"{source} is damaged: it names a place that it does not list")
    return IndexSegment(
        stamp=int(stamp[1], 16),
        places=places,
        keys=columns["keys"].view(KEY_DTYPE),
        place=columns["place"],
        row=columns["row"],
        checksum=columns["checksum"],
        notes=columns["notes"],
        notes_size=notes_size,
    )


def columns_of(
    data: Bytes, names: Sequence[str], source: str
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Return the content and the columns of an index file, compared with its checksum.

    Raises:
        DamagedError: The file is not what was published.
        CacheError: It was written in another format.
    """
    metadata, tensors = parse(data, source)
    try:
        columns = {key: tensors[key].data.view(CODES[tensors[key].code]) for key in names}
        text, expected = metadata["content"], metadata["checksum"]
        size = sum(tensor.data.size for tensor in tensors.values())
        if checksum_text(text, data[data.size - size :].data) != expected:
            raise DamagedError(f"{source} does not match its checksum")
        content = dict(json.loads(text))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise DamagedError(f"{source} is damaged: {error}") from error
    return content, columns


def checksum_text(content: str, data: bytes | memoryview) -> str:
    """Return the checksum of an index file's content and columns, as its header holds it."""
    parts = [memoryview(content.encode(errors="surrogatepass")), memoryview(data)]
    return f"{digest(parts):016x}"


def records_json(records: Sequence[ShardRecord]) -> dict[str, Any]:
    """Return records as JSON values, what many share written once."""
    recipes = {text: n for n, text in enumerate(dict.fromkeys(r.recipe for r in records))}
    layouts = {layout: n for n, layout in enumerate(dict.fromkeys(r.layout for r in records))}
    return {
        "recipes": list(recipes),
        "layouts": [layout_json(layout) for layout in layouts],
        "shards": [
            [r.name, r.size, r.plain_size, r.rows, layouts[r.layout], recipes[r.recipe]]
            for r in records
        ],
    }


def records_from_json(content: Mapping[str, Any]) -> list[ShardRecord]:
    """Return the records that `records_json` wrote.

    Raises:
        KeyError, IndexError, TypeError, ValueError: It wrote no such thing.
    """
    recipes = [str(text) for text in content["recipes"]]
    layouts = [layout_from_json(value) for value in content["layouts"]]
    return list(_records(content["shards"], layouts, recipes))


def _records(
    entries: Sequence[Sequence[Any]], layouts: Sequence[RowLayout], recipes: Sequence[str]
) -> Iterator[ShardRecord]:
    for name, size, plain_size, rows, layout, recipe in entries:
        # A name with a path in it would lead out of the cache's folder.
        if not SHARD_NAME.fullmatch(name):
            raise ValueError(f"no shard: {name!r}")
        each = row_bytes(layouts[whole(layout)])
        # No shard is larger than its rows and a header: what is unpacked is bounded by that.
        if whole(plain_size) > whole(rows) * each + HEADER_LIMIT:
            raise ValueError(f"no shard: {name!r} of {rows} rows claims {plain_size} bytes")
        yield ShardRecord(
            name, whole(size), rows, layouts[layout], recipes[whole(recipe)], plain_size
        )


def whole(value: object) -> int:
    """Return a whole number that is not negative.

    Raises:
        ValueError: It is none.
    """
    if type(value) is not int or value < 0:
        raise ValueError(f"no count: {value!r}")
    return value
