"""Data drawn from seeds, whose pixels are the same on every machine, and data modules on it.

Pictures are lossless and have the size they are trained in, so that nothing is resampled: what
OpenCV, FFmpeg or a processor may round otherwise has no part in what is compared.
"""

import json
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from factory import FactoryDataModule, build, compose

HERE = Path(__file__).parent
# Of one area, 64 x 64, so that each is its own target.
SIZES = ((64, 64), (128, 32), (32, 128))
# Square cuts of 64 px, moved along the longer edge.
LONG = ((80, 64), (64, 96), (64, 64))
SQUARES = ((64, 64),)
FRAMES = 6


def pixels(number: int, size: tuple[int, int], noise: int = 16) -> NDArray[np.uint8]:
    """Return the pixels of one picture, RGB [H, W, 3]: bars and a little noise."""
    width, height = size
    draw = np.random.Generator(np.random.PCG64(number))
    bars = draw.integers(0, 200, (height // 8, width // 8, 3)).repeat(8, 0).repeat(8, 1)
    return (bars + draw.integers(0, noise, (height, width, 3))).astype(np.uint8)


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Return a PNG that is stored without compression: the same bytes wherever it is made."""
    height, width, _ = pixels.shape
    lines = b"".join(b"\0" + line.tobytes() for line in pixels)
    parts = [lines[start : start + 65535] for start in range(0, len(lines), 65535)]
    stored = b"".join(
        struct.pack("<BHH", part is parts[-1], len(part), len(part) ^ 0xFFFF) + part
        for part in parts
    )
    data = b"\x78\x01" + stored + struct.pack(">I", zlib.adler32(lines))
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", data),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def pictures(count: int, sizes: tuple[tuple[int, int], ...], first: int) -> Iterator[bytes]:
    """Yield numbered pictures, of each size in turn."""
    for number in range(first, first + count):
        yield png(pixels(number, sizes[number % len(sizes)]))


def write_world(root: Path) -> None:
    """Write folders, a table, videos, partners and a dataset that is streamed."""
    for name, count, sizes, first in (
        ("photos", 30, LONG, 0), ("table", 22, SIZES, 100), ("late", 18, SQUARES, 200),
        ("depth", 24, LONG, 0), ("loose", 14, SIZES, 400),
    ):  # fmt: skip
        (root / name).mkdir(parents=True)
        for number, data in enumerate(pictures(count, sizes, first)):
            (root / name / f"{number:03}.png").write_bytes(data)
    for number in range(30):
        lines = f"arafed picture {number}, red, tall\n" + "a second line, blue\n" * (number % 3)
        (root / f"photos/{number:03}.txt").write_text(lines)
    for number in range(18):
        text = {"text": [f"late {number}", "or so"][: 1 + number % 2]}
        (root / f"late/{number:03}.json").write_text(json.dumps(text))
    _write_table(root / "table/table.parquet", 22)
    (root / "clips").mkdir()
    for number in range(9):
        write_clip(root / f"clips/{number:03}_clip_of_bars.mkv", 500 + number)
    _write_shards(root / "shards")
    for file in root.rglob("*.png"):
        os.utime(file, ns=(0, 0))  # a part of a file's version, and so of a plan's fingerprint


def _write_table(file: Path, count: int) -> None:
    columns = {
        "file_name": [f"{number:03}.png" for number in range(count)],
        "width": [SIZES[(100 + number) % 3][0] for number in range(count)],
        "height": [SIZES[(100 + number) % 3][1] for number in range(count)],
        "caption": [
            [f"row {number}", f"number {number}"][: 1 + number % 2] for number in range(count)
        ],
    }
    pq.write_table(pa.table(columns), file)


def write_clip(file: Path, number: int, noise: int = 16) -> None:
    """Write a video that is coded without loss, as RGB."""
    with av.open(str(file), "w") as container:
        stream: Any = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "bgr0"
        for frame in range(FRAMES):
            image = pixels(number * 100 + frame, SQUARES[0], noise)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(stream.encode())


def _write_shards(folder: Path) -> None:
    from datasets import Dataset, Features, Image, Value

    folder.mkdir()
    features = Features({"image": Image(), "caption": Value("string")})
    for shard in range(3):
        first = 1000 + shard * 16
        images = [{"bytes": data, "path": None} for data in pictures(16, SIZES, first)]
        captions = [f"streamed {number}" for number in range(first, first + 16)]
        made = Dataset.from_dict({"image": images, "caption": captions}, features=features)
        made.to_parquet(folder / f"part-{shard}.parquet")


def module(root: Path, overrides: list[str], **ranks: int) -> FactoryDataModule:
    """Build a data module from an option of `conf/`, with everything below a folder."""
    given = [
        f"paths.data_dir={root}", f"paths.scratch_dir={root}/scratch", "data.ledger=null",
        "data.peer_timeout_s=null", "engine.workers=2", *overrides,
    ]  # fmt: skip
    return build(compose(given, config_dir=HERE / "conf"), given)
