"""The batch that a training step receives: samples of one backend and one bucket."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, NamedTuple

import torch

from factory.backends.encode_missing import EncodeCounts

# Fields of a batch that hold many values and no tensor.
_TEXTS = ("keys", "captions", "conditioning_set", "replaced")


class Replacement(NamedTuple):
    """One sample that could not be used, and what stands in for it.

    Attributes:
        place: Its place in the global batch, from 0.
        row: Its row in the backend's catalog; of a stream its number in the epoch.
        key: Its storage key.
        stage: What failed: "read" or "decode".
        reason: The error, as text.
        substitute: Row of the sample that is used instead.
        substitute_key: Storage key of that one.
    """

    place: int
    row: int
    key: str
    stage: str
    reason: str
    substitute: int
    substitute_key: str


@dataclass
class Batch:
    """Samples of one backend and one bucket; B is this rank's share of a micro-batch.

    Lightning, and anybody else, moves it by `to`.

    Attributes:
        backend: Name of the backend the samples come from.
        bucket: Target shape shared by all samples, "WIDTHxHEIGHT" in pixels; of clips
            "WIDTHxHEIGHT@FRAMES".
        epoch: Epoch the batch was planned for, from 0.
        step: Optimizer step within the epoch the batch belongs to, from 0.
        global_step: Optimizer step since the run began, from 0.
        rows: Rows of the samples in the backend's catalog, int64 [B], substitutes included; of
            a stream their numbers in the epoch. Not on the device with the rest where batches
            are staged ahead.
        keys: Storage keys of the samples, B long.
        captions: The caption used for each sample, B long ("" where there is none).
        original_size: Source size after orientation, int32 [B, 2] as (width, height), pixels.
        target_size: Trained size, int32 [B, 2] as (width, height), pixels.
        crop_top_left: Offset of the crop in the resized picture, int32 [B, 2] as (top, left).
        valid: bool [B]; False marks a repeat that only pads ranks to equal size (validation).
        latents: Encoded pictures [B, C, h, w], or frames of clips [B, F, C, h, w]; None where
            no image encoder is set.
        pixels: uint8 RGB [B, H, W, 3], or [B, F, H, W, 3] of clips; None where latents are
            given instead.
        image_embeds: Fields of the encoder of conditioning images, such as "embeds" [B, L, D]
            and "pooled" [B, D], of the samples themselves; those of their partners' pictures
            under "BACKEND.embeds" and so on, zeros for samples without one. Empty where there
            is no such encoder. They are encoded beforehand: where cuts are drawn anew in each
            epoch, of those of the first one.
        text: Fields of the text encoder, such as "embeds" [B, L, D] and "mask" [B, L].
        conditioning: What each conditioning backend gives, by name, in the order of the
            samples: latents [B, C, h, w] (of clips [B, F, C, h, w]); pixels [B, H, W, C] (of
            clips [B, F, H, W, C]) or cells [B, C, h, w], uint8, bool or float32 as it is set. Of
            loose references, whose shapes may differ, always a list of B such tensors without
            the first dimension. Where one set is drawn for each sample: one entry "drawn", a
            tensor if all have one shape and type, else such a list.
        conditioning_valid: bool [B] for each conditioning backend that keeps samples without a
            partner, by name; False marks those, which have zeros (of loose references an empty
            tensor).
        conditioning_set: Name of the conditioning backend drawn for each sample, B long; empty
            where samples have all of them.
        replaced: Samples of the plan that others stand in for.
        slider_strength: Strength of the backend's slider; None where it has none.
        encoded: Rows that were encoded for this batch, because they were not in the cache.
        rebuilt: Those of them that should have been there, and were damaged or gone.
    """

    backend: str
    bucket: str
    epoch: int
    step: int
    global_step: int
    rows: torch.Tensor
    keys: list[str]
    captions: list[str]
    original_size: torch.Tensor
    target_size: torch.Tensor
    crop_top_left: torch.Tensor
    valid: torch.Tensor
    latents: torch.Tensor | None = None
    pixels: torch.Tensor | None = None
    text: dict[str, torch.Tensor] = field(default_factory=dict)
    image_embeds: dict[str, torch.Tensor] = field(default_factory=dict)
    conditioning: dict[str, torch.Tensor | list[torch.Tensor]] = field(default_factory=dict)
    conditioning_valid: dict[str, torch.Tensor] = field(default_factory=dict)
    conditioning_set: list[str] = field(default_factory=list)
    replaced: tuple[Replacement, ...] = ()
    slider_strength: float | None = None
    encoded: int = 0
    rebuilt: int = 0

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.keys)

    def to(self, device: "torch.device | str", *, non_blocking: bool | None = None) -> "Batch":
        """Return the batch with all its tensors on a device; itself if they are there.

        Without it Lightning would look at every caption and key of a batch, too, each time: for
        as long as making a batch takes.

        Args:
            device: Where to.
            non_blocking: Whether not to wait for copies, as in `torch.Tensor.to`; None waits for
                those that others would see too early: all but those to CUDA.
        """
        device = torch.device(device)
        late = device.type == "cuda" if non_blocking is None else non_blocking
        moved = False

        def move(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal moved
            there = tensor.to(device, non_blocking=late)
            moved |= there is not tensor
            return there

        tensors = {
            each.name: each_tensor(getattr(self, each.name), move)
            for each in fields(self)
            if each.name not in _TEXTS
        }
        return replace(self, **tensors) if moved else self


def each_tensor(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Return a dataclass, dict, list or tuple with every tensor in it changed."""
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


class EncodedCounts:
    """What this process's batches needed encoded, counted in the trainer's thread.

    Attributes:
        found: The counts of each backend that had any, by name.
    """

    def __init__(self) -> None:
        """Begin with nothing counted."""
        self.found: dict[str, EncodeCounts] = {}

    def restart(self) -> None:
        """Do nothing: what was encoded stays encoded."""

    def note(self, batch: Batch) -> None:
        """Count what was encoded for a batch."""
        if batch.encoded:
            tally = self.found.setdefault(batch.backend, EncodeCounts())
            tally.encoded += batch.encoded
            tally.rebuilt += batch.rebuilt

    @property
    def total(self) -> EncodeCounts:
        """All backends together."""
        each = self.found.values()
        return EncodeCounts(sum(one.encoded for one in each), sum(one.rebuilt for one in each))

    def lines(self) -> Iterator[str]:
        """Yield "photos: 120 rows encoded while training" for each backend that had any."""
        for name, tally in self.found.items():
            lost = f", {tally.rebuilt} of them damaged or gone" if tally.rebuilt else ""
            yield f"{name}: {tally.encoded} rows encoded while training{lost}"
