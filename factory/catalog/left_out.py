"""Files of a storage that are no samples: trash and hidden ones, and those of other formats."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from factory.catalog.columns import Column, flags
from factory.catalog.globs import matching, with_suffix

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
        ignored: Files that would be samples, by the pattern that they were ignored for.
        suffixes: Other files, by their suffix.
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


def ignored(keys: Column, patterns: Sequence[str]) -> NDArray[np.bool_]:
    """Tell which keys below a prefix match a pattern, in any case, bool [n]."""
    return matching(keys, _possible(keys, patterns), ignore_case=True)


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
    trash = keys.filter(pa.array(samples & gone))
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


def _possible(keys: Column, patterns: Sequence[str]) -> list[str]:
    """Return the patterns of which some text stands in the keys.

    Mostly none does, and a search in all bytes at once takes a tenth of the time that matching
    each key takes.
    """
    chunks = keys.chunks if isinstance(keys, pa.ChunkedArray) else [keys]
    raws = [data.to_pybytes().lower() for c in chunks if (data := c.buffers()[2]) is not None]

    def stands(pattern: str) -> bool:
        text = max(re.split(r"[*?\[\]/]", pattern), key=len).lower().encode()
        if text != b".":
            return any(text in raw for raw in raws)
        inner = any(b"/." in raw for raw in raws)
        return inner or bool(flags(pc.starts_with(keys, ".")).any())

    return [pattern for pattern in patterns if stands(pattern)]
