"""Options of this project, and their defaults."""

from dataclasses import MISSING as NO_DEFAULT
from dataclasses import Field, fields
from enum import EnumType
from typing import Any

from factory.config.schema import SCHEMAS

# Options that keys are mapped to and that may come with a later version: where the schema has
# one it is written, where it has not the report says what is not carried. Each is SCHEMA.FIELD.
PLANNED = frozenset(
    {
        *(
            f"backend/{kind}.{name}"
            for kind in ("image", "video", "eval", "conditioning")
            for name in (
                "maximum_image_size", "target_downsample_size", "filters", "composite",
            )
        ),
        *(
            f"caption/{strategy}.{name}"
            for strategy in ("textfile", "filename", "instance", "column")
            for name in ("filters", "filters_file", "shuffle", "dropout")
        ),
        "crop.max_upscale_threshold",
        "metadata/parquet.extensionless",
        "storage/huggingface.cache_dir",
        "storage/huggingface.num_proc",
    }
)  # fmt: skip
# The value of an option that no schema gives one.
NONE = object()


def is_option(target: str) -> bool:
    """Tell whether SCHEMA.FIELD is an option of this version."""
    return _field(target) is not None


def default(target: str) -> Any:
    """Return the value of SCHEMA.FIELD when nothing is said; `NONE` where there is none."""
    option = _field(target)
    if option is None:
        return NONE
    if option.default_factory is not NO_DEFAULT:
        return option.default_factory()
    return NONE if option.default is NO_DEFAULT else option.default


def has_faces() -> bool:
    """Tell whether `crop.style` can be face."""
    option = _field("crop.style")
    return (
        option is not None
        and isinstance(option.type, EnumType)
        and "face" in option.type.__members__
    )


def takes_weights() -> bool:
    """Tell whether `crop.aspect_buckets` takes {aspect, weight} as well as ratios."""
    option = _field("crop.aspect_buckets")
    return option is not None and option.type not in (list[float], "list[float]")


def _field(target: str) -> "Field[Any] | None":
    schema, _, name = target.rpartition(".")
    if schema not in SCHEMAS:
        return None
    return next((option for option in fields(SCHEMAS[schema]) if option.name == name), None)
