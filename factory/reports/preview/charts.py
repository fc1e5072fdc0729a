"""Geometry of the charts on the dry run's page; `templates/charts.html` draws them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

# Ticks are powers of two; more than this many would crowd.
MOST_TICKS = 7


@dataclass(frozen=True)
class ScatterData:
    """Sizes of samples of one backend.

    Attributes:
        name: The backend's name.
        kept: (width, height) of kept samples, px.
        dropped: The same of dropped ones that were measured.
        targets: (width, height) of its buckets.
    """

    name: str
    kept: Sequence[tuple[int, int]]
    dropped: Sequence[tuple[int, int]]
    targets: Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Scatter:
    """Widths against heights of samples, on logarithmic axes.

    Attributes:
        clouds: The samples of each backend.
    """

    # Edges of the plot and the room left of it and above, in px of its own units.
    EDGE: ClassVar[int] = 420
    LEFT: ClassVar[int] = 52
    TOP: ClassVar[int] = 12

    clouds: Sequence[ScatterData]

    @property
    def empty(self) -> bool:
        """Whether nothing is kept."""
        return not any(cloud.kept or cloud.targets for cloud in self.clouds)

    @property
    def targets(self) -> list[tuple[int, int]]:
        """(width, height) of all buckets."""
        return sorted({pair for cloud in self.clouds for pair in cloud.targets})

    @cached_property
    def bounds(self) -> tuple[int, int]:
        """Exponents of the powers of two around all edges that are kept."""
        edges = [edge for c in self.clouds for pair in (*c.kept, *c.targets) for edge in pair]
        low, high = math.floor(math.log2(min(edges))), math.ceil(math.log2(max(edges)))
        return low, max(high, low + 1)

    @property
    def ticks(self) -> list[int]:
        """Lengths that are written at the axes."""
        low, high = self.bounds
        return [2**power for power in range(low, high + 1, math.ceil((high - low) / MOST_TICKS))]

    def at(self, width: int, height: int) -> tuple[float, float]:
        """Return where a sample is drawn; dropped ones far outside stand at the border."""
        low, high = self.bounds

        def along(edge: int) -> float:
            place = self.EDGE * (math.log2(edge) - low) / (high - low)
            return min(max(place, 0.0), float(self.EDGE))

        return self.LEFT + along(width), self.TOP + self.EDGE - along(height)
