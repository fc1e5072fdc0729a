"""Declaration of a config option: a typed field with its meaning, unit and limits."""

import difflib
from collections.abc import Callable, Collection, Iterator
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import field, fields
from typing import Any

from factory.limits import Above, AtLeast


def opt(
    default: Any = NO_DEFAULT, meaning: str = "", *, factory: Callable[[], Any] | None = None
) -> Any:
    """Declare one option: its default and, in one line, its meaning and unit.

    The return type is `Any` so that the annotation at the left, which OmegaConf enforces,
    is also the one type checkers see.
    """
    metadata = {"meaning": meaning}
    if factory is not None:
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)


def meanings(schema: type) -> Iterator[tuple[str, str, Any]]:
    """Yield (name, meaning, default) for every option of a schema a user may set."""
    for option in fields(schema):
        meaning = option.metadata.get("meaning", "")
        if meaning:
            default = option.default
            if option.default_factory is not NO_DEFAULT:
                default = option.default_factory()
            yield option.name, meaning, default


def at_least(name: str, value: float | None, bound: float) -> Iterator[str]:
    """Yield a problem if a value is below its bound."""
    return AtLeast(bound).problems(name, value)


def above(name: str, value: float | None, bound: float) -> Iterator[str]:
    """Yield a problem if a value is not above its bound."""
    return Above(bound).problems(name, value)


def one_of(name: str, value: str, allowed: Collection[str]) -> Iterator[str]:
    """Yield a problem if a value, or an entry of a list, is none of those allowed."""
    if value not in allowed:
        near = difflib.get_close_matches(value, allowed, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        yield f"{name} must be one of {', '.join(allowed)}, got {value!r}{hint}"
