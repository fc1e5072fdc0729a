"""Values opened once per process and key, never shared with a forked child."""

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
        self._opening: dict[K, threading.Lock] = {}
        self._inherited: list[dict[K, V]] = []
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        # The parent's clients stay referenced: their finalizers would talk to an event loop
        # that no thread runs in this process.
        self._inherited.append(self._values)
        self._values = {}
        self._lock = threading.Lock()
        self._opening = {}

    def get(self, key: K) -> V:
        """Return this process's value for the key, opening it if need be."""
        found = self._values.get(key)
        if found is not None:
            return found
        # Two threads asking for one key must not open it twice; one that opens another key, which
        # may be a download of hours, is not waited for.
        with self._lock:
            opening = self._opening.setdefault(key, threading.Lock())
        with opening:
            found = self._values.get(key)
            if found is None:
                found = self._values[key] = self._opener(key)
        with self._lock:
            self._opening.pop(key, None)
        return found

    def peek(self, key: K) -> V | None:
        """Return this process's value for the key if it is open."""
        return self._values.get(key)

    def pop(self, key: K) -> V | None:
        """Take the value out, for the caller to close; None where nothing was open."""
        with self._lock:
            return self._values.pop(key, None)
