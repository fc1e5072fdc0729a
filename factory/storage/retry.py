"""Retry policy: when a failed request is sent again, and when it is given up."""

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

# Before the second try at most, doubled before each further one: a server that restarts or
# sheds load needs some tenths of a second, and five tries at most 3.75 s in waits.
BACKOFF_S = 0.25
# Longest wait before a try, and the most that a server's Retry-After is followed: the cap of
# AWS's SDKs, https://docs.aws.amazon.com/sdkref/latest/guide/feature-retry-behavior.html.
LONGEST_WAIT_S = 20.0
# The retry quota of the same page's "standard" mode, as botocore has it: 500 tokens, of which
# a retry costs 5 and one after a timeout 10. A success gives back what its retry took, and one
# at the first try gives 1. So a hundred tries in a row may be repeated in vain, and where most
# requests fail for long the repeats dry up.
QUOTA = 500
_COST = 5
_COST_OF_TIMEOUT = 10
_REWARD = 1
# A body that does not match its checksum is asked for once more: twice is no accident.
_DAMAGED_TRIES = 2
# Bytes that move a deadline on by a second: a large object may take its time while it comes at
# 1 MiB/s or more, and a slower trickle ends at the deadline.
LEAST_RATE = 2**20


@dataclass(frozen=True, slots=True)
class Fault:
    """A failure that another try may better.

    Attributes:
        why: What happened, such as "the server said 503".
        throttled: The server asked for fewer requests.
        timeout: Nothing came in time.
        damaged: The bytes came and are not those that were stored.
        retry_after_s: Seconds that the server asked to wait, if it did.
    """

    why: str
    throttled: bool = False
    timeout: bool = False
    damaged: bool = False
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class RetryLimits:
    """How much is done for one request.

    Attributes:
        attempts: Tries in all, at least 1.
        deadline_s: Seconds for all tries and the waits between them.
    """

    attempts: int
    deadline_s: float


class RetryQuota:
    """How many more retries one endpoint may be asked for; thread-safe."""

    def __init__(self, capacity: int = QUOTA) -> None:
        """Start with all of it."""
        self._capacity = self._left = capacity
        self._lock = threading.Lock()

    @property
    def left(self) -> int:
        """Tokens left."""
        return self._left

    def take(self, cost: int) -> bool:
        """Take so many tokens, or none and say so."""
        with self._lock:
            if cost > self._left:
                return False
            self._left -= cost
            return True

    def give(self, amount: int) -> None:
        """Give tokens back."""
        with self._lock:
            self._left = min(self._capacity, self._left + amount)


class Attempts:
    """The tries of one request: counts them and says how long to wait before the next.

    Attributes:
        made: Tries begun.
        last: The newest failure, or None.
    """

    def __init__(
        self,
        patience: RetryLimits,
        quota: RetryQuota,
        *,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """Begin; the deadline runs from now.

        Args:
            patience: Bounds on tries and time.
            quota: Shared by all requests to the endpoint.
            clock: Seconds that never go back.
            draw: Returns a number from 0 to 1, for the jitter.
        """
        self._patience, self._quota, self._clock, self._draw = patience, quota, clock, draw
        self._begun = clock()
        self._deadline = self._begun + patience.deadline_s
        self._damaged = self._taken = 0
        self._ending = ""
        self.made = 0
        self.last: Fault | None = None

    @property
    def left_s(self) -> float:
        """Seconds until the deadline, not below 0."""
        return max(0.0, self._deadline - self._clock())

    def begin(self) -> None:
        """Count a try."""
        self.made += 1

    def received(self, size: int) -> None:
        """Move the deadline on for bytes that came or went."""
        self._deadline += size / LEAST_RATE

    def succeeded(self) -> None:
        """Give the quota back what the last retry took, or a little where there was none."""
        self._quota.give(self._taken or _REWARD)

    def wait_after(self, fault: Fault) -> float | None:
        """Return the seconds to wait before the next try; None where there is none."""
        self.last = fault
        self._damaged += fault.damaged
        wait = self._backoff(fault)
        attempts = self._patience.attempts
        if self._damaged >= _DAMAGED_TRIES:
            self._ending = "a second copy was wrong too"
        elif self.made >= attempts:
            self._ending = f"storage.max_attempts={attempts} allows no more"
        elif wait >= self.left_s:
            self._ending = self._overdue()
        elif not self._pay(_COST_OF_TIMEOUT if fault.timeout else _COST):
            self._ending = "so many requests to this server fail that none is sent again for now"
        else:
            return wait
        return None

    def ran_out(self) -> None:
        """Note that the deadline came in the midst of a try, or before it could begin."""
        self.last = Fault("no whole answer", timeout=True)
        self._ending = self._overdue()

    def _overdue(self) -> str:
        return f"storage.deadline_s={self._patience.deadline_s:g} leaves no time for more"

    def _pay(self, cost: int) -> bool:
        paid = self._quota.take(cost)
        self._taken = cost if paid else self._taken
        return paid

    def _backoff(self, fault: Fault) -> float:
        # Full jitter, so that requests which failed together do not come back together:
        # https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
        longest = min(LONGEST_WAIT_S, BACKOFF_S * 2.0 ** (self.made - 1))
        asked = min(LONGEST_WAIT_S, fault.retry_after_s or 0.0)
        return asked + self._draw() * longest

    @property
    def summary(self) -> str:
        """What was tried, how often, for how long, what came of it, and which setting ended it."""
        times = "once" if self.made == 1 else f"{self.made} times"
        seconds = self._clock() - self._begun
        last = f", the last: {self.last.why}" if self.last else ""
        return f"tried {times} in {seconds:.1f} s{last}; {self._ending}"


class ExhaustedError(Exception):
    """A request that was given up; for the storages to translate.

    Attributes:
        cause: What the last try raised.
        tries: What was done.
    """

    def __init__(self, cause: Exception, tries: Attempts) -> None:
        """Keep the cause, and the tries."""
        super().__init__(tries.summary)
        self.cause, self.tries = cause, tries


def retry_after(headers: "dict[str, str]") -> float | None:
    """Return the seconds that a server's Retry-After asks for, if it is there and sound.

    Args:
        headers: An answer's headers, their names in lower case. A date is counted from the
            answer's own, so that no clock of this machine matters.
    """
    said = headers.get("retry-after", "").strip()
    if said.isdecimal():
        return float(said)
    try:
        until, now = parsedate_to_datetime(said), parsedate_to_datetime(headers.get("date", ""))
        return max(0.0, (until - now).total_seconds())
    except (TypeError, ValueError):
        return None
