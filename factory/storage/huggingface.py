"""Hugging Face datasets as a storage."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from factory.errors import (
    AccessDeniedError,
    FactoryError,
    ObjectNotFoundError,
    StorageError,
    StorageUnavailableError,
    TableError,
    UnsafeKeyError,
)
from factory.limits import AtLeast, check_limits
from factory.records import UNKNOWN_SIZE, ObjectInfo
from factory.storage.base import ReadOnlyStorage, TabularStorage, safe_key
from factory.storage.endpoint_limits import endpoint
from factory.storage.huggingface_folder import (
    SPLITS,
    STATE,
    MappedRows,
    check_arrow,
    check_card,
    check_files,
    saved_files,
)
from factory.storage.keys import check_span, did_you_mean, missing_column, safe_prefix
from factory.storage.local import LocalStorage
from factory.storage.nested_columns import column_paths, descend
from factory.storage.per_process import PerProcess

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

# Keys are the same for every picture format: telling it apart would cost reading each one.
_KEY = re.compile(r"(\d{9,})\.img")
# Rows looked at together when listing: few enough to stay small, many enough to be quick.
_LISTED_ROWS = 1000
# The contract's 10 seconds for a check, less two to report.
_CHECK_S = 8.0
# Questions to the Hub at once: one for each backend, at the start. What the library downloads
# it counts itself.
_HUB_REQUESTS = 8


@dataclass(frozen=True)
class HuggingFaceStorage(ReadOnlyStorage, TabularStorage):
    """The pictures of one column of a dataset, with its other columns beside; read-only.

    A key is the row's number in nine digits and ".img", whatever the picture's format.
    Bytes are those that the dataset holds, never decoded. A picture of which the dataset
    holds only the path is read if it lies inside the dataset's folder.

    Attributes:
        dataset: Folder written by save_to_disk, or what load_dataset takes. That is a folder of
            Parquet files or pictures, or a name on the Hub.
        split: Split to read; needed where there is more than one. For `load_dataset` also a slice
            such as "train[:10%]".
        revision: Commit, tag or branch on the hub.
        image_column: Column that holds the pictures, or the videos.
        subset: Configuration of the dataset, where it has several.
        cache_dir: Folder of downloads and prepared tables; None: HF_HOME's.
        num_proc: Processes that download and prepare; None: this one alone.
    """

    described: ClassVar[str] = "a Hugging Face dataset is"

    dataset: str
    split: str | None = None
    revision: str | None = None
    image_column: str = "image"
    subset: str | None = None
    cache_dir: str | None = None
    num_proc: Annotated[int | None, AtLeast(1)] = None

    # A row without a picture, or with a path that is refused, says nothing of the others.
    independent_objects: ClassVar[bool] = True
    # A row comes out of a memory map in microseconds.
    spans_at_once: ClassVar[int] = 512

    def __post_init__(self) -> None:
        """Refuse an empty name, and no process."""
        if not self.dataset:
            raise ValueError("storage.dataset is empty; set it to a folder or a name on the Hub")
        check_limits(self, "storage")

    @property
    def identity(self) -> str:
        """Dataset, split, and what else chooses the samples, after "hf+"."""
        revision = f"#{self.revision}" if self.revision else ""
        subset = f":{self.subset}" if self.subset else ""
        column = "" if self.image_column == "image" else f"!{self.image_column}"
        return f"hf+{self.dataset}{subset}@{self.split or ''}{revision}{column}"

    def objects(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield one object a row, with its size but without reading its bytes.

        Raises:
            ObjectNotFoundError: There is no such dataset, or the prefix is not "".
            TableError: There is no such split or image column.
        """
        opened = _OPENED.get(self)
        if safe_prefix(prefix):
            raise ObjectNotFoundError(f"{self.identity} has no folders, so none is {prefix!r}")
        index = 0
        for first in range(0, len(opened.images), _LISTED_ROWS):
            last = min(first + _LISTED_ROWS, len(opened.images))
            opened.mapped.look(first, last - 1)
            for size in _sizes(opened.images[first:last]):
                yield self._info(opened, index, size)
                index += 1

    def _info(self, opened: "_OpenDataset", index: int, size: int) -> ObjectInfo:
        return ObjectInfo(_key(index), size, f"{opened.fingerprint}-{index:x}")

    def _index(self, opened: "_OpenDataset", key: str) -> int:
        match = _KEY.fullmatch(safe_key(key))
        index = int(match[1]) if match else -1
        if not 0 <= index < len(opened.images) or key != _key(index):
            raise ObjectNotFoundError(
                f"{key!r} is no key of {self.identity}; its keys run from {_key(0)} "
                f"to {_key(len(opened.images) - 1)}"
            )
        opened.mapped.look(index, index)
        return index

    def head(self, key: str) -> ObjectInfo:
        """Describe one row's picture.

        Raises:
            ObjectNotFoundError: There is no such row.
        """
        opened = _OPENED.get(self)
        index = self._index(opened, key)
        return self._info(opened, index, _sizes(opened.images[index : index + 1])[0])

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """Return a picture's bytes as the dataset holds them, or a span of them.

        Raises:
            ObjectNotFoundError: There is no such row.
            StorageError: The row has no picture, or only a path outside the dataset's folder.
        """
        check_span(start, length)
        opened = _OPENED.get(self)
        index = self._index(opened, key)
        picture = opened.images[index : index + 1].column(0)[0]
        if not picture.is_valid:
            raise StorageError(f"row {index} of {self.identity} has no picture")
        if picture["bytes"].is_valid:
            # A view into the memory map: only the span itself is copied.
            view = memoryview(picture["bytes"].as_buffer())
            return bytes(view[start : None if length is None else start + length])
        return self.read_path(index, picture["path"].as_py(), start, length)

    def read_path(
        self, index: int, path: str | None, start: int = 0, length: int | None = None
    ) -> bytes:
        """Return the bytes of a picture of which the dataset holds only the path.

        Raises:
            UnsafeKeyError: The path is not inside the dataset's folder.
            StorageError: There is no such file.
        """
        folder = Path(self.dataset).absolute()
        inside = bool(path) and folder.is_dir() and (folder / str(path)).is_relative_to(folder)
        if not inside:
            raise UnsafeKeyError(
                f"row {index} of {self.identity} holds no bytes, only the path {path!r}, which "
                "is not inside the dataset's folder; embed the pictures "
                "(save the dataset anew with save_to_disk)"
            )
        key = (folder / str(path)).relative_to(folder).as_posix()
        return LocalStorage(str(folder)).read(key, start, length)

    def rows(self, columns: Sequence[str]) -> "pa.Table":
        """Return `key` and the columns asked for, in the dataset's own Arrow types.

        Args:
            columns: Names of columns, of any type; "a.b" reaches field b of struct column a.

        Raises:
            TableError: A column is not there; the message lists those that are.
        """
        import pyarrow as pa

        opened = _OPENED.get(self)
        paths = [self._path(opened, column) for column in columns]
        keys = pa.array([_key(index) for index in range(len(opened.images))], pa.string())
        if not paths:
            return pa.table({"key": keys})
        opened.mapped.look(0, len(keys) - 1)
        roots = list(dict.fromkeys(path[0] for path in paths))
        table = opened.dataset.select_columns(roots).with_format("arrow")[:]
        found = [descend(table[path[0]], path[1:]) for path in paths]
        return pa.table([keys, *found], names=["key", *columns])

    def paths(self) -> "pa.ChunkedArray | None":
        """Return the paths of files that the dataset was made from, in its folder."""
        import pyarrow as pa
        import pyarrow.compute as pc

        folder = Path(self.dataset).absolute()
        if not folder.is_dir():
            return None
        batches = _OPENED.get(self).images.iter(batch_size=_LISTED_ROWS)
        columns = [pc.struct_field(batch.column(0), "path") for batch in batches]
        kind = pa.large_string()
        chunks = [chunk.cast(kind) for column in columns for chunk in column.chunks]
        found = pc.fill_null(pa.chunked_array(chunks, kind), "")
        root = f"{folder.as_posix()}/"
        inside = pc.starts_with(found, root)
        return pc.if_else(inside, pc.utf8_slice_codeunits(found, len(root)), "")

    def class_names(self, column: str) -> list[str] | None:
        """Return the names of a column of class labels; None of another column."""
        opened = _OPENED.get(self)
        return class_names(opened.dataset.features, self._path(opened, column))

    def _path(self, opened: "_OpenDataset", column: str) -> list[str]:
        """Return a column's name in parts, after making sure that it leads somewhere."""
        if column == "key":
            raise TableError(f"{self.identity}: the column name 'key' is taken; rename it")
        names = opened.paths
        if column not in names:
            raise missing_column(column, list(names), self.identity)
        return names[column]

    def check(self, *, write: bool = False) -> None:
        """Open a dataset on disk, or ask the Hub whether it has one of that name.

        Raises:
            ObjectNotFoundError: There is no such dataset.
            TableError: There is no such split or image column.
            StorageUnavailableError: The Hub does not answer.
            StorageError: `write` was asked for.
        """
        super().check(write=write)
        if _OPENED.peek(self) is None and not Path(self.dataset).exists() and not _offline():
            self._ask_hub()  # opening would download everything first
        else:
            _OPENED.get(self)

    def _ask_hub(self) -> None:
        from huggingface_hub import HfApi

        hub = HfApi()
        try:
            with endpoint(hub.endpoint, _HUB_REQUESTS).slot_in_thread(_CHECK_S):
                hub.dataset_info(self.dataset, revision=self.revision, timeout=_CHECK_S)
        except Exception as error:
            raise translated(self, error) from error

    def close(self) -> None:
        """Forget the opened dataset; its memory maps close with it."""
        _OPENED.pop(self)


