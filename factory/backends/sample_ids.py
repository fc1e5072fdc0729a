"""Samples named by users, as KEY or BACKEND:KEY, resolved to catalog rows."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from difflib import SequenceMatcher

import numpy as np

from factory.backends.conditioning import is_generated
from factory.backends.prepared import PreparedBackend
from factory.catalog.facts import SHOWN, near, row_of
from factory.errors import ConfigError
from factory.sampling.exclusion import Exclude, Excluded

# Between a backend's name and a key, as messages and `scripts/explain.py` print them.
MARK = ":"


def find_sample(name: str, sources: Mapping[str, PreparedBackend]) -> list[tuple[str, int]]:
    """Return (backend, row) of every sample of a name.

    A conditioning sample stands for those of its source that it belongs to, since the two are
    used together.

    Args:
        name: KEY, sought in all backends, or BACKEND:KEY.
        sources: The backends made ready, by name.
    """
    backend, mark, key = name.partition(MARK)
    if mark and backend in sources:
        found = list(_rows(backend, key, sources))
        if found:
            return found
    # What is generated has the keys of its source.
    return list(dict.fromkeys(pair for each in sources for pair in _rows(each, name, sources)))


def near_names(name: str, sources: Mapping[str, PreparedBackend]) -> list[str]:
    """Return samples whose names are near one that is unknown, as BACKEND:KEY, nearest first."""
    backend, mark, key = name.partition(MARK)
    named = [each for each, source in sources.items() if not is_generated(source.backend)]
    asked = [backend] if mark and backend in sources else named
    key = key if mark and backend in sources else name
    alike = [(found, each) for each in asked for found in near(sources[each].catalog.facts, key)]
    likeness = SequenceMatcher(b=key)

    def rank(pair: tuple[str, str]) -> tuple[bool, float]:
        likeness.set_seq1(pair[0])
        return not pair[0].endswith(key), -likeness.ratio()

    return [f"{each}{MARK}{found}" for found, each in sorted(alike, key=rank)[:SHOWN]]


def resolve(
    excludes: Sequence[Exclude],
    sources: Mapping[str, PreparedBackend],
    streams: Collection[str] = (),
) -> dict[str, Excluded]:
    """Find the rows of the samples that are to be left out.

    Args:
        excludes: What is left out, and since when; of a sample named twice the earlier counts.
        sources: The backends made ready, by name.
        streams: Names of the streams.

    Returns:
        For each backend with such rows, by name, which they are.

    Raises:
        ConfigError: There is no such sample; all of them at once, with names that are near.
    """
    steps: dict[str, dict[int, int]] = {}
    problems = []
    for number, exclude in enumerate(excludes):
        for name in exclude.ids:
            found = find_sample(name, sources)
            if not found:
                problems.append(f"data.exclude.{number}: {_unknown(name, sources, streams)}")
            for backend, row in found:
                known = steps.setdefault(backend, {})
                known[row] = min(known.get(row, exclude.from_step - 1), exclude.from_step - 1)
    if problems:
        raise ConfigError(problems)
    return {
        name: Excluded(rows, {row: sources[name].catalog.facts.key(row) for row in rows})
        for name, rows in steps.items()
    }


def _rows(
    backend: str, key: str, sources: Mapping[str, PreparedBackend]
) -> Iterator[tuple[str, int]]:
    row = row_of(sources[backend].catalog.facts, key)
    if row is None:
        return
    owners = [s for s in sources.values() if backend in s.conditioning]
    for owner in owners:
        _, partners = owner.conditioning[backend]
        for mine in np.flatnonzero(partners == row).tolist():
            yield owner.name, mine
    if not owners:
        yield backend, row


def _unknown(name: str, sources: Mapping[str, PreparedBackend], streams: Collection[str]) -> str:
    backend, mark, key = name.partition(MARK)
    if mark and backend in streams:
        return (
            f"{name!r} is of the stream {backend!r}, whose samples are unknown until they are "
            "read; take it out, or drop rows by a column: data.backends."
            f"{backend}.filters"
        )
    asked = [backend] if mark and backend in sources else list(sources)
    key = key if mark and backend in sources else name
    shown = near_names(name, sources)
    hint = f"; did you mean {' or '.join(shown)}?" if shown else ""
    unread = f" (samples of {', '.join(streams)} cannot be named)" if streams else ""
    return (
        f"no sample of {', '.join(asked)} is named {key!r}{hint or '; give its storage key'}"
        f"{unread}"
    )
