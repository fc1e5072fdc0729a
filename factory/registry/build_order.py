"""The order in which backends are built; imports no torch, for configs are checked by it."""

import difflib
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise

from factory.errors import ConfigError


def build_order(needs: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Sort names so that each comes after what it needs; otherwise the listed order is kept.

    Args:
        needs: For each name, the names it needs, by the field that names them.

    Raises:
        ConfigError: A name is unknown, or names depend on each other in a circle; all of
            them at once.
    """
    problems = [
        _unknown(name, field, other, list(needs))
        for name, fields in needs.items()
        for field, other in fields.items()
        if other not in needs
    ]
    if problems:
        raise ConfigError(problems)
    try:
        TopologicalSorter({name: fields.values() for name, fields in needs.items()}).prepare()
    except CycleError as error:
        names = error.args[1][::-1]
        links = [
            f"data.backends.{one}.{field}"
            for one, other in pairwise(names)
            for field in needs[one]
            if needs[one][field] == other
        ]
        raise ConfigError(
            f"backends depend on each other in a circle: {' -> '.join(names)}; "
            f"change {' or '.join(links)}"
        ) from None
    order: dict[str, None] = {}

    def visit(name: str) -> None:  # depth first, which moves as few names as can be
        for other in needs[name].values():
            visit(other)
        order.setdefault(name)

    for name in needs:
        visit(name)
    return list(order)


def _unknown(name: str, field: str, other: str, names: list[str]) -> str:
    guess = difflib.get_close_matches(other, names, n=1)
    hint = f"did you mean {guess[0]!r}? " if guess else ""
    return (
        f"data.backends.{name}.{field} names {other!r}, which is no backend; {hint}"
        f"backends are {', '.join(names)}"
    )
