"""Folders of web servers as a storage: found through index pages, read by ranges."""

import asyncio
import hashlib
import json
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Annotated, ClassVar
from urllib.parse import quote, unquote, urljoin, urlsplit

from factory.errors import ObjectNotFoundError, StorageError
from factory.limits import Above
from factory.records import UNKNOWN_SIZE, ObjectInfo
from factory.storage.base import Span, safe_key
from factory.storage.event_loop import OrderedRequests, TransferProgress, run
from factory.storage.keys import check_span, is_listed, is_normal, safe_prefix
from factory.storage.per_process import PerProcess
from factory.storage.retry import Fault
from factory.storage.url_list.hosts import check_url, shown
from factory.storage.url_list.web_client import PassingError, WebClient, body_of
from factory.storage.url_list.web_storage import WebStorage

if TYPE_CHECKING:
    import aiohttp

# Of one index page or file of keys: a million names.
_INDEX_BYTES = 128 * 2**20
# Folders in one another, beyond which a server shows a link in a circle.
_DEEPEST = 50
# Reads begun before the first of them is taken, for each connection.
_AHEAD = 2
_CHECK_S = 9.0
_HTML = ("text/html", "application/xhtml+xml")


@dataclass(frozen=True)
class HttpStorage(WebStorage):
    """Files below a URL of a web server that shows its folders; read-only.

    Keys are found in index pages, as nginx, Apache, rclone and `python -m http.server` make them,
    or in a file that lists them, one a line. Sizes and ETags are what the server says of each
    file, so that a listing asks it once a file.

    Attributes:
        url: URL of the folder that keys are relative to.
        listing_file: Key of a file that holds the other keys, one a line. Without it index pages
            are read.
        max_file_mb: Largest file read whole, MiB.
    """

    described: ClassVar[str] = "a folder of a web server is"
    spans_at_once: ClassVar[int] = 128

    url: str
    listing_file: str | None = None
    max_file_mb: Annotated[float, Above(0)] = 1024

    def __post_init__(self) -> None:
        """Refuse limits that let nothing through, and an address that is none."""
        super().__post_init__()
        check_url(self.url, "storage.url")
        if "?" in self.url or "#" in self.url:
            raise ValueError(
                f"storage.url={shown(self.url)!r} must be a folder, without '?' or '#'"
            )

    @property
    def identity(self) -> str:
        """The URL of the folder."""
        return self.url.rstrip("/")

    def _url(self, key: str) -> str:
        return f"{self.identity}/{quote(safe_key(key))}"

    def objects(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield every file below a prefix, with what the server says of its size and ETag.

        Raises:
            ObjectNotFoundError: The folder does not exist, or no key lies below the prefix.
            StorageError: The server shows no index page of it.
        """
        folder = safe_prefix(prefix)
        keys = self._listed(folder) if self.listing_file else self._walk(folder)
        found = False
        for each in OrderedRequests(self._described, keys, _AHEAD * self.connections):
            if isinstance(each, ObjectNotFoundError):
                continue  # removed since the page was made, or a link to nowhere
            if isinstance(each, StorageError):
                raise each
            found = True
            yield each
        if folder and not found:
            raise ObjectNotFoundError(f"{self.identity} has no key below {prefix!r}")

    def _listed(self, folder: str) -> Iterator[str]:
        """Yield the keys that the file of keys holds."""
        text = self.read(str(self.listing_file)).decode("utf-8-sig", "replace")
        for line in dict.fromkeys(filter(None, map(str.strip, text.splitlines()))):
            key = line.removeprefix("./")
            if is_listed(key) and is_normal(key) and (not folder or key.startswith(folder + "/")):
                yield safe_key(key)

    def _walk(self, folder: str) -> Iterator[str]:
        """Yield the keys that index pages lead to, folder by folder."""
        waiting = [folder]
        while waiting:
            above = waiting.pop()
            if above.count("/") > _DEEPEST:
                raise StorageError(
                    f"{self.identity}/{above} lies in {_DEEPEST} folders, as where a link leads in "
                    "a circle; take the link away, or list the keys in a file: storage.listing_file"
                )
            for name in run(self._index(above)):
                key = f"{above}/{name}" if above else name
                if key.endswith("/"):
                    waiting.append(key[:-1])
                elif is_listed(key) and key != self.listing_file:
                    yield key

    async def _index(self, folder: str) -> list[str]:
        """Return the names that a folder's index page links to; those of folders end with "/"."""
        url = f"{self._url(folder) if folder else self.identity}/"
        where = shown(url)

        async def take(response: "aiohttp.ClientResponse", progress: TransferProgress) -> list[str]:
            kind = response.content_type
            if kind not in (*_HTML, "application/json"):
                raise StorageError(
                    f"{where} is no index page (it is {kind}); let the server show its folders, or "
                    "list the keys in a file: storage.listing_file=KEY"
                )
            too_large = StorageError(f"{where} is an index page of more than {_INDEX_BYTES} bytes")
            page = await body_of(response, progress, _INDEX_BYTES, too_large)
            text = page.decode(response.charset or "utf-8", "replace")
            return _names(text, str(response.url), is_json=kind == "application/json")

        try:
            return await _CLIENTS.get(self).ask(url, where, take)
        except ObjectNotFoundError as error:
            raise ObjectNotFoundError(f"{error}; correct storage.url or the prefix") from error

    async def _described(self, key: str) -> ObjectInfo | StorageError:
        """Ask a server about a file, or return what went wrong."""
        try:
            return await self._head(key)
        except StorageError as error:
            return error

    async def _head(self, key: str) -> ObjectInfo:
        url = self._url(key)
        where = shown(url)

        async def take(response: "aiohttp.ClientResponse", _: TransferProgress) -> ObjectInfo:
            if str(response.url).endswith("/"):
                raise ObjectNotFoundError(f"{where} is a folder")
            size = response.content_length
            known = UNKNOWN_SIZE if size is None else size
            return ObjectInfo(safe_key(key), known, _version(response, url))

        return await _CLIENTS.get(self).ask(url, where, take, method="HEAD")

    def head(self, key: str) -> ObjectInfo:
        """Describe one file by what the server says.

        Raises:
            ObjectNotFoundError: There is no such file.
        """
        safe_key(key)
        return run(self._head(key))

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """Return a file's bytes, or a span of them by a ranged request.

        Raises:
            ObjectNotFoundError: There is no such file.
            StorageUnavailableError: The server fails, refuses or is too slow.
            StorageError: The answer is no file within the limits.
        """
        check_span(start, length)
        safe_key(key)
        return run(self._span(key, start, length))

    async def _span(self, key: str, start: int, length: int | None) -> bytes:
        if length == 0:  # no range can say "nothing"
            await self._head(key)
            return b""
        url = self._url(key)
        where, most = shown(url), int(self.max_file_mb * 2**20)
        too_large = StorageError(
            f"{where} is larger than {self.max_file_mb:g} MiB; "
            "raise storage.max_file_mb to allow it"
        )

        async def take(response: "aiohttp.ClientResponse", progress: TransferProgress) -> bytes:
            self._check_file(response, key, where)
            if response.status == 416:  # noqa: PLR2004 - HTTP's word for a span behind the end
                return b""
            # A server without ranges sends all; no more is taken than what was asked for.
            skipped = start if response.status == 200 else 0  # noqa: PLR2004 - HTTP's plain success
            limit = most if length is None else skipped + length
            error = too_large if length is None else None
            return bytes((await body_of(response, progress, limit, error))[skipped:])

        last = "" if length is None else start + length - 1
        headers = {"Range": f"bytes={start}-{last}"} if start or length is not None else {}
        accept = (200, 206, 416) if headers else (200,)
        return await _CLIENTS.get(self).ask(url, where, take, headers=headers, accept=accept)

    @staticmethod
    def _check_file(response: "aiohttp.ClientResponse", key: str, where: str) -> None:
        """Refuse what stands for another file: a folder's page, or one that asks to log in."""
        if str(response.url).endswith("/"):
            raise ObjectNotFoundError(f"{where} is a folder")
        if response.content_type in _HTML and not key.lower().endswith((".html", ".htm", ".xhtml")):
            raise StorageError(f"{where}: got HTML instead of the file")
        told = response.headers.get("Content-Range", "")
        asked = response.request_info.headers.get("Range", "").removeprefix("bytes=")
        if response.status == 206 and not told.startswith(f"bytes {asked.partition('-')[0]}-"):  # noqa: PLR2004 - HTTP's
            raise PassingError(Fault(f"the server sent another span ({told!r})", damaged=True))

    def read_many(self, spans: Sequence[Span]) -> Generator[bytes | StorageError, None, None]:
        """Yield several spans in their order, asked for side by side; see `Storage`."""

        async def one(span: Span) -> bytes | StorageError:
            """Read a span, or return what went wrong."""
            check_span(*span[1:])
            try:
                return await self._span(*span)
            except StorageError as error:
                return error

        return OrderedRequests(one, spans, _AHEAD * self.connections)

    def check(self, *, write: bool = False) -> None:
        """Ask for the folder's index page, or for the file of keys.

        Raises:
            ObjectNotFoundError: It does not exist.
            StorageError: `write` was asked for, or the server shows no index page.
        """
        super().check(write=write)

        async def within() -> None:
            """Ask for a few seconds at most."""
            async with asyncio.timeout(_CHECK_S):
                await (self._head(self.listing_file) if self.listing_file else self._index(""))

        try:
            run(within())
        except TimeoutError as error:
            raise StorageError(
                f"{self.identity} does not answer within {_CHECK_S:g} s; check storage.url"
            ) from error

    def close(self) -> None:
        """Close this process's connections; they open again on use."""
        if (client := _CLIENTS.pop(self)) is not None:
            client.close()


_CLIENTS: PerProcess[HttpStorage, WebClient] = PerProcess(
    lambda storage: WebClient(storage.limits_of(storage.url))
)


def _version(response: "aiohttp.ClientResponse", url: str) -> str:
    """Return what changes with a file: its ETag, else its time and size, else its URL's hash."""
    if etag := response.headers.get("ETag", ""):
        return etag.removeprefix("W/").strip('"')
    try:
        time = int(parsedate_to_datetime(response.headers.get("Last-Modified", "")).timestamp())
    except ValueError:
        return hashlib.blake2b(url.encode(), digest_size=16).hexdigest()
    return f"{time:x}-{response.content_length or 0:x}"


class _Links(HTMLParser):
    """The addresses that a page links to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep what an <a> leads to."""
        self.found += [value for name, value in attrs if tag == "a" and name == "href" and value]


def _names(page: str, url: str, *, is_json: bool) -> list[str]:
    """Return the names of what lies directly in a folder, by its index page.

    Args:
        page: The page: HTML, or nginx's JSON.
        url: Where it was found, after redirects.
        is_json: Which of both.
    """
    if is_json:
        try:
            entries = [(str(each["name"]), each.get("type")) for each in json.loads(page)]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise StorageError(f"{shown(url)} is no index page, though it is JSON") from error
        return [name + "/" * (kind == "directory") for name, kind in entries if is_normal(name)]
    links = _Links()
    links.feed(page)
    folder = urlsplit(url)._replace(query="", fragment="").geturl().rpartition("/")[0] + "/"
    names = []
    for link in links.found:
        leads = urljoin(url, link.strip()).partition("#")[0]
        # Neither the folder above, nor the same folder in another order ("?C=M;O=D").
        if not leads.startswith(folder) or "?" in leads:
            continue
        name = unquote(leads[len(folder) :])
        if "/" in name[:-1] or not is_normal(name.rstrip("/")):
            continue
        names.append(name)
    return list(dict.fromkeys(names))
