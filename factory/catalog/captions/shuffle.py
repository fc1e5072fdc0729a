"""Shuffling of tags: variants of a caption whose tags stand in another order."""

import hashlib
import random
from dataclasses import dataclass, fields
from typing import Annotated, Any

from factory.limits import AtLeast, OneOf, check_limits

# What tags stand between, and what is put between them again.
SEPARATORS = {"comma": (",", ", "), "space": (" ", " "), "period": (".", ". ")}


@dataclass(frozen=True, kw_only=True)
class Shuffle:
    """Makes variants of a caption whose tags stand in another order.

    Attributes:
        count: Variants made of each caption, all encoded beforehand. Equal ones count once, so
            fewer may come.
        seed: Seed of the orders. The same caption always gets the same ones.
        split_on: What parts the tags: comma | space | period.
        position_start: The first so many tags keep their place.
        include_original: The caption as it was is one of the variants.
    """

    count: Annotated[int, AtLeast(1)] = 1
    seed: int = 0
    split_on: Annotated[str, OneOf("comma", "space", "period")] = "comma"
    position_start: Annotated[int, AtLeast(0)] = 0
    include_original: bool = True

    def __post_init__(self) -> None:
        """Check types and values.

        Raises:
            ValueError: One of them is wrong.
        """
        object.__setattr__(self, "split_on", str(self.split_on))
        for option in fields(self):
            value, kind = getattr(self, option.name), type(option.default)
            if type(value) is not kind:  # not isinstance: True is no number here
                raise ValueError(
                    f"shuffle.{option.name} must be of type {kind.__name__}, got {value!r}"
                )
        check_limits(self, "shuffle")

    def variants(self, caption: str) -> tuple[str, ...]:
        """Return the caption's variants, each once; a caption of one tag stays alone."""
        cut, joint = SEPARATORS[self.split_on]
        tags = [tag.strip() for tag in caption.split(cut) if tag.strip()]
        fixed, loose = tags[: self.position_start], tags[self.position_start :]
        if len(loose) < 2:  # noqa: PLR2004 - one tag has one order
            return (caption,)
        found = [caption] if self.include_original else []
        # The numbers the former system draws from, so that its cached texts stay of use.
        digest = hashlib.md5(caption.encode(), usedforsecurity=False).hexdigest()
        start = self.seed + (int(digest, 16) & 0xFFFFFFFF)
        for number in range(self.count):
            order = list(loose)
            random.Random(start + number).shuffle(order)  # noqa: S311 - an order, not a secret
            found.append(joint.join([*fixed, *order]))
        return tuple(dict.fromkeys(found))


def shuffle_of(count: int, **options: Any) -> Shuffle | None:
    """Return how captions are shuffled as a config says it, where a count of 0 means not at all.

    Raises:
        ValueError: A value is wrong.
    """
    return Shuffle(count=count, **options) if count else None
