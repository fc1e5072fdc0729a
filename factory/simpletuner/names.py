"""How is a dataset called where Hydra has to name it: in a file, a package, an override?"""

import re
from collections.abc import Iterable

from factory.simpletuner.problem import ImportProblem, ImportRefusedError

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_OTHER = re.compile(r"[^A-Za-z0-9_-]+")
# Options of `data` and `data/dataset` that extend or fill others, and so cannot be named anew.
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


def check_name(name: str) -> str:
    """Return the name of the data option, if it can be one.

    Raises:
        ImportRefusedError: It has other characters, is too long, or is taken.
    """
    if _NAME.fullmatch(name) and len(name) <= MAX_LENGTH and name.lower() not in RESERVED:
        return name
    raise ImportRefusedError(
        [
            ImportProblem(
                "invalid_value",
                f"--name {name[:MAX_LENGTH]!r} cannot name an option: use letters, digits, _ "
                f"and -, at most {MAX_LENGTH}, first a letter, and none of "
                f"{', '.join(sorted(RESERVED))}; such as --name {safe_name(name)}",
            )
        ]
    )
