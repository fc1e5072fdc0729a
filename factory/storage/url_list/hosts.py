"""Public and private hosts, and a guard on the sockets that foreign URLs may open."""

import errno
import ipaddress
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# What `is_global` leaves out, in Python 3.11 at least: multicast, the block of the IETF's
# protocols (one cloud's metadata lie there), and the address of Azure's own services.
_NOT_PUBLIC = tuple(
    ipaddress.ip_network(block) for block in ("224.0.0.0/4", "192.0.0.0/24", "168.63.129.16/32")
)
# All that the internet routes of IPv6, but for the translation of IPv4 below (RFC 6052).
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_IPV4_BITS = 2**32 - 1


def is_public(address: _Address) -> bool:
    """Tell whether an address is reached over the internet, not in this machine or network.

    An IPv6 address that carries an IPv4 address (mapped, NAT64, 6to4, Teredo) is public where
    that one is.
    """
    if isinstance(address, ipaddress.IPv4Address):
        return address.is_global and not any(address in block for block in _NOT_PUBLIC)
    if address.ipv4_mapped is not None:
        return is_public(address.ipv4_mapped)
    if address in _NAT64:
        return is_public(ipaddress.IPv4Address(int(address) & _IPV4_BITS))
    carried = [address.sixtofour, *(address.teredo or ())]
    routed = address in _GLOBAL_UNICAST and address.is_global
    return routed and all(is_public(inner) for inner in carried if inner is not None)


@dataclass(frozen=True)
class PrivateHost:
    """Private addresses that a user allows: a network, or all that a name stands for.

    Attributes:
        name: Host name, in lower case; "" for a network.
        network: The network; a single address is one of itself alone.
        port: The only port allowed; None for any.
    """

    name: str
    network: _Network | None
    port: int | None

    @classmethod
    def parse(cls, text: str) -> "PrivateHost":
        """Read "10.0.0.0/8", "192.168.1.5", "nas.lan" or "[::1]", each perhaps with ":PORT".

        Raises:
            ValueError: It is none of these.
        """
        given = text.strip()
        try:
            return cls("", ipaddress.ip_network(given), None)
        except ValueError:
            pass
        try:
            parts = urlsplit(f"//{given}")
            host, port = parts.hostname or "", parts.port
        except ValueError:
            host, port = "", None
        if not host or parts.netloc != given or "@" in given:
            raise ValueError(f"{text!r} is no host, address or network, such as 192.168.0.0/16")
        try:
            return cls("", ipaddress.ip_network(host), port)
        except ValueError:
            return cls(host, None, port)

    def allows(self, host: str, address: _Address, port: int) -> bool:
        """Tell whether it holds the address that a host of a URL led to."""
        if self.port not in (None, port):
            return False
        if self.network is None:
            return self.name == host
        return address in self.network


def named_in(url: str | None) -> list[str]:
    """Return the host and port of a URL of the user's own that names an address or localhost.

    A name proves nothing: who owns it decides where it leads.
    """
    if url is None:
        return []
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = parts.port or (443 if parts.scheme.lower() == "https" else 80)
    if host == "localhost":
        return [f"localhost:{port}"]
    try:
        return [f"[{host}]:{port}" if ipaddress.ip_address(host).version == 6 else f"{host}:{port}"]  # noqa: PLR2004
    except ValueError:
        return []


def allowed_hosts(private_hosts: Sequence[str], url: str | None) -> tuple[PrivateHost, ...]:
    """Return the private hosts of a setting, and one that the user's own URL names."""
    return tuple(PrivateHost.parse(host) for host in (*private_hosts, *named_in(url)))


# As much of a URL as an error shows.
_SHOWN_LETTERS = 120

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


def resolved(value: str, base_url: str | None) -> str | None:
    """Return the absolute http(s) URL that a cell means, or None."""
    try:
        parts = urlsplit(value)
        if base_url is not None and value and not parts.scheme:
            value = urljoin(base_url.rstrip("/") + "/", value)
            parts = urlsplit(value)
        fit = parts.scheme.lower() in ("http", "https") and bool(parts.hostname)
        _ = parts.port  # raises for what is no number
    except ValueError:
        return None
    return value if fit else None


def shown(url: str) -> str:
    """Return a URL for a message: passwords and query strings (signatures) left out."""
    bare, mark, _ = url.partition("?")
    bare = re.sub(r"//[^/@]*@", "//", bare)
    if len(bare) > _SHOWN_LETTERS:
        bare = bare[:_SHOWN_LETTERS] + "…"
    return bare + ("?…" if mark else "")


def check_url(url: str, setting: str) -> None:
    """Refuse a URL of the user's own that is none, or that holds a secret.

    Raises:
        ValueError: Says which, naming the setting.
    """
    if "@" in url.partition("?")[0]:
        raise ValueError(f"{setting} holds a user or password; take them out")
    if resolved(url, None) is None:
        raise ValueError(f"{setting}={url!r} must look like 'http://host/path'")