@dataclass(frozen=True)
class _OpenDataset:
    """A dataset in this process.

    Attributes:
        dataset: All columns.
        images: The image column alone, in Arrow format, undecoded.
        fingerprint: Changes when the dataset does.
        paths: The name of every column and struct field, dotted, and in parts.
        mapped: The files that the rows lie in.
    """

    dataset: "Dataset"
    images: "Dataset"
    fingerprint: str
    paths: dict[str, list[str]]
    mapped: MappedRows


def _key(index: int) -> str:
    return f"{index:09d}.img"


def _open(storage: HuggingFaceStorage) -> _OpenDataset:
    from datasets import Image

    dataset = one_split(storage, loaded(storage))
    column = storage.image_column
    if column not in dataset.column_names:
        raise missing_column(column, dataset.column_names, storage.identity)
    try:
        images = dataset.select_columns([column]).cast_column(column, Image(decode=False))
    except Exception as error:
        raise TableError(
            f"column {column!r} of {storage.identity} holds {dataset.features[column]}, "
            "not pictures; correct storage.image_column"
        ) from error
    fingerprint: str = dataset._fingerprint  # noqa: SLF001 - the library has no public name
    paths = dict(column_paths(dataset.data.schema))
    mapped = MappedRows.of(dataset)
    return _OpenDataset(dataset, images.with_format("arrow"), fingerprint, paths, mapped)


