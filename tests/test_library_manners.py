"""The factory is a library: it ends no process, and changes nothing that others share."""

import ast
from collections.abc import Iterator
from pathlib import Path

import factory

PACKAGE = Path(factory.__file__).parent
# Where a command of the command line ends.
COMMANDS = {
    "commands/cache.py": ["sys.exit"],
    "commands/cli.py": ["SystemExit"],
    "commands/interruption.py": ["SystemExit"],  # a process that Lightning started, after Ctrl-C
    "commands/plan.py": ["sys.exit"],
    "commands/precompute.py": ["sys.exit"],
    "commands/startup.py": ["sys.exit"],
}
ENDS = {"exit", "quit", "sys.exit", "os._exit", "os.abort", "SystemExit"}


def calls(path: Path) -> Iterator[str]:
    """Yield the dotted name of whatever a module calls or raises."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)
        elif isinstance(node, ast.Raise) and node.exc is not None:
            yield ast.unparse(node.exc).partition("(")[0]


def test_no_module_ends_the_process() -> None:
    found = {
        path.relative_to(PACKAGE).as_posix(): sorted(ENDS.intersection(calls(path)))
        for path in PACKAGE.rglob("*.py")
    }
    assert {name: ends for name, ends in found.items() if ends} == COMMANDS


def test_no_module_changes_builtins_or_globals_of_its_own() -> None:
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        assert not [node for node in ast.walk(tree) if isinstance(node, ast.Global)], path
        assert "builtins" not in path.read_text(), path
