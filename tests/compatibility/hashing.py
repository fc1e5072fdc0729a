"""Hashes of batches: of all that a batch says, whole again where ranks have shared it."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from factory import Batch

# Batches between two recorded hashes, each of which follows from all batches before it.
EVERY = 25
SAME = ("backend", "bucket", "epoch", "step", "global_step", "slider_strength")
LISTS = ("keys", "captions", "conditioning_set")
TENSORS = ("rows", "original_size", "target_size", "crop_top_left", "valid", "latents", "pixels")
MAPPINGS = ("text", "image_embeds", "conditioning", "conditioning_valid")


def chain(shares: Iterable[Sequence[Batch]]) -> Iterator[str]:
    """Yield a hash after every so many batches, given the shares of the ranks in their order."""
    state = hashlib.blake2b(digest_size=8)
    for number, ranks in enumerate(shares, start=1):
        state.update(digest(ranks))
        if number % EVERY == 0:
            yield state.hexdigest()


def digest(ranks: Sequence[Batch]) -> bytes:
    """Return the hash of one batch, given each rank's share."""
    state = hashlib.blake2b()
    first = ranks[0]
    for name in SAME:
        values = {json.dumps(getattr(rank, name)) for rank in ranks}
        assert len(values) == 1, f"ranks differ in {name}: {values}"
        state.update(f"{name}={values.pop()}\n".encode())
    for name in LISTS:
        joined = [text for rank in ranks for text in getattr(rank, name)]
        state.update(f"{name}={json.dumps(joined)}\n".encode())
    for name in TENSORS:
        _add(state, name, [getattr(rank, name) for rank in ranks])
    for name in MAPPINGS:
        fields = getattr(first, name)
        assert all(list(getattr(rank, name)) == list(fields) for rank in ranks)
        for key in sorted(fields):
            _add(state, f"{name}.{key}", [getattr(rank, name)[key] for rank in ranks])
    return state.digest()


def _add(state: Any, name: str, parts: list[Any]) -> None:
    if name.startswith("conditioning."):
        # Samples of several shapes are a list, and what one rank has of them may be of one shape.
        tensors = [sample for part in parts for sample in part]
    else:
        tensors = [] if parts[0] is None else [torch.cat(parts)]
    for tensor in tensors:
        state.update(f"{name}:{tensor.dtype}{list(tensor.shape)}\n".encode())
        state.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
