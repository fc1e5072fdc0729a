"""File patterns, and the keys that match them."""

import re
from collections.abc import Sequence

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from factory.catalog.arrow_columns import Column, as_mask


def matching(
    keys: Column, patterns: Sequence[str], *, ignore_case: bool = False
) -> NDArray[np.bool_]:
    """Tell which keys match any of the patterns, bool [n].

    Patterns are those of shells and of .gitignore: "*" and "?" stay inside one part of the
    path, "**" crosses parts, "[a-z]" is one of some letters. One without a slash counts for
    names at any depth; one that ends with a slash means everything below a folder.
    """
    if not patterns:
        return np.zeros(len(keys), dtype=bool)
    joined = "|".join(f"(?:{expression(pattern)})" for pattern in patterns)
    pattern = f"^(?:{joined})$"
    return as_mask(pc.match_substring_regex(keys, pattern=pattern, ignore_case=ignore_case))


def with_suffix(keys: Column, suffixes: Sequence[str]) -> NDArray[np.bool_]:
    """Tell which keys end with one of the suffixes, in any case, after at least a letter."""
    names = "|".join(re.escape(suffix.removeprefix(".")) for suffix in suffixes)
    return as_mask(pc.match_substring_regex(keys, pattern=rf"(?i)[^/]\.(?:{names})$"))


def expression(pattern: str) -> str:
    """Return a pattern as a regular expression that the whole key must match.

    Raises:
        ValueError: The pattern is blank, or a bracket in it is not closed.
    """
    if not pattern.strip("/ "):
        raise ValueError(f"pattern {pattern!r} is blank; give one such as '*.jpg' or 'raw/**'")
    # A line feed in a name is a letter like any other.
    start = "(?s)" + ("" if "/" in pattern.rstrip("/") else "(?:.*/)?")
    body = pattern.lstrip("/") + ("**" if pattern.endswith("/") else "")
    return start + "".join(_parts(pattern, body))


def _parts(pattern: str, rest: str) -> list[str]:
    parts = []
    while rest:
        if rest.startswith("**/"):
            parts.append("(?:.*/)?")
            rest = rest[3:]
        elif rest.startswith("**"):
            parts.append(".*")
            rest = rest[2:]
        elif rest[0] in "*?":
            parts.append("[^/]*" if rest[0] == "*" else "[^/]")
            rest = rest[1:]
        elif rest[0] == "[":
            letters, rest = _bracket(pattern, rest)
            parts.append(letters)
        else:
            parts.append(re.escape(rest[0]))
            rest = rest[1:]
    return parts


def _bracket(pattern: str, rest: str) -> tuple[str, str]:
    """Return "[...]" as an expression, and what follows it."""
    end = rest.find("]", 2)  # a bracket right after the opening one is a letter
    if end < 0:
        raise ValueError(f"pattern {pattern!r} has a '[' that is not closed; write '[[]' for it")
    inside = rest[1:end]
    negated = inside[0] in "!^"
    letters = re.sub(r"([\\\[\]^&~|])", r"\\\1", inside[1:] if negated else inside)
    return f"[{'^/' if negated else ''}{letters}]", rest[end + 1 :]


def relative(keys: Column, prefix: str) -> Column:
    """Return keys without the folder they are below; those of tables are below none."""
    if not prefix or not len(keys):
        return keys
    below = pc.starts_with(keys, prefix + "/")
    return pc.if_else(below, pc.utf8_slice_codeunits(keys, start=len(prefix) + 1), keys)