_OPENED: PerProcess[HuggingFaceStorage, _OpenDataset] = PerProcess(_open)


def loaded(storage: HuggingFaceStorage, *, streaming: bool = False) -> Any:
    """Return the dataset with all its splits, or already cut to a slice.

    With `streaming` nothing is downloaded but what says which files there are; a folder
    written by `save_to_disk` comes memory-mapped all the same.
    """
    import datasets

    folder = Path(storage.dataset)
    try:
        if any((folder / name).is_file() for name in (SPLITS, STATE)):
            check_arrow(saved_files(storage.dataset))
            return datasets.load_from_disk(storage.dataset)
        # A slice must be cut by the library; of plain names ours knows the near misses.
        cut = storage.split if storage.split and re.search(r"[\[+]", storage.split) else None
        if folder.is_dir():
            check_card(storage.dataset)
        # What `load_dataset` does, but for a look at the files before the first is opened.
        builder = datasets.load_dataset_builder(
            storage.dataset, storage.subset, revision=storage.revision, cache_dir=storage.cache_dir
        )
        check_files(storage.dataset, (builder.config.data_files or {}).values())
        if streaming:
            return builder.as_streaming_dataset(split=cut)
        builder.download_and_prepare(num_proc=storage.num_proc)
        check_arrow(sorted(Path(builder.cache_dir).glob("*.arrow")))
        return builder.as_dataset(split=cut)
    except FactoryError:
        raise
    except Exception as error:
        raise translated(storage, error) from error


