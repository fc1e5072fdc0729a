"""The trainer's arguments, with upstream's defaults."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from factory.importers.simpletuner.problem import ImportProblem

# Upstream's own defaults; None means that there is none.
DEFAULTS: dict[str, Any] = {
    "resolution": 1024,
    "resolution_type": "pixel_area",
    "aspect_bucket_alignment": 64,
    "caption_strategy": "filename",
    "caption_dropout_probability": 0.1,
    "conditioning_multidataset_sampling": "random",
    "data_backend_sampling": "auto-weighting",
    "gradient_accumulation_steps": 1,
}
# Arguments that an entry follows where it has no such key of its own.
FOLLOWED = frozenset(
    {
        "resolution", "resolution_type", "minimum_image_size", "maximum_image_size",
        "target_downsample_size", "caption_strategy", "prepend_instance_prompt",
        "only_instance_prompt", "train_batch_size", "aws_max_pool_connections",
        "text_encoder_batch_size",
    }
)  # fmt: skip
# Arguments that may stand as text, since a command line has nothing else.
_NUMBERS = frozenset(
    {
        "max_train_steps", "num_train_epochs", "tokenizer_max_length",
        "resolution", "minimum_image_size", "maximum_image_size", "target_downsample_size",
        "seed", "aspect_bucket_alignment", "gradient_accumulation_steps", "framerate",
        "caption_dropout_probability", "text_encoder_batch_size", "aws_max_pool_connections",
    }
)  # fmt: skip
_SAMPLINGS = {
    "data_backend_sampling": ("auto-weighting", "uniform"),
    "conditioning_multidataset_sampling": ("random", "combined"),
}


@dataclass(frozen=True)
class Arguments:
    """The trainer's arguments.

    Attributes:
        given: What was said, by name without dashes in front.
    """

    given: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> "Arguments":
        """Read names as upstream's config file may spell them: `--train_batch_size` too."""
        given = {name.lstrip("-").replace("-", "_"): value for name, value in raw.items()}
        return cls({name: _plain(name, value) for name, value in given.items()})

    def __getitem__(self, name: str) -> Any:
        """Return an argument, or its default, or None."""
        value = self.given.get(name)
        return DEFAULTS.get(name) if value is None else value

    def problems(self) -> Iterator[ImportProblem]:
        """Yield what is wrong with the arguments that are carried."""
        for name in ("seed", "aspect_bucket_alignment", "gradient_accumulation_steps"):
            least = 0 if name == "seed" else 1
            value = self[name]
            if value is None:
                continue
            number = as_number(value)
            if number is None or not number.is_integer():
                yield ImportProblem("invalid_type", f"args.{name} must be a whole number")
            elif number < least:
                yield ImportProblem("invalid_value", f"args.{name} must be at least {least}")
        share = as_number(self["caption_dropout_probability"])
        if share is None:
            text = "args.caption_dropout_probability must be a number"
            yield ImportProblem("invalid_type", text)
        elif not 0 <= share <= 1:
            text = "args.caption_dropout_probability must be between 0 and 1"
            yield ImportProblem("invalid_value", text)
        for name, allowed in _SAMPLINGS.items():
            if self[name] not in allowed:
                text = f"args.{name} must be {' or '.join(allowed)}"
                yield ImportProblem("invalid_value", text)


def _plain(name: str, value: Any) -> Any:
    """Return the number that a text stands for, where the argument is one."""
    number = as_number(value) if name in _NUMBERS and isinstance(value, str) else None
    if number is None:
        return value
    return int(number) if number.is_integer() else number


def as_number(value: Any) -> float | None:
    """Return a finite number, also from its text; None where there is none."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
