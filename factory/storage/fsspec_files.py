"""File systems of fsspec: opened per process, called in the event loop or in threads, closed."""

import asyncio
import os
import re
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from factory.errors import StorageError
from factory.storage.event_loop import run, without_own_retries
from factory.storage.fsspec_errors import PLACES, shown
from factory.storage.keys import did_you_mean

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

# Protocols whose one write shows an object whole or not at all. Others write beside the object's
# place and rename.
WHOLE_WRITES = frozenset(
    ("abfs", "abfss", "az", "gcs", "gs", "hf", "memory", "oci", "oss", "s3", "s3a", "tos")
)
# What fsspec itself can only read.
READ_ONLY = frozenset(("data", "gist", "git", "github", "libarchive", "reference", "tar", "zip"))
# Those of one machine: nothing waits for a network.
LOCAL = frozenset(("file", "local", "memory"))
# Without a connection that threads would have to take turns at.
_SHARED = LOCAL | {"github", "hf", "webdav"}
# Where a URL without a path is the top of the server, not the folder one logs in to.
_FROM_TOP = ("ftp", "sftp", "smb", "ssh")
# Options that wait between bytes of an answer, by the protocol whose files take them.
_TIMEOUTS: dict[str, tuple[str, ...]] = {
    "ftp": ("timeout",),
    "s3": ("connect_timeout", "read_timeout"),
    "s3a": ("connect_timeout", "read_timeout"),
    "sftp": ("timeout", "banner_timeout", "auth_timeout"),
    "smb": ("timeout",),
    "ssh": ("timeout", "banner_timeout", "auth_timeout"),
    "webdav": ("timeout",),
}
# Packages of protocols whose error of fsspec does not spell them as pip does.
_PACKAGES = {
    "abfss": "adlfs",
    "adl": "adlfs",
    "gdrive": "gdrive-fsspec",
    "hf": "huggingface_hub",
    "libarchive": "libarchive-c",
}
# Seconds that closing waits for one connection.
_CLOSE_S = 1.0


def protocol_of(url: str) -> str:
    """Return the protocol of a URL; of a chain ("zip::sftp://…"), the first one's."""
    return re.split(r"::|://", url, maxsplit=1)[0] if re.match(r"\w+(::|://)", url) else "file"


def check_url(url: str) -> None:
    """Refuse a URL that fsspec does not know, or that holds a secret.

    Raises:
        ValueError: Says which, and how to fix it.
    """
    from fsspec.registry import known_implementations, registry

    if not url:
        raise ValueError("storage.url is empty; set it to a URL such as sftp://host/folder")
    for part in url.split("::"):
        protocol = protocol_of(part) if "://" in part else part
        if protocol in ("http", "https"):
            raise ValueError(
                f"storage.url={shown(url)!r} is a web server's, which storage=http reads: "
                f"storage=http storage.url={shown(part)}"
            )
        user, _, password = urlsplit(part).netloc.rpartition("@")[0].partition(":")
        if password:
            raise ValueError(
                f"storage.url={shown(url)!r} holds a password; give it from the environment: "
                f"storage.options='{{password: ${{oc.env:NAME}}}}' (the user {user!r} may stay)"
            )
    protocol = protocol_of(url)
    known = [*known_implementations, *registry]
    if protocol not in known:
        raise ValueError(
            f"storage.url={shown(url)!r}: fsspec knows no protocol {protocol!r}"
            f"{did_you_mean(protocol, known)}"
        )


def missing_package(protocol: str) -> str | None:
    """Return what pip would install for a protocol; None where it is there, or needs nothing."""
    from fsspec.registry import known_implementations, registry

    told = known_implementations.get(protocol)
    if told is None or protocol in registry:
        return None
    module = str(told["class"]).partition(".")[0]
    said = str(told.get("err", ""))
    found = re.search(r"(?:[Ii]nstall|requires?) (?:the )?['\"]?([\w.-]+(?:\[\w+\])?)", said)
    package = _PACKAGES.get(protocol, found[1] if found else module)
    wanted = module if module != "fsspec" else package.partition("[")[0]
    return None if find_spec(wanted.replace("-", "_")) else package


