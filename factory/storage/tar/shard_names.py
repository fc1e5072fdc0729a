"""Shard names: which objects of a storage are tar shards."""

import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

# More names than any data set has shards (LAION-5B: 232 thousand); beyond it a pattern is a slip.
MOST_NAMES = 1_000_000
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_PACKED = (".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".zst", ".lz4")


class ShardNames:
    """Patterns that tell shards from other objects, such as "*.tar" or "train/{000..099}.tar".

    A pattern without '/' is compared with an object's file name, one with '/' with its whole
    key. '*' and '?' stop at '/', '**' does not; braces hold a range of numbers or a list.
    "._a.tar", which macOS writes beside "a.tar", is no shard unless the pattern begins so.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        """Expand braces.

        Raises:
            ValueError: A pattern is empty, its braces mean nothing, or it has too many names.
        """
        self._exact: set[str] = set()
        globs = []
        for name in itertools.chain.from_iterable(_expanded(p) for p in patterns):
            if re.search(r"[*?]", name):
                globs.append(_regex(name))
            else:
                self._exact.add(name)
        self._globs = re.compile("|".join(globs) or r"(?!)")

    def match(self, key: str) -> bool:
        """Tell whether an object is a shard."""
        name = key.rpartition("/")[2]
        return bool({key, name} & self._exact or self._globs.fullmatch(key))

    def absent(self, keys: Iterable[str]) -> list[str]:
        """Return the names written out in the patterns that no key has, in order."""
        found = {part for key in keys for part in (key, key.rpartition("/")[2])}
        return sorted(self._exact - found)

    def cuts(self, key: str) -> Iterator[tuple[str, str]]:
        """Yield each (shard, rest) that a key "shard/member" could mean; the rest may be ""."""
        parts = key.split("/")
        for end in range(1, len(parts) + 1):
            shard = "/".join(parts[:end])
            if self.match(shard):
                yield shard, "/".join(parts[end:])


def is_packed(key: str) -> bool:
    """Tell whether a file's name says that it is compressed."""
    return PurePosixPath(key).suffix.lower() in _PACKED


def _expanded(pattern: str) -> list[str]:
    """Return the pattern once for each choice that its braces leave."""
    if not pattern or pattern.startswith("/") or ".." in pattern.split("/"):
        raise ValueError(f"storage.shards: {pattern!r} is no pattern of keys below the root")
    pieces = _BRACES.split(pattern)  # text, inside of braces, text, ...
    if any(mark in text for text in pieces[::2] for mark in "{}"):
        raise ValueError(f"storage.shards: {pattern!r} has a brace without its partner")
    choices = [_choices(p, pattern) if n % 2 else [p] for n, p in enumerate(pieces)]
    count = 1
    for names in choices:
        count *= len(names)
    if count > MOST_NAMES:
        raise ValueError(f"storage.shards: {pattern!r} stands for {count} names; use '*'")
    return ["".join(parts) for parts in itertools.product(*choices)]


def _choices(inside: str, pattern: str) -> list[str]:
    """Return what "000..099" or "a,b" stands for."""
    match = _RANGE.fullmatch(inside)
    if match is None:
        if "," not in inside:
            raise ValueError(
                f"storage.shards: {{{inside}}} in {pattern!r} is neither a range of numbers "
                "{000..099} nor a list {a,b}"
            )
        return inside.split(",")
    low, high = match.groups()
    if int(high) - int(low) >= MOST_NAMES or int(high) < int(low):
        raise ValueError(f"storage.shards: the range {{{inside}}} in {pattern!r} is empty or huge")
    padded = any(len(end) > 1 and end.startswith("0") for end in (low, high))
    width = max(len(low), len(high)) if padded else 0
    return [f"{number:0{width}d}" for number in range(int(low), int(high) + 1)]


def _regex(pattern: str) -> str:
    """Return a regular expression for a whole key."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
    meaning = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    anywhere = "" if "/" in pattern else "(?:.*/)?"
    shown = "" if pattern.rpartition("/")[2].startswith("._") else r"(?!(?:.*/)?\._[^/]*$)"
    return (
        f"(?s:{shown}{anywhere}"
        + "".join(meaning.get(part, re.escape(part)) for part in parts)
        + ")"
    )
