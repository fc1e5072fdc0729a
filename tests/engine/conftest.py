"""A Ray cluster of two nodes on this machine, one at a time however many tests run."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from fcntl import LOCK_EX, flock
from pathlib import Path
from typing import Any

import pytest

# Two nodes of two cores each can have no more than this in the object store, which the tests
# hardly use; the least that Ray takes is 75 MB.
# Of 127.0.0.1 Ray makes the machine's own address, of another one of the loopback it does not.
LOOPBACK = "127.0.0.2"
STORE_BYTES = 80 * 2**20


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head and one more node, connected to."""
    with ExitStack() as stack:
        # Sockets lie in this folder, and their paths may have 107 characters.
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ray", dir="/tmp"))
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_TMPDIR", folder)
        lock = stack.enter_context(Path(tempfile.gettempdir(), "factory-ray.lock").open("w"))
        flock(lock, LOCK_EX)
        import ray
        from ray.cluster_utils import Cluster

        node = {"num_cpus": 2, "object_store_memory": STORE_BYTES, "include_dashboard": False}
        started = Cluster(
            initialize_head=True,
            head_node_args={**node, "node_ip_address": LOOPBACK},
        )
        stack.callback(started.shutdown)
        started.add_node(**node, node_ip_address=LOOPBACK)
        ray.init(
            address=started.address,
            _node_ip_address=LOOPBACK,
            log_to_driver=False,
            logging_level="ERROR",
        )
        stack.callback(ray.shutdown)
        yield started
