"""Declaration of a config option: a typed field with its meaning and unit."""

from collections.abc import Callable, Iterator
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import field, fields
from typing import Any


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
