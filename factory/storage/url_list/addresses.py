"""Connections that foreign URLs may open: to public addresses, and to private ones on a list.

Names are resolved and redirects followed before it is known which machine is asked, so the
address of each socket is looked at when the socket is made.
"""

import errno
import ipaddress
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from factory.storage.url_list.hosts import PrivateHost, is_public

# A host that resolvers read as an IPv4 address: numbers in any base, one to four of them.
_NUMBERS = re.compile(r"(?:0x[\da-f]*|\d+)(?:\.(?:0x[\da-f]*|\d+))*\.?")


@dataclass
class Visit:
    """One request to a host, and the addresses it was not let through to.

    Attributes:
        host: Host of the URL, or of the proxy.
        allowed: Private addresses that may be connected to.
        refused: Addresses that were not, as they are written.
    """

    host: str
    allowed: Sequence[PrivateHost] = ()
    refused: list[str] = field(default_factory=list)

    def admits(self, written: str, port: int) -> bool:
        """Tell whether a socket may be connected to an address."""
        try:
            address = ipaddress.ip_address(written)
        except ValueError:  # forms that only the system's resolver reads, such as 0x7f.1
            return False
        mapped = getattr(address, "ipv4_mapped", None)
        found = address if mapped is None else mapped
        return is_public(found) or any(each.allows(self.host, found, port) for each in self.allowed)


def admits_name(host: str, port: int, allowed: Sequence[PrivateHost]) -> bool:
    """Tell whether a URL's host may be asked for through a proxy, by what it says of itself."""
    visit = Visit(host, allowed)
    host = unquote(host).rstrip(".")  # as some proxies read it
    if host == "localhost" or host.endswith(".localhost"):
        return visit.admits("127.0.0.1", port)
    if ":" in host or _NUMBERS.fullmatch(host):
        return visit.admits(host, port)
    return True


_VISIT: ContextVar[Visit | None] = ContextVar("visit", default=None)


@contextmanager
def visiting(host: str, allowed: Sequence[PrivateHost]) -> Iterator[Visit]:
    """Say whom the requests of the `with` block are for, so that its private addresses pass."""
    visit = Visit(host.lower(), allowed)
    token = _VISIT.set(visit)
    try:
        yield visit
    finally:
        _VISIT.reset(token)


def guarded_socket(info: tuple[Any, ...]) -> socket.socket:
    """Make the socket for an address, as `aiohttp.TCPConnector(socket_factory=…)` asks for it.

    Raises:
        PermissionError: The address is private, and nobody allowed it.
    """
    family, kind, proto, _, address = info
    visit = _VISIT.get() or Visit("")
    if not visit.admits(str(address[0]), address[1]):
        visit.refused.append(str(address[0]))
        raise PermissionError(errno.EACCES, f"{address[0]} is a private or reserved address")
    return socket.socket(family=family, type=kind, proto=proto)
