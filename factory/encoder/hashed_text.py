"""Text encoder without weights: each word is hashed to a vector."""

import hashlib
import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from factory.encoder.dct import FLOAT_DTYPES, float_dtype
from factory.errors import ConfigError

# The sum of 12 uniform bytes is close to normal with mean 1530 and a deviation of almost 256
# (12 * (256**2 - 1) / 12 = 65535), so normal numbers come from integers alone: no logarithm or
# cosine whose last bit differs between platforms.
_BYTES_PER_NUMBER = 12
_SUM_MEAN = 1530
_SUM_STD = 256
_DIGEST_BYTES = 64
# Weights of word and place: their squares add up to about one, and both are exact in binary.
_WORD_SHARE = 0.875
_PLACE_SHARE = 0.5


@lru_cache(maxsize=8192)  # words of a caption set recur; 8192 vectors of 64 numbers are 4 MiB
def _normal(kind: str, name: str, dim: int) -> NDArray[np.float64]:
    """Return `dim` numbers that look normal and depend on `kind` and `name` alone."""
    stream = b"".join(
        hashlib.blake2b(
            name.encode(), digest_size=_DIGEST_BYTES, salt=block.to_bytes(8, "little"),
            person=kind.encode(),
        ).digest()
        for block in range(math.ceil(dim * _BYTES_PER_NUMBER / _DIGEST_BYTES))
    )  # fmt: skip
    numbers = np.frombuffer(stream, np.uint8, count=dim * _BYTES_PER_NUMBER)
    sums = numbers.reshape(dim, _BYTES_PER_NUMBER).sum(axis=1, dtype=np.int64)
    vector: NDArray[np.float64] = (sums - _SUM_MEAN) / _SUM_STD
    vector.flags.writeable = False
    return vector


def words_of(caption: str) -> list[str]:
    """Split a caption into words: compatibility forms joined, case and punctuation dropped."""
    return re.findall(r"\w+", unicodedata.normalize("NFKC", caption).casefold())


@dataclass(frozen=True)
class HashedText:
    """A text encoder without weights: a word's vector is drawn by the hash of the word.

    Equal captions give equal bytes, in any batch, process and platform. Nothing is learned
    of what words mean, but a model can tell captions apart by it and share their words.

    Attributes:
        tokens: Length L of every row; words beyond it are dropped.
        dim: Length D of a vector.
        dtype: Type of embeds and pooled: "float16", "bfloat16" or "float32".

    Raises:
        ConfigError: If a setting is out of range.
    """

    tokens: int = 32
    dim: int = 64
    dtype: str = "float16"

    def __post_init__(self) -> None:
        """Check the settings."""
        for name in ("tokens", "dim"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"HashedText.{name} is {getattr(self, name)}; allowed are 1 and more"
                )
        float_dtype(self.dtype, "HashedText")

    @property
    def fingerprint(self) -> str:
        """Class, version of the hashing, tokens, dim and dtype."""
        return f"HashedText/1(tokens={self.tokens},dim={self.dim},dtype={self.dtype})"

    def row_bytes(self) -> int:
        """Return the bytes of a caption's row: embeds, mask and pooled."""
        numbers = (self.tokens + 1) * self.dim
        return numbers * FLOAT_DTYPES[self.dtype].itemsize + self.tokens

    def encode(self, captions: Sequence[str]) -> dict[str, torch.Tensor]:
        """Encode captions to rows of equal shape.

        A caption without a word gives one null token, so that no row is masked entirely.

        Returns:
            "embeds" [B, L, D] (zero where padded), "mask" bool [B, L] (True at words) and
            "pooled" [B, D], which is blind to the order of words.
        """
        embeds = np.zeros((len(captions), self.tokens, self.dim))
        mask = np.zeros((len(captions), self.tokens), dtype=np.bool_)
        pooled = np.zeros((len(captions), self.dim))
        for row, caption in enumerate(captions):
            vectors = self._vectors(caption)
            count = len(vectors)
            embeds[row, :count] = _WORD_SHARE * vectors + _PLACE_SHARE * self._places(count)
            mask[row, :count] = True
            # The sum is exact (multiples of 1/256), so only the division rounds.
            pooled[row] = vectors.sum(axis=0) / math.sqrt(count)
        dtype = FLOAT_DTYPES[self.dtype]
        return {
            "embeds": torch.from_numpy(embeds).to(dtype),
            "mask": torch.from_numpy(mask),
            "pooled": torch.from_numpy(pooled).to(dtype),
        }

    def _vectors(self, caption: str) -> NDArray[np.float64]:
        words = words_of(caption)[: self.tokens]
        if not words:
            return _normal("null", "", self.dim)[None]
        return np.stack([_normal("word", word, self.dim) for word in words])

    def _places(self, count: int) -> NDArray[np.float64]:
        return np.stack([_normal("place", str(place), self.dim) for place in range(count)])

    def release(self) -> None:
        """Do nothing: there are no weights to free."""
