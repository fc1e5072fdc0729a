"""Is copying quicker by this thread alone or by several, here and now?

On an idle machine two threads copy half as fast again as one. Where processors have other things to
do each copy waits for the last of its threads, which may take ten times as long. Nobody but the
clock can tell which it is.
"""

from itertools import count
from time import perf_counter

# Every so many copies the way that was slower lately is tried: at its worst, a hundred times as
# slow, it then takes a fifth of the time.
PROBE = 512
# How much of what was known a new measurement replaces: one that was disturbed is soon forgotten.
_FRESH = 0.25


class Pace:
    """Measures both ways, and chooses the one that was quicker lately; may be used by threads."""

    def __init__(self) -> None:
        """Begin with nothing known."""
        self._calls = count()
        self._seconds = {False: 0.0, True: 0.0}  # for each byte; 0 until it was tried

    def together(self) -> bool:
        """Tell whether to have several threads copy this time."""
        quicker = self._seconds[True] < self._seconds[False]
        return quicker != (next(self._calls) % PROBE == 0)

    def note(self, together: bool, nbytes: int, began: float) -> None:
        """Take in how long a copy took.

        Args:
            together: Whether several threads copied.
            nbytes: How much.
            began: When it began, by `perf_counter`.
        """
        now, known = (perf_counter() - began) / nbytes, self._seconds[together]
        self._seconds[together] = known + _FRESH * (now - known) if known else now
