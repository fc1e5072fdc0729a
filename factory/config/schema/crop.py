"""Schemas of crops: which part of a file is the sample, what shape it is cut to, and where."""

from collections.abc import Iterator
from typing import Any

from factory.config.schema.derived import settings_of
from factory.media.geometry.validation import crop_problems


@settings_of("factory.backends.image.Crop")
class CropConfig:
    """How a picture is cut to its bucket."""

    def problems(self: Any) -> Iterator[str]:
        """Yield what is wrong with the ratios to choose from."""
        yield from crop_problems(self.aspect, self.aspect_buckets, self.max_upscale_threshold)


@settings_of("factory.media.composite.Composite", rules=True)
class CompositeConfig:
    """Pictures that show several side by side, of which one is the sample."""
