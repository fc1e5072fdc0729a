"""Composite pictures, which show several side by side: which part is the sample."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from factory.limits import AtLeast, check_limits


@dataclass(frozen=True)
class Composite:
    """One of several pictures of equal width that stand side by side in one file.

    Strips are cut from the upright picture; columns left over by the division stay unused.

    Attributes:
        image_count: Pictures of equal width side by side in one file; 1: a plain one.
        select_index: Which of them is used, from the left, from 0.
    """

    image_count: Annotated[int, AtLeast(1)] = 1
    select_index: int = 0

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: There is no such strip.
        """
        check_limits(self, "composite")

    def setting_problems(self) -> Iterator[str]:
        """Yield why there is no such strip."""
        if self.image_count >= 1 and not 0 <= self.select_index < self.image_count:
            yield (
                f"select_index must be 0 to {self.image_count - 1} with image_count="
                f"{self.image_count}, got {self.select_index}"
            )

    def __bool__(self) -> bool:
        """Whether there is anything to cut."""
        return self.image_count > 1

    @property
    def parts(self) -> dict[str, object]:
        """What it adds to a recipe; nothing for plain pictures."""
        return {"strip": [self.image_count, self.select_index]} if self else {}

    def widths(self, whole: NDArray[np.int32]) -> NDArray[np.int32]:
        """Return the strips' widths for those of whole pictures, px, int32 [n]."""
        return (whole // self.image_count).astype(np.int32)

    def of(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the strip of decoded pixels [H, W, 3], as a view."""
        width = pixels.shape[1] // self.image_count
        first = width * self.select_index
        return pixels[:, first : first + width]
