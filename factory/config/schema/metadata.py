"""Schemas of metadata: how samples are found and measured, and which rows of a table count."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from factory.config.schema.derived import settings_of
from factory.config.schema.options import above, opt


@dataclass
class MetadataConfig:
    """Fields every metadata backend shares."""

    _target_: str = MISSING

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values."""
        yield from ()


IGNORED_MEANING = "patterns of files that are no data: trash, thumbnails, hidden ones; []: none"


def ignored() -> list[str]:
    """Return the patterns of files that are no data, unless others are set."""
    return [
        ".*", ".*/", "__MACOSX/", "$RECYCLE.BIN/", "RECYCLER/", "System Volume Information/",
        "Thumbs.db", "ehthumbs.db", "desktop.ini", "lost+found/", "@eaDir/", "#recycle/",
        "#snapshot/", "@Recycle/", "@Recently-Snapshot/", "CVS/", "__pycache__/",
    ]  # fmt: skip


@dataclass
class DiscoveryConfig(MetadataConfig):
    """List the storage and measure the header of every picture."""

    _target_: str = "factory.catalog.scan.discovery.Discovery"
    suffixes: list[str] = opt(
        factory=lambda: [".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".png", ".webp", ".gif",
                         ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif", ".hif", ".jxl"],
        meaning="file suffixes that count as pictures",
    )  # fmt: skip
    include: list[str] = opt(
        factory=list,
        meaning="patterns of keys below the prefix that count, such as 'sets/*/*.jpg'; empty: all",
    )
    exclude: list[str] = opt(
        factory=list, meaning="patterns of keys that do not count, such as 'raw/**' or '*_mask.png'"
    )
    ignore: list[str] = opt(factory=ignored, meaning=IGNORED_MEANING)
    max_megapixels: float = opt(268.0, "larger pictures are dropped as decompression bombs, MP")
    verify: bool = opt(False, "decode every picture once, to drop damaged ones at the scan")

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values."""
        yield from above("max_megapixels", self.max_megapixels, 0)
        for suffix in self.suffixes:
            if not suffix.startswith("."):
                yield f"suffixes must start with a dot, got {suffix!r}"
        for name in ("include", "exclude", "ignore"):
            for pattern in getattr(self, name):
                if not pattern.strip("/ "):
                    yield f"{name} must hold patterns such as '*.jpg' or 'raw/**', got {pattern!r}"


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


@settings_of("factory.catalog.row_filters.RowFilter")
class RowFilterConfig:
    """A condition on one column of a backend's table; rows without a value are dropped."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values."""
        given: Any = self
        if given.minimum is None and given.maximum is None and not given.one_of:
            yield f"column {given.column} has no condition; set minimum, maximum or one_of"
        if (
            given.minimum is not None
            and given.maximum is not None
            and given.minimum > given.maximum
        ):
            yield f"minimum {given.minimum:g} is above maximum {given.maximum:g}"
        kinds = {_kind(value) for value in given.one_of}
        bounded = given.minimum is not None or given.maximum is not None
        if len(kinds) > 1 or "other" in kinds or (bounded and kinds - {"number"}):
            yield (
                "one_of must hold values of one kind (texts, numbers or truth values), and "
                f"numbers where minimum or maximum is set; got {given.one_of}"
            )


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return "truth value"
    if isinstance(value, int | float):
        return "number"
    return "text" if isinstance(value, str) else "other"
