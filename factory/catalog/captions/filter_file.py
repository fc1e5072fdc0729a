"""Which edits does a filter file name?"""

import json
from pathlib import PurePath

from factory.catalog.captions.edits import Edit, parse_edits
from factory.catalog.local_text import read_local_text
from factory.errors import ConfigError

SUFFIXES = (".txt", ".json")


def check_suffix(path: str) -> None:
    """Refuse a name that does not say how the file is written.

    Raises:
        ValueError: The name ends in neither .txt nor .json.
    """
    if PurePath(path).suffix not in SUFFIXES:
        raise ValueError(
            f"filters_file must end in .txt (one entry a line) or .json (a list), got {path!r}"
        )


def read_filters(path: str) -> tuple[Edit, ...]:
    """Read a filter file of this machine: a .txt of one entry a line, or a .json list.

    Lines keep their blanks, since an entry may end in one; blank lines do nothing.

    Raises:
        ObjectNotFoundError: There is no such file.
        ConfigError: It cannot be read or is badly written; names the file and the line.
    """
    check_suffix(path)
    text = read_local_text(path, "filters_file", kind="filter file", wanted="a .txt or .json file")
    if PurePath(path).suffix == ".json":
        return parse_edits(_json_list(text, path), f"{path} entry")
    return parse_edits(text.replace("\r\n", "\n").split("\n"), f"{path} line")


def _json_list(text: str, path: str) -> list[str]:
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"filters_file {path!r} is not JSON: {error}") from error
    if not isinstance(entries, list):
        raise ConfigError(
            f"filters_file {path!r} holds no list but {type(entries).__name__}; "
            'write ["first entry", "second entry"]'
        )
    return entries
