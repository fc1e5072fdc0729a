r"""Edits of captions: the entries of a filter list, and files of such lists.

``s/search/replace/`` (or without its last slash) replaces every match of a regular
expression; ``\/`` stands for a slash inside. As with sed, another sign may part the three, as in
``s|search|replace|``, and flags may follow: ``g``, which holds anyway, and ``i``, with which case
does not matter. Any other entry is removed, first as plain text,
then as a regular expression. Expressions are those of the package `regex`: what Python's `re`
takes and more (such as ``\p{Lu}``), case-sensitive, with ``(?i)`` in front where case does not
matter. Unlike `re` it can give up, so an expression that would never end on some text stops
the run with its name instead.
"""

import json
import logging
import threading
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePath
from typing import Any

import regex

from factory.catalog.local_text import read_local_text
from factory.errors import ConfigError

logger = logging.getLogger("factory")

# A match takes microseconds, also on a busy machine far less than this. One that reaches it
# tries ever more ways to fail, as (a|aa)+$ does.
TIMEOUT_SECONDS = 20.0

# What sed takes, which allows any sign; a slash at the end may be left out.
_PART = r"((?:(?!\1)[^\\]|\\.)*)"
_SED = regex.compile(rf"s([^\w\s\\]){_PART}\1{_PART}(?:\1([a-zA-Z0-9]*)|(?<=^s/.*))", regex.DOTALL)
_FLAGS = {"g": "", "i": "(?i)", "I": "(?i)"}
# What has a meaning of its own in a regular expression.
_SPECIAL = frozenset(r".^$*+?{}[]\|()")
# Unified before texts are edited, so that a raw text may lack what its captions hold.
_LINE_ENDS = frozenset("\r\n")
_COMPILING = threading.Lock()
# How a filter file may be written: one entry a line, or a list.
SUFFIXES = (".txt", ".json")


@dataclass(frozen=True)
class Edit:
    """One entry of a filter list, ready to be applied.

    Attributes:
        expression: The entry as it was written.
        plain: Text removed first; "" removes none.
        pattern: Expression whose matches are then replaced; None replaces none.
        replacement: What stands for a match, as in `regex.sub`.
        literal: Text without which the edit changes nothing; None where that is not known.
    """

    expression: str
    plain: str = ""
    pattern: Any = None
    replacement: str = ""
    literal: str | None = None

    def __call__(self, text: str) -> str:
        """Return the text with every occurrence removed or replaced.

        Raises:
            ConfigError: The expression takes too long on this text.
        """
        if self.plain:
            text = text.replace(self.plain, "")
        if self.pattern is None:
            return text
        try:
            return str(self.pattern.sub(self.replacement, text, timeout=TIMEOUT_SECONDS))
        except TimeoutError as error:
            raise ConfigError(
                f"filter {self.expression!r} takes over {TIMEOUT_SECONDS:g} s on the caption "
                f"{text[:80]!r}; write it so that no text can be matched in many ways"
            ) from error


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
    if problems := list(edit_problems(entries, where)):
        raise ConfigError(problems)
    for number, expression in enumerate(entries, 1):
        if reason := _only_plain(expression):
            _say_once(
                f"{where} {number}: {expression!r} is no regular expression ({reason}); "
                "it is removed as plain text only"
            )
    return tuple(_parsed(expression) for expression in entries)


def filter_problems(captions: Any) -> Iterator[str]:
    """Yield what is wrong with the edits of captions: `filters` and `filters_file`."""
    yield from edit_problems(captions.filters, "filters entry")
    file = captions.filters_file
    if file is not None and PurePath(file).suffix not in SUFFIXES:
        yield f"filters_file must end in .txt (one entry a line) or .json (a list), got {file!r}"


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
        sign, search, replacement, flags = sed.groups()
        if unknown := set(flags or "") - _FLAGS.keys():
            raise ValueError(
                f"its flag {''.join(sorted(unknown))!r} is none of g and i; to remove this very "
                f"text write it as {'[s]' + expression[1:]!r}"
            )
        if sign != "/":  # that stands for itself inside, as a slash does
            search = search.replace(f"\\{sign}", regex.escape(sign))
        anyhow = next((_FLAGS[flag] for flag in flags or "" if _FLAGS[flag]), "")
        pattern, template = _replacing(anyhow + search if search else "", replacement, sign)
        return Edit(expression, "", pattern, template, None if anyhow else _literal(search))
    if not expression or _only_plain(expression):
        return Edit(expression, plain=expression, literal=expression)
    return Edit(expression, expression, _compiled(expression), literal=_literal(expression))


def _replacing(search: str, replacement: str, sign: str) -> tuple[Any, str]:
    if not search:
        raise ValueError("there is nothing between its first two slashes; write s/search/replace/")
    pattern, template = _compiled(search), replacement.replace(f"\\{sign}", sign)
    try:
        # A template is read at the first match only; this makes one that holds the same groups.
        regex.compile(f"(?:{search}\n)?").match("").expand(template)
    except (regex.error, IndexError) as error:
        raise ValueError(f"its replacement is wrong: {error}") from error
    return pattern, template


def _compiled(expression: str) -> Any:
    # Filters of warnings are the process's: two threads must not put back each other's.
    with _COMPILING, warnings.catch_warnings():
        # Of what may mean another thing in a later version, such as "[[".
        warnings.simplefilter("ignore")
        try:
            return regex.compile(expression)
        except (regex.error, OverflowError, RecursionError) as error:
            raise ValueError(f"no regular expression: {error}") from error


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


def read_filters(path: str) -> tuple[Edit, ...]:
    """Read a filter file of this machine: a .txt of one entry a line, or a .json list.

    Lines keep their blanks, since an entry may end in one; blank lines do nothing.

    Raises:
        ObjectNotFoundError: There is no such file.
        ConfigError: It cannot be read or is badly written; names the file and the line.
    """
    text = read_local_text(path, "filters_file", kind="filter file", wanted="a .txt or .json file")
    if PurePath(path).suffix == ".json":
        return parse_edits(_json_list(text, path), f"{path} entry")
    return parse_edits(text.replace("\r\n", "\n").split("\n"), f"{path} line")


def _json_list(text: str, path: str) -> list[str]:
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"filters_file {path!r} is not JSON: {error}") from error
    if not isinstance(entries, list):
        raise ConfigError(
            f"filters_file {path!r} holds no list but {type(entries).__name__}; "
            'write ["first entry", "second entry"]'
        )
    return entries
