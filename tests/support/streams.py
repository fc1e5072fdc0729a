"""Small streamed datasets for tests: pictures of one colour each, in Parquet shards."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from factory.backends.streaming.backend import StreamBackend
from factory.storage.huggingface import HuggingFaceStorage
from tests.support.pictures import SIZES, colour


def picture(number: int, size: tuple[int, int], kind: str = "PNG") -> bytes:
    """Return a picture whose colour tells its number."""
    file = io.BytesIO()
    Image.new("RGB", size, colour(number)).save(file, kind)
    return file.getvalue()


def write_shards(
    folder: Path,
    shards: int,
    rows: int,
    *,
    sizes: Sequence[tuple[int, int]] = SIZES,
    broken: dict[int, bytes | None] | None = None,
) -> str:
    """Write `shards` Parquet files of `rows` pictures; `broken` puts other bytes in some."""
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageColumn

    folder.mkdir(parents=True, exist_ok=True)
    features = Features(
        {"image": ImageColumn(), "caption": Value("string"), "about": {"score": Value("float64")}}
    )
    for shard in range(shards):
        numbers = range(shard * rows, (shard + 1) * rows)
        made = {
            "image": [_image(number, sizes, broken or {}) for number in numbers],
            "caption": [f"picture {number}" for number in numbers],
            "about": [{"score": number / 10} for number in numbers],
        }
        data = Dataset.from_dict(made, features=features)
        data.to_parquet(folder / f"part-{shard:04}.parquet")
    return str(folder)


def _image(
    number: int, sizes: Sequence[tuple[int, int]], broken: dict[int, bytes | None]
) -> dict[str, Any] | None:
    if number in broken:
        data = broken[number]
        return None if data is None else {"bytes": data, "path": None}
    return {"bytes": picture(number, sizes[number % len(sizes)]), "path": None}


def stream(folder: str, **settings: Any) -> StreamBackend:
    """Return a stream of small pictures."""
    small: dict[str, Any] = {
        "resolution": 64, "alignment": 16, "samples": 24, "shuffle_buffer": 10, "buffer": 24,
    }  # fmt: skip
    return StreamBackend(name="big", storage=HuggingFaceStorage(folder), **small | settings)
