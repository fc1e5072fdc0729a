"""Text and tables written for people: numbers and names, with secrets redacted."""

import re

from rich import box
from rich.console import Console
from rich.table import Table

from factory.untrusted_text import printable

# User and password of a URL, and its query: signed URLs carry their key there.
_USERINFO = re.compile(r"(?<=://)[^/@\s]+@")
_QUERY = re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s?#'\"<>]*)[?#][^\s'\"<>]*", re.IGNORECASE)

# A number of bytes from here on is shown in the next unit, so that four digits never show.
_LARGEST = 1000
# From here on a digit after the point says nothing.
_WHOLE = 100


def redact(text: str) -> str:
    """Return a text in one line, without passwords and queries of the URLs in it."""
    return printable(_QUERY.sub(r"\1?…", _USERINFO.sub("…@", text)))


def place(identity: str, folder: str) -> str:
    """Return a storage's identity with a folder in it: "s3://bucket/photos?endpoint=…"."""
    shown = printable(_USERINFO.sub("…@", identity))
    root, mark, server = shown.partition("?")
    return f"{root.rstrip('/')}/{folder}{mark}{server}" if folder else shown


def short_name(key: str) -> str:
    """Return the last part of a key."""
    return redact(key).rpartition("/")[2] or redact(key)


def size(count: int | None) -> str:
    """Return bytes as "1.4 MiB"; "unknown" for None."""
    if count is None:
        return "unknown"
    value = float(count)
    unit = "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < _LARGEST:
            break
        value, unit = value / 1024, larger
    digits = 0 if unit == "B" or value >= _WHOLE else 1
    return f"{value:,.{digits}f} {unit}"


def number(count: int) -> str:
    """Return 1234567 as "1,234,567"."""
    return f"{count:,}"


def percent(share: float) -> str:
    """Return 0.3456 as "34.6%"."""
    return f"{share:.1%}"


def plural(count: int, noun: str) -> str:
    """Return "1 sample", "2 samples", "3 batches"."""
    if count != 1:
        noun += "es" if noun.endswith(("ch", "s", "x")) else "s"
    return f"{number(count)} {noun}"


def listed(names: list[str], most: int) -> str:
    """Return "a, b and 3 more"."""
    shown = ", ".join(names[:most])
    rest = len(names) - most
    return shown if rest <= 0 else f"{shown} and {number(rest)} more"


def beforehand(mode: str | None, requests: int, count: int | None) -> str:
    """Return "116, 2.1 MiB" read to be encoded before the first step, or when it is instead."""
    late = mode is not None and not requests
    return str(mode).replace("_", " ") if late else reads(requests, count)


def reads(requests: int, count: int | None, bound: str = "") -> str:
    """Return "116 reads, 1.4 MiB"; "-" where nothing is read."""
    if not requests:
        return "-"
    shown = "" if count is None else f", {bound}{size(count)}"
    return f"{plural(requests, 'read')}{shown}"


def narrow(console: Console, width: int) -> Console:
    """Make a console no wider than tables are easy to read in; as wide where it is no terminal."""
    if console.width > width or not console.is_terminal:
        console.width = width
    return console


def titled_table(title: str, *columns: str, numbers: str = "fold") -> Table:
    """Return an empty table.

    Args:
        title: What stands above it.
        columns: Headings; those of columns that are justified to the right begin with ">".
        numbers: What becomes of cells to the right that are too wide: "fold" or "ellipsis".
    """
    table = Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD,
        pad_edge=False, header_style="dim",
    )  # fmt: skip
    return with_columns(table, *columns, numbers=numbers)


def with_columns(table: Table, *columns: str, words: str = "fold", numbers: str = "fold") -> Table:
    """Return a table with columns; see `titled_table`. `words` is for those to the left."""
    for heading in columns:
        right = heading.startswith(">")
        table.add_column(
            heading.removeprefix(">"),
            justify="right" if right else "left",
            overflow=numbers if right else words,  # type: ignore[arg-type]
        )
    return table
