"""In which order are entries taken: a source before the sets that depend on it."""

from collections.abc import Mapping, Sequence
from typing import Any

from factory.simpletuner.problem import ImportProblem, ImportRefusedError

Entry = Mapping[str, Any]


def is_disabled(entry: Entry) -> bool:
    """Tell whether an entry is switched off."""
    return bool(entry.get("disabled") or entry.get("disable"))


def named(value: Any) -> list[str]:
    """Return the ids of a link, which upstream takes as one text or a list of them."""
    names = value if isinstance(value, list) else [value]
    return [name for name in names if isinstance(name, str) and name]


def source_of(entry: Entry, entries: Sequence[Entry]) -> str | None:
    """Return the id an entry depends on.

    It is its `source_dataset_id`, else the first other entry whose `conditioning_data`
    names it.
    """
    source = entry.get("source_dataset_id")
    if isinstance(source, str) and source:
        return source
    own = entry.get("id")
    for other in entries:
        if other is not entry and own in named(other.get("conditioning_data")):
            return str(other.get("id", ""))
    return None


def duplicates(entries: Sequence[Entry]) -> list[ImportProblem]:
    """Return a problem for each id that more than one entry has."""
    ids = [name for entry in entries if isinstance(name := entry.get("id"), str) and name]
    return [
        ImportProblem("duplicate_id", f"{ids.count(name)} datasets have the id {name!r}; rename")
        for name in dict.fromkeys(ids)
        if ids.count(name) > 1
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
    sources = {name: source_of(entry, enabled) for name, entry in by_id.items()}
    if not any(source in by_id for source in sources.values()):
        return enabled
    order: list[str] = []
    for name in by_id:
        _visit(name, sources, [], order)
    return [by_id[name] for name in order] + [e for e in enabled if not e.get("id")]


def _visit(name: str, sources: Mapping[str, str | None], path: list[str], order: list[str]) -> None:
    if name in order:
        return
    if name in path:
        circle = " -> ".join([*path[path.index(name) :], name])
        message = f"Circular dependency detected involving dataset {name!r}: {circle}"
        raise ImportRefusedError([ImportProblem("circular_dependency", message)])
    source = sources[name]
    if source is not None and source in sources:
        _visit(source, sources, [*path, name], order)
    order.append(name)
