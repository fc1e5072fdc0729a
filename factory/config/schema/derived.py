"""Schemas derived from the classes they configure: names, types, defaults, limits and sentences.

A class is read from its source: importing it may bring torch, which a config does without.
"""

import ast
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import Field, dataclass, is_dataclass
from enum import StrEnum
from functools import cache
from importlib import import_module
from inspect import get_annotations
from typing import Any, NamedTuple, TypeVar, cast

from omegaconf import MISSING

from factory import limits
from factory.config.schema.options import opt
from factory.config.signatures import defined_in, source_of
from factory.limits import Limit, OneOf

Schema = TypeVar("Schema", bound=type)

# Types that OmegaConf enforces; what is of another type is left to its class.
_TYPES: dict[str, Any] = {
    "str": str, "int": int, "float": float, "bool": bool,
    "str | None": str | None, "int | None": int | None, "float | None": float | None,
    "Sequence[str]": list[str], "tuple[str, ...]": list[str],
    "Sequence[Value]": list[Any], "Sequence[float | Mapping[str, float]]": list[Any],
    "dict[str, Any]": dict[str, Any], "bool | None": bool | None, "Path | str | None": str | None,
}  # fmt: skip
# The default of a setting that an option of a config group fills.
SLOT: Any = object()


class Derived:
    """The type of a setting that a schema names, and its class declares."""


class SettingChoice(StrEnum):
    """A text of several that a setting may be: a plain text in what is stored and sent."""

    def __reduce_ex__(self, protocol: object) -> tuple[type, tuple[str]]:
        """Pickle the text, since the classes of choices have no module."""
        return str, (str(self),)

    def __repr__(self) -> str:
        """Show the text."""
        return repr(str(self))


class _Setting(NamedTuple):
    """A setting of a runtime class, as its source says it; the default is not evaluated."""

    module: str
    type: Any
    limits: tuple[Limit, ...]
    default: ast.expr | None
    meaning: str


def settings_of(
    *targets: str, listed: bool = False, without: tuple[str, ...] = (), rules: bool = False
) -> Callable[[Schema], Schema]:
    """Make a schema of a class: it has the settings of that class, in their order.

    What the schema itself declares wins: a type, a default where it differs, or a whole option.
    What a schema inherits stays as it is there, unless it is declared again.

    Args:
        targets: Dotted paths of classes; a setting is looked for in one after the other, and the
            first is what the schema configures.
        listed: Take only the settings that the schema names, in its order.
        without: Settings that no config sets.
        rules: What the class says of values that do not go together counts for the schema, too;
            it is imported for that when a config is checked, and must bring no torch.
    """

    def derive(schema: Schema) -> Schema:
        own = get_annotations(schema)
        inherited = {name for base in schema.__mro__[1:] for name in get_annotations(base)}
        annotations: dict[str, Any] = {"_target_": str}
        if "_target_" not in schema.__dict__:
            schema._target_ = targets[0]  # type: ignore[attr-defined]
        found = {name: each for target in targets[::-1] for name, each in _read(target).items()}
        found = {name: each for name, each in found.items() if name not in without}
        declared = dict(getattr(schema, "declared_limits", {}))
        for name in own if listed else found:
            if name not in found or (
                name in inherited and name not in own and name not in schema.__dict__
            ):
                continue
            setting = found[name]
            annotations[name], bounds = _own_type(own.get(name), setting)
            value = schema.__dict__.get(name, NO_DEFAULT)
            setattr(schema, name, _option(value, setting, annotations[name]))
            declared[name] = bounds
        schema.declared_limits = declared  # type: ignore[attr-defined]
        in_order = own if listed else annotations | own
        schema.__annotations__ = {"_target_": str} | {
            name: annotations.get(name, kind) for name, kind in in_order.items()
        }
        if rules:
            schema.problems = _rules(targets[0])  # type: ignore[attr-defined]
        return cast(Schema, dataclass(schema))

    return derive


def problems_of(config: Any) -> Iterator[str]:
    """Yield what is wrong with the values of a schema, by their limits and by its own rules."""
    declared = getattr(config, "declared_limits", {}).items()
    bounds = ((name, bound) for name, own in declared for bound in own)
    yield from limits.limit_problems(bounds, config)
    yield from getattr(config, "problems", tuple)()


def _rules(target: str) -> Callable[[Any], Iterator[str]]:
    module, name = defined_in(target)

    def problems(config: Any) -> Iterator[str]:
        return cast("Iterator[str]", getattr(import_module(module), name).setting_problems(config))

    return problems


def _own_type(own: Any, setting: _Setting) -> tuple[Any, tuple[Limit, ...]]:
    """Return the type and the limits: those the schema declares, else those of the class."""
    if own in (None, Derived):
        return setting.type, setting.limits
    if hasattr(own, "__metadata__"):
        return own.__origin__, own.__metadata__
    return own, setting.limits


def _option(own: Any, setting: _Setting, kind: Any) -> Any:
    """Return the option: as the schema declares it, the class filling in what is not said."""
    if own is SLOT:
        return opt(MISSING, f"slot: {setting.meaning}")
    meaning = setting.meaning
    if isinstance(own, Field):
        if own.default is not NO_DEFAULT or own.default_factory is not NO_DEFAULT:
            return own
        own, meaning = NO_DEFAULT, own.metadata["meaning"]
    if own is NO_DEFAULT:
        if is_dataclass(kind) and setting.default is not None:
            return opt(factory=cast("type[Any]", kind), meaning=meaning)
        own = _default(setting)
    if isinstance(own, list | dict):
        return opt(factory=own.copy, meaning=meaning)
    return opt(own, meaning)


