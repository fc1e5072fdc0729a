"""What storages of web servers share: the settings of requests, and whom these may reach."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from factory.limits import Above, AtLeast, check_limits
from factory.storage.base import ReadOnlyStorage
from factory.storage.url_list.hosts import PrivateHost, allowed_hosts
from factory.storage.url_list.web_client import WebLimits


@dataclass(frozen=True, kw_only=True)
class WebStorage(ReadOnlyStorage):
    """A storage that asks web servers.

    Attributes:
        timeout_s: Seconds one try of a request may take in all. Redirects are included.
        max_redirects: Redirects followed per request.
        connections: Requests at once. Per process, and for one server the largest of all storages
            that ask it counts.
        max_attempts: Tries per request, the first included. Waits between them grow.
        deadline_s: Seconds for all tries of a request; 1 more per MiB received. Waits between them
            count, too.
        private_hosts: Hosts[:port] and networks that may be reached though they are private. An
            address that the storage's own URL names is one of them.
        proxy: Proxy's URL; the environment's is not used.
    """

    timeout_s: Annotated[float, Above(0)] = 30.0
    max_redirects: Annotated[int, AtLeast(0)] = 5
    connections: Annotated[int, AtLeast(1)] = 16
    max_attempts: Annotated[int, AtLeast(1)] = 3
    # Three whole tries, and the longest waits between them that are usual.
    deadline_s: Annotated[float, Above(0)] = 100.0
    private_hosts: Sequence[str] = ()
    proxy: str | None = None

    def __post_init__(self) -> None:
        """Refuse limits that let nothing through, and hosts that are none."""
        object.__setattr__(self, "private_hosts", tuple(self.private_hosts))  # can be hashed
        for host in self.private_hosts:
            PrivateHost.parse(host)
        check_limits(self, "storage")

    @property
    def remote(self) -> bool:
        """True: reads wait for servers."""
        return True

    def limits_of(self, own_url: str | None) -> WebLimits:
        """Return the limits of one request.

        Args:
            own_url: URL of a setting, whose address may be reached though it is private.
        """
        return WebLimits(
            timeout_s=self.timeout_s,
            redirects=self.max_redirects,
            connections=self.connections,
            attempts=self.max_attempts,
            deadline_s=self.deadline_s,
            private_hosts=allowed_hosts(self.private_hosts, own_url),
            proxy=self.proxy,
        )
