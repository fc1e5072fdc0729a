"""Clients of S3 servers: connections of one process to one endpoint."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from factory.storage.event_loop import run, without_own_retries

if TYPE_CHECKING:
    from aiobotocore.client import AioBaseClient
    from s3fs import S3FileSystem

T = TypeVar("T")


def open_files(
    endpoint_url: str | None, region: str | None, timeout_s: float, connections: int
) -> "S3FileSystem":
    """Make a file system for one storage in this process; nothing is connected yet.

    It sends every request once: `persist` is what sends it again.
    """
    from aiobotocore.session import AioSession
    from s3fs import S3FileSystem

    session = AioSession()
    settings: dict[str, Any] = {
        "connect_timeout": timeout_s,
        "read_timeout": timeout_s,
        "retries": {"total_max_attempts": 1, "mode": "standard"},
        "max_pool_connections": connections,
        "http_session_cls": _once(),
    }
    if endpoint_url or environment_endpoint():
        if "AWS_EC2_METADATA_DISABLED" not in os.environ:
            session.get_component("credential_provider").remove("iam-role")
        # Checksums beyond what S3 once asked for: AWS's default, unknown to many servers.
        settings["request_checksum_calculation"] = "when_required"
        settings["response_checksum_validation"] = "when_required"
    files = S3FileSystem(
        endpoint_url=endpoint_url,
        session=session,
        client_kwargs={"region_name": region} if region else None,
        config_kwargs=settings,
        use_listings_cache=False,
        skip_instance_cache=True,
    )
    files.retries = 1
    return files


def _once() -> type:
    """Return the client's kind of session, with its own second try of a broken connection off."""
    from aiobotocore.httpsession import AIOHTTPSession

    class Once(AIOHTTPSession):  # type: ignore[misc]
        """Sends each request once."""

        async def _get_session(self, proxy_url: str | None) -> Any:
            return without_own_retries(await super()._get_session(proxy_url))

    return Once


def run_within(
    files: "S3FileSystem", ask: "Callable[[AioBaseClient], Awaitable[T]]", seconds: float
) -> T:
    """Run an operation on the client once, for so many seconds at most.

    Raises:
        TimeoutError: It took longer.
    """

    async def within() -> T:
        """Connect if need be, and ask."""
        # The client is made inside, so that the time covers the search for credentials.
        async with asyncio.timeout(seconds):
            return await ask(await files.set_session())

    return run(within())


def close_files(files: "S3FileSystem | None") -> None:
    """Close the connections of a file system, if it has opened any."""
    # Not the public `s3`, which would connect first where nothing is connected yet.
    client = None if files is None else files._s3  # noqa: SLF001
    if client is not None:

        async def close() -> None:
            """Wait a second at most."""
            async with asyncio.timeout(1):
                await client.close()

        # Nothing is lost when it fails: the process's end closes the sockets too.
        with suppress(Exception):
            run(close())


def environment_endpoint() -> str:
    """Return the server that the SDK takes from the environment; "" for AWS itself."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""


def check_endpoint(url: str) -> None:
    """Refuse an address that is none, or that holds a secret.

    Raises:
        ValueError: Says which, and how to fix it.
    """
    try:
        parts = urlsplit(url)
        secret = "@" in parts.netloc
        sound = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1)
        sound = sound and not (parts.query or parts.fragment)
    except ValueError:
        secret, sound = "@" in url, False
    if secret:
        raise ValueError(
            "storage.endpoint_url holds a user or password; take them out and set "
            "AWS_ACCESS_KEY_ID / AWS_SECRET_ACCESS_KEY in the environment"
        )
    if not sound:
        raise ValueError(
            f"storage.endpoint_url={url!r} must look like 'http://host:port' or 'https://host'"
        )