def _read(target: str) -> dict[str, _Setting]:
    """Return the settings of a class, by name: its own fields, or what its constructor takes."""
    module, name = defined_in(target)
    # The methods below the fields are not looked at: they are most of a file.
    head = re.search(
        rf"^class {name}\b.*?(?=^    (?:def |@)|^\S|\Z)(?:^    def __init__\(.*?\) -> None:)?",
        source_of(module), re.MULTILINE | re.DOTALL,
    )  # fmt: skip
    if head is None:
        raise ImportError(f"{module} defines no class {name}")
    body = f"{head[0]} ..." if head[0].endswith(" -> None:") else head[0]
    (node,) = ast.parse(body).body
    assert isinstance(node, ast.ClassDef)  # noqa: S101 - for type checkers
    meanings = _meanings(ast.get_docstring(node) or "")
    return {
        name: _setting(module, annotation, default, meanings.get(name, ""))
        for name, annotation, default in _declared(node)
    }


def _declared(node: ast.ClassDef) -> Iterator[tuple[str, ast.expr, ast.expr | None]]:
    for part in node.body:
        if isinstance(part, ast.FunctionDef):
            given = part.args
            for argument, default in zip(given.kwonlyargs, given.kw_defaults, strict=True):
                yield argument.arg, argument.annotation or ast.Constant(None), default
        elif (
            isinstance(part, ast.AnnAssign)
            and isinstance(part.target, ast.Name)
            and "ClassVar" not in ast.unparse(part.annotation)
            and "init=False" not in ast.unparse(part)
        ):
            yield part.target.id, part.annotation, part.value


def _setting(module: str, annotation: ast.expr, default: ast.expr | None, meaning: str) -> _Setting:
    optional = isinstance(annotation, ast.BinOp) and ast.unparse(annotation.right) == "None"
    kind = annotation.left if optional else annotation  # type: ignore[attr-defined]
    kind = _resolved(kind, module)
    bounds: tuple[Limit, ...] = ()
    if isinstance(kind, ast.Subscript):
        outer = ast.unparse(kind.value)
        if outer == "Annotated":
            kind, *marks = kind.slice.elts  # type: ignore[attr-defined]
            bounds = tuple(
                getattr(limits, mark.func.id)(*map(ast.literal_eval, mark.args)) for mark in marks
            )
        elif outer == "Literal":
            bounds, kind = (OneOf(*ast.literal_eval(kind.slice)),), ast.Name("str")
    text = ast.unparse(kind) + " | None" * optional
    found = _TYPES.get(text, Any)
    for bound in bounds:
        if isinstance(bound, OneOf) and text in ("str", "str | None"):
            choice = _choices(bound.allowed)
            found = choice if text == "str" else choice | None
    return _Setting(module, found, bounds, default, meaning)


@cache
def _choices(allowed: tuple[str, ...]) -> Any:
    create: Any = SettingChoice  # with members, it makes a class of them
    return create("SettingChoice", {text: text for text in allowed}, module=__name__)


def _default(setting: _Setting) -> Any:
    """Return the default of a class as a config writes it."""
    node = setting.default
    if node is None:
        return MISSING
    if isinstance(node, ast.Call):  # of `field`
        given = {word.arg: word.value for word in node.keywords}
        if "default_factory" in given:
            return {} if ast.unparse(given["default_factory"]) == "dict" else MISSING
        node = given["default"]
    if isinstance(node, ast.Attribute):  # members of enums are written by their names
        return node.attr
    value = ast.literal_eval(_resolved(node, setting.module))
    return list(value) if isinstance(value, tuple) else value


def _resolved(node: ast.expr, module: str) -> ast.expr:
    """Return what a constant or an alias of a module stands for; else the expression itself."""
    if not isinstance(node, ast.Name) or node.id in _TYPES:
        return node
    source = source_of(module)
    if found := re.search(rf"^{node.id} = (\(\n.*?^\)|[^\n]+)", source, re.MULTILINE | re.DOTALL):
        return ast.parse(found[1], mode="eval").body
    imported = re.search(
        rf"^from (\S+) import (?:\([^)]*\b{node.id}\b|.*\b{node.id}\b)", source, re.MULTILINE
    )
    return _resolved(node, imported[1]) if imported and "factory." in imported[1] else node


def _meanings(docstring: str) -> dict[str, str]:
    """Return what a docstring says of each attribute, as `--help` says it.

    That is the first sentence, as a config is written: null for None.
    """
    section = re.search(r"^(?:Attributes|Args):\n((?:    .*\n?|\n)*)", docstring, re.MULTILINE)
    text = textwrap.dedent(section[1] if section else "")
    entries = re.findall(r"^(\w+): (.*(?:\n +.*)*)", text, re.MULTILINE)
    return {name: _as_help(" ".join(text.split())) for name, text in entries}


def _as_help(text: str) -> str:
    first = re.split(r"\.(?: (?=[A-Z\"])|$)", text, maxsplit=1)[0].replace("None", "null")
    return first if first[1:2].isupper() else first[:1].lower() + first[1:]
