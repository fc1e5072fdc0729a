"""Checks of a Hugging Face dataset's files: only its own folder, and only sound Arrow files.

Everything in such a folder was written by somebody else: its lists of files may lead anywhere, and
so may its links; and the library maps its Arrow files and follows their offsets unseen.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from factory.errors import StorageError, UnsafeKeyError
from factory.storage.mapped_length import Extent

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

# What `save_to_disk` writes.
STATE, SPLITS, _INFO = "state.json", "dataset_dict.json", "dataset_info.json"
# Where a folder says which files it is made of.
_CARD, _YAML, _INFOS = "README.md", ".huggingface.yaml", "dataset_infos.json"
# In a card, what leads to files.
_LEADING = ("data_files", "data_dir", "metadata_files")


def saved_files(dataset: str) -> list[Path]:
    """Return the Arrow files that a folder written by `save_to_disk` says it is made of.

    Raises:
        UnsafeKeyError: One lies outside of the folder.
        StorageError: What says so is damaged.
    """
    root = Path(dataset)
    parts = [root]
    if (root / SPLITS).is_file():
        splits = confined(root, root, SPLITS, "the folder")
        names = _entries(_json(splits), "splits", splits)
        parts = [confined(root, root, name, SPLITS) for name in names]
    return [file for part in parts for file in _state_files(root, part)]


def _state_files(root: Path, folder: Path) -> list[Path]:
    """Return the files of one split."""
    for name in (STATE, _INFO):
        confined(root, folder, name, "the folder")
    state = folder / STATE
    if not state.is_file():
        return []  # the library says what is missing
    given = _json(state)
    listed = _entries(given, "_data_files", state) + _entries(given, "_indices_data_files", state)
    names = [each.get("filename") if isinstance(each, dict) else each for each in listed]
    return [confined(root, folder, name, STATE) for name in names]


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise StorageError(
            f"{file} cannot be read ({error}); save the dataset anew with save_to_disk"
        ) from error


def _entries(given: Any, name: str, file: Path) -> list[Any]:
    found = given.get(name) if isinstance(given, dict) else given
    if not isinstance(found, list | None):
        raise StorageError(
            f"{file} is damaged: {name} is {found!r:.80}, not a list; save the dataset anew with "
            "save_to_disk"
        )
    return list(found or ())


def confined(root: Path, folder: Path, name: object, where: str) -> Path:
    """Return a file that a dataset names, after making sure that it lies in its folder.

    Args:
        root: The dataset's folder.
        folder: What the name is below: the folder, or one in it.
        name: The name.
        where: What names it, for the message.

    Raises:
        UnsafeKeyError: It lies elsewhere, or a link leads there.
    """
    if isinstance(name, str) and name and "\0" not in name:
        resolved = (folder / name).resolve()
        if any(resolved.is_relative_to(home) for home in _homes(root)):
            return folder / name
    raise outside(str(root), name, where)


def outside(dataset: str, name: object, where: str) -> UnsafeKeyError:
    """Return the error for a name that leads out of a dataset."""
    return UnsafeKeyError(
        f"dataset {dataset!r}: {where} names {name!r:.200}, which is not inside the dataset's "
        "folder; copy the file there and name it by its relative path, or remove the entry"
    )


def _homes(root: Path) -> Iterator[Path]:
    """Yield where a dataset's files may lie: its folder, and for a Hub's copy the blobs beside."""
    root = root.resolve()
    yield root
    if root.parent.name == "snapshots" and root.parents[1].name.startswith("datasets--"):
        yield root.parents[1] / "blobs"


def check_card(dataset: str) -> None:
    """Make sure that what describes a folder names no file outside of it.

    Before the library looks at it, which asks servers for what their URLs lead to.

    Raises:
        UnsafeKeyError: It names one.
    """
    folder = Path(dataset)
    for name in (_CARD, _YAML, _INFOS):
        file = folder / name
        if not file.exists():
            continue
        confined(folder, folder, name, "the folder")
        for given in _named(_described(file)):
            parts = PurePosixPath(given.replace("\\", "/"))
            if "://" in given or "::" in given or parts.is_absolute() or ".." in parts.parts:
                raise outside(dataset, given, name)


def _described(file: Path) -> Any:
    """Return what a file says, as plain values; nothing where it is no such file."""
    import yaml

    try:
        text = file.read_text("utf-8")
        if file.suffix == ".json":
            return json.loads(text)
        if file.name == _CARD:
            head = text.lstrip().split("---", 2)
            text = head[1] if len(head) == 3 and not head[0] else ""  # noqa: PLR2004 - both bars
        return yaml.safe_load(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return None  # the library says what is wrong with it


def _named(described: Any) -> Iterator[str]:
    """Yield every text below the keys that lead to files."""
    waiting, seen = [(described, False)], set()
    while waiting:
        given, leading = waiting.pop()
        if isinstance(given, str) and leading:
            yield given
        if not isinstance(given, dict | list) or (id(given), leading) in seen:
            continue
        seen.add((id(given), leading))  # a card may hold one part a billion times
        if isinstance(given, list):
            waiting += [(value, leading) for value in given]
            continue
        for key, value in given.items():
            # Below `data_files` stand splits by name, or entries of a split and a path.
            waiting.append((value, key in _LEADING or (leading and key != "split")))


def check_files(dataset: str, splits: Iterable[Iterable[object]]) -> None:
    """Make sure that the files a dataset was found to be made of are its own.

    Args:
        dataset: Its folder, or its name on the Hub.
        splits: Paths or URLs of each split, as the library resolved them.

    Raises:
        UnsafeKeyError: One lies elsewhere.
        StorageError: An Arrow file of a folder is damaged.
    """
    folder, names = Path(dataset), [str(file) for files in splits for file in files]
    if not folder.is_dir():
        for name in names:
            if not name.startswith(f"hf://datasets/{dataset}@"):
                raise outside(dataset, name, "its card")
        return
    files = [confined(folder, folder.absolute(), name, "its card, or a link,") for name in names]
    check_arrow(file for file in files if file.suffix == ".arrow")


def check_arrow(files: Iterable[Path]) -> None:
    """Make sure that Arrow files hold what they say: every offset leads into its buffer.

    Bytes of pictures are not looked at, only where they begin and end; texts are read.

    Raises:
        StorageError: One does not, or cannot be read.
    """
    import pyarrow as pa

    for file in files:
        try:
            with pa.memory_map(str(file)) as source:
                for batch in _batches(source):
                    batch.validate(full=True)
        except FileNotFoundError as error:
            raise StorageError(
                f"{file} is not there; copy the dataset again, or save it anew with save_to_disk"
            ) from error
        except (pa.ArrowException, OSError, EOFError, ValueError, KeyError) as error:
            raise StorageError(
                f"{file} is damaged, or no Arrow file ({error}); copy it again, or save the "
                "dataset anew with save_to_disk"
            ) from error


def _batches(source: "pa.NativeFile") -> Iterator["pa.RecordBatch"]:
    """Yield the batches of a file in either of Arrow's formats."""
    import pyarrow as pa

    try:
        stream = pa.ipc.open_stream(source)
    except pa.ArrowInvalid:
        source.seek(0)
        file = pa.ipc.open_file(source)
        yield from (file.get_batch(number) for number in range(file.num_record_batches))
    else:
        yield from stream


