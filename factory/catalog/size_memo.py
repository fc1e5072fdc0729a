"""What was decided about a size need not be worked out for the next sample of that size.

Deciding costs the same tens of microseconds for one sample as for a hundred, and a training
batch asks for a few at a time; pictures of equal size are cut alike where nothing is random.
"""

import threading
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Ints: TypeAlias = NDArray[np.int32]
# Takes widths and heights, int32 [n], and returns n rows of equally many numbers.
Decide: TypeAlias = Callable[[Ints, Ints], Ints]

# 24 bytes each, and a hundred for the dictionary: some 8 MiB when all are taken.
_MOST = 65_536


class SizeMemo:
    """Remembers decisions by size; safe to ask from several threads. A pickled one is empty."""

    def __init__(self, columns: int) -> None:
        """Begin with nothing; decisions are so many numbers each."""
        self._columns = columns
        self._lock = threading.Lock()
        self._known = self._empty()

    def of(self, width: Ints, height: Ints, decide: Decide) -> Ints:
        """Return what is decided about some sizes, int32 [n, columns]."""
        codes = (width.astype(np.int64) << 32 | height).tolist()
        places, made = self._known  # both at once: they belong together
        try:
            return made[[places[code] for code in codes]]
        except KeyError:
            found = decide(width, height)
            self._add(codes, found)
            return found

    def _add(self, codes: list[int], found: Ints) -> None:
        with self._lock:
            if len(self._known[0]) + len(codes) > _MOST:
                self._known = self._empty()
            places, made = self._known
            for code, decision in zip(codes, found, strict=True):
                if code not in places:
                    # The numbers first: whoever sees the place may read them at once.
                    made[len(places)] = decision
                    places[code] = len(places)

    def _empty(self) -> tuple[dict[int, int], Ints]:
        return {}, np.zeros((_MOST, self._columns), dtype=np.int32)

    def __reduce__(self) -> tuple[type["SizeMemo"], tuple[int]]:
        """Leave behind what is remembered: it is quicker made than sent."""
        return SizeMemo, (self._columns,)