def place(url: str, options: Mapping[str, Any]) -> str:
    """Return a URI of a root and of the server it lies on; holds no secret."""
    root, server = trimmed(url), dict(_places(options))
    query = (
        [f"endpoint={server.pop('endpoint_url').rstrip('/')}"] if "endpoint_url" in server else []
    )
    query += [f"{name}={server[name]}" for name in sorted(server)]
    return root + ("?" + "&".join(query) if query else "")


def trimmed(url: str) -> str:
    """Return a URL without slashes at its end."""
    return re.sub(r"(?<=[^/:])/+$", "", url)


def _places(options: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from _places(value)
        elif name in PLACES and value is not None:
            yield name, shown(str(value))


class Files:
    """The files behind a URL, for one process: one file system, or one for each thread.

    Those whose methods are coroutines run in the loop of `event_loop`; those of others in threads
    of their own, since a connection of SFTP or FTP serves one call at a time.
    """

    def __init__(
        self, url: str, options: Mapping[str, Any], connections: int, timeout_s: float
    ) -> None:
        """Open the first file system.

        Raises:
            StorageError: The protocol's package is not installed.
        """
        self.protocol = protocol_of(url)
        self._url, self._given = url, dict(options)
        self._connections, self._timeout_s = connections, timeout_s
        self._idle: list[AbstractFileSystem] = []
        self._lock = threading.Lock()
        self._closed = False
        if package := missing_package(self.protocol):
            raise StorageError(
                f"{shown(url)} needs the package {package!r}, which is not installed; "
                f"install it with: pip install '{package}'"
            )
        first, root = self._open()
        self.root = root.rstrip("/")
        self._top = "/" if root.startswith("/") or self.protocol in _FROM_TOP else ""
        self._shared = first if first.async_impl or self.protocol in _SHARED else None
        self._is_async = bool(first.async_impl)
        self.lists_flat = self._lists_flat(first)
        self.renames = self._renames(first)
        if self._shared is None:
            self._idle.append(first)
        # All of a process's calls over SMB share one connection, and fail where they are too many.
        threads = 1 if self.protocol == "smb" else connections
        self._pool = None if self._is_async else ThreadPoolExecutor(threads, "factory-fsspec")

    def _open(self) -> "tuple[AbstractFileSystem, str]":
        from fsspec.core import url_to_fs

        given = {**self._settings(), **self._given}
        files, root = url_to_fs(self._url, skip_instance_cache=True, **given)
        if hasattr(files, "dircache"):  # not by an option, which clients of servers hand on
            files.dircache.use_listings_cache = False
        if self.protocol in ("s3", "s3a"):
            files.retries = 1
            if not files.version_aware:
                _keep_question_marks(files)
        if self.protocol in ("sftp", "ssh"):
            files.ftp.get_channel().settimeout(self._timeout_s)
        if (replace := _REPLACE.get(self.protocol)) is not None:
            files.mv = partial(replace, files)
        return files, str(root)

    def _settings(self) -> dict[str, Any]:
        """Return options for a client that sends each request once and does not wait for ever."""
        waits: dict[str, Any] = dict.fromkeys(_TIMEOUTS.get(self.protocol, ()), self._timeout_s)
        if self.protocol == "smb":  # or one reader keeps all others away
            return {"share_access": "rwd", **waits}
        if self.protocol not in ("s3", "s3a"):
            return waits
        config: dict[str, Any] = waits | {
            "retries": {"total_max_attempts": 1, "mode": "standard"},
            "max_pool_connections": self._connections,
            "http_session_cls": _sends_once(),
        }
        if self._given.get("endpoint_url") or os.environ.get("AWS_ENDPOINT_URL"):
            # Checksums beyond what S3 once asked for: AWS's default, unknown to many servers.
            config["request_checksum_calculation"] = "when_required"
            config["response_checksum_validation"] = "when_required"
        return {"config_kwargs": config}

    @staticmethod
    def _lists_flat(files: "AbstractFileSystem") -> bool:
        """Tell whether one call lists a whole tree: a search of its own, not folder by folder."""
        from fsspec import AbstractFileSystem
        from fsspec.asyn import AsyncFileSystem

        kind = type(files)
        if files.async_impl:
            return kind._find is not AsyncFileSystem._find  # noqa: SLF001 - says how it lists
        return kind.find is not AbstractFileSystem.find

    @staticmethod
    def _renames(files: "AbstractFileSystem") -> bool:
        """Tell whether it renames, rather than copies and deletes."""
        from fsspec import AbstractFileSystem

        return type(files).mv is not AbstractFileSystem.mv

    def path(self, name: str) -> str:
        """Return what the file system calls a key; "" is the root.

        Raises:
            StorageError: Its client cannot spell the key.
        """
        if not name:
            return self.root or self._top
        if self.protocol in ("dav", "webdav") and (sign := re.search("[%?#]", name)):
            raise StorageError(
                f"{name!r} has a {sign[0]!r}, which webdav4 takes for a part of the URL; rename it"
            )
        return f"{self.root}/{name}" if self.root else self._top + name

    def key(self, path: str) -> str:
        """Return the key of a path."""
        root = self.root.strip("/")
        return path.strip("/")[len(root) + 1 if root else 0 :]

    async def call(self, method: str, *args: Any, **more: Any) -> Any:
        """Call a method of the file system; for the loop."""
        if self._is_async:
            own = getattr(self._shared, "_" + method)
            return await own(*args, **more)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, lambda: self._in_thread(method, args, more))

    def _in_thread(self, method: str, args: tuple[Any, ...], more: dict[str, Any]) -> Any:
        files = self._shared or self._taken()
        broken = True
        try:
            found = getattr(files, method)(*args, **more)
            broken = False
        except (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError):
            broken = False
            raise
        else:
            return found
        finally:
            if self._shared is None:
                self._put_back(files, broken)

    def _taken(self) -> "AbstractFileSystem":
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return self._open()[0]

    def _put_back(self, files: "AbstractFileSystem", broken: bool) -> None:
        with self._lock:
            if not (broken or self._closed):
                self._idle.append(files)
                return
        _close(files)

    def close(self) -> None:
        """Close the connections, and end the threads."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for files in idle:
            _close(files)
        if self._shared is not None:
            _close(self._shared)
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)


def _sends_once() -> type:
    """Return s3fs's kind of session, with its own second try of a broken connection off."""
    from aiobotocore.httpsession import AIOHTTPSession

    class Once(AIOHTTPSession):  # type: ignore[misc]
        """Sends each request once."""

        async def _get_session(self, proxy_url: str | None) -> Any:
            return without_own_retries(await super()._get_session(proxy_url))

    return Once


