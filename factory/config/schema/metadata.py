"""Schema of tables: where they lie, and which of their columns say what."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from factory.config.schema.options import above, opt
from factory.config.schema.run import IGNORED_MEANING, MetadataConfig, ignored


@dataclass
class ParquetConfig(MetadataConfig):
    """Read names, sizes and captions from a table; no picture is opened."""

    _target_: str = "factory.catalog.scan.table.ParquetTable"
    path: Any = opt(
        MISSING,
        "key of the table in the backend's storage (Parquet, .jsonl, .json, .csv, the last three "
        "also .gz), or a list of keys, a folder, or a pattern such as tables/*.parquet; folders "
        "name=value are columns",
    )
    file_column: str = opt("file_name", "column with each picture's key below the prefix")
    width_column: str | None = opt(
        "width", "column with widths, px; null with height_column: headers are measured"
    )
    height_column: str | None = opt("height", "column with heights, px")
    frames_column: str | None = opt(None, "column with numbers of frames, for videos")
    extensionless: bool = opt(
        False, "names in the table have no suffix: a/b means the only one of a/b.png, a/b.jpg, …"
    )
    max_unzipped_mb: float = opt(4096.0, "most that a table which ends with .gz may hold, MiB")

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values."""
        paths = self.path if isinstance(self.path, list) else [self.path]
        if not paths:
            yield "path must name a table; set path to its key"
        for path in paths:
            yield from _path_problems(path)
        yield from above("max_unzipped_mb", self.max_unzipped_mb, 0)
        if not self.file_column:
            yield "file_column must name a column; set file_column=file_name"
        for name in ("width_column", "height_column", "frames_column"):
            if getattr(self, name) == "":
                yield f"{name} must name a column, or be null; got ''"
        if (self.width_column is None) != (self.height_column is None):
            yield (
                f"width_column={_shown(self.width_column)} and "
                f"height_column={_shown(self.height_column)} go together; name both columns, or "
                "set both to null"
            )


def _path_problems(path: object) -> Iterator[str]:
    if not isinstance(path, str) or not path.strip():
        yield f"path must be a key in the storage, or a list of keys; got {path!r}"
    elif path.startswith("/") or ".." in path.split("/"):
        yield f"path must stay below the storage's root: no leading '/', no '..'; got {path!r}"


def _shown(column: str | None) -> str:
    return "null" if column is None else column


@dataclass
class ColumnsConfig(MetadataConfig):
    """Read sizes from columns of the samples' own table; no picture is opened."""

    _target_: str = "factory.catalog.scan.column_facts.ColumnFacts"
    width_column: str = opt("width", "column with widths, px; a field as COLUMN.FIELD")
    height_column: str = opt("height", "column with heights, px; a field as COLUMN.FIELD")
    frames_column: str | None = opt(None, "column with numbers of frames, for videos")
    ignore: list[str] = opt(factory=ignored, meaning=IGNORED_MEANING)
