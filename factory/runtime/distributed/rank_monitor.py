"""Monitor of the other ranks: ends this process when one of them died, failed or hangs."""

import hmac
import os
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch.distributed

from factory.errors import PeerError
from factory.runtime.distributed.abort import LOG_S, end, log_report
from factory.runtime.distributed.consistency import is_distributed
from factory.runtime.distributed.json_socket import JsonSocket
from factory.runtime.distributed.status_board import SETTLE_S, RankFailure, StatusBoard
from factory.runtime.prefetch.activity import Activity, ActivityTracker
from factory.runtime.prefetch.report import stacks

# Heartbeats that may be late or lost before a process counts as hanging.
BEATS = 8
# Longest time between heartbeats, seconds, so that a report shows recent activity.
SLOWEST_BEAT_S = 5.0
# Longest time between looks at the sockets, seconds: others wait for what this one passes on.
TURN_S = SETTLE_S / 2
# Longest time a process gets to unwind after the error was raised in it, seconds: enough to
# save a checkpoint of a small model, and little next to the collectives' own 10 to 30 minutes.
LONGEST_GRACE_S = 10.0
# Longest time a last message may take, seconds: it is a few kilobytes.
LAST_S = 1.0
# Processes that die or fail are noticed at once; this is for those that hang. Long
# enough for a machine that swaps or was moved, short next to the 10 to 30 minutes of collectives.
PEER_TIMEOUT_S = 120.0
LOOPBACK = "127.0.0.1"


