"""Files of a storage that are no samples: trash, hidden files, and files of other formats."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from factory.catalog.arrow_columns import Column, whole_array
from factory.catalog.globs import matching, with_suffix
from factory.storage.base import TabularStorage

# What systems, tools and cameras put beside pictures: hidden files and folders (of version
# control, notebooks, trash and thumbnails on Linux, "._NAME" of macOS), trash and thumbnails of
# Windows, macOS and network disks.
IGNORED = (
    ".*", ".*/", "__MACOSX/", "$RECYCLE.BIN/", "RECYCLER/", "System Volume Information/",
    "Thumbs.db", "ehthumbs.db", "desktop.ini", "lost+found/", "@eaDir/", "#recycle/",
    "#snapshot/", "@Recycle/", "@Recently-Snapshot/", "CVS/", "__pycache__/",
)  # fmt: skip
# What lies beside pictures as a rule: captions, tables, and this project's own caches.
COMPANIONS = (
    ".txt", ".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".safetensors", ".arrow",
    ".arrows", ".tar",
)  # fmt: skip
NO_SUFFIX = "without suffix"


@dataclass(frozen=True)
class LeftOut:
    """How many files a scan left out.

    Attributes:
        ignored: Files that were ignored, by the pattern that they were ignored for.
        suffixes: Other files that are no samples, by their suffix.
    """

    ignored: Mapping[str, int] = field(default_factory=dict)
    suffixes: Mapping[str, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self.ignored or self.suffixes)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for a header."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> "LeftOut":
        """Return what `to_dict` gave; nothing where there is none, as in older catalogs."""
        return cls(**values) if values else cls()

    def lines(self) -> list[str]:
        """Say it: "3 files ignored as #recycle/ (2), .*/ (1)", "4 files of other formats: …"."""
        found = []
        if self.ignored:
            found.append(f"{_files(self.ignored)} ignored as {_listed(self.ignored)}")
        if self.suffixes:
            found.append(f"{_files(self.suffixes)} of other formats: {_listed(self.suffixes)}")
        return found


def _files(counts: Mapping[str, int]) -> str:
    total = sum(counts.values())
    return f"{total} file{'' if total == 1 else 's'}"


def _listed(counts: Mapping[str, int]) -> str:
    ranked = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return ", ".join(f"{name} ({count})" for name, count in ranked)


def without_ignored(
    storage: TabularStorage, listing: pa.Table, patterns: Sequence[str]
) -> tuple[pa.Table, LeftOut]:
    """Return the rows of a table that are data: of files in a folder, as of a folder."""
    paths = storage.paths()
    gone = None if paths is None else ignored(paths, patterns)
    if paths is None or gone is None or not gone.any():
        return listing, LeftOut()
    left_out = count_left_out(paths, np.ones(len(paths), dtype=bool), gone, patterns, ())
    return listing.filter(pa.array(~gone)), left_out


def ignored(keys: Column, patterns: Sequence[str]) -> NDArray[np.bool_]:
    """Tell which keys below a prefix match a pattern, in any case, bool [n].

    Only keys are matched of which a part begins as a pattern does: a tenth of the time that
    matching all takes.
    """
    named = [pattern for pattern in patterns if _beginning(pattern)]
    found = matching(keys, [p for p in patterns if p not in named], ignore_case=True)
    rows = _rows_with_part(keys, {_beginning(pattern) for pattern in named})
    if rows.size:
        found[rows] |= matching(keys.take(pa.array(rows)), named, ignore_case=True)
    return found


def _beginning(pattern: str) -> bytes:
    """Return how names begin that a pattern matches, up to two bytes; b"" if in many ways."""
    if "/" in pattern.rstrip("/"):
        return b""
    return re.split(r"[*?\[\]/]", pattern)[0].lower().encode()[:2] if pattern.isascii() else b""


def _rows_with_part(keys: Column, beginnings: set[bytes]) -> NDArray[np.int64]:
    """Return the keys of which a part begins with some bytes in any case, ascending."""
    whole = whole_array(keys)
    if not beginnings or not len(whole) or whole.buffers()[2] is None:
        return np.zeros(0, dtype=np.int64)
    ends = np.frombuffer(whole.buffers()[1], np.int64)[whole.offset :][: len(whole) + 1]
    # Padded, so that there is a byte behind the last one.
    data = np.append(np.frombuffer(whole.buffers()[2], np.uint8)[: ends[-1]], np.zeros(2, np.uint8))
    wanted = np.zeros((256, 256), dtype=bool)
    for beginning in beginnings:
        for first in {beginning[:1], beginning[:1].upper()}:
            if len(beginning) == 1:
                wanted[ord(first)] = True
            for second in {beginning[1:], beginning[1:].upper()} - {b""}:
                wanted[ord(first), ord(second)] = True
    slashes = np.flatnonzero(data[ends[0] : ends[-1]] == ord("/")) + ends[0]
    parts = np.concatenate([ends[:-1], slashes + 1])
    hits = parts[wanted[data[parts], data[parts + 1]]]
    rows = np.searchsorted(ends, hits, side="right") - 1
    return np.unique(rows[rows < len(whole)]).astype(np.int64)


def count_left_out(
    keys: Column,
    samples: NDArray[np.bool_],
    gone: NDArray[np.bool_],
    patterns: Sequence[str],
    beside: Sequence[str],
) -> LeftOut:
    """Count the files that are no samples.

    Args:
        keys: Keys of all files below the prefix, n of them.
        samples: Those that have a sample's suffix, bool [n].
        gone: Those that are ignored, bool [n].
        patterns: What they are ignored for.
        beside: Suffixes of files that belong to samples, such as captions.
    """
    trash = keys.filter(pa.array(gone))
    by_pattern: dict[str, int] = {}
    for pattern in patterns if len(trash) else ():
        hit = matching(trash, [pattern], ignore_case=True)
        if hit.any():
            by_pattern[pattern] = int(hit.sum())
            trash = trash.filter(pa.array(~hit))
    others = keys.filter(pa.array(~samples & ~gone))
    if len(others):
        others = others.filter(pa.array(~with_suffix(others, (*COMPANIONS, *beside))))
    suffixes = Counter(PurePosixPath(key).suffix.lower() or NO_SUFFIX for key in others.to_pylist())
    return LeftOut(by_pattern, dict(suffixes))
