"""Names of datasets that Hydra accepts in files, packages and overrides."""

import re
from collections.abc import Iterable

from factory.config.compose import conf_dir
from factory.importers.simpletuner.problem import ImportProblem, ImportRefusedError

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_OTHER = re.compile(r"[^A-Za-z0-9_-]+")
# Names that options here use to extend or fill others.
RESERVED = frozenset({"base", "inherit", "dataset", "backend", "caption", "crop"})
# Longest name given: with ".IMPORT.md" it fits every file system, which take 255 bytes.
MAX_LENGTH = 80


def safe_name(text: str) -> str:
    """Return a name of letters, digits, "_" and "-" that starts with no digit or dash."""
    name = _OTHER.sub("-", text).strip("-")[:MAX_LENGTH]
    if not name:
        return "unnamed"
    if not _NAME.fullmatch(name):
        name = f"set-{name}"
    return f"{name}-set" if name.lower() in RESERVED else name


def safe_names(ids: Iterable[str]) -> dict[str, str]:
    """Return a name for each id; what is left equal gets a number.

    Names that differ in case only count as equal: some file systems take them for one.
    """
    listed = list(ids)
    names: dict[str, str] = {}
    # Ids that are names already keep them, whatever comes before.
    taken = {text.lower() for text in listed if safe_name(text) == text}
    seen: set[str] = set()
    for text in listed:
        name, number = safe_name(text), 1
        while name.lower() in seen or (name != text and name.lower() in taken):
            number += 1
            name = f"{safe_name(text)}-{number}"
        seen.add(name.lower())
        names[text] = name
    return names


def own_options(group: str) -> set[str]:
    """Return the options this project has in a group; a folder of yours cannot replace them."""
    return {path.stem.lower() for path in (conf_dir() / group).glob("*.yaml")}


def file_names(names: Iterable[str], option: str) -> dict[str, str]:
    """Return the option in `data/dataset` of each dataset: its name, unless that is taken.

    Args:
        names: Names of datasets, as `safe_names` gives them.
        option: Name of the `data` option, put before a name that is taken.
    """
    listed = list(names)
    own = own_options("data/dataset")
    files = {name: name for name in listed if name.lower() not in own}
    taken = own | {name.lower() for name in files}
    for name in listed:
        if name in files:
            continue
        file, number = f"{option}-{name}", 1
        while file.lower() in taken:
            number += 1
            file = f"{option}-{name}-{number}"
        taken.add(file.lower())
        files[name] = file
    return files


def option_name(text: str) -> str:
    """Return a name for a `data` option that this project does not have."""
    name = safe_name(text)
    return f"{name}-imported" if name.lower() in own_options("data") else name


def check_name(name: str) -> str:
    """Return the name of the data option, if it can be one.

    Raises:
        ImportRefusedError: It has other characters, is too long, or is taken.
    """
    taken = RESERVED | own_options("data")
    if _NAME.fullmatch(name) and len(name) <= MAX_LENGTH and name.lower() not in taken:
        return name
    raise ImportRefusedError(
        [
            ImportProblem(
                "invalid_value",
                f"--name {name[:MAX_LENGTH]!r} cannot name an option: use letters, digits, _ "
                f"and -, at most {MAX_LENGTH}, first a letter, and none of "
                f"{', '.join(sorted(taken))}; such as --name {option_name(name)}",
            )
        ]
    )
