"""The main loop of the worker process, looked at from within."""

import logging
import pickle
import socket
from collections.abc import Iterator

import pytest
import torch

from factory.runtime.prefetch.worker.channel import Channel, Kind
from factory.runtime.prefetch.worker.main import WorkerLoop
from tests.runtime.work import Opened


@pytest.fixture
def loop() -> Iterator[tuple[WorkerLoop, Channel]]:
    """Return what works in the process, here, and the trainer's end of its socket."""
    logger, threads = logging.getLogger("factory"), torch.get_num_threads()
    before = [*logger.handlers], logger.level, logger.propagate
    ours, theirs = map(Channel, socket.socketpair())
    setup = {"opener": pickle.dumps(Opened()), "main": {}, "workers": 1, "level": logging.WARNING}
    made = WorkerLoop(theirs, setup)
    yield made, ours
    made.close()
    logger.handlers, logger.level, logger.propagate = before
    torch.set_num_threads(threads)
    ours.close()
    theirs.close()


@pytest.mark.parametrize("quick", [True, False])
def test_quick_jobs_are_left_to_one_thread(
    loop: tuple[WorkerLoop, Channel], monkeypatch: pytest.MonkeyPatch, quick: bool
) -> None:
    made, channel = loop
    monkeypatch.setattr("factory.runtime.prefetch.worker.main._QUICK_S", 3600 if quick else 0)
    for number in range(2):
        made.take(Kind.JOB, (number, pickle.dumps(("give", number)), []))
    seen = 0
    while seen < 2:  # the first is done with altogether when the second comes
        message = channel.receive()
        assert message is not None
        seen += message[0] is Kind.MADE
    assert made._executor.alone is quick
