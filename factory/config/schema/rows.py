"""Schemas of what is taken from a table's rows: filters, and parts of pictures."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from factory.config.schema.options import at_least, opt


@dataclass
class RowFilterConfig:
    """A condition on one column of a backend's table; rows without a value are dropped."""

    _target_: str = "factory.catalog.row_filters.RowFilter"
    column: str = opt(MISSING, "column of the table; a field of it as COLUMN.FIELD")
    minimum: float | None = opt(None, "least value kept")
    maximum: float | None = opt(None, "greatest value kept")
    one_of: list[Any] = opt(factory=list, meaning="values kept, all of one kind; empty: any")

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values."""
        if self.minimum is None and self.maximum is None and not self.one_of:
            yield f"column {self.column} has no condition; set minimum, maximum or one_of"
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            yield f"minimum {self.minimum:g} is above maximum {self.maximum:g}"
        kinds = {_kind(value) for value in self.one_of}
        bounded = self.minimum is not None or self.maximum is not None
        if len(kinds) > 1 or "other" in kinds or (bounded and kinds - {"number"}):
            yield (
                "one_of must hold values of one kind (texts, numbers or truth values), and "
                f"numbers where minimum or maximum is set; got {self.one_of}"
            )


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return "truth value"
    if isinstance(value, int | float):
        return "number"
    return "text" if isinstance(value, str) else "other"


@dataclass
class CompositeConfig:
    """Pictures that show several side by side, of which one is the sample."""

    _target_: str = "factory.media.composite.Composite"
    image_count: int = opt(1, "pictures of equal width side by side in one file; 1: a plain one")
    select_index: int = opt(0, "which of them is used, from the left, from 0")

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values."""
        yield from at_least("image_count", self.image_count, 1)
        if self.image_count >= 1 and not 0 <= self.select_index < self.image_count:
            yield (
                f"select_index must be 0 to {self.image_count - 1} with image_count="
                f"{self.image_count}, got {self.select_index}"
            )