def one_split(storage: HuggingFaceStorage, dataset: Any) -> Any:
    """Choose the split that was asked for, or the only one."""
    wanted = storage.split
    if not isinstance(dataset, dict):
        own = str(dataset.split or "")
        if wanted and own and wanted != own and not re.search(r"[\[+]", wanted):
            raise TableError(f"{storage.dataset} holds the split {own!r} only, not {wanted!r}")
        return dataset
    names = ", ".join(dataset)
    if wanted is None and len(dataset) == 1:
        return next(iter(dataset.values()))
    if wanted is None:
        raise TableError(
            f"{storage.dataset} has several splits ({names}); set storage.split to one of them"
        )
    if wanted not in dataset:
        hint = did_you_mean(wanted, dataset)
        raise TableError(f"{storage.dataset} has no split {wanted!r}; it has: {names}{hint}")
    return dataset[wanted]


def translated(storage: HuggingFaceStorage, error: Exception) -> FactoryError:
    """Return our error for what the library raised; its own name tells most."""
    name = type(error).__name__
    what = f"cannot open the dataset {storage.dataset!r}"
    if name in ("GatedRepoError", "PermissionError") or isinstance(error, PermissionError):
        return AccessDeniedError(f"{what}: access denied; log in with: hf auth login")
    if isinstance(error, FileNotFoundError) or name in (
        "RepositoryNotFoundError",
        "RevisionNotFoundError",
        "HFValidationError",
    ):
        return ObjectNotFoundError(
            f"{what}: there is no such folder, nor such a dataset on the Hub; correct "
            "storage.dataset (or storage.revision)"
        )
    if isinstance(error, ConnectionError | TimeoutError) or re.search(
        "Offline|Timeout|Connect", name
    ):
        return StorageUnavailableError(
            f"{what}: the Hub cannot be reached, and there is no such folder; check the "
            "network, or set storage.dataset to a folder"
        )
    return StorageError(f"{what}: {name}: {error}")


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _sizes(table: "pa.Table") -> list[int]:
    """Return each picture's bytes from the column's offsets; the bytes are not touched."""
    import pyarrow.compute as pc

    lengths = pc.binary_length(pc.struct_field(table.column(0), "bytes")).to_pylist()
    return [UNKNOWN_SIZE if length is None else length for length in lengths]


def class_names(features: Any, path: Sequence[str]) -> list[str] | None:
    """Return the names that the whole numbers of a column stand for; None where there are none."""
    feature = features
    for name in path:
        feature = _entries(feature).get(name) if isinstance(_entries(feature), dict) else None
    names = getattr(_entries(feature), "names", None)
    return None if names is None else [str(name) for name in names]


def _entries(feature: Any) -> Any:
    """Return what a feature of lists holds, or the feature itself."""
    while isinstance(feature, list) or hasattr(feature, "feature"):
        feature = feature[0] if isinstance(feature, list) else feature.feature
    return feature
