"""Decisions are remembered by size, also by threads and beyond the limit."""

import pickle
import threading

import numpy as np
import pytest
from numpy.typing import NDArray

from factory.catalog.crops import SizeMemo


def decide(width: NDArray[np.int32], height: NDArray[np.int32]) -> NDArray[np.int32]:
    return np.stack([width + height, width * 2], axis=1).astype(np.int32)


def sizes(seed: int, count: int = 16, most: int = 50) -> tuple[NDArray[np.int32], ...]:
    numbers = np.random.default_rng(seed).integers(1, most, (2, count)).astype(np.int32)
    return numbers[0], numbers[1]


def test_a_size_is_decided_once() -> None:
    memo, asked = SizeMemo(2), []

    def counting(width: NDArray[np.int32], height: NDArray[np.int32]) -> NDArray[np.int32]:
        asked.append(len(width))
        return decide(width, height)

    width, height = sizes(1)
    for _ in range(3):
        assert (memo.of(width, height, counting) == decide(width, height)).all()
    assert (memo.of(width[::-1], height[::-1], counting) == decide(width, height)[::-1]).all()
    assert asked == [16]


def test_more_sizes_than_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("factory.catalog.crops._MOST", 64)
    memo = SizeMemo(2)
    for seed in range(50):
        width, height = sizes(seed)
        assert (memo.of(width, height, decide) == decide(width, height)).all()


def test_threads_see_decisions_of_their_own_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("factory.catalog.crops._MOST", 64)
    memo, wrong = SizeMemo(2), []

    def ask(first: int) -> None:
        for seed in range(first, first + 300):
            width, height = sizes(seed)
            if (memo.of(width, height, decide) != decide(width, height)).any():
                wrong.append(seed)

    threads = [threading.Thread(target=ask, args=(n * 100,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_pickled_one_is_empty() -> None:
    memo = SizeMemo(2)
    memo.of(*sizes(1), decide)
    assert len(pickle.dumps(memo)) < 200
    assert (pickle.loads(pickle.dumps(memo)).of(*sizes(2), decide) == decide(*sizes(2))).all()
