"""Escaping of untrusted text, such as keys and captions, for terminals, YAML and shells.

Terminals obey control characters, OmegaConf fills in what looks like an interpolation, and shells
take quotes for their own.
"""

import json
import logging
import os
import re
import shlex
import unicodedata
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderResult
    from rich.measure import Measurement

# Kinds of characters that are no text: controls, formats such as bidi overrides, halves of
# surrogate pairs (bytes of a file name that are no UTF-8), ends of lines and of paragraphs.
_NO_TEXT = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
# Formats that scripts and emoji are written with: they join letters, and move nothing.
_JOINERS = frozenset("\u200c\u200d")

# What Hydra's grammar takes for a string without quotes, wherever a value may stand.
_BARE = re.compile(r"[A-Za-z_][A-Za-z0-9_/.:@%+-]*")
_NO_STRING = frozenset({"true", "false", "null", "nan", "inf"})
_DOLLAR_BRACE = re.compile(r"(\\*)\$\{")
_QUOTE = re.compile(r"(\\*)'")


def printable(text: str, keep: str = "") -> str:
    r"""Return a text without anything that a terminal would obey, as "\x1b" for an escape.

    Args:
        text: Any text.
        keep: Characters that are meant, such as the ends of our own lines.
    """
    if text.isprintable():
        return text
    return "".join(
        letter if letter in keep or not _is_no_text(letter) else ascii(letter)[1:-1]
        for letter in text
    )


def _is_no_text(letter: str) -> bool:
    return unicodedata.category(letter) in _NO_TEXT and letter not in _JOINERS


def json_text(value: Any, indent: int | None = None) -> str:
    r"""Return a value as JSON that a terminal may show: what is no text is written as "\u009b"."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    if text.isprintable():
        return text
    return "".join(
        letter if letter == "\n" or not _is_no_text(letter) else json.dumps(letter)[1:-1]
        for letter in text
    )


def without_interpolation(text: str) -> str:
    """Return a text that OmegaConf reads as itself: nothing in it is filled in."""
    return _DOLLAR_BRACE.sub(lambda found: found[1] * 2 + "\\${", text)


def config_value(text: str) -> str:
    """Return a text as a value of an override, which Hydra and OmegaConf read as itself."""
    if _BARE.fullmatch(text) and text.lower() not in _NO_STRING:
        return text
    escaped = without_interpolation(text)
    # Hydra's own rule: backslashes count before a quote only, and the last quote is one.
    escaped = _QUOTE.sub(lambda found: found[1] * 2 + "\\'", escaped)
    tail = len(escaped) - len(escaped.rstrip("\\"))
    return f"'{escaped}{escaped[len(escaped) - tail :]}'"


def shell_word(text: str) -> str:
    r"""Return a text as one word of a shell, in printable characters alone.

    Others are written as bash and zsh read them in $'...', such as "\x1b".
    """
    if printable(text) == text:
        return shlex.quote(text)
    plain = text.replace("\\", "\\\\").replace("'", "\\'")
    return "$'" + "".join(_shell_letter(letter) for letter in plain) + "'"


def _shell_letter(letter: str) -> str:
    if not _is_no_text(letter):
        return letter
    try:
        data = letter.encode(errors="surrogateescape")
    except UnicodeEncodeError:  # half of a pair that stands for no byte: nothing can say it
        data = os.fsencode("\ufffd")
    return "".join(f"\\x{byte:02x}" for byte in data)


class PrintableFormatter(logging.Formatter):
    """Formats lines of a log that nothing in them can forge or colour."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, or the lines, of a record."""
        return printable(super().format(record), keep="\n\t")


def terminal(**settings: Any) -> "Console":
    """Return a console that writes all text as `printable` does.

    Args:
        settings: What `rich.console.Console` takes.
    """
    from rich.console import Console

    console = Console(**settings)
    # Not derived from rich's own class, which is imported where something is printed only.
    console.push_render_hook(_Hook())  # type: ignore[arg-type]
    return console


class _Hook:
    """Wraps what a console is asked to print."""

    def process_renderables(
        self, renderables: "Iterable[ConsoleRenderable]"
    ) -> "list[ConsoleRenderable]":
        return [_Printable(each) for each in renderables]


class _Printable:
    """Something that can be printed, its text made harmless once it is laid out."""

    def __init__(self, inner: "ConsoleRenderable") -> None:
        self._inner = inner

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        from rich.segment import Segment

        for segment in console.render(self._inner, options):
            text = segment.text if segment.control else printable(segment.text, keep="\n")
            yield Segment(text, segment.style, segment.control)

    def __rich_measure__(self, console: "Console", options: "ConsoleOptions") -> "Measurement":
        from rich.measure import Measurement

        return Measurement.get(console, options, self._inner)
