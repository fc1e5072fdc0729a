"""Limits that the code keeps: small files and functions, and one word for one thing."""

import ast
import re
import statistics
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parent.parent
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 50
# "25 on average", over the package.
MAX_MEAN_LINES = 25

# Words that say nothing to someone who knows PyTorch, Hydra and Parquet; CONTRIBUTING.md has what
# to say instead. In names of files, classes and functions, whole words of them.
WORDS = {
    "manager", "handler", "helper", "helpers", "utils", "util", "processor", "giving", "giver",
    "filling", "carried", "maker", "making", "workshop", "crew", "outline", "neighbours",
    "told", "supply", "stager", "agreement", "peers", "wire", "placement", "lineage", "upkeep",
    "foresee", "misfortune", "spoken", "shelf", "flights", "drafts", "assembly",
}  # fmt: skip
# Names in which such a word is the library's own.
OWN = {"_processor_folder"}
# What says nothing alone, as the name of a file or a class.
NAMES = {
    "Part", "Publish", "Ticket", "Board", "Asked", "Kept", "Ready", "Empty", "Blocks",
    "Waiting", "StandIn", "FetchAhead", "OneAhead", "CachePlace", "Texts", "Located", "Chosen",
    "part", "together", "carry", "ending", "commits", "alignment", "opened", "open_rows",
    "copying", "known_facts", "in_use", "new_memory", "caption_silence", "texts", "cuts",
}  # fmt: skip
# In docstrings and messages.
PHRASES = (
    "process that makes batches",
    "process which makes batches",
    "let go of what is held",
    "made by nobody",
)
# How far apart two floors are whose files may not have the same name.
NEIGHBOURS = 2


def functions(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Yield (name, lines) of every function in a file, from `def` to its last line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


def size_problems(trees: dict[Path, ast.Module]) -> Iterator[str]:
    """Yield what is too long."""
    lengths = []
    for path, tree in trees.items():
        count = len((ROOT / path).read_text().splitlines())
        if count >= MAX_FILE_LINES:
            yield f"{path}: {count} lines, the limit is {MAX_FILE_LINES - 1}"
        for function, lines in functions(tree):
            if path.parts[0] == "factory":
                lengths.append(lines)
            if lines >= MAX_FUNCTION_LINES:
                limit = MAX_FUNCTION_LINES - 1
                yield f"{path}: {function} has {lines} lines, the limit is {limit}"
    mean = statistics.mean(lengths)
    if mean >= MAX_MEAN_LINES:
        yield f"functions have {mean:.1f} lines on average, the limit is {MAX_MEAN_LINES}"


def words_of(name: str) -> set[str]:
    """Return the words of a name, in snake case or in camel case."""
    return set(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().split("_"))


def name_problems(path: Path, tree: ast.Module) -> Iterator[str]:
    """Yield names of a file of the package that say nothing to a newcomer."""
    named = [(path.stem, 1)]
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            named.append((node.name, node.lineno))
        if isinstance(node, ast.ClassDef) and node.name in NAMES:
            yield f"{path}:{node.lineno}: call it what it is, not {node.name}"
    if path.stem in NAMES:
        yield f"{path}: call it what it is, not {path.stem}"
    for name, line in named:
        if name not in OWN and (found := words_of(name) & WORDS):
            yield f"{path}:{line}: {name}: say something else for {', '.join(sorted(found))}"


def text_problems(path: Path, tree: ast.Module) -> Iterator[str]:
    """Yield phrases that say nothing to a newcomer, and a module's docstring that is a question."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = " ".join(node.value.split())
            for phrase in PHRASES:
                if phrase in text:
                    yield f"{path}:{node.lineno}: say something else for {phrase!r}"
    sentence = re.match(r".*?[.?!](?=\s|$)", ast.get_docstring(tree) or "", re.DOTALL)
    if sentence and sentence[0].endswith("?"):
        yield f"{path}: its docstring asks; say what the module is"


def repeated_names(trees: dict[Path, ast.Module]) -> Iterator[str]:
    """Yield public classes of one name, and files of one name on floors that are near."""
    classes = defaultdict(list)
    files = defaultdict(list)
    floors = floor_heights()
    for path, tree in trees.items():
        files[path.stem].append(path)
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                classes[node.name].append(path)
    for name, places in sorted(classes.items()):
        if len(places) > 1:
            yield f"class {name} is in {', '.join(map(str, places))}"
    for name, places in sorted(files.items()):
        for place, other in pairwise(places):
            heights = [floors[path.parts[1].removesuffix(".py")] for path in (place, other)]
            if name != "__init__" and abs(heights[0] - heights[1]) <= NEIGHBOURS:
                yield f"{place} and {other} have one name"


def floor_heights() -> dict[str, int]:
    """Return how high each folder of the package is, from its import contract."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = next(
        contract["layers"]
        for contract in contracts["contracts"]
        if contract["name"].startswith("floors:")
    )
    heights = {"__init__": 0}
    for height, layer in enumerate(reversed(layers)):
        heights.update({name.strip(): height for name in layer.split("|")})
    return heights


def main() -> int:
    """Print what is too long or badly named; return the exit status."""
    files = [path for top in ("factory", "scripts", "tests") for path in (ROOT / top).rglob("*.py")]
    trees = {
        path.relative_to(ROOT): ast.parse(path.read_text())
        for path in [*sorted(files), ROOT / "train.py"]
    }
    package = {path: tree for path, tree in trees.items() if path.parts[0] == "factory"}
    problems = list(size_problems(trees))
    for path, tree in package.items():
        problems += [*name_problems(path, tree), *text_problems(path, tree)]
    problems += repeated_names(package)
    print("\n".join(problems))
    print(f"{len(trees)} files, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
