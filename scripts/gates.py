"""Whether files and functions stay small: the limits the code keeps, checked."""

import ast
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 50
# "25 on average", over the package.
MAX_MEAN_LINES = 25


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Yield (name, lines) of every function in a file, from `def` to its last line."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


def main() -> int:
    """Print what is too long; return the exit status."""
    root = Path(__file__).parent.parent
    files = sorted(
        path for folder in ("factory", "scripts", "tests") for path in (root / folder).rglob("*.py")
    )
    problems, lengths = [], []
    for path in [*files, root / "train.py"]:
        name = path.relative_to(root)
        count = len(path.read_text().splitlines())
        if count >= MAX_FILE_LINES:
            problems.append(f"{name}: {count} lines, the limit is {MAX_FILE_LINES - 1}")
        for function, lines in functions(path):
            if name.parts[0] == "factory":
                lengths.append(lines)
            if lines >= MAX_FUNCTION_LINES:
                limit = MAX_FUNCTION_LINES - 1
                problems.append(f"{name}: {function} has {lines} lines, the limit is {limit}")
    mean = statistics.mean(lengths)
    if mean >= MAX_MEAN_LINES:
        problems.append(
            f"functions have {mean:.1f} lines on average, the limit is {MAX_MEAN_LINES}"
        )
    print("\n".join(problems))
    print(f"{len(files)} files, {len(lengths)} functions of {mean:.1f} lines on average")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
