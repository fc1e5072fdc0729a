"""Which row has a storage key, and which keys look like one that no row has?"""

import difflib
from bisect import bisect_left

import pyarrow.compute as pc

from factory.catalog.facts import TWIN, Facts

# Rows compared letter by letter, some microseconds each; of a larger catalog, those around the
# place where the key would stand.
COMPARED = 20_000
SHOWN = 3


def row_of(facts: Facts, key: str) -> int | None:
    """Return the first row of a key, found by halving: facts are sorted by key."""
    if TWIN in key:
        return None
    place = bisect_left(range(len(facts)), key.encode(), key=lambda row: facts.key(row).encode())
    return place if place < len(facts) and facts.key(place) == key else None


def near(facts: Facts, key: str) -> list[str]:
    """Return at most `SHOWN` keys that end with a key or look like it, the likeliest first."""
    found: list[str] = []
    for _, rows in facts.chunks():
        keys = rows["key"]
        hits = keys.filter(pc.ends_with(keys, key)) if key else keys[:0]
        found += hits[:SHOWN].to_pylist()
        if len(found) >= SHOWN:
            return found[:SHOWN]
    place = bisect_left(range(len(facts)), key.encode(), key=lambda row: facts.key(row).encode())
    first = max(place - COMPARED // 2, 0)
    nearby = facts.texts("key", list(range(first, min(first + COMPARED, len(facts)))))
    alike = difflib.get_close_matches(key, [one for one in nearby if TWIN not in one], SHOWN)
    return list(dict.fromkeys([*found, *alike]))[:SHOWN]
