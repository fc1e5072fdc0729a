"""What becomes of downloads from a web server behind a network that misbehaves."""

import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from factory.errors import ObjectNotFoundError, StorageError, StorageUnavailableError
from factory.storage import UrlListStorage, retry
from factory.storage.endpoint_limits import request_counts
from tests.storage import proxy as faults
from tests.storage.proxy import Fault, Proxy, Script, proxied
from tests.storage.web import PICTURE, Lists, Web, files_in, lists, quick_retries, web

__all__ = ["lists", "quick_retries", "web"]  # fixtures, used by their names

PASSING = {
    "hang": faults.hang,
    "hang in body": faults.hang_in_body,
    "503": faults.says(503),
    "429": faults.says(429, Retry_After="0"),
    "reset": faults.reset,
    "reset in body": faults.reset_in_body,
    "truncated": faults.truncated,
    "trickling": faults.trickling,
}


@pytest.fixture
def proxy(web: Web) -> Iterator[Proxy]:
    yield from proxied(web.url)


def keys_of(storage: UrlListStorage) -> list[str]:
    """Return the keys in the order of the table."""
    return [info.key for info in storage.objects()]


def _patience(name: str) -> float:
    """Return a limit that is short for what only it ends, and enough for all else."""
    return 0.5 if "hang" in name or name == "trickling" else 10


@pytest.mark.parametrize("name", PASSING)
def test_what_passes_is_downloaded_again(lists: Lists, proxy: Proxy, name: str) -> None:
    storage = lists(proxy.url + "/a.png", timeout_s=_patience(name))
    proxy.script = Script(first=[PASSING[name]])
    (found,) = storage.read_many([(*keys_of(storage), 0, None)])
    assert found == PICTURE + b"/a.png"
    assert proxy.requests.total() == 2
    (told,) = [each for each in request_counts() if each.endpoint == proxy.url]
    assert (told.requests, told.retries, told.failed) == (2, 1, 0)


@pytest.mark.parametrize("name", PASSING)
def test_what_does_not_pass_is_one_clear_error(lists: Lists, proxy: Proxy, name: str) -> None:
    storage = lists(proxy.url + "/a.png", timeout_s=_patience(name), max_attempts=2)
    proxy.script = Script(always=PASSING[name])
    (found,) = storage.read_many([(*keys_of(storage), 0, None)])
    assert type(found) is StorageUnavailableError
    for part in ("/a.png (row 1 of list.csv)", "tried 2 times", "storage.max_attempts=2"):
        assert part in str(found)
    assert proxy.requests.total() == 2
    assert not files_in(lists.folder / "cache")


@pytest.mark.parametrize("fault", [faults.hang, faults.hang_in_body, faults.trickling])
def test_the_deadline_holds_over_all_tries(lists: Lists, proxy: Proxy, fault: Fault) -> None:
    storage = lists(proxy.url + "/a.png", timeout_s=60, deadline_s=0.3)
    proxy.script = Script(always=fault)
    with pytest.raises(StorageUnavailableError, match=r"storage\.deadline_s=0\.3 leaves no time"):
        storage.read(*keys_of(storage))
    assert proxy.requests.total() == 1


def test_a_host_that_always_fails_is_not_stormed(lists: Lists, proxy: Proxy) -> None:
    storage = lists(*(f"{proxy.url}/{n}.png" for n in range(40)), max_attempts=10)
    proxy.script = Script(always=faults.says(502))
    found = list(storage.read_many([(key, 0, None) for key in keys_of(storage)]))
    assert {type(each) for each in found} == {StorageUnavailableError}
    assert proxy.requests.total() == 40 + retry.QUOTA // 5


def test_many_side_by_side_in_order(lists: Lists, proxy: Proxy) -> None:
    storage = lists(
        *(f"{proxy.url}/{n}.png" for n in range(30)), "no url", proxy.url + "/missing",
        max_attempts=8,
    )  # fmt: skip
    proxy.script = Script(share=0.25, faulty=faults.reset_in_body)
    keys = keys_of(storage)
    wanted = [PICTURE + f"/{n}.png".encode() for n in range(30)]
    spans = [*((key, 0, None) for key in keys), ("absent", 0, None), (keys[3], 2, 5)]
    for _ in range(2):  # from the server, and from the cache
        found = list(storage.read_many(spans))
        assert found[:30] == wanted
        assert [type(each) for each in found[30:33]] == [
            StorageError,
            ObjectNotFoundError,
            ObjectNotFoundError,
        ]
        assert found[33] == wanted[3][2:7]


def test_a_file_behind_a_slow_one_need_not_wait_for_it(lists: Lists, proxy: Proxy) -> None:
    storage = lists(*(f"{proxy.url}/{n}.png" for n in range(8)))
    free = threading.Event()
    proxy.script = Script(always=faults.held(free), key="/0.png")
    spans = [(key, 0, None) for key in keys_of(storage)]
    with closing(storage.read_many(spans)) as reads:
        for n, (key, _, _) in enumerate(spans[1:], 1):
            assert storage.read(key) == PICTURE + f"/{n}.png".encode()
        free.set()
        assert next(reads) == PICTURE + b"/0.png"


def test_closing_ends_what_is_under_way(lists: Lists, proxy: Proxy) -> None:
    urls = [f"{proxy.url}/slow/{n}.png" for n in range(8)]
    storage = lists(*urls, proxy.url + "/quick.png", connections=2)
    proxy.script = Script(always=faults.hang, key="slow")
    *slow, quick = keys_of(storage)
    reads = storage.read_many([(key, 0, None) for key in slow])
    reads.close()
    assert list(reads) == []
    assert storage.read(quick) == PICTURE + b"/quick.png"  # both connections are free
    assert storage.remote


def test_who_shares_a_download_keeps_it_when_another_leaves(lists: Lists, proxy: Proxy) -> None:
    storage = lists(proxy.url + "/a.png")
    free = threading.Event()
    proxy.script = Script(always=faults.held(free))
    span = (*keys_of(storage), 0, None)
    leaving, staying = storage.read_many([span]), storage.read_many([span])
    leaving.close()
    free.set()
    assert list(staying) == [PICTURE + b"/a.png"]
    assert proxy.requests.total() <= 2  # the first may have left before the second came
