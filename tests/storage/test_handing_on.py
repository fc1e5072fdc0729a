"""Is no more held in memory than allowed, where spans are read whole before they are put?"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from factory.errors import StorageError
from factory.storage import MemoryStorage
from factory.storage.base import Span, in_groups

MIB = 2**20


@given(st.lists(st.integers(0, 40 * MIB), max_size=200))
def test_groups_hold_so_much_at_most(lengths: list[int]) -> None:
    groups = [lengths[group] for group in in_groups(lengths)]
    assert [length for group in groups for length in group] == lengths
    for group in groups:
        assert 1 <= len(group) <= 64
        assert len(group) == 1 or sum(group) <= 32 * MIB
    for group, after in pairwise(groups):
        assert len(group) == 64 or sum(group) + after[0] > 32 * MIB


@dataclass(frozen=True)
class Noting(MemoryStorage):
    """A storage that notes how many spans it is asked for at once."""

    asked: list[int] = field(default_factory=list, compare=False)

    def read_many(self, spans: Sequence[Span]) -> Generator[bytes | StorageError, None, None]:
        """Note how many they are."""
        self.asked.append(len(spans))
        return super().read_many(spans)


def test_numbers_go_on_from_group_to_group() -> None:
    storage = Noting(name="handing-on")
    storage.write("a", b"0123456789")
    put: list[tuple[int, bytes]] = []
    spans: list[Span] = [("a", n % 10, 20 * MIB) for n in range(5)]
    sizes = list(
        storage.read_to(spans, lambda n, at, pieces: put.append((n, bytes(pieces[0][at:]))))
    )
    assert sizes == [10, 9, 8, 7, 6]
    assert put == [(n, b"0123456789"[n:]) for n in range(5)]
    assert storage.asked == [1] * 5
