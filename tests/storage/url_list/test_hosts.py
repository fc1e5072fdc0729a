"""Where a list of URLs may lead: public addresses, and private ones that are allowed."""

import ipaddress
import json
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.config.schema.storage import CsvConfig
from factory.errors import StorageError
from factory.storage.url_list.hosts import (
    PrivateHost,
    guarded_socket,
    is_public,
    named_in,
    visiting,
)
from tests.storage.web import PICTURE, Lists, Web, lists, only_key, quick_retries, web

__all__ = ["lists", "quick_retries", "web"]  # fixtures, used by their names

PRIVATE = [
    "0.0.0.0", "10.1.2.3", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.9.9.9",
    "168.63.129.16", "169.254.169.254", "172.16.0.1", "192.0.0.192", "192.168.1.1", "198.18.0.1",
    "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255",
    "::", "::1", "fe80::1", "fe80::1%lo", "fec0::1", "fc00::1", "fd00:ec2::254", "ff02::1",
    "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:a00:1", "::127.0.0.1",
    "64:ff9b::169.254.169.254", "64:ff9b::7f00:1", "64:ff9b:1::1", "2002:7f00:1::",
    "2002:a9fe:a9fe::1", "2001:0:4136:e378:8000:63bf:80ff:fffe", "2001:db8::1",
]  # fmt: skip
PUBLIC = [
    "8.8.8.8", "1.1.1.1", "100.63.255.255", "100.128.0.1", "172.32.0.1", "169.253.1.1",
    "2606:4700::1111", "64:ff9b::8.8.8.8", "2002:808:808::1", "::ffff:8.8.8.8",
]  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@given(st.ip_addresses(v=4))
def test_ipv6_forms_hide_no_ipv4_address(address: ipaddress.IPv4Address) -> None:
    for form in (f"::ffff:{address}", f"64:ff9b::{address}"):
        assert is_public(ipaddress.ip_address(form)) == is_public(address)


@pytest.mark.parametrize(
    ("given", "admitted", "refused"),
    [
        ("10.0.0.0/8", ("x", "10.1.1.1", 80), ("x", "11.1.1.1", 80)),
        ("127.0.0.1:80", ("x", "127.0.0.1", 80), ("x", "127.0.0.1", 81)),
        ("nas.lan", ("nas.lan", "192.168.0.9", 5), ("nas.lan.evil", "192.168.0.9", 5)),
        ("NAS.lan:8000", ("nas.lan", "fd00::1", 8000), ("nas.lan", "fd00::1", 80)),
        ("[::1]:80", ("x", "::1", 80), ("x", "::2", 80)),
        ("fd00::/8", ("x", "fd12::1", 80), ("x", "fe80::1", 80)),
    ],
)
def test_allowed_hosts(given: str, admitted: Any, refused: Any) -> None:
    host = PrivateHost.parse(given)
    for expected, (name, address, port) in ((True, admitted), (False, refused)):
        assert host.allows(name, ipaddress.ip_address(address), port) is expected


@pytest.mark.parametrize("given", ["", "a/b", "http://h/", "u@h", "h:x", "10.0.0.0/99", "[::1"])
def test_what_is_no_host_is_refused(lists: Lists, given: str) -> None:
    with pytest.raises(ValueError, match="no host, address or network"):
        lists("http://h/a", private_hosts=[given])
    config = CsvConfig(table="t", private_hosts=[given])
    assert any("private_hosts" in problem for problem in config.problems())


FORMS = [
    "127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "127.1", "0x7f.0.0.1",
    "0177.0.0.1", "2130706433", "0x7f000001", "\uff11\uff12\uff17.0.0.1", "127.0.0.1.", "LOCALHOST",
]  # fmt: skip


@pytest.mark.parametrize("host", FORMS)
def test_loopback_in_every_form_is_refused(lists: Lists, web: Web, host: str) -> None:
    storage = lists(f"http://{host}:{web.server_port}/a.png", private_hosts=[], max_attempts=1)
    with pytest.raises(StorageError, match=r"private|valid URL|connection failed"):
        storage.read(only_key(storage))
    assert not web.requests


