"""The arguments of a class named by a dotted path, read from its source without importing it.

Importing the classes that a config names brings torch and Lightning, which takes seconds in which
nothing could be said about the config.
"""

import ast
from collections.abc import Iterator
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

# How far names are followed from module to module; packages re-export through two or three.
_MOST_STEPS = 8


def arguments_of(target: str) -> frozenset[str] | None:
    """Return the names a class or function takes; None where it takes any, or is not found.

    Args:
        target: A dotted path, as "lightning.pytorch.Trainer".
    """
    module, _, name = target.rpartition(".")
    try:
        return _arguments(module, name, 0) if module else None
    except (OSError, SyntaxError, ValueError, ImportError):
        return None


def _arguments(module: str, name: str, steps: int) -> frozenset[str] | None:
    tree = _parsed(module)
    if tree is None or steps > _MOST_STEPS:
        return None
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return _class_arguments(module, node, steps)
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return _parameters(node)
    found = _imported(tree, module, name)
    return _arguments(*found, steps + 1) if found else None


def defined_in(target: str) -> tuple[str, str]:
    """Return the module that defines what a dotted path names, and its name there."""
    module, _, name = target.rpartition(".")
    for _ in range(_MOST_STEPS):
        tree = _parsed(module) if (file := _file(module)) and file.name == "__init__.py" else None
        found = _imported(tree, module, name) if tree else None
        if found is None:
            break
        module, name = found
    return module, name


@lru_cache(maxsize=256)
def source_of(module: str) -> str:
    """Return the source of a module, without importing it.

    Raises:
        ImportError: There is no such module.
    """
    file = _file(module)
    if file is None:
        raise ImportError(f"there is no module {module}")
    return file.read_text(encoding="utf-8")


@lru_cache(maxsize=256)
def _parsed(module: str) -> ast.Module | None:
    file = _file(module)
    return ast.parse(file.read_bytes()) if file else None


def _file(module: str) -> Path | None:
    """Return the source of a module; only the name of its package is looked up."""
    first, *rest = module.split(".")
    spec = find_spec(first)
    if spec is None or spec.origin is None:
        return None
    if not rest and not spec.submodule_search_locations:
        return Path(spec.origin)
    for folder in spec.submodule_search_locations or ():
        path = Path(folder).joinpath(*rest)
        for file in (path / "__init__.py", path.with_suffix(".py")):
            if file.is_file():
                return file
    return None


def _imported(tree: ast.Module, module: str, name: str) -> tuple[str, str] | None:
    """Return where a module takes a name from."""
    file = _file(module)
    is_package = file is not None and file.name == "__init__.py"
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom):
            continue
        for alias in node.names:
            if (alias.asname or alias.name) == name:
                above = module.split(".")
                above = above[: len(above) - node.level + is_package] if node.level else []
                return ".".join([*above, *filter(None, [node.module])]), alias.name
    return None


def _class_arguments(module: str, node: ast.ClassDef, steps: int) -> frozenset[str] | None:
    for part in node.body:
        if isinstance(part, ast.FunctionDef) and part.name in ("__init__", "__new__"):
            return _parameters(part)
    own = frozenset(_fields(node)) if _is_dataclass(node) else frozenset()
    if any(isinstance(base, ast.Attribute) for base in node.bases):
        return None
    inherited: frozenset[str] = frozenset()
    for base in node.bases:
        named = base.value if isinstance(base, ast.Subscript) else base
        if not isinstance(named, ast.Name):
            return None
        if named.id in ("object", "Protocol", "ABC", "Generic"):
            continue
        found = _arguments(module, named.id, steps + 1)
        if found is None:
            return None
        inherited |= found
    return own | inherited


def _parameters(node: ast.FunctionDef) -> frozenset[str] | None:
    given = node.args
    if given.kwarg is not None:
        return None
    names = (each.arg for each in [*given.posonlyargs, *given.args, *given.kwonlyargs])
    return frozenset(names) - {"self", "cls"}


def _is_dataclass(node: ast.ClassDef) -> bool:
    marks = [mark.func if isinstance(mark, ast.Call) else mark for mark in node.decorator_list]
    return any(ast.unparse(mark).rpartition(".")[2] == "dataclass" for mark in marks)


def _fields(node: ast.ClassDef) -> Iterator[str]:
    for part in node.body:
        if not isinstance(part, ast.AnnAssign) or not isinstance(part.target, ast.Name):
            continue
        if "ClassVar" in ast.unparse(part.annotation):
            continue
        value = ast.unparse(part.value) if part.value else ""
        if "init=False" not in value:
            yield part.target.id
