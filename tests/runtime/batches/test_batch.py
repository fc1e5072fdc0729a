"""A batch goes to a device whole, and to where it is it does not go again."""

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from lightning.fabric.utilities import move_data_to_device

from factory.runtime.batches.batch import Batch
from tests.runtime.work import batch

# Has shapes and no values, and is another device on any machine.
ELSEWHERE = torch.device("meta")


@pytest.fixture
def whole() -> Batch:
    """A batch with a tensor in every field that may have one."""
    some = batch(3)
    return replace(
        some,
        pixels=torch.zeros(4, 8, 8, 3, dtype=torch.uint8),
        image_embeds={"pooled": torch.ones(4, 2)},
        conditioning={"depth": torch.ones(4, 1), "loose": [torch.ones(n) for n in range(4)]},
        conditioning_valid={"depth": torch.ones(4, dtype=torch.bool)},
        conditioning_set=["depth"] * 4,
        slider_strength=0.5,
    )


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """Yield every tensor in a batch, whatever its fields are called."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Batch):
        for each in fields(value):
            yield from tensors(getattr(value, each.name))
    elif isinstance(value, dict):
        yield from tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from tensors(one)


def test_every_tensor_goes_and_nothing_else_changes(whole: Batch) -> None:
    moved = whole.to(ELSEWHERE)
    assert {each.device for each in tensors(moved)} == {ELSEWHERE}
    assert {each.device.type for each in tensors(whole)} == {"cpu"}
    assert [(t.shape, t.dtype) for t in tensors(moved)] == [
        (t.shape, t.dtype) for t in tensors(whole)
    ]
    for each in fields(whole):
        before, after = getattr(whole, each.name), getattr(moved, each.name)
        assert type(after) is type(before)
        if not list(tensors(before)):
            assert after == before
    assert whole.to("meta").latents.device == ELSEWHERE  # type: ignore[union-attr]


def test_where_it_is_it_stays_the_same_object(whole: Batch) -> None:
    assert whole.to("cpu") is whole
    moved = whole.to(ELSEWHERE)
    assert moved.to(ELSEWHERE) is moved


def test_lightning_asks_the_batch_alone(whole: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    to = Batch.to
    monkeypatch.setattr(Batch, "to", lambda self, *where: asked.append(where) or to(self, *where))
    assert move_data_to_device(whole, torch.device("cpu")) is whole
    (inside,) = move_data_to_device([whole], ELSEWHERE)
    assert {each.device for each in tensors(inside)} == {ELSEWHERE}
    assert asked == [(torch.device("cpu"),), (ELSEWHERE,)]


@pytest.mark.parametrize(
    ("device", "given", "late"),
    [("cpu", None, False), ("meta", None, False), ("cuda", None, True), ("cuda", False, False)],
)
def test_only_copies_to_cuda_are_not_waited_for(
    whole: Batch, monkeypatch: pytest.MonkeyPatch, device: str, given: bool | None, late: bool
) -> None:
    seen: set[tuple[str, bool]] = set()

    def to(tensor: torch.Tensor, where: torch.device, *, non_blocking: bool) -> torch.Tensor:
        seen.add((where.type, non_blocking))
        return tensor

    monkeypatch.setattr(torch.Tensor, "to", to)
    whole.to(device, non_blocking=given)
    assert seen == {(device, late)}
