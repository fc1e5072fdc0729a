"""What several jobs have in common, sent to another process only once.

It goes with the first job that has it, and is kept over there until nobody has it here any more.
"""

import io
import itertools
import pickle
import weakref
from collections import deque
from typing import Any, TypeAlias

# Number of an object, and what makes it anew over there; None where it is there by now.
Told: TypeAlias = tuple[int, Any]


class SentOnce:
    """What is sent once to each process, however many jobs have it; `__reduce__` says how."""


class Sender:
    """This side of one connection: knows what the other one has."""

    def __init__(self) -> None:
        """Begin with nothing sent."""
        self._numbers = itertools.count()
        self._sent: weakref.WeakKeyDictionary[SentOnce, int] = weakref.WeakKeyDictionary()
        # Only noted: this is added to wherever the garbage collector runs.
        self._gone: deque[int] = deque()

    def dumps(self, value: Any) -> bytes:
        """Return a message; it must be sent before the next one is asked for.

        Raises:
            Exception: Something in it cannot be pickled.
        """
        gone = [self._gone.popleft() for _ in range(len(self._gone))]
        file = io.BytesIO()
        pickler = _Pickler(file, self)
        try:
            pickler.dump((gone, value))
        except BaseException:
            self._gone.extend(gone)
            raise
        for each, number in pickler.new.items():
            self._sent[each] = number
            noted: Any = weakref.finalize(each, self._gone.append, number)
            noted.atexit = False
        return file.getvalue()

    def number(self, value: SentOnce) -> int | None:
        """Return the number of what the other side has; None where it has it not."""
        return self._sent.get(value)

    def new_number(self) -> int:
        """Return the number of what is about to be sent."""
        return next(self._numbers)


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, sender: Sender) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._sender = sender
        self.new: dict[SentOnce, int] = {}

    def persistent_id(self, value: Any) -> Told | None:
        if not isinstance(value, SentOnce):
            return None
        number = self._sender.number(value)
        if number is None:
            number = self.new.get(value)
        if number is not None:
            return number, None
        number = self.new[value] = self._sender.new_number()
        return number, value.__reduce__()


class Receiver:
    """The other side: keeps what was sent once."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._kept: dict[int, Any] = {}

    def loads(self, message: bytes) -> Any:
        """Return the value of a message; they must be given in the order they were made in."""
        gone, value = _Unpickler(io.BytesIO(message), self._kept).load()
        for number in gone:
            del self._kept[number]
        return value


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, kept: dict[int, Any]) -> None:
        super().__init__(file)
        self._kept = kept

    def persistent_load(self, fields: Told) -> Any:
        number, recipe = fields
        if recipe is not None:
            make, arguments = recipe
            self._kept[number] = make(*arguments)
        return self._kept[number]
