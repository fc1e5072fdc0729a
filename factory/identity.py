"""Stable names of classes in what is persisted: plans, recipes and facts survive a moved file.

A class whose name is persisted declares it as `persisted_as`, a literal that never changes.
"""

from dataclasses import fields
from typing import Any


def class_identity(kind: type, *, short: bool = False) -> str:
    """Return the name a class declares for itself, else its dotted path.

    Subclasses do not inherit it: they do other things under other settings.

    Args:
        kind: The class.
        short: Without a declared name, return the class's own name without its module.
    """
    path = kind.__qualname__ if short else f"{kind.__module__}.{kind.__qualname__}"
    return str(kind.__dict__.get("persisted_as", path))


def settings_identity(value: Any) -> str:
    """Return a dataclass's name and the settings it shows, as its own `repr` gives them today.

    Values of other kinds are shown by their `repr`.
    """
    kind = type(value)
    if "persisted_as" not in kind.__dict__:
        return repr(value)
    shown = ", ".join(
        f"{each.name}={getattr(value, each.name)!r}" for each in fields(kind) if each.repr
    )
    return f"{class_identity(kind)}({shown})"
