"""What has this process opened, and for which storage?"""

import os
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class PerProcess(Generic[K, V]):
    """Values opened on first use, one for each key, and never shared with a forked child.

    Kept beside the storages, not in them, so that a storage stays a plain value: comparable,
    printable, picklable. Keys are the storages themselves (frozen, hashable).
    """

    def __init__(self, opener: Callable[[K], V]) -> None:
        """Keep the function that opens a value; it may raise, then nothing is kept."""
        self._opener = opener
        self._values: dict[K, V] = {}
        self._lock = threading.Lock()
        self._inherited: list[dict[K, V]] = []
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        # The parent's clients stay referenced: their finalizers would talk to an event loop
        # that no thread runs in this process.
        self._inherited.append(self._values)
        self._values = {}
        self._lock = threading.Lock()

    def get(self, key: K) -> V:
        """Return this process's value for the key, opening it if need be."""
        found = self._values.get(key)
        if found is not None:
            return found
        # One lock for all keys: two threads asking for one key must not open it twice.
        with self._lock:
            if key not in self._values:
                self._values[key] = self._opener(key)
            return self._values[key]

    def peek(self, key: K) -> V | None:
        """Return this process's value for the key if it is open."""
        return self._values.get(key)

    def pop(self, key: K) -> V | None:
        """Take the value out, for the caller to close; None where nothing was open."""
        with self._lock:
            return self._values.pop(key, None)