@pytest.mark.parametrize(
    "host", ["169.254.169.254", "10.0.0.1", "[fe80::1]", "[64:ff9b::a9fe:a9fe]"]
)
@pytest.mark.parametrize("through", ["", "/hop?"])
def test_private_addresses_are_not_connected_to(
    lists: Lists, web: Web, monkeypatch: pytest.MonkeyPatch, host: str, through: str
) -> None:
    url = f"http://{host}/latest/meta-data/"
    storage = lists(f"{web.url}{through}{url}" if through else url)
    with pytest.raises(StorageError, match=r"private or reserved.*storage\.private_hosts=\["):
        storage.read(only_key(storage))
    assert web.requests.total() == (1 if through else 0)  # not tried again


def test_a_name_counts_by_the_address_it_leads_to(
    lists: Lists, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = socket.getaddrinfo

    def rebound(host: Any, *rest: Any, **more: Any) -> Any:
        return real("127.0.0.1" if host == "pictures.test" else host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", rebound)
    url = f"http://pictures.test:{web.server_port}/a.png"
    for settings in ({"private_hosts": []}, {"private_hosts": ["other.test", "10.0.0.0/8"]}):
        storage = lists(url, **settings)
        with pytest.raises(StorageError, match=r"private_hosts=\[pictures\.test\]"):
            storage.read(only_key(storage))
    assert not web.requests
    for allowed in ("pictures.test", "127.0.0.0/8", f"pictures.test:{web.server_port}"):
        storage = lists(url + f"?{allowed}", private_hosts=[allowed])
        assert storage.read(only_key(storage)).startswith(PICTURE)


def test_the_address_of_base_url_is_allowed_and_no_other(lists: Lists, web: Web) -> None:
    other = Web()  # another port of the same address; it need not answer
    try:
        storage = lists("a.png", base_url=web.url, private_hosts=[])
        assert storage.read(only_key(storage)).startswith(PICTURE)
        storage = lists(f"hop?{other.url}/a.png", base_url=web.url, private_hosts=[])
        with pytest.raises(StorageError, match="private or reserved"):
            storage.read(only_key(storage))
    finally:
        other.server_close()
    assert named_in("http://pictures.test/") == []  # whose owner decides where it leads
    assert named_in("https://[::1]/") == ["[::1]:443"]


def test_a_socket_for_another_host_is_not_let_through(web: Web) -> None:
    info = (socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", web.server_port))
    with visiting("a.test", [PrivateHost.parse("a.test")]):
        guarded_socket(info).close()
    with visiting("b.test", [PrivateHost.parse("a.test")]), pytest.raises(PermissionError):
        guarded_socket(info)
    with pytest.raises(PermissionError):
        guarded_socket(info)


def test_netrc_and_proxies_of_the_environment_are_not_used(
    lists: Lists, web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login me password hunter2\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    storage = lists(f"{web.url}/headers", f"{web.url}/hop?/headers?2")
    for info in storage.objects():
        assert "authorization" not in json.loads(storage.read(info.key))


def test_a_password_in_a_url_stays_with_its_host(lists: Lists, web: Web) -> None:
    elsewhere = f"http://localhost:{web.server_port}/headers"
    own = f"http://me:hunter2@127.0.0.1:{web.server_port}"
    allowed = ["127.0.0.1", "localhost"]
    storage = lists(f"{own}/headers", private_hosts=allowed)
    assert "authorization" in json.loads(storage.read(only_key(storage)))
    storage = lists(f"{own}/hop?{elsewhere}", private_hosts=allowed)
    assert "authorization" not in json.loads(storage.read(only_key(storage)))


def test_an_explicit_proxy_is_used_but_asked_for_no_private_address(lists: Lists, web: Web) -> None:
    storage = lists("http://pictures.test/a.png", private_hosts=[], proxy=web.url)
    assert storage.read(only_key(storage)).startswith(PICTURE)
    assert web.requests == {"http://pictures.test/a.png": 1}
    for host in (
        "169.254.169.254", "localhost", "2130706433", "0x7f.1", "127.0.0.1.", "[::1]",
        "localhost.", "a.localhost.", "127.0.0.1%2e", "127%2E0%2E0%2E1",
    ):  # fmt: skip
        storage = lists(f"http://{host}/a.png", private_hosts=[], proxy=web.url)
        with pytest.raises(StorageError, match=r"private|valid"):
            storage.read(only_key(storage))
    assert web.requests.total() == 1
