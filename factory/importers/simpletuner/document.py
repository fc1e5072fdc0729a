"""Reading of JSON files, with the place and reason where one cannot be read.

A message never quotes the file's contents: they may hold credentials.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from factory.importers.simpletuner.problem import ImportProblem, ImportRefusedError

# The largest configs seen in the wild have some hundred entries of one KiB.
MAX_BYTES = 16 * 2**20
# Values are at most four levels deep (block, list, object, value); more is not a config.
MAX_DEPTH = 32
_COMMENTS = ("//", "/*", "#")


def read_entries(path: str | Path) -> list[dict[str, Any]]:
    """Return the entries of a `multidatabackend.json`.

    Raises:
        ImportRefusedError: The file cannot be read, is no JSON, or is no list of objects.
    """
    value = read_json(path)
    if isinstance(value, dict):
        raise refused(f"{path} holds one object, expected a list of datasets: put it into [ ]")
    if not isinstance(value, list):
        raise refused(f"{path} holds {_kind(value)}, expected a list of datasets: [{{...}}, ...]")
    wrong = [
        ImportProblem("unreadable", f"{path}: entry {n} is {_kind(entry)}, expected an object")
        for n, entry in enumerate(value, 1)
        if not isinstance(entry, dict)
    ]
    if wrong:
        raise ImportRefusedError(wrong)
    return value


def read_arguments(path: str | Path) -> dict[str, Any]:
    """Return the trainer's arguments from its config file.

    Raises:
        ImportRefusedError: The file cannot be read, is no JSON, or is no object.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise refused(f"{path} holds {_kind(value)}, expected an object of arguments")
    return value


def read_json(path: str | Path) -> Any:
    """Parse a JSON file in UTF-8, with or without a byte order mark.

    Raises:
        ImportRefusedError: Names the line and column, and how to mend it.
    """
    text = _text(Path(path))
    twice: list[str] = []

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        twice.extend(dict.fromkeys(name for name in names if names.count(name) > 1))
        return dict(pairs)

    try:
        value = json.loads(
            text, object_pairs_hook=once, parse_constant=_constant, parse_float=_number
        )
    except json.JSONDecodeError as error:
        raise refused(f"{path} is not JSON: {_place(text, error)}") from None
    except RecursionError:
        raise refused(f"{path} is nested too deeply for a config") from None
    except ValueError as error:
        raise refused(f"{path} holds {error}") from None
    problems = [f"{path} sets the key {name!r} twice in one object; keep one" for name in twice]
    problems += [f"{path} {what}" for what in dict.fromkeys(_odd(value, 0))]
    if problems:
        raise ImportRefusedError([ImportProblem("unreadable", text) for text in problems])
    return value


def refused(message: str) -> ImportRefusedError:
    """Return the error of a file that cannot be read."""
    return ImportRefusedError([ImportProblem("unreadable", message)])


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise refused(f"there is no file {path}") from None
    except OSError as error:
        raise refused(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise refused(
            f"{path} is larger than {MAX_BYTES >> 20} MiB, which no config is; "
            "is it the data itself?"
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        utf16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))
        guess = "UTF-16" if utf16 else "another encoding"
        raise refused(
            f"{path} is not UTF-8 at byte {error.start} but {guess}; "
            "convert it with: iconv -f UTF-16 -t UTF-8 FILE > NEW"
        ) from None


def _place(text: str, error: json.JSONDecodeError) -> str:
    """Say where parsing stopped, and name the usual mistakes there."""
    where = f"line {error.lineno}, column {error.colno}"
    rest = text[error.pos :].lstrip()
    before = text[: error.pos].rstrip()
    if not text.strip():
        return "it is empty"
    if rest.startswith(_COMMENTS):
        return f"{where} starts a comment, which JSON does not have; remove it"
    if before.endswith(",") and rest[:1] in ("]", "}"):
        return f"{where} follows a comma that nothing comes after; remove the comma"
    if rest.startswith("'"):
        return f"{where} starts a text in single quotes; use double quotes"
    return f"{where}: {error.msg}"


def _constant(name: str) -> Any:
    raise ValueError(f"the number {name}, which JSON does not have")


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number that is too large")
    return value


def _odd(value: Any, depth: int) -> Iterator[str]:
    """Yield what JSON allows and a config cannot hold."""
    if depth > MAX_DEPTH:
        yield "is nested too deeply for a config"
    elif isinstance(value, str) and not _is_text(value):
        yield "holds half of a surrogate pair (\\ud800 to \\udfff), which is no character"
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from _odd(key, depth + 1)
            yield from _odd(part, depth + 1)
    elif isinstance(value, list):
        for part in value:
            yield from _odd(part, depth + 1)


def _is_text(value: str) -> bool:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}
    if value is None:
        return "null"
    return names.get(type(value), "a number")
