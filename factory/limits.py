"""Limits of settings, declared with their types: `tries: Annotated[int, AtLeast(1)] = 5`."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import is_dataclass
from difflib import get_close_matches
from inspect import get_annotations
from itertools import chain
from typing import Any, NamedTuple, Protocol


class Limit(Protocol):
    """What a value of a setting has to be."""

    def problems(self, name: str, value: Any) -> Iterator[str]:
        """Yield a sentence if a value is beyond the limit; one that is None is not."""


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


class Whole(NamedTuple):
    """A whole number, where it is set."""

    def problems(self, name: str, value: object) -> Iterator[str]:
        """Yield a sentence if a value is none; truth values are not."""
        if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
            yield f"{name} must be a whole number, got {value!r}"


class Share(NamedTuple):
    """A probability, or a part of a whole: a number from 0 to 1."""

    def problems(self, name: str, value: float | None) -> Iterator[str]:
        """Yield a sentence if a value is below 0 or above 1."""
        if value is not None and not 0 <= value <= 1:
            yield f"{name} must be from 0 to 1, got {value:g}"


class OneOf:
    """One of some texts; of a list, each of its entries."""

    def __init__(self, *allowed: str) -> None:
        """Store the texts."""
        self.allowed = allowed

    def problems(self, name: str, value: Any) -> Iterator[str]:
        """Yield a sentence for each text that is none of those allowed."""
        for text in _texts(value):
            if text not in self.allowed:
                near = get_close_matches(str(text), self.allowed, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                yield f"{name} must be one of {', '.join(self.allowed)}, got {text!r}{hint}"


class FileSuffix(NamedTuple):
    """The end of a file's name, with its dot; of a list, each of its entries."""

    def problems(self, name: str, value: Any) -> Iterator[str]:
        """Yield a sentence for each text that does not start with a dot."""
        for text in _texts(value):
            if not text.startswith("."):
                yield f"{name} must start with a dot, got {text!r}; such as {name}=.{text}"


class Names(NamedTuple):
    """A list of names, none of them blank."""

    least: int = 0

    def problems(self, name: str, value: Any) -> Iterator[str]:
        """Yield a sentence if there are too few names, or a blank one."""
        if len(value) < self.least or not all(isinstance(text, str) and text for text in value):
            least = "at least one, none of them blank" if self.least else "none that is blank"
            yield f"{name} must name {least}; got {list(value)}"


def _texts(value: Any) -> Iterable[Any]:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else value


def limit_problems(limits: Iterable[tuple[str, Limit]], settings: Any) -> Iterator[str]:
    """Yield which values are beyond their limits.

    Args:
        limits: Names of settings, and a limit of each.
        settings: What has them.
    """
    for name, limit in limits:
        yield from limit.problems(name, getattr(settings, name))


def in_full(part: str, problem: str, names: Iterable[str]) -> str:
    """Name settings in a sentence as they are set: "batch_size must be …; set batch_size=1".

    Args:
        part: Where they stand in a config.
        problem: The sentence, which knows its own settings only.
        names: Those.
    """
    known = "|".join(map(re.escape, names))
    if not re.match(rf"({known})\b", problem):
        return f"{part}: {problem}"
    return f"{part}." + re.sub(rf"\b(set|such as) ({known})=", rf"\1 {part}.\2=", problem)


def check_limits(settings: Any, part: str, error: type[Exception] = ValueError) -> None:
    """Refuse settings beyond the limits that their class declares, or that do not go together.

    Args:
        settings: An instance of a class whose fields, or arguments, are annotated with limits. It
            may have a method `setting_problems`, that yields sentences about values that do not go
            together: "end_step 3 comes before start_step 4".
        part: Where it stands in a config, for the message.
        error: What is raised.

    Raises:
        ValueError: A value is beyond a limit; the message names it.
    """
    declared: dict[str, Any] = {}
    for cls in reversed(type(settings).__mro__):
        declared |= get_annotations(cls)
    if not is_dataclass(settings):
        declared = get_annotations(type(settings).__init__)
    limits = [
        (name, limit)
        for name, annotation in declared.items()
        for limit in getattr(annotation, "__metadata__", ())
    ]
    rules = getattr(settings, "setting_problems", tuple)
    for problem in chain(limit_problems(limits, settings), rules()):
        raise error(in_full(part, problem, declared))
