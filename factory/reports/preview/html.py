"""HTML elements from text, escaped so that nothing of the data is markup."""

from collections.abc import Iterable
from html import escape as _escape

from factory.untrusted_text import printable

# Elements without an end tag.
_VOID = frozenset({"img", "meta", "br", "circle", "line", "path", "rect"})


def escape(text: str) -> str:
    """Return text that is no markup, and that turns no other text around."""
    return _escape(printable(text, keep="\n\t"))


class Safe(str):
    """Text that is HTML already."""

    __slots__ = ()


# What stands inside an element; plain text is escaped.
Content = str | int | Iterable["Content"] | None


def tag(name: str, /, *content: Content, **attributes: object) -> Safe:
    """Return an element.

    Args:
        name: Its name.
        content: What stands inside; all text but `Safe` is escaped.
        attributes: Its attributes, escaped; a trailing "_" is taken off, other "_" become "-".
            None leaves an attribute out.
    """
    shown = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Safe(
            f"<{name}{shown}/>" if name not in ("img", "meta", "br") else f"<{name}{shown}>"
        )
    return Safe(f"<{name}{shown}>{text(content)}</{name}>")


def text(content: Content) -> Safe:
    """Return content as HTML, escaped where it is not HTML already."""
    if content is None:
        return Safe("")
    if isinstance(content, Safe):
        return content
    if isinstance(content, str | int):
        return Safe(escape(str(content)))
    return Safe("".join(text(part) for part in content))
