"""Serialization of exceptions, so that they keep their type in another process."""

import pickle
import traceback

from factory.errors import FetchError

WHERE = "in the worker process"


def serialize(error: BaseException) -> bytes:
    """Return an error as bytes: of its own type where that can be, else as text."""
    trace = f"{WHERE}:\n" + "".join(traceback.format_exception(error)).rstrip()
    try:
        data = pickle.dumps(error)
        if _same(pickle.loads(data), error):  # noqa: S301 - made one line above
            return pickle.dumps((data, None, trace))
    except Exception:  # noqa: BLE001, S110 - then it goes as text
        pass
    kind = type(error)
    message = f"{kind.__module__}.{kind.__qualname__}: {error}"
    text = (message, list(getattr(error, "__notes__", [])))
    return pickle.dumps((None, text, trace))


def deserialize(data: bytes) -> BaseException:
    """Return the error that `serialize` was given, with its notes and where it came from.

    It is a FetchError that names the type, where the error could not travel.
    """
    whole, text, trace = pickle.loads(data)  # noqa: S301 - from the other process of this run
    error: BaseException
    if whole is not None:
        error = pickle.loads(whole)  # noqa: S301 - as above
    else:
        message, notes = text
        error = FetchError(message)
        for note in notes:
            error.add_note(note)
    error.add_note(trace)
    return error


def _same(one: object, other: BaseException) -> bool:
    """Tell whether an error came back as what it was; a constructor may ask for other things."""
    return type(one) is type(other) and str(one) == str(other)
