"""Several text encoders as one, as SDXL, Stable Diffusion 3 and Flux use them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from factory.encoder.base import (
    LengthClassEncoder,
    Offloading,
    SizedRowEncoder,
    TextEncoder,
    Truncating,
    Truncation,
)
from factory.errors import ConfigError


@dataclass(kw_only=True)
class SeveralTexts:
    """Several text encoders as one: a caption's row has fields of all of them.

    Attributes:
        parts: The encoders by name. Field "embeds" of the part "t5" is called "t5.embeds".
        fields: Which fields rows have, by name, and what they are made of: one field of a part,
            or several joined along their features (the last dimension). Empty for all fields
            of all parts.
        offload: Let each encoder leave the device when it is done with a batch, for those that
            do not fit on it side by side. Their weights wait in main memory.

    Raises:
        ConfigError: There is no part, or `fields` names one there is not.
    """

    parts: Mapping[str, TextEncoder]
    fields: Mapping[str, Sequence[str]] = field(default_factory=dict)
    offload: bool = False

    def __post_init__(self) -> None:
        """Check the names."""
        if not self.parts:
            raise ConfigError("SeveralTexts.parts is empty; name an encoder, such as parts.clip")
        if dotted := next((name for name in self.parts if "." in name), None):
            raise ConfigError(f"SeveralTexts.parts has {dotted!r}; names of parts hold no dot")
        for name, sources in self.fields.items():
            unknown = [each for each in sources if each.partition(".")[0] not in self.parts]
            if unknown or not sources:
                raise ConfigError(
                    f"SeveralTexts.fields.{name} is {list(sources)}; give fields of the parts "
                    f"{', '.join(self.parts)}, such as {next(iter(self.parts))}.embeds"
                )

    @property
    def fingerprint(self) -> str:
        """The fingerprints of the parts, and how their fields are joined."""
        content = {
            "parts": {name: part.fingerprint for name, part in self.parts.items()},
            "fields": {name: list(sources) for name, sources in self.fields.items()},
        }
        return f"SeveralTexts/1({json.dumps(content, sort_keys=True)})"

    def row_bytes(self) -> int:
        """Return the bytes of the longest row of all parts; fewer if `fields` leaves some out.

        Raises:
            ConfigError: A part cannot tell.
        """
        total = 0
        for name, part in self.parts.items():
            if not isinstance(part, SizedRowEncoder):
                raise ConfigError(f"the text encoder {name!r} cannot tell the size of its rows")
            total += part.row_bytes()
        return total

    def length_classes_of(self, captions: Sequence[str]) -> NDArray[np.int64]:
        """Return a number for each caption, int64 [B]: which lengths its rows have in the parts."""
        lengths = [
            part.length_classes_of(captions)
            for part in self.parts.values()
            if isinstance(part, LengthClassEncoder)
        ]
        if not lengths:
            return np.zeros(len(captions), dtype=np.int64)
        numbers = np.unique(np.stack(lengths), axis=1, return_inverse=True)[1]
        return numbers.reshape(-1).astype(np.int64)

    def encode(self, captions: Sequence[str]) -> dict[str, torch.Tensor]:
        """Encode captions by every part, one after the other.

        Returns:
            The fields of the rows, [B, ...].

        Raises:
            ConfigError: A part does not give a field that `fields` names, or shapes of joined
                fields differ.
        """
        found: dict[str, torch.Tensor] = {}
        for name, part in self.parts.items():
            rows = part.encode(captions)
            found |= {f"{name}.{each}": tensor for each, tensor in rows.items()}
            if self.offload:
                part.offload() if isinstance(part, Offloading) else part.release()
        if not self.fields:
            return found
        return {name: _joined(name, sources, found) for name, sources in self.fields.items()}

    def truncations(self) -> list[Truncation]:
        """Return what the parts have cut since they were made or last released."""
        parts = (part for part in self.parts.values() if isinstance(part, Truncating))
        return [each for part in parts for each in part.truncations()]

    def release(self) -> None:
        """Free weights and device memory of all parts; the next call loads them again."""
        for part in self.parts.values():
            part.release()


def _joined(name: str, sources: Sequence[str], found: Mapping[str, torch.Tensor]) -> torch.Tensor:
    if absent := [each for each in sources if each not in found]:
        raise ConfigError(
            f"SeveralTexts.fields.{name} names {absent[0]!r}, which its part does not give; the "
            f"parts give {', '.join(found)}"
        )
    tensors = [found[each] for each in sources]
    if len({tensor.shape[:-1] for tensor in tensors}) > 1:
        shapes = ", ".join(f"{each} {list(found[each].shape[1:])}" for each in sources)
        raise ConfigError(
            f"SeveralTexts.fields.{name} joins rows of unequal length ({shapes}): only features "
            "are joined; give the parts one max_length, or keep the fields apart"
        )
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim=-1)
