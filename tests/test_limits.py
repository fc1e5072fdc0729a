"""Limits that stand with the types of settings."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import pytest

from factory.limits import Above, AtLeast, check_limits


@dataclass
class Base:
    tries: Annotated[int | None, AtLeast(1)] = None


@dataclass
class Settings(Base):
    seconds: Annotated[float, Above(0)] = 1.0
    name: str = ""


def test_what_is_within_passes() -> None:
    check_limits(Settings(), "part")
    check_limits(Settings(tries=1, seconds=0.5), "part")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"tries": 0}, "part.tries must be at least 1, got 0; set part.tries=1 or more"),
        ({"seconds": 0}, "part.seconds must be above 0, got 0"),
    ],
)
def test_what_is_beyond_is_named(given: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}$"):
        check_limits(Settings(**given), "part")


def test_a_class_says_what_does_not_go_together() -> None:
    @dataclass
    class Span:
        first: Annotated[int, AtLeast(1)] = 1
        last: int = 2

        def setting_problems(self) -> Iterator[str]:
            if self.last < self.first:
                yield f"last {self.last} comes before first; set first=1"

        def problems(self) -> list[str]:
            """Be of another kind, as those of a storage are."""
            raise AssertionError

    check_limits(Span(), "part")
    with pytest.raises(LookupError, match=r"^part\.last 0 comes before first; set part\.first=1$"):
        check_limits(Span(last=0), "part", LookupError)
