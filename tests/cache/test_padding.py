"""Rows of unequal length, such as captions of more or fewer tokens, in one batch."""

from collections.abc import Callable

import pytest
import torch

from factory.cache.format.recipe import Keys
from factory.cache.store import TensorStore
from factory.errors import CacheError

MakeKeys = Callable[..., Keys]


def caption(number: int, tokens: int) -> dict[str, torch.Tensor]:
    """Return a row of so many tokens, all numbers of which are its number."""
    return {
        "embeds": torch.full((1, tokens, 3), number, dtype=torch.bfloat16),
        "mask": torch.ones((1, tokens), dtype=torch.bool),
        "pooled": torch.full((1, 5), number, dtype=torch.float32),
    }


LENGTHS = [4, 8, 4, 2]


@pytest.fixture
def filled(store: TensorStore, keys_of: MakeKeys) -> TensorStore:
    with store.writer({"kind": "test"}) as writer:
        for number, tokens in enumerate(LENGTHS):
            writer.add(keys_of(1, start=number), caption(number, tokens))
    store.refresh()
    return store


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0], [0, 3, 3, 0], [2, 0]])
def test_shorter_rows_are_filled_up_with_zeros(
    filled: TensorStore, keys_of: MakeKeys, order: list[int]
) -> None:
    batch = filled.gather(keys_of(len(LENGTHS))[order], pad=True)
    longest = max(LENGTHS[number] for number in order)
    assert batch["embeds"].shape == (len(order), longest, 3)
    for place, number in enumerate(order):
        tokens = LENGTHS[number]
        assert batch["mask"][place].tolist() == [n < tokens for n in range(longest)]
        assert (batch["embeds"][place, :tokens] == number).all()
        assert not batch["embeds"][place, tokens:].any()
        assert (batch["pooled"][place] == number).all()


def test_rows_are_put_together_on_the_cpu_whatever_device_is_the_default(
    filled: TensorStore, keys_of: MakeKeys
) -> None:
    with torch.device("meta"):  # as a trainer that has a GPU may set it
        batch = filled.gather(keys_of(len(LENGTHS)), pad=True)
    assert batch["pooled"][:, 0].tolist() == list(range(len(LENGTHS)))


def test_memory_used_again_shows_nothing_of_before(filled: TensorStore, keys_of: MakeKeys) -> None:
    def dirty(shape: tuple[int, ...], *, dtype: torch.dtype) -> torch.Tensor:
        return torch.ones(tuple(shape), dtype=dtype)

    batch = filled.gather(keys_of(len(LENGTHS)), pad=True, allocate=dirty)
    assert not batch["embeds"][3, 2:].any()
    assert not batch["mask"][3, 2:].any()


def test_unequal_rows_are_refused_where_nobody_asked_for_padding(
    filled: TensorStore, keys_of: MakeKeys
) -> None:
    with pytest.raises(CacheError, match=r"two shapes .* a batch is of one bucket"):
        filled.gather(keys_of(2))


def test_rows_that_differ_in_more_than_length_are_refused(
    filled: TensorStore, keys_of: MakeKeys
) -> None:
    wider = {name: field.repeat(1, 1, 2)[:, 0] if name == "embeds" else field
             for name, field in caption(9, 4).items()}  # fmt: skip
    with filled.writer({"kind": "test"}) as writer:
        writer.add(keys_of(1, start=9), wider)
    filled.refresh()
    keys = keys_of(10)[[0, 9]]
    with pytest.raises(CacheError, match="two shapes"):
        filled.gather(keys, pad=True)
