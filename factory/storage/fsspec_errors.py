"""Errors of file systems of fsspec: which may pass, our error for each, and what is not shown."""

import errno
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from factory.errors import (
    AccessDeniedError,
    ObjectNotFoundError,
    StorageError,
    StorageUnavailableError,
)
from factory.storage.retry import ExhaustedError, Fault, retry_after

# Options that say where the bytes live, and are part of a storage's identity. All others, which
# may be secrets, are never shown.
PLACES = (
    "account_name", "base_url", "branch", "drive_id", "endpoint_url", "host", "org", "port",
    "project", "ref", "repo", "repo_id", "repo_type", "revision", "sha", "share",
    "target_protocol",
)  # fmt: skip
# What no other try betters.
_ABSENT = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
_LASTING = (*_ABSENT, FileExistsError, PermissionError, NotImplementedError, StorageError)
# Connections broken in a way that another try may better.
_BROKEN = (
    errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED, errno.EPIPE, errno.ETIMEDOUT,
    errno.EBUSY, errno.EREMOTEIO, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENOTCONN,
)  # fmt: skip
# The same by the names of clients' own errors, whose packages are not imported for this.
_BROKEN_KINDS = {
    "ClientConnectionError", "ClientPayloadError", "ConnectionError", "EOFError", "HTTPClientError",
    "IncompleteRead", "NoValidConnectionsError", "SMBConnectionClosed", "SSHException",
    "TransportError", "error_temp", "gaierror",
}  # fmt: skip
_DENIED = {
    "AuthenticationException", "BadHostKeyException", "NoCredentialsError",
    "SMBAuthenticationError",
}  # fmt: skip
# Answers of HTTP that another try may better, and those that ask for fewer requests.
_PASSING = (408, 425, 429, 500, 502, 503, 504)
_THROTTLING = (429, 503)
# Shorter values ("test") would blot out words of the message itself.
_SHORTEST_SECRET = 6


def fault_of(error: Exception) -> Fault | None:
    """Return how a failure may pass; None where another try would fail alike."""
    kinds = _kinds(error)
    if isinstance(error, _LASTING) or kinds & _DENIED:
        return None
    if isinstance(error, TimeoutError) or any("Timeout" in kind for kind in kinds):
        return Fault("no answer in time (storage.timeout_s)", timeout=True)
    if (status := status_of(error)) in _PASSING:
        asked = retry_after(_headers(error))
        throttled = status in _THROTTLING
        return Fault(f"the server said {status}", throttled=throttled, retry_after_s=asked)
    if "SMBException" in kinds and "credits" in str(error):
        return Fault("the server takes no more requests at once", throttled=True)
    if kinds & _BROKEN_KINDS or (isinstance(error, OSError) and error.errno in _BROKEN):
        return Fault(f"the connection broke ({type(error).__name__})")
    return None


def _kinds(error: BaseException) -> set[str]:
    """Return the names of the classes of an error and of what caused it."""
    return {kind.__name__ for each in _chain(error) for kind in type(each).__mro__}


def _chain(error: BaseException) -> Iterator[Any]:
    """Yield an error and what caused it."""
    seen: list[BaseException] = []
    each: BaseException | None = error
    while each is not None and each not in seen:
        seen.append(each)
        yield each
        each = each.__cause__ or each.__context__


def status_of(error: BaseException) -> int | None:
    """Return the status of HTTP behind an error, wherever its client keeps it."""
    for each in _chain(error):
        response = getattr(each, "response", None)
        if isinstance(response, Mapping):
            found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        else:
            of = each if response is None else response
            names = ("status_code", "status", "code")
            found = next((getattr(of, name) for name in names if hasattr(of, name)), None)
        if isinstance(found, int | str) and str(found).isdecimal() and 100 <= int(found) < 600:  # noqa: PLR2004 - HTTP's
            return int(found)
    return None


def _headers(error: BaseException) -> dict[str, str]:
    for each in _chain(error):
        response = getattr(each, "response", None)
        told = (
            response.get("ResponseMetadata", {}).get("HTTPHeaders")
            if isinstance(response, Mapping)
            else getattr(response or each, "headers", None)
        )
        if isinstance(told, Mapping):
            return {str(name).lower(): str(value) for name, value in told.items()}
    return {}


def storage_error(error: Exception, action: str, options: Mapping[str, Any]) -> StorageError:
    """Return the error to raise for what a file system raised; its message holds no secret.

    Args:
        error: What was raised.
        action: What was being done, such as "read sftp://host/a.jpg".
        options: Those of the storage, whose values are left out.
    """
    if isinstance(error, StorageError):  # says all there is to say
        return error
    if isinstance(error, ExhaustedError):
        found = storage_error(error.cause, action, options)
        return type(found)(f"{found} ({error.tries.summary})")
    kind, why = _judged(error, action.startswith("write"))
    if kind is StorageError and not why:
        why = f"{type(error).__name__}: {_scrubbed(error, options)}"
    elif kind is AccessDeniedError:
        why = f"the server refused it ({_scrubbed(error, options)}); {why}"
    return kind(f"cannot {action}: {why}")


def _judged(error: Exception, writing: bool) -> tuple[type[StorageError], str]:
    """Return which of our errors another one is, and what to say."""
    status = status_of(error)
    if writing and isinstance(error, (FileExistsError, *_ABSENT[1:])):
        return StorageError, "it is a folder, or a part of its path is an object"
    number = error.errno if isinstance(error, OSError) else None  # SMB's errors have only that
    gone = number in (errno.ENOENT, errno.EISDIR, errno.ENOTDIR)
    if isinstance(error, _ABSENT) or status in (404, 410) or gone:
        return ObjectNotFoundError, "it does not exist"
    if (
        isinstance(error, PermissionError)
        or number == errno.EACCES
        or status in (401, 403)
        or _kinds(error) & _DENIED
    ):
        return AccessDeniedError, (
            "check the user, password or key in storage.options, or those the client takes from "
            "the environment"
        )
    if isinstance(error, NotImplementedError):
        return StorageError, "this kind of storage is read-only; store elsewhere"
    if fault_of(error) is not None:
        return StorageUnavailableError, (
            "the server cannot be reached, is overloaded or broke the connection; check "
            "storage.url and storage.options, and that the server runs"
        )
    return StorageError, ""


def _scrubbed(said: object, options: Mapping[str, Any]) -> str:
    text = shown(str(said))
    for value in _secrets(options):
        if len(value) >= _SHORTEST_SECRET:
            text = text.replace(value, "…")
    return text


def redacted(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as they may be shown: names, places and switches, and no other text."""
    return {
        name: redacted(value)
        if isinstance(value, Mapping)
        else value
        if isinstance(value, bool) or value is None or name in PLACES
        else "…"
        for name, value in options.items()
    }


def _secrets(options: Mapping[str, Any]) -> Iterator[str]:
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from _secrets(value)
        elif name not in PLACES and not isinstance(value, bool):
            yield str(value)
    for name, value in os.environ.items():
        if name.endswith(("_KEY", "_TOKEN", "_SECRET", "_PASSWORD", "_KEY_ID")):
            yield value


def shown(url: str) -> str:
    """Return a URL without the password in it."""
    return re.sub(r"://([^/@:]*):[^/@]*@", r"://\1:…@", url)
