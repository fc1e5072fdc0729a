"""Streams of a Hugging Face dataset: rows read one after another, without downloading it first."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factory.errors import ResumeError, StorageError, TableError, UnsafeKeyError
from factory.storage.huggingface import (
    HuggingFaceStorage,
    class_names,
    loaded,
    one_split,
    translated,
)
from factory.storage.huggingface_folder import MappedRows
from factory.storage.keys import missing_column
from factory.storage.nested_columns import column_paths, type_at

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import IterableDataset

# Rows of a shard when a dataset saved as one piece is cut: where reading may begin quickly.
SHARD_ROWS = 1000


@dataclass(frozen=True, slots=True)
class StreamRow:
    """One row of a stream.

    Attributes:
        shard: Its shard, from 0.
        index: Its number in the shard, from 0.
        data: The picture's bytes as the dataset holds them; None where there are none.
        error: Why there are none, "reason: detail".
        cells: Values of the columns asked for, in their order.
        path: Where the picture's file lies in the dataset's folder; "" where that is not known.
    """

    shard: int
    index: int
    data: bytes | None
    error: str | None
    cells: tuple[Any, ...]
    path: str = ""

    @property
    def key(self) -> str:
        """Names the row whatever the order of the shards."""
        return f"{self.shard:06d}/{self.index:09d}.img"


class RowStream:
    """A dataset opened for reading row by row; knows its columns, has read no row yet."""

    def __init__(self, storage: HuggingFaceStorage, columns: Sequence[str] = ()) -> None:
        """Open a dataset: asks for the names of its files, and for the columns of one.

        Args:
            storage: Which dataset, split and column of pictures.
            columns: Further columns wanted; "a.b" reaches field b of struct column a.

        Raises:
            ObjectNotFoundError: There is no such dataset.
            TableError: There is no such split or column.
        """
        from datasets import Image

        self.storage = storage
        opened, mapped = _opened(storage)
        image = storage.image_column
        if image not in opened.features:
            raise missing_column(image, list(opened.features), storage.identity)
        fields = opened.features.arrow_schema
        paths = dict(column_paths(fields))
        for column in columns:
            if column not in paths:
                raise missing_column(column, list(paths), storage.identity)
        self._paths = [paths[column] for column in columns]
        self.types = {
            column: type_at(fields.field(path[0]).type, path[1:])
            for column, path in zip(columns, self._paths, strict=True)
        }
        self.class_names = {
            column: class_names(opened.features, path)
            for column, path in zip(columns, self._paths, strict=True)
        }
        roots = list(dict.fromkeys([image, *(path[0] for path in self._paths)]))
        if not _holds_pictures(fields.field(image).type):
            raise TableError(
                f"column {image!r} of {storage.identity} holds {opened.features[image]}, "
                "not pictures; correct storage.image_column"
            )
        chosen = opened.select_columns(roots).cast_column(image, Image(decode=False))
        # Decoding would open the paths, and URLs, that the other columns hold.
        self._dataset = chosen.decode(False)
        self._mapped = mapped

    @property
    def shards(self) -> int:
        """Number of shards: files, mostly."""
        return int(self._dataset.num_shards)

    @cached_property
    def length(self) -> int | None:
        """Number of rows, if the dataset says so."""
        splits = self._dataset.info.splits or {}
        name = str(self._dataset.split or "")
        known = splits[name].num_examples if name in splits else None
        return int(known) if known else None

    def rows(self, shard: int, state: dict[str, Any] | None = None, index: int = 0) -> "ShardRows":
        """Return the rows of one shard, from its beginning or from where a state was taken.

        Args:
            shard: The shard, from 0.
            state: What `ShardRows.state` returned.
            index: `ShardRows.index` at that time.

        Raises:
            ResumeError: There is no such shard, or it cannot go on from the state.
        """
        try:
            part = self._dataset.shard(num_shards=self.shards, index=shard)
            if state is not None:
                part.load_state_dict(state)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise ResumeError(
                f"{self.storage.identity} cannot go on in shard {shard} of {self.shards} from "
                f"where the checkpoint says ({type(error).__name__}: {error}); restore the dataset "
                "(pin it with storage.revision), or take another checkpoint"
            ) from error
        look = None if self._mapped is None else partial(self._mapped.look_in, shard, self.shards)
        return ShardRows(self.storage, part, self._paths, shard, index, look)


class ShardRows:
    """Iterates over the rows of one shard.

    Attributes:
        shard: The shard.
        index: Number of the row that comes next.
    """

    def __init__(
        self,
        storage: HuggingFaceStorage,
        part: "IterableDataset",
        paths: Sequence[Sequence[str]],
        shard: int,
        index: int,
        look: Callable[[int], None] | None = None,
    ) -> None:
        """Store the parts; nothing is read before the first row is asked for.

        Args:
            storage: The dataset.
            part: The shard's rows.
            paths: Columns wanted, in parts.
            shard: The shard.
            index: The row that comes next.
            look: Makes sure that the file of a row, of which memory is mapped, was not cut.
        """
        self._look = look
        self._storage, self._part, self._paths = storage, part, paths
        self.shard, self.index = shard, index
        self._rows: Iterator[dict[str, Any]] = iter(part)

    def __iter__(self) -> Iterator[StreamRow]:
        """Return itself."""
        return self

    def __next__(self) -> StreamRow:
        """Return the next row.

        Raises:
            StorageError: The dataset cannot be read.
        """
        if self._look is not None:
            self._look(self.index)
        try:
            cells = next(self._rows)
        except StopIteration:
            raise
        except Exception as error:
            found = translated(self._storage, error)
            found.add_note(f"while reading row {self.index} of shard {self.shard}")
            raise found from error
        picture = cells[self._storage.image_column]
        data, problem = self._bytes(picture)
        values = tuple(_cell(cells, path) for path in self._paths)
        row = StreamRow(self.shard, self.index, data, problem, values, self._path(picture))
        self.index += 1
        return row

    @property
    def state(self) -> dict[str, Any]:
        """Where to go on from, as plain values for `RowStream.rows`."""
        return dict(self._part.state_dict())

    def close(self) -> None:
        """Let go of the shard's file."""
        close = getattr(self._rows, "close", None)
        if close is not None:
            close()

    def _path(self, picture: Any) -> str:
        path = str(picture.get("path") or "") if isinstance(picture, dict) else ""
        root = f"{Path(self._storage.dataset).absolute().as_posix()}/"
        return path[len(root) :] if path.startswith(root) else ""

    def _bytes(self, picture: Any) -> tuple[bytes | None, str | None]:
        if picture is None:
            return None, "no picture: the row has none"
        if not isinstance(picture, dict):
            # What the library makes of loose files on a hub: pixels, whatever it was told.
            return None, (
                "decoded already: a picture that is a file of its own on the Hub; store the "
                "dataset as Parquet or tar files"
            )
        if picture["bytes"] is not None:
            return picture["bytes"], None
        try:
            return self._storage.read_path(self.index, picture["path"]), None
        except UnsafeKeyError as error:
            return None, f"unsafe path: {error}"
        except StorageError as error:
            return None, f"not readable: {error}"


def _opened(storage: HuggingFaceStorage) -> "tuple[IterableDataset, MappedRows | None]":
    """Return a dataset, and where its rows lie if it is mapped."""
    from datasets import Dataset

    dataset = one_split(storage, loaded(storage, streaming=True))
    try:
        if isinstance(dataset, Dataset):
            shards = max(1, len(dataset) // SHARD_ROWS)
            return dataset.to_iterable_dataset(num_shards=shards), MappedRows.of(dataset)
        if dataset.features is None:
            # The library offers no public way to look at the first rows for their types.
            dataset = dataset._resolve_features()  # noqa: SLF001
    except Exception as error:
        raise translated(storage, error) from error
    return dataset, None


def _holds_pictures(kind: "pa.DataType") -> bool:
    """Tell whether a column's values are bytes, paths, or both as the library stores them."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return {"bytes", "path"} <= {field.name for field in kind}
    plain = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_string)
    return any(test(kind) for test in plain)


def _cell(cells: Any, path: Sequence[str]) -> Any:
    for place, name in enumerate(path):
        if isinstance(cells, list):
            return [_cell(each, path[place:]) for each in cells]
        cells = None if cells is None else cells[name]
    return cells
