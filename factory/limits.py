"""Limits of settings, declared with their types: `tries: Annotated[int, AtLeast(1)] = 5`."""

from collections.abc import Iterator
from inspect import get_annotations
from typing import Any, NamedTuple


class AtLeast(NamedTuple):
    """A number that is not below a bound, where it is set."""

    bound: float

    def problems(self, name: str, value: float | None) -> Iterator[str]:
        """Yield a sentence if a value is below the bound."""
        if value is not None and value < self.bound:
            bound = f"{self.bound:g}"
            yield f"{name} must be at least {bound}, got {value:g}; set {name}={bound} or more"


class Above(NamedTuple):
    """A number above a bound, where it is set."""

    bound: float

    def problems(self, name: str, value: float | None) -> Iterator[str]:
        """Yield a sentence if a value is not above the bound."""
        if value is not None and value <= self.bound:
            yield f"{name} must be above {self.bound:g}, got {value:g}"


def check_limits(settings: Any, part: str) -> None:
    """Refuse settings beyond the limits that their class declares.

    Args:
        settings: An instance of a dataclass.
        part: Where it stands in a config, for the message.

    Raises:
        ValueError: A value is beyond a limit; the message names it.
    """
    for cls in type(settings).__mro__:
        for name, annotation in get_annotations(cls).items():
            for limit in getattr(annotation, "__metadata__", ()):
                for problem in limit.problems(f"{part}.{name}", getattr(settings, name)):
                    raise ValueError(problem)