@dataclass(frozen=True)
class MappedRows:
    """The files that a dataset's rows are mapped from.

    Attributes:
        rows: How many there are.
        first: The first row of each part, int64 [parts], ascending.
        extents: The files of each part.
    """

    rows: int
    first: NDArray[np.int64]
    extents: tuple[tuple[Extent, ...], ...]

    @classmethod
    def of(cls, dataset: "Dataset") -> "MappedRows":
        """Look at the files of a dataset.

        Raises:
            OSError: One cannot be looked at.
        """
        # What lies side by side in a row of blocks are columns.
        parts = getattr(dataset.data, "blocks", [[dataset.data]])
        files = [[block.path for block in part if hasattr(block, "path")] for part in parts]
        known = {path: Extent.of(path) for paths in files for path in paths}
        ends = np.cumsum([0, *(part[0].num_rows for part in parts)], dtype=np.int64)
        extents = tuple(tuple(known[path] for path in paths) for paths in files)
        return cls(int(ends[-1]), ends[:-1], extents)

    def look_in(self, shard: int, shards: int, index: int) -> None:
        """Look at one row of a shard, where rows are cut into shards as evenly as can be."""
        whole, more = divmod(self.rows, shards)
        row = min(shard * whole + min(shard, more) + index, self.rows - 1)
        self.look(row, row)

    def look(self, first: int, last: int) -> None:
        """Make sure that the files of some rows, both included, were not cut since.

        Raises:
            StorageError: One was.
        """
        start, stop = np.searchsorted(self.first, [first, last], side="right").tolist()
        for extents in self.extents[max(0, start - 1) : stop]:
            for extent in extents:
                if extent.shrunk:
                    raise StorageError(
                        f"{extent.path} was cut while it was in use: it is shorter than the "
                        f"{extent.size} bytes it had; copy it again, and start again"
                    )
