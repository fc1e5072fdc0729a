"""The contract of conditioning generators."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import ClassVar

import numpy as np
import xxhash
from numpy.typing import NDArray

from factory.identity import class_identity

Pixels = NDArray[np.uint8]

_WORD = 2**64 - 1


class Generator(ABC):
    """Makes one conditioning picture from one picture of the source.

    Subclasses are frozen dataclasses of plain settings: they are pickled to worker processes,
    and their settings are part of the key a result is cached under. A result is a function of
    the pixels, the settings and what is drawn, never of the order of calls.

    Attributes:
        channels: Colours of the result: 3, or 1 for edges and masks.
        version: Raise it whenever the same settings would give other pixels.
    """

    channels: ClassVar[int] = 3
    version: ClassVar[int] = 1

    @property
    def random(self) -> bool:
        """Whether anything is drawn: only then does the run's seed matter."""
        return True

    @property
    def fingerprint(self) -> Mapping[str, object]:
        """Everything that shapes a result beside the pixels and the seed."""
        kind: type = type(self)
        if not is_dataclass(kind):
            raise TypeError(
                f"{kind.__qualname__} must be a frozen dataclass, or give its own fingerprint: "
                "its settings name what is cached"
            )
        settings = {each.name: getattr(self, each.name) for each in fields(kind)}
        return {"class": class_identity(kind), "version": self.version, **settings}

    @abstractmethod
    def __call__(self, pixels: Pixels, draw: np.random.Generator) -> Pixels:
        """Return the conditioning picture of one picture.

        Args:
            pixels: The picture as it is trained on, resized and cut: RGB, uint8 [H, W, 3]. It
                must not be changed.
            draw: The only source of chance, begun from the run's seed and the sample's key. The
                frames of a clip each get the same numbers, so that they belong together.

        Returns:
            uint8 [H, W, `channels`] of the same height and width.
        """


class BatchGenerator(Generator):
    """Makes many pictures at once, as a model on a GPU does.

    Its pictures are always made before training and stored. Constructing one loads nothing;
    weights are loaded at the first `generate_batch` and freed by `release`.
    """

    @abstractmethod
    def generate_batch(self, pixels: Pixels, draws: Sequence[np.random.Generator]) -> Pixels:
        """Return the conditioning pictures of pictures of one size.

        Args:
            pixels: RGB, uint8 [B, H, W, 3].
            draws: The source of chance of each one, B long.

        Returns:
            uint8 [B, H, W, `channels`].
        """

    def __call__(self, pixels: Pixels, draw: np.random.Generator) -> Pixels:
        """Return the conditioning picture of one picture."""
        made: Pixels = self.generate_batch(pixels[None], [draw])[0]
        return made

    def release(self) -> None:
        """Free weights and device memory; the next call loads them again."""


def drawing(seed: int, key: str) -> np.random.Generator:
    """Return the numbers a sample's conditioning is drawn from: a function of (seed, key)."""
    digest = xxhash.xxh3_64_intdigest(key.encode())
    return np.random.Generator(np.random.PCG64([seed & _WORD, digest]))


def check_made(made: object, pixels: Pixels, generator: Generator) -> Pixels:
    """Return what a generator made of pictures [..., H, W, 3].

    Raises:
        ValueError: It is of another size, type or number of colours than was promised.
    """
    wanted = (*pixels.shape[:-1], generator.channels)
    if not isinstance(made, np.ndarray) or made.dtype != np.uint8 or made.shape != wanted:
        kind = getattr(made, "dtype", type(made).__name__)
        raise ValueError(
            f"{type(generator).__qualname__} gave {kind} {list(getattr(made, 'shape', []))} for "
            f"pictures {list(pixels.shape)}; it must give uint8 {list(wanted)}"
        )
    whole: Pixels = made
    return whole


def as_rgb(pixels: Pixels) -> Pixels:
    """Return pictures [..., C] of one or three colours with three, [..., 3]."""
    return pixels if pixels.shape[-1] == 3 else np.repeat(pixels, 3, axis=-1)  # noqa: PLR2004 - RGB