class RankMonitor:
    """Monitors the other processes of a run, so that none waits for ever for one that is gone.

    Every process reports its status to rank 0 over its own connection, and rank 0 sends the
    status of all to everyone. A process that dies is noticed at once, since the kernel closes
    its connection; one that fails says so; one that hangs (is stopped, swaps, lost its network)
    is silent for `timeout_s`. Then every process writes one report and ends,
    see `factory.runtime.distributed.abort`.

    Heartbeats come from a thread of their own: a slow step or a long validation is no hang.

    It uses its own sockets instead of the process group's store, whose clients wait without end
    for a server that is stopped, whatever timeout they were given.

    Args:
        rank: This process, from 0.
        ranks: Number of processes.
        timeout_s: Seconds without a sign of life after which a process counts as hanging.
        activity: What this process does.
    """

    def __init__(self, rank: int, ranks: int, timeout_s: float, activity: ActivityTracker) -> None:
        """Store the parts; no thread, no socket."""
        self.rank, self.ranks, self.timeout_s = rank, ranks, timeout_s
        self._activity = activity
        self._beat_s = min(timeout_s / BEATS, SLOWEST_BEAT_S)
        self._grace_s = min(timeout_s / 2, LONGEST_GRACE_S)
        self._board = StatusBoard(ranks, timeout_s)
        self._server: socket.socket | None = None
        self._token = ""
        self._connections: dict[JsonSocket, int | None] = {}
        self._thread: threading.Thread | None = None
        self._trains = threading.get_ident()
        self._wake, self._woken = socket.socketpair()
        self._woken.setblocking(False)
        self._leaving: Activity | None = None
        self._closing = False
        self._beat_at, self._beat_activity = 0.0, ("", "")
        self._acknowledged, self._judged = threading.Event(), threading.Event()
        self._interrupted = False
        self.failure: RankFailure | None = None

    def listen(self, host: str) -> str:
        """Listen for the other ranks, in rank 0.

        Args:
            host: Name or address by which the others reach this machine.

        Returns:
            The address for `start`; it includes a secret that only processes of this run get.
        """
        if host in (LOOPBACK, "localhost"):
            self._server = socket.create_server((LOOPBACK, 0))
        elif socket.has_dualstack_ipv6():
            self._server = socket.create_server(
                ("", 0), family=socket.AF_INET6, dualstack_ipv6=True
            )
        else:
            self._server = socket.create_server(("", 0))
        self._server.setblocking(False)
        self._token = secrets.token_hex(16)
        return f"{host} {self._server.getsockname()[1]} {self._token}"

    def start(self, address: str) -> None:
        """Start monitoring; called from the training thread.

        Args:
            address: What `listen` returned in rank 0.

        Raises:
            PeerError: Rank 0 cannot be reached.
        """
        self._trains = threading.get_ident()
        if self.rank:
            self._connections[self._connect(address)] = 0
        self._thread = threading.Thread(
            target=self._watch, name=f"factory-monitor-{self.rank}", daemon=True
        )
        self._thread.start()

    def interrupt(self) -> None:
        """Record that this process ends by Ctrl-C, which a terminal sends to all of them.

        That others end as well is then neither reported nor a reason to abort.
        """
        self._interrupted = True
        self._acknowledged.set()

    def fail(self, error: BaseException) -> RankFailure | None:
        """Report to the others that this process fails.

        Returns:
            Why the run cannot go on, if another process failed before.
        """
        self._acknowledged.set()
        if self._thread is None or self._leaving is not None:
            return self.failure
        self._leave(Activity("failed", f"{type(error).__name__}: {error}".rstrip(": ")))
        # Until the report is written, too: the process may end right after this.
        self._judged.wait(2 * SETTLE_S + LAST_S + LOG_S)
        failure = self.failure
        return None if failure is None or failure.rank == self.rank else failure

    def close(self) -> None:
        """Report that this process is done, unless it failed, and stop monitoring."""
        self._acknowledged.set()
        if self._thread is not None:
            self._closing = True
            self._leave(self._leaving or Activity("done"))
            if self._thread is not threading.current_thread():
                self._thread.join(self._grace_s + LAST_S)
            self._thread = None
        self._shut()

    def _shut(self) -> None:
        for each in (*self._connections, self._server, self._wake, self._woken):
            if each is not None:
                each.close()

    def _leave(self, doing: Activity) -> None:
        self._leaving = doing
        with suppress(OSError):  # the watch may have ended already
            self._wake.send(b".")

    def _connect(self, address: str) -> JsonSocket:
        host, port, token = address.split(" ")
        try:
            connection = JsonSocket(socket.create_connection((host, int(port)), self.timeout_s))
            connection.send([token, self.rank])
        except OSError as error:
            raise PeerError(
                f"rank {self.rank} cannot reach rank 0 at {host}, port {port} ({error}), by which "
                "processes watch each other; let it through, or go without by "
                "data.peer_timeout_s=null"
            ) from error
        return connection

    def _watch(self) -> None:
        """Receive, send and judge, until this process leaves or cannot go on."""
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(self._woken, selectors.EVENT_READ)
                if self._server is not None:
                    selector.register(self._server, selectors.EVENT_READ)
                for connection in self._connections:
                    selector.register(connection.socket, selectors.EVENT_READ, connection)
                while self._turn(selector):
                    pass
            self._send_last()
        finally:
            self._shut()
        report = "" if self.failure is None else self._report(self.failure)
        blames_another = self.failure is not None and self.failure.rank != self.rank
        if blames_another and not self._interrupted:
            log_report(report)
        self._judged.set()
        if blames_another:
            end(report, self._trains, self._acknowledged, self._grace_s)

    def _turn(self, selector: selectors.BaseSelector) -> bool:
        """Handle what arrived and send a heartbeat if due; tell whether to go on."""
        for key, _ in selector.select(min(self._beat_s, TURN_S)):
            if key.fileobj is self._woken:
                self._woken.recv(64)
            elif key.fileobj is self._server:
                self._accept(selector)
            else:
                self._receive(key.data, selector)
        doing = self._leaving or self._activity.now
        self._board.hear(self.rank, doing)
        if self.failure is None:
            turn_s = min(self._beat_s, TURN_S)
            self.failure = self._board.failure(turn_s, None if self.rank == 0 else [0])
        if self.failure is not None or doing.stage == "done" or self._closing:
            return False
        if self._is_due(doing):
            self._send_status(doing, selector)
        # Once rank 0 has left in good order, no status of the others arrives any more.
        return self.rank == 0 or bool(self._connections)

    def _is_due(self, doing: Activity) -> bool:
        """Tell whether a heartbeat is due: in time, and whenever rank 0 should learn something."""
        new = (doing.stage, doing.what) != self._beat_activity
        late = time.monotonic() - self._beat_at >= self._beat_s
        if late or (new and (self.rank or doing.stage == "failed")):
            self._beat_at, self._beat_activity = time.monotonic(), (doing.stage, doing.what)
            return True
        return False

    def _accept(self, selector: selectors.BaseSelector) -> None:
        assert self._server is not None  # noqa: S101 - it is what was selected
        with suppress(OSError):  # it gave up again
            accepted, _ = self._server.accept()
            connection = JsonSocket(accepted)
            self._connections[connection] = None
            selector.register(connection.socket, selectors.EVENT_READ, connection)

    def _receive(self, connection: JsonSocket, selector: selectors.BaseSelector) -> None:
        try:
            for message in connection.receive():
                self._handle(connection, message)
        except (ConnectionError, TypeError, ValueError):
            self._drop(connection, selector)

    def _drop(self, connection: JsonSocket, selector: selectors.BaseSelector) -> None:
        if connection not in self._connections:
            return
        rank = self._connections.pop(connection)
        selector.unregister(connection.socket)
        connection.close()
        if rank is not None:
            self._board.lose(rank)

    def _handle(self, connection: JsonSocket, message: Any) -> None:
        """Handle one message.

        Raises:
            ValueError: It is not from a process of this run.
        """
        if self.rank:
            known, failure = message
            self._board.adopt(known)
            if failure is not None and self.failure is None:
                rank, why = failure
                self.failure = RankFailure(int(rank), str(why))
        elif (rank := self._connections[connection]) is not None:
            self._board.hear(rank, Activity.read(message))
        else:
            token, new = message
            if not hmac.compare_digest(str(token), self._token) or not 0 < int(new) < self.ranks:
                raise ValueError("a stranger")
            self._connections[connection] = int(new)

    def _send_status(self, doing: Activity, selector: selectors.BaseSelector) -> None:
        for connection, rank in list(self._connections.items()):
            if rank is not None:
                with suppress(ConnectionError):
                    connection.send(self._message(doing))
                    continue
                self._receive(connection, selector)  # a last message may still be there

    def _message(self, doing: Activity) -> Any:
        if self.rank:
            return doing.sent()
        failure = self.failure
        return [self._board.sent(), None if failure is None else [failure.rank, failure.why]]

    def _send_last(self) -> None:
        """Send the last message completely."""
        doing = self._leaving or self._activity.now
        for connection, rank in self._connections.items():
            if rank is not None:
                with suppress(OSError):
                    connection.finish(self._message(doing), LAST_S)

    def _report(self, failure: RankFailure) -> str:
        """Return the report for people; its first line is the summary."""
        lines = self._board.lines(self.rank, self._activity.now)
        return "\n".join(
            [
                f"rank {self.rank} ends because {failure}; resume from the last checkpoint",
                "What each process was last known to do:",
                *(f"  {line}" for line in lines),
                f"What each thread of rank {self.rank} does:",
                stacks(),
            ]
        )


def monitor_ranks(
    exchange: Callable[[str], str],
    timeout_s: float,
    activity: ActivityTracker,
    *,
    several_nodes: bool,
) -> RankMonitor | None:
    """Monitor the other processes of this torch.distributed group; all of them must call it.

    Args:
        exchange: Broadcasts rank 0's text to every rank.
        timeout_s: Seconds without a sign of life after which a process counts as hanging.
        activity: What this process does.
        several_nodes: Whether the processes run on more than one machine.

    Returns:
        The monitor; None where there are no other processes.

    Raises:
        PeerError: Rank 0 cannot be reached.
    """
    if not is_distributed():
        return None
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    monitor = RankMonitor(rank, ranks, timeout_s, activity)
    # Rank 0 runs where the group's own store is, which all of them have reached already.
    host = os.environ.get("MASTER_ADDR", LOOPBACK) if several_nodes else LOOPBACK
    try:
        monitor.start(exchange(monitor.listen(host) if rank == 0 else ""))
    except BaseException:
        monitor.close()
        raise
    return monitor