def _keep_question_marks(files: Any) -> None:
    """Take "?versionId=" in a key for a part of it: s3fs would read the key before it."""
    split = files.split_path

    def whole(path: str) -> tuple[str, str, None]:
        bucket, key, _ = split(path.replace("?versionId=", "\0"))
        return bucket, key.replace("\0", "?versionId="), None

    files.split_path = whole


def _replace_over_webdav(files: Any, path: str, target: str) -> None:
    """Move a file to a place that may be taken; fsspec's own way copies and deletes."""
    if files.exists(target) and files.isdir(target):  # which the server would delete
        raise IsADirectoryError(target)
    files.client.move(path, target, overwrite=True)


def _replace_over_smb(files: Any, path: str, target: str) -> None:
    """Rename a file to a place that may be taken; fsspec's own way refuses that."""
    import smbclient

    unc = [rf"\\{files.host}{each}".replace("/", "\\") for each in (path, target)]
    smbclient.replace(*unc, port=files._port)  # noqa: SLF001 - as fsspec's own rename


_REPLACE = {
    "dav": _replace_over_webdav,
    "webdav": _replace_over_webdav,
    "smb": _replace_over_smb,
}


def _close(files: Any) -> None:
    """Close what a file system holds open; nothing is lost where that fails."""

    async def session(client: Any) -> None:
        async with asyncio.timeout(_CLOSE_S):
            await client.close()

    with suppress(Exception):
        for name in ("_s3", "_session"):  # clients of aiohttp
            if (web := getattr(files, name, None)) is not None:
                setattr(files, name, None)
                run(session(web))
        client: Any = getattr(files, "client", None)
        for each in (client, getattr(client, "http", None), getattr(files, "ftp", None)):
            if each is not None and hasattr(each, "close"):  # paramiko's, httpx's, ftplib's
                each.close()
        if hasattr(files, "close"):
            files.close()
