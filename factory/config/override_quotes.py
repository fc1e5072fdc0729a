"""Overrides that Hydra's grammar refuses, quoted so that it takes them."""

import shlex
from collections.abc import Iterator

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

_CLOSING = {"[": "]", "{": "}"}


def advice(override: str) -> str:
    """Return what to write instead of an override that Hydra cannot read."""
    key, equals, value = override.partition("=")
    if not equals or not key:
        return (
            f"{override!r} is no KEY=VALUE (`--help` lists them); a value with spaces needs "
            "quotes around it all, as in 'KEY=some words'"
        )
    found = [f"{key}={text}" for text in _candidates(value) if _reads(f"{key}={text}")]
    if found and _is_sweep(override):
        one, several = map(_for_shell, found)
        return f"for one text write {one}, for a list {several}"
    if found:
        return f"Hydra takes this only with quotes inside: {_for_shell(found[0])}"
    return f"Hydra cannot read the key {key!r}; keys are names with dots between, as in a.b=VALUE"


def _candidates(value: str) -> Iterator[str]:
    """Yield a value with quotes around texts of its list or mapping, then around all of it."""
    closing = _CLOSING.get(value[:1])
    if closing and value.endswith(closing) and (parts := _split(value[1:-1])):
        if closing == "]":
            yield f"[{','.join(map(_quoted_text, parts))}]"
        elif all(":" in part for part in parts):
            pairs = (part.partition(":") for part in parts)
            yield f"{{{','.join(f'{name}:{_quoted_text(text)}' for name, _, text in pairs)}}}"
    yield _quoted(value)
    yield f"[{','.join(map(_quoted_text, _split(value)))}]"


def _split(text: str) -> list[str]:
    """Split at commas outside of brackets; nothing if these do not match."""
    parts, depth = [""], 0
    for sign in text:
        depth += (sign in "[{(") - (sign in "]})")
        if sign == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += sign
    return [] if depth else parts


def _quoted_text(text: str) -> str:
    return text if _reads(f"a={text}") else _quoted(text.strip())


def _quoted(text: str) -> str:
    return QuotedString(text=text, quote=Quote.double).with_quotes()


def _reads(override: str) -> bool:
    return _is_sweep(override) is False


def _is_sweep(override: str) -> bool | None:
    """Tell whether an override stands for several values; None where Hydra cannot read it."""
    try:
        return OverridesParser.create().parse_override(override).is_sweep_override()
    except HydraException:
        return None


def _for_shell(text: str) -> str:
    return shlex.quote(text) if "'" in text else f"'{text}'"
