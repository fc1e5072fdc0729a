r"""Placeholders in a config's strings, and their values.

Upstream fills `{model_family}`, `{output_dir}`, `{id}` and `{env:NAME}` in every string value
before it looks at anything else. Here the environment is read when a run is composed, so
`{env:NAME}` becomes an interpolation; the others are known now. It does so only in keys that
name a place or a credential: what stands in a caption is written to caches and shown.
"""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from factory.untrusted_text import without_interpolation

_TOKEN = re.compile(r"\{(model_family|output_dir|id|env:[A-Za-z_][A-Za-z0-9_]*)\}")


@dataclass(frozen=True)
class Variables:
    """Values of the placeholders of one entry.

    Attributes:
        id: The entry's own id, as written; "" where it has none.
        model_family: Upstream's argument; "" where it is not given.
        output_dir: Upstream's argument; its default where it is empty.
        environment: Where `{env:NAME}` is looked up; an absent name means "". None leaves it as
            it is written.
    """

    id: str = ""
    model_family: str = ""
    output_dir: str = ""
    environment: Mapping[str, str] | None = field(default_factory=lambda: os.environ)

    @classmethod
    def of(
        cls,
        entry: Mapping[str, Any],
        arguments: Mapping[str, Any],
        environment: Mapping[str, str] | None = None,
    ) -> "Variables":
        """Collect the values for one entry."""
        name = entry.get("id")
        return cls(
            id=name if isinstance(name, str) else "",
            model_family=str(arguments.get("model_family") or ""),
            output_dir=str(arguments.get("output_dir") or Path.cwd() / ".simpletuner_output"),
            environment=os.environ if environment is None else environment,
        )

    def known(self, token: str) -> str:
        """Return what a token without its braces stands for."""
        if not token.startswith("env:"):
            return str(getattr(self, token))
        if self.environment is None:
            return f"{{{token}}}"
        return self.environment.get(token.removeprefix("env:"), "")


def substitute(value: Any, variables: Variables) -> Any:
    """Fill the placeholders of every string in a value, at any depth.

    Keys and unknown tokens stay as they are, and what is filled in is not looked at again.
    """
    return _map(value, lambda text: _TOKEN.sub(lambda m: variables.known(m[1]), text))


def interpolate(value: Any, variables: Variables) -> Any:
    """Do as `substitute`, but leave the environment to the time a run is composed.

    Strings come out as OmegaConf reads them: `{env:NAME}` is `${oc.env:NAME,''}`, and what
    else would look like an interpolation is escaped, so that it stays what it was.
    """
    return _map(value, lambda text: _interpolated(text, variables))


def _interpolated(text: str, variables: Variables) -> str:
    """Return one string as OmegaConf reads it."""
    pieces: list[str] = []
    literal, end = "", 0
    for match in _TOKEN.finditer(text):
        literal += text[end : match.start()]
        end = match.end()
        if variables.environment is None or not match[1].startswith("env:"):
            literal += variables.known(match[1])
            continue
        # Backslashes right before an interpolation would escape it: each is doubled.
        slashes = len(literal) - len(literal.rstrip("\\"))
        pieces.append(without_interpolation(literal) + "\\" * slashes)
        pieces.append(f"${{oc.env:{match[1].removeprefix('env:')},''}}")
        literal = ""
    return "".join(pieces) + without_interpolation(literal + text[end:])


def reads_environment(value: Any) -> bool:
    """Tell whether a value as upstream writes it holds `{env:NAME}`, at any depth."""
    if isinstance(value, Mapping):
        return any(reads_environment(part) for part in value.values())
    if isinstance(value, list):
        return any(reads_environment(part) for part in value)
    return isinstance(value, str) and any(
        match[1].startswith("env:") for match in _TOKEN.finditer(value)
    )


def is_interpolated(text: str) -> bool:
    """Tell whether a string reads the environment at the start of a run."""
    return "${oc.env:" in text


def _map(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _map(part, change) for key, part in value.items()}
    if isinstance(value, list):
        return [_map(part, change) for part in value]
    return value
