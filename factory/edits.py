r"""What does one entry of a filter list do to a text?

``s/search/replace/`` (or without its last slash) replaces every match of a regular
expression; ``\/`` stands for a slash inside. Any other entry is removed, first as plain text,
then as a regular expression. Expressions are those of Python's `re`: case-sensitive, with
``(?i)`` in front where case does not matter. Python cannot stop a match, so an entry that
repeats a repetition, such as ``(a+)+b``, may take for ever on a long text: leave those out.
"""

import logging
import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from factory.errors import ConfigError

logger = logging.getLogger("factory")

_PART = r"((?:[^/\\]|\\.)*)"
_SED = re.compile(rf"s/{_PART}/{_PART}/?", re.DOTALL)
# What has a meaning of its own in a regular expression.
_SPECIAL = frozenset(r".^$*+?{}[]\|()")
# Unified before texts are edited, so that a raw text may lack what its captions hold.
_LINE_ENDS = frozenset("\r\n")


@dataclass(frozen=True)
class Edit:
    """One entry of a filter list, ready to be applied.

    Attributes:
        plain: Text removed first; "" removes none.
        pattern: Expression whose matches are then replaced; None replaces none.
        replacement: What stands for a match, as in `re.sub`.
        literal: Text without which the edit changes nothing; None where that is not known.
    """

    plain: str = ""
    pattern: re.Pattern[str] | None = None
    replacement: str = ""
    literal: str | None = None

    def __call__(self, text: str) -> str:
        """Return the text with every occurrence removed or replaced."""
        if self.plain:
            text = text.replace(self.plain, "")
        return text if self.pattern is None else self.pattern.sub(self.replacement, text)


def parse_edits(expressions: Iterable[str], where: str) -> tuple[Edit, ...]:
    """Return the edits a filter list stands for, in its order.

    An entry to be removed that is no regular expression is removed as plain text only, which
    is logged once.

    Args:
        expressions: The entries.
        where: What they are numbered after, such as "filters entry".

    Raises:
        ConfigError: An s/search/replace/ that cannot be used; all of them at once.
    """
    entries = list(expressions)
    problems = list(edit_problems(entries, where))
    if problems:
        raise ConfigError(problems)
    for number, expression in enumerate(entries, 1):
        if reason := _only_plain(expression):
            _say_once(
                f"{where} {number}: {expression!r} is no regular expression ({reason}); "
                "it is removed as plain text only"
            )
    return tuple(_parsed(expression) for expression in entries)


def edit_problems(expressions: Iterable[object], where: str) -> Iterator[str]:
    """Yield what is wrong with the entries: their number, the entry, and why."""
    for number, expression in enumerate(expressions, 1):
        if not isinstance(expression, str):
            yield f"{where} {number} must be a text, got {expression!r}"
            continue
        try:
            _parsed(expression)
        except ValueError as error:
            yield f"{where} {number}: {expression!r} cannot be used: {error}"


@lru_cache(maxsize=4096)  # an entry is compiled for the check, and again for each backend
def _parsed(expression: str) -> Edit:
    sed = _SED.fullmatch(expression)
    if sed is not None:
        return _replacing(*sed.groups())
    if not expression or _only_plain(expression):
        return Edit(plain=expression, literal=expression)
    return Edit(expression, _compiled(expression), literal=_literal(expression))


def _replacing(search: str, replacement: str) -> Edit:
    if not search:
        raise ValueError("there is nothing between its first two slashes; write s/search/replace/")
    pattern, template = _compiled(search), replacement.replace(r"\/", "/")
    try:
        pattern.sub(template, "")  # also reads the template, match or no match
    except (re.error, IndexError) as error:
        raise ValueError(f"its replacement is wrong: {error}") from error
    return Edit("", pattern, template, _literal(search))


def _compiled(expression: str) -> re.Pattern[str]:
    with warnings.catch_warnings():
        # Of what may mean another thing in a later Python, such as "[[".
        warnings.simplefilter("ignore", FutureWarning)
        try:
            return re.compile(expression)
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"not a regular expression: {error}") from error


def _only_plain(expression: str) -> str | None:
    """Return why an entry is no regular expression, where it is to be removed."""
    if _SED.fullmatch(expression):
        return None
    try:
        _compiled(expression)
    except ValueError as error:
        return str(error.__cause__)
    return None


def _literal(expression: str) -> str | None:
    return None if set(expression) & (_SPECIAL | _LINE_ENDS) else expression


@lru_cache(maxsize=1024)
def _say_once(message: str) -> None:
    logger.warning(message)
