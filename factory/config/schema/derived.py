"""Schemas derived from the classes they configure: names, types, defaults, limits and sentences.

A class is read from its source: importing it may bring torch, which a config does without.
"""

import ast
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import Field, dataclass
from inspect import get_annotations
from typing import Any, NamedTuple, TypeVar, cast

from factory.config.schema.options import opt
from factory.config.signatures import defined_in, source_of
from factory.limits import Above, AtLeast

Schema = TypeVar("Schema", bound=type)

# Types that OmegaConf enforces; what is of another type is left to its class.
_TYPES: dict[str, Any] = {
    "str": str, "int": int, "float": float, "bool": bool,
    "str | None": str | None, "int | None": int | None, "float | None": float | None,
    "Sequence[str]": list[str], "tuple[str, ...]": list[str],
    "Sequence[Value]": list[Any], "dict[str, Any]": dict[str, Any],
}  # fmt: skip
_LIMITS: dict[str, type[AtLeast | Above]] = {"AtLeast": AtLeast, "Above": Above}


class _Setting(NamedTuple):
    """A field of a runtime class, as its source says it."""

    type: Any
    default: Any
    limits: tuple[AtLeast | Above, ...]
    meaning: str


def settings_of(target: str) -> Callable[[Schema], Schema]:
    """Make a schema of a class: it has the settings of that class, in their order.

    What the schema itself declares wins: a default, where it differs, or a whole option.

    Args:
        target: Dotted path of a dataclass.
    """

    def derive(schema: Schema) -> Schema:
        own = get_annotations(schema)
        annotations: dict[str, Any] = {"_target_": str}
        schema._target_ = target  # type: ignore[attr-defined]
        schema.declared_limits = {}  # type: ignore[attr-defined]
        for name, setting in _settings(target).items():
            annotations[name] = own.get(name, setting.type)
            default = schema.__dict__.get(name, setting.default)
            if not isinstance(default, Field):
                setattr(schema, name, _option(default, setting.meaning))
            if setting.limits:
                schema.declared_limits[name] = setting.limits  # type: ignore[attr-defined]
        schema.__annotations__ = annotations | own
        return cast(Schema, dataclass(schema))

    return derive


def limit_problems(config: Any) -> Iterator[str]:
    """Yield what is wrong with values beyond the limits of the class that is configured."""
    for name, limits in getattr(config, "declared_limits", {}).items():
        for limit in limits:
            yield from limit.problems(name, getattr(config, name))


def _option(default: Any, meaning: str) -> Any:
    if isinstance(default, list | dict):
        return opt(factory=default.copy, meaning=meaning)
    return opt(default, meaning)


def _settings(target: str) -> dict[str, _Setting]:
    module, name = defined_in(target)
    found = source_of(module)
    # The methods below the fields are not looked at: they are most of a file.
    head = re.search(
        rf"^class {name}\b.*?(?=^    (?:def |@)|^\S|\Z)", found, re.MULTILINE | re.DOTALL
    )
    if head is None:
        raise ImportError(f"{module} defines no class {name}")
    (node,) = ast.parse(head[0]).body
    assert isinstance(node, ast.ClassDef)  # noqa: S101 - for type checkers
    meanings = _meanings(ast.get_docstring(node) or "")
    return {
        part.target.id: _setting(part, meanings.get(part.target.id, ""), found)
        for part in node.body
        if isinstance(part, ast.AnnAssign)
        and isinstance(part.target, ast.Name)
        and "ClassVar" not in ast.unparse(part.annotation)
        and "init=False" not in ast.unparse(part)
    }


def _setting(node: ast.AnnAssign, meaning: str, source: str) -> _Setting:
    annotation = node.annotation
    limits: tuple[AtLeast | Above, ...] = ()
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "Annotated":
        annotation, *marks = annotation.slice.elts  # type: ignore[attr-defined]
        limits = tuple(_LIMITS[m.func.id](ast.literal_eval(m.args[0])) for m in marks)
    default = "???" if node.value is None else _default(node.value, source)
    kind = _TYPES.get(ast.unparse(annotation), Any)
    if isinstance(default, tuple):
        default = list(default)
    elif kind in (float, float | None) and type(default) is int:
        default = float(default)
    return _Setting(kind, default, limits, meaning)


def _default(node: ast.expr, source: str) -> Any:
    """Return a default: a literal, a constant of the module, or an empty mapping."""
    if ast.unparse(node) == "field(default_factory=dict)":
        return {}
    if isinstance(node, ast.Name) and (
        constant := re.search(rf"^{node.id} = (.+)", source, re.MULTILINE)
    ):
        return ast.literal_eval(constant[1])
    return ast.literal_eval(node)


def _meanings(docstring: str) -> dict[str, str]:
    """Return what a docstring says of each attribute, as `--help` says it.

    That is the first sentence, as a config is written: null for None.
    """
    section = docstring.partition("Attributes:\n")[2]
    entries = re.findall(r"^(\w+): (.*(?:\n +.*)*)", textwrap.dedent(section), re.MULTILINE)
    return {name: _as_help(" ".join(text.split())) for name, text in entries}


def _as_help(text: str) -> str:
    first = re.split(r"\.(?: (?=[A-Z\"])|$)", text, maxsplit=1)[0].replace("None", "null")
    return first if first[1:2].isupper() else first[:1].lower() + first[1:]
