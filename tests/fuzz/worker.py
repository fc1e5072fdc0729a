"""The process in which damaged files are read: one at a time, as its standard input names them."""

import faulthandler
import importlib
import json
import os
import resource
import shutil
import sys
import warnings
from functools import cache
from pathlib import Path
from typing import Any

from factory.errors import FactoryError
from tests.fuzz.harness import Format, damaged_file

SOUND = "sound"


@cache
def sound(name: str, root: Path) -> tuple[Format, dict[str, tuple[bytes, int]], str, Any]:
    """Return a format, its sound files with their times, which is damaged, and what they say."""
    module, _, key = name.partition(":")
    form: Format = importlib.import_module(module).FORMATS[key]
    folder = fresh(root / SOUND)
    form.write(folder)
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    files = {
        path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in paths
    }
    target = next(path for path in sorted(folder.glob(form.target)) if path.is_file())
    value = form.read(folder)
    assert value == form.read(folder), f"{name} does not read twice the same"
    return form, files, target.relative_to(folder).as_posix(), value


def fresh(folder: Path) -> Path:
    """Return a folder, made empty."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def outcome(name: str, number: int, root: Path) -> tuple[str, str]:
    """Return what comes of one damaged file, in a word and in a sentence."""
    form, files, target, expected = sound(name, root)
    folder = fresh(root / f"{number}")
    for path, (data, time_ns) in files.items():
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(damaged_file(data, name, number) if path == target else data)
        os.utime(place, ns=(time_ns, time_ns))  # what lies beside a file may name its time
    try:
        value = form.read(folder)
    except FactoryError as error:
        return "refused", f"{type(error).__name__}: {error}"
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is the finding
        return "foreign", f"{type(error).__name__}: {error}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if value == expected:
        return "same", ""
    fine = not form.exact if form.allowed is None else form.allowed(value, expected)
    return ("else" if fine else "wrong"), f"{value!r:.300}, not {expected!r:.300}"


def limit(extra: int) -> None:
    """Bound the memory that this process may ask for beyond what it has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    size = pages * os.sysconf("SC_PAGE_SIZE") + extra
    resource.setrlimit(resource.RLIMIT_AS, (size, size))


def main() -> None:
    """Read files until no more are named."""
    root, extra = Path(sys.argv[1]), int(sys.argv[2])
    faulthandler.enable()
    warnings.simplefilter("ignore")
    # What readers print must not stand between the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    limited = False
    for line in sys.stdin:
        name, number = json.loads(line)
        sound(name, root)  # its imports are not the damaged file's
        if not limited:
            limit(extra)
            limited = True
        answers.write(json.dumps(outcome(name, number, root)) + "\n")


if __name__ == "__main__":
    main()
