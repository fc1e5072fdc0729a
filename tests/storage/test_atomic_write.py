"""A file is there as it was, or whole; whoever is killed in between leaves nothing."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from factory.storage import atomic_write
from factory.storage.atomic_write import atomic_file
from factory.storage.keys import TEMPORARY, is_listed

# Writes most of a file, says so, and waits to be killed.
WRITER = """
import sys
from pathlib import Path
from factory.storage.atomic_write import atomic_file
with atomic_file(Path(sys.argv[1])) as file:
    file.write(b"x" * 2**20)
    file.flush()
    print("written", flush=True)
    sys.stdin.read()
"""


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def knows_unnamed_files(folder: Path) -> bool:
    try:
        os.close(os.open(folder, os.O_TMPFILE | os.O_WRONLY))
    except (AttributeError, OSError):
        return False
    return True


@pytest.fixture(params=["unnamed", "named", "refused", "unlinked", "no list"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on a file system that knows files without a name, or not."""
    if request.param == "unnamed" and not knows_unnamed_files(tmp_path):
        pytest.skip("the file system knows no files without a name")
    if request.param == "named":
        monkeypatch.setattr(atomic_write, "_UNNAMED", 0)
    if request.param == "no list":  # of open files, where /proc is not mounted
        monkeypatch.setattr(atomic_write, "_OPEN_FILES", tmp_path / "none")
    if request.param == "refused":
        real = os.open

        def refuse(path: str, flags: int, *rest: int, **named: int) -> int:
            if getattr(os, "O_TMPFILE", 0) and flags & os.O_TMPFILE == os.O_TMPFILE:
                raise OSError(errno.EOPNOTSUPP, "Operation not supported")
            return real(path, flags, *rest, **named)

        monkeypatch.setattr(os, "open", refuse)
    if request.param == "unlinked":

        def forbid(*_: object, **__: object) -> None:
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", forbid)
    return tmp_path


def test_it_takes_its_place_when_it_is_whole(folder: Path) -> None:
    place = folder / "a"
    for content in (b"first", b"second"):
        before = place.read_bytes() if place.exists() else None
        with atomic_file(place) as file:
            file.write(content)
            assert (place.read_bytes() if place.exists() else None) == before
            assert list(filter(is_listed, names(folder))) == ["a"] * bool(before)
        assert place.read_bytes() == content
        assert names(folder) == ["a"]


def test_it_may_be_read_by_whoever_may_read_other_files(folder: Path) -> None:
    (folder / "other").write_bytes(b"")
    with atomic_file(folder / "a") as file:
        file.write(b"x")
    assert (folder / "a").stat().st_mode == (folder / "other").stat().st_mode


def test_an_error_leaves_the_place_as_it_was(folder: Path) -> None:
    (folder / "a").write_bytes(b"old")

    def fail() -> None:
        with atomic_file(folder / "a") as file:
            file.write(b"new")
            raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        fail()
    assert names(folder) == ["a"]
    assert (folder / "a").read_bytes() == b"old"


def test_no_folder_is_an_error(folder: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_file(folder / "none/a"):
        pass


def test_a_process_that_is_killed_leaves_nothing(tmp_path: Path) -> None:
    if not knows_unnamed_files(tmp_path):
        pytest.skip("the file system knows no files without a name")
    (tmp_path / "a").write_bytes(b"old")
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path / "a")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    with writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"written\n"
        writer.send_signal(signal.SIGKILL)
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_a_name_it_has_meanwhile_is_never_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    replace = Path.replace

    def look(self: Path, target: Path) -> Path:
        seen.extend(names(tmp_path))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", look)
    with atomic_file(tmp_path / "a") as file:
        file.write(b"x")
    (name,) = seen
    assert name.startswith(TEMPORARY)
    assert not is_listed(name)
