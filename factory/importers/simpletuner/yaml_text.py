"""YAML text of option files, as OmegaConf reads it back."""

import math
import re
from collections.abc import Iterable
from typing import Any

import yaml

# Texts that every YAML reader takes for a text. All others are quoted: OmegaConf reads more
# things as numbers (1e3) than YAML's own rules do.
_PLAIN = re.compile(r"[A-Za-z_/][A-Za-z0-9_./@-]*(?: [A-Za-z/][A-Za-z0-9_./@-]*)*")
_NOT_PLAIN = frozenset(
    {"true", "false", "yes", "no", "on", "off", "y", "n", "null", "nan", "inf", "none"}
)


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]  # PyYAML is untyped
    """Writes texts quoted where in doubt, and short lists in one line."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> Any:
        """Indent lists below their key."""
        del indentless
        return super().increase_indent(flow, False)


def _text(dumper: _Dumper, value: str) -> Any:
    plain = _PLAIN.fullmatch(value) and value.lower() not in _NOT_PLAIN
    # Interpolations hold single quotes, which would have to be doubled; and every kind of line
    # end stays itself in double quotes only, where it is escaped.
    quote = '"' if "'" in value or not value.isprintable() else "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, None if plain else quote)


def _list(dumper: _Dumper, value: list[Any]) -> Any:
    short = not any(isinstance(part, dict | list) for part in value)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=short)


def _null(dumper: _Dumper, value: None) -> Any:
    del value
    return dumper.represent_scalar("tag:yaml.org,2002:null", "null")


_Dumper.add_representer(str, _text)
_Dumper.add_representer(list, _list)
_Dumper.add_representer(type(None), _null)


def dump(value: Any) -> str:
    """Return a value as YAML, keys in their order, no line folded."""
    return str(
        yaml.dump(
            value,
            Dumper=_Dumper,
            sort_keys=False,
            allow_unicode=True,
            default_flow_style=False,
            width=math.inf,
        )
    )


def comment(lines: Iterable[str]) -> str:
    """Return lines as YAML comments."""
    return "".join(f"# {line}".rstrip() + "\n" for line in lines)
