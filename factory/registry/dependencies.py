"""Build order of backends: a source before the backends that depend on it."""

import difflib
from collections.abc import Mapping

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
    order: list[str] = []
    for name in needs:
        _visit(name, needs, [], order)
    return order


def _visit(
    name: str, needs: Mapping[str, Mapping[str, str]], path: list[str], order: list[str]
) -> None:
    if name in order:
        return
    if name in path:
        names = path[path.index(name) :]
        links = [
            f"data.backends.{one}.{field}"
            for one, other in zip(names, [*names[1:], name], strict=True)
            for field in needs[one]
            if needs[one][field] == other
        ]
        raise ConfigError(
            f"backends depend on each other in a circle: {' -> '.join([*names, name])}; "
            f"change {' or '.join(links)}"
        )
    for other in needs[name].values():
        _visit(other, needs, [*path, name], order)
    order.append(name)


def _unknown(name: str, field: str, other: str, names: list[str]) -> str:
    guess = difflib.get_close_matches(other, names, n=1)
    hint = f"did you mean {guess[0]!r}? " if guess else ""
    return (
        f"data.backends.{name}.{field} names {other!r}, which is no backend; {hint}"
        f"backends are {', '.join(names)}"
    )
