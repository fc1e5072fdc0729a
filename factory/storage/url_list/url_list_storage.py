"""CSV lists of URLs as a storage."""

import hashlib
import io
import logging
import re
from collections.abc import Coroutine, Generator, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, ClassVar
from urllib.parse import unquote, urlsplit

from factory.errors import ObjectNotFoundError, StorageError, TableError
from factory.limits import Above
from factory.records import UNKNOWN_SIZE, ObjectInfo
from factory.storage.base import Span, Storage, TabularStorage, safe_key
from factory.storage.event_loop import OrderedRequests
from factory.storage.keys import below, check_span, missing_column, safe_prefix
from factory.storage.local import LocalStorage
from factory.storage.per_process import PerProcess
from factory.storage.url_list.download_cache import DownloadLimits, Downloads
from factory.storage.url_list.hosts import check_url, resolved, shown
from factory.storage.url_list.web_storage import WebStorage

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

logger = logging.getLogger(__name__)

# Of the hash that starts a key: 64 bits, so that a billion URLs hardly ever meet (3 %).
_KEY_BYTES = 8
# Longest file name in a key: below the 255 bytes file systems allow, four bytes a letter.
_NAME_LETTERS = 60
# Reads begun before the first of them is taken, for each connection: when one ends, the next
# one is there already, and no more than this many results wait in memory.
_AHEAD = 2


