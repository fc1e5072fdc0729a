"""Order of entries: a source before the sets that depend on it."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from factory.importers.simpletuner.problem import ImportProblem, ImportRefusedError

Entry = Mapping[str, Any]


def is_disabled(entry: Entry) -> bool:
    """Tell whether an entry is switched off."""
    return bool(entry.get("disabled") or entry.get("disable"))


def named(value: Any) -> list[str]:
    """Return the ids of a link, which upstream takes as one text or a list of them."""
    names = value if isinstance(value, list) else [value]
    return [name for name in names if isinstance(name, str) and name]


def sources_of(entries: Iterable[Entry]) -> dict[str, str | None]:
    """Return the id that each entry depends on, by its own id; None where there is none.

    It is its `source_dataset_id`, else the first other entry whose `conditioning_data`
    names it.
    """
    listed = list(entries)
    naming: dict[str, list[str]] = {}
    for entry in listed:
        for name in dict.fromkeys(named(entry.get("conditioning_data"))):
            naming.setdefault(name, []).append(str(entry.get("id", "")))
    found: dict[str, str | None] = {}
    for entry in listed:
        own, source = str(entry.get("id", "")), entry.get("source_dataset_id")
        others = (name for name in naming.get(own, ()) if name != own)
        found[own] = source if isinstance(source, str) and source else next(others, None)
    return found


def duplicates(entries: Sequence[Entry]) -> list[ImportProblem]:
    """Return a problem for each id that more than one entry has."""
    ids = Counter(name for entry in entries if isinstance(name := entry.get("id"), str) and name)
    return [
        ImportProblem("duplicate_id", f"{count} datasets have the id {name!r}; rename")
        for name, count in ids.items()
        if count > 1
    ]


def sort_entries(entries: Sequence[Entry]) -> list[Entry]:
    """Drop disabled entries and put every other after its source.

    Otherwise the listed order is kept. Sources that are not there are no reason to move, and
    where there is none at all nothing moves; else entries without an id come last.

    Raises:
        ImportRefusedError: Two entries have one id, or entries depend on each other in a
            circle; names the one the circle was met at.
    """
    enabled = [entry for entry in entries if not is_disabled(entry)]
    twice = duplicates(enabled)
    if twice:
        raise ImportRefusedError(twice)
    by_id = {str(entry["id"]): entry for entry in enabled if entry.get("id")}
    sources = sources_of(by_id.values())
    if not any(source in by_id for source in sources.values()):
        return enabled
    order: dict[str, None] = {}
    for name in by_id:
        order |= dict.fromkeys(reversed(_chain(name, sources, order)))
    return [by_id[name] for name in order] + [e for e in enabled if not e.get("id")]


def _chain(
    name: str, sources: Mapping[str, str | None], done: Mapping[str, None]
) -> dict[str, None]:
    """Return an entry, its source, the source's source and so on, as far as none is done."""
    path: dict[str, None] = {}
    at: str | None = name
    while at is not None and at in sources and at not in done:
        if at in path:
            listed = list(path)
            circle = " -> ".join([*listed[listed.index(at) :], at])
            message = f"Circular dependency detected involving dataset {at!r}: {circle}"
            raise ImportRefusedError([ImportProblem("circular_dependency", message)])
        path[at] = None
        at = sources[at]
    return path
