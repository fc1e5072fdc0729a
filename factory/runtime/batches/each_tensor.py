"""A change of every tensor in a batch, whatever the batch is made of."""

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # loaded where it is needed, for it takes a second
    import torch


def each_tensor(value: Any, change: "Callable[[torch.Tensor], torch.Tensor]") -> Any:
    """Return a dataclass, dict, list or tuple with every tensor in it changed."""
    import torch

    if isinstance(value, torch.Tensor):
        return change(value)
    if is_dataclass(value) and not isinstance(value, type):
        held = {each.name: getattr(value, each.name) for each in fields(value) if each.init}
        return replace(value, **{name: each_tensor(one, change) for name, one in held.items()})
    if isinstance(value, dict):
        return {key: each_tensor(one, change) for key, one in value.items()}
    if isinstance(value, list) or type(value) is tuple:
        return type(value)(each_tensor(one, change) for one in value)
    return value