@dataclass(frozen=True)
class UrlListStorage(WebStorage, TabularStorage):
    """Files on web servers, one for each row of a CSV table; read-only.

    A key is the hash of the URL as the table writes it, "/", and the file name in the URL,
    so keys stay when `base_url` moves. What a URL holds is taken never to change: a file is
    downloaded once and then served from `cache_dir`, until that folder is cleared or its
    limit pushes the file out. A URL that stands in several rows is one object, described
    by the last of them. A row that is no URL is listed, and says so when it is read.

    Attributes:
        table: Key of the CSV file in table_storage. UTF-8, with a header.
        table_storage: Storage the CSV file is read from.
        url_column: Column that holds the URLs.
        base_url: URL that relative ones are joined to. Without it there are absolute ones only.
        cache_dir: Local folder for downloads. Storages and processes may share it.
        max_file_mb: Largest download accepted, MiB.
        max_cache_gb: Size the download folder is kept below, GiB. The least recently used files go.
    """

    described: ClassVar[str] = "a list of URLs is"

    independent_objects: ClassVar[bool] = True
    # As many as are downloaded at once by default, eight times over, as S3 has it.
    spans_at_once: ClassVar[int] = 128

    table: str
    table_storage: Storage
    url_column: str = "url"
    base_url: str | None = None
    cache_dir: str = "cache/downloads"
    max_file_mb: Annotated[float, Above(0)] = 64.0
    max_cache_gb: Annotated[float, Above(0)] = 10.0

    def __post_init__(self) -> None:
        """Refuse limits that let nothing through, and an address that is none."""
        super().__post_init__()
        if self.base_url is not None:
            check_url(self.base_url, "storage.base_url")

    @property
    def identity(self) -> str:
        """The table's own URI after "urls+"."""
        return f"urls+{self.table_storage.identity}/{self.table}"

    def objects(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield one object a row; the size is known once the file is downloaded.

        The etag is a hash of the URL: no server is asked.

        Raises:
            ObjectNotFoundError: There is no such table, or no key below the prefix.
            TableError: The table has no such column, no rows, or is no CSV.
        """
        folder = safe_prefix(prefix)
        table = _fresh_table(self)
        keys = below(table.rows, folder)
        if folder and not keys:
            raise ObjectNotFoundError(f"{self.identity} has no key below {prefix!r}")
        sizes = self._sizes()
        for key in keys:
            row = table.rows[key]
            yield ObjectInfo(key, sizes.get(self._file(row), UNKNOWN_SIZE), row.digest)

    def _sizes(self) -> dict[str, int]:
        try:
            return {info.key: info.size for info in LocalStorage(self.cache_dir).objects()}
        except ObjectNotFoundError:  # nothing was downloaded yet
            return {}

    def _row(self, key: str) -> "_Row":
        row = _TABLES.get(self).rows.get(safe_key(key))
        if row is None:
            raise ObjectNotFoundError(f"{key!r} is no row of {self.identity}")
        return row

    def _url(self, row: "_Row") -> str:
        """Return the row's absolute URL, or say why it has none."""
        value = row.value.strip()
        absolute = resolved(value, self.base_url)
        if absolute is None:
            relative = "" if self.base_url else " (for relative ones set storage.base_url)"
            raise StorageError(
                f"row {row.number} of {self.table} (the header not counted): "
                f"{shown(row.value)!r} in column {self.url_column!r} is no http(s) URL"
                f"{relative}; correct or remove the row"
            )
        return absolute

    def _file(self, row: "_Row") -> str:
        """Return the cache's name for a row's file.

        A relative URL's file also belongs to its table and to the host of `base_url`, but
        not to the port: servers on loopback change it from run to run.
        """
        told_apart = row.value
        absolute = resolved(row.value.strip(), self.base_url)
        if absolute is not None and absolute != row.value.strip():
            parts = urlsplit(absolute)
            told_apart = f"{self.identity}\0{parts.hostname}\0{parts.path}?{parts.query}"
        digest = hashlib.blake2b(told_apart.encode(), digest_size=16).hexdigest()
        return f"{digest[:2]}/{digest}"

    def head(self, key: str) -> ObjectInfo:
        """Describe one object without asking its server.

        Raises:
            ObjectNotFoundError: The key is no row of the table.
        """
        row = self._row(key)
        try:
            size = LocalStorage(self.cache_dir).head(self._file(row)).size
        except ObjectNotFoundError:
            size = UNKNOWN_SIZE
        return ObjectInfo(safe_key(key), size, row.digest)

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """Return a file's bytes, or a span of them; the first read downloads all of it.

        Raises:
            ObjectNotFoundError: The key is no row of the table, or the server says 404.
            StorageUnavailableError: The server fails, refuses or is too slow, three times.
            StorageError: The row is no URL, the file is too large, HTML or redirects without end.
        """
        check_span(start, length)
        file, url, where = self._place(key)
        return _DOWNLOADS.get(self).read(file, url, where, start, length)

    def _place(self, key: str) -> tuple[str, str, str]:
        """Return a key's name in the cache, its URL, and what errors call it."""
        row = self._row(key)
        url = self._url(row)
        return self._file(row), url, f"{shown(url)} (row {row.number} of {self.table})"

    def read_many(self, spans: Sequence[Span]) -> Generator[bytes | StorageError, None, None]:
        """Yield several spans in their order, downloaded side by side; see `Storage`."""
        return OrderedRequests(self._begin, spans, _AHEAD * self.connections)

    def _begin(
        self, span: Span
    ) -> "Coroutine[Any, Any, bytes | StorageError] | Future[bytes | StorageError]":
        """Begin to read a span: at once from the cache, else by a download."""
        key, first, length = span
        check_span(first, length)
        downloads = _DOWNLOADS.get(self)
        try:
            file, url, where = self._place(key)
            data = downloads.cached(file, first, length)
        except StorageError as error:
            return _landed(error)
        if data is not None:
            return _landed(data)

        async def fetch() -> bytes | StorageError:
            try:
                return await downloads.fetched(file, url, where, first, length)
            except StorageError as error:
                return error

        return fetch()

    @property
    def limits(self) -> DownloadLimits:
        """What is kept of downloads, in bytes."""
        return DownloadLimits(
            self.cache_dir, int(self.max_file_mb * 2**20), int(self.max_cache_gb * 2**30)
        )

    def rows(self, columns: Sequence[str]) -> "pa.Table":
        """Return `key` and the columns asked for, all strings ("" where a cell is empty).

        Raises:
            TableError: A column is not there; the message lists those that are.
        """
        import pyarrow as pa

        table = _fresh_table(self)
        found: dict[str, list[str]] = {"key": list(table.rows)}
        for column in columns:
            if column not in table.frame.columns:
                raise missing_column(column, list(table.frame.columns), self.table)
            if column == "key":
                raise TableError(f"{self.table}: the column name 'key' is taken; rename it")
            found[column] = table.frame[column].tolist()
        strings = [pa.array(values, pa.string()) for values in found.values()]
        return pa.table(strings, names=list(found))

    def duplicate_rows(self) -> int:
        """Return how many rows a later row with the same URL replaced."""
        return _fresh_table(self).duplicates

    def check(self, *, write: bool = False) -> None:
        """Read the table and write to the cache folder; no server of a URL is asked.

        Raises:
            ObjectNotFoundError: There is no such table.
            TableError: The table has no such column, no rows, or is no CSV.
            StorageError: `write` was asked for, or the cache folder cannot be written to.
        """
        super().check(write=write)
        self.table_storage.check()
        _fresh_table(self)
        LocalStorage(self.cache_dir).check(write=True)

    def close(self) -> None:
        """Forget the table and close this process's connections; the cache stays."""
        _TABLES.pop(self)
        downloads = _DOWNLOADS.pop(self)
        if downloads is not None:
            downloads.close()
        self.table_storage.close()


@dataclass(frozen=True, slots=True)
class _Row:
    number: int
    value: str
    digest: str


@dataclass(frozen=True)
class _Table:
    """A table as read: one row for each key, and the frame's rows in the same order."""

    etag: str
    rows: dict[str, _Row]
    frame: "pd.DataFrame"
    duplicates: int


def _load(storage: UrlListStorage) -> _Table:
    try:
        etag = storage.table_storage.head(storage.table).etag
        data = storage.table_storage.read(storage.table)
    except ObjectNotFoundError as error:
        raise ObjectNotFoundError(
            f"there is no table {storage.table!r} in {storage.table_storage.identity}; "
            "correct storage.table"
        ) from error
    frame = _parse(data, storage.table)
    if storage.url_column not in frame.columns:
        raise missing_column(storage.url_column, list(frame.columns), storage.table)
    if frame.empty:
        raise TableError(f"{storage.table} has a header but no rows; add a row for each picture")
    last = frame[~frame[storage.url_column].duplicated(keep="last")]
    duplicates = len(frame) - len(last)
    if duplicates:
        logger.warning(
            "%s: %d rows repeat the URL of a later row, which wins", storage.table, duplicates
        )
    numbers = (int(number) + 1 for number in last.index)
    values = zip(numbers, last[storage.url_column], strict=True)
    rows = dict(_keyed(number, value) for number, value in values)
    return _Table(etag, rows, last, duplicates)


def _parse(data: bytes, name: str) -> "pd.DataFrame":
    import pandas as pd

    longer = TableError(
        f"{name} has rows with more cells than its header; quote texts that hold commas"
    )
    try:
        # "utf-8-sig" also reads files without the mark that spreadsheets put first.
        frame = pd.read_csv(
            io.BytesIO(data), dtype=str, keep_default_na=False, encoding="utf-8-sig"
        )
    except UnicodeDecodeError as error:
        raise TableError(f"{name} is not UTF-8; save it as CSV in UTF-8") from error
    except pd.errors.EmptyDataError as error:
        raise TableError(f"{name} is empty; it needs a header and a row each picture") from error
    except pd.errors.ParserError as error:
        if "Expected" in str(error):
            raise longer from error
        raise TableError(f"{name} is no CSV table: {str(error).strip()}") from error
    if not isinstance(frame.index, pd.RangeIndex):  # the first cells are taken for names of rows
        raise longer
    return frame.fillna("").reset_index(drop=True)


def _fresh_table(storage: UrlListStorage) -> _Table:
    """Return the table, read again if its file changed since."""
    known = _TABLES.peek(storage)
    if known is not None and storage.table_storage.head(storage.table).etag != known.etag:
        _TABLES.pop(storage)
    return _TABLES.get(storage)


_TABLES: PerProcess[UrlListStorage, _Table] = PerProcess(_load)
_DOWNLOADS: PerProcess[UrlListStorage, Downloads] = PerProcess(
    lambda storage: Downloads(storage.limits, storage.limits_of(storage.base_url))
)


def _landed(outcome: bytes | StorageError) -> "Future[bytes | StorageError]":
    future: Future[bytes | StorageError] = Future()
    future.set_result(outcome)
    return future


def _keyed(number: int, value: str) -> tuple[str, _Row]:
    digest = hashlib.blake2b(value.encode(), digest_size=_KEY_BYTES).hexdigest()
    return f"{digest}/{_file_name(value)}", _Row(number, value, digest)


def _file_name(url: str) -> str:
    """Return the last part of the URL's path, without what a file name should not hold."""
    try:
        path = urlsplit(url.strip()).path
    except ValueError:
        path = ""
    name = unquote(path.rstrip("/").rpartition("/")[2])
    name = re.sub(r"[^\w .,()+-]+", "_", name).strip(" .")
    suffix = PurePosixPath(name).suffix[:10]  # ".jpeg" and longer, but no sentence after a dot
    stem = name.removesuffix(suffix)
    return (stem[:_NAME_LETTERS] + suffix) or "file"
