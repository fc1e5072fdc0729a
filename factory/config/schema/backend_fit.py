"""Checks that a backend's storage, metadata and kind can give what its other settings ask for."""

from collections.abc import Iterator
from typing import Any

from factory.config.schema.captions import NO_TABLES
from factory.config.schema.crop import CropStyle


def filter_problems(backend: Any) -> Iterator[str]:
    """Yield why row filters have no column to look at."""
    place, facts = _kind(backend.storage), _kind(backend.metadata)
    if backend.filters and place in NO_TABLES and facts == "Discovery":
        columns = ", ".join(str(one.column) for one in backend.filters)
        yield (
            f"filters look at the columns {columns} of a table, and metadata=discovery in {place} "
            f"has none; choose metadata@data.backends.{backend.name}=parquet, or set filters=[]"
        )


def face_problems(backend: Any, *, still: bool = True) -> Iterator[str]:
    """Yield why no face can be looked for, so that every cut would be at random.

    Args:
        backend: The backend's settings.
        still: Its samples are stored pictures, which can be looked at before training.
    """
    if getattr(backend.crop, "style", None) is not CropStyle.face:
        return
    instead = f"choose another data/crop@data.backends.{backend.name}, such as square"
    facts = _kind(backend.metadata)
    sized = getattr(backend.metadata, "width_column", None) is not None
    if not still:
        yield f"crop.style=face looks at stored pictures, not at videos or streams; {instead}"
    elif backend.composite.image_count > 1:
        yield f"crop.style=face looks at whole files, and composite uses a part; {instead}"
    elif facts == "ParquetTable" and sized:
        yield (
            "crop.style=face looks at every picture, and metadata=parquet opens none where the "
            "table has sizes; set metadata.width_column=null and metadata.height_column=null, or "
            f"{instead}"
        )
    elif facts == "ColumnFacts":
        yield (
            "crop.style=face looks at every picture, and metadata=columns opens none; choose "
            f"metadata@data.backends.{backend.name}=discovery, or {instead}"
        )


def _kind(part: Any) -> str:
    return str(getattr(part, "_target_", "")).rpartition(".")[2]
