"""Errors that cross to another process: their type, their words, and where they came from."""

import inspect
from typing import Any

import pytest

from factory import errors
from factory.errors import ConfigError, FactoryError, FetchError, MediaError, MissingExtraError
from factory.runtime.prefetch.worker.exceptions import deserialize, serialize
from tests.runtime.work import UnwillingError

OWN = [
    each
    for _, each in inspect.getmembers(errors, inspect.isclass)
    if each.__module__ == errors.__name__
]
ARGUMENTS: dict[type, tuple[Any, ...]] = {
    MissingExtraError: ("av", "video", "reading videos"),
    ConfigError: (["one thing", "another"],),
    MediaError: ("truncated", "x.jpg"),
}


def there_and_back(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:  # noqa: BLE001 - with a traceback, as it comes
        return deserialize(serialize(caught))


@pytest.mark.parametrize("kind", OWN, ids=lambda kind: kind.__name__)
def test_every_error_of_ours_stays_what_it_is(kind: type[FactoryError]) -> None:
    error = kind(*ARGUMENTS.get(kind, ("what happened",)))
    error.add_note("a note")
    again = there_and_back(error)
    assert type(again) is kind
    assert str(again) == str(error)
    assert {**vars(again), "__notes__": ["a note"]} == vars(error)
    assert again.__notes__[0] == "a note"
    assert again.__notes__[1].startswith("in the worker process:\nTraceback")
    assert "in there_and_back" in again.__notes__[1]


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left"), KeyError("name"), KeyboardInterrupt(), TimeoutError()]
)
def test_so_do_those_of_python(error: BaseException) -> None:
    again = there_and_back(error)
    assert type(again) is type(error)
    assert str(again) == str(error)


def test_the_cause_is_in_the_note() -> None:
    error = ValueError("outer")
    error.__cause__ = KeyError("inner")
    (note,) = there_and_back(error).__notes__
    assert "KeyError: 'inner'" in note
    assert "direct cause" in note


def test_what_cannot_be_pickled_goes_as_text() -> None:
    class LocalError(Exception):
        pass

    for error in (UnwillingError("this", "that"), LocalError("that")):
        error.add_note("a note")
        again = there_and_back(error)
        assert type(again) is FetchError
        assert str(again).endswith("that")
        assert type(error).__qualname__ in str(again)
        assert again.__notes__[0] == "a note"
