"""The data that the fixtures were written from, in memory, and what reads the fixtures.

Facts and rows are known by a sample's storage and version. In memory those are a name and a hash
of the contents, so that what was written elsewhere fits here.
"""

import io
import json
import tarfile
from pathlib import Path

import fsspec

from factory import FactoryDataModule, build, compose
from tests.compatibility.world import HERE, LONG, SIZES, SQUARES, pictures

FIXTURES = HERE / "fixtures"
NAME = "witness"
CACHES = {"plain": "none", "packed": "zstd"}
# What is written in place of the folder that the fixtures were made in.
ROOT = "@ROOT@"


def fill_memory() -> None:
    """Put the data in memory; the clips are files, as each encoder writes others."""
    files = {f"clips/{clip.name}": clip.read_bytes() for clip in (FIXTURES / "clips").iterdir()}
    for name, count, sizes, first in (
        ("photos", 6, LONG, 0), ("table", 6, SIZES, 100), ("late", 4, SQUARES, 200),
    ):  # fmt: skip
        for number, data in enumerate(pictures(count, sizes, first)):
            files[f"{name}/{number:03}.png"] = data
            files[f"{name}/{number:03}.txt"] = f"{name} {number}, red, high".encode()
    rows = [
        {"file_name": f"{n:03}.png", "width": size[0], "height": size[1], "caption": f"row {n}"}
        for n, size in ((n, SIZES[(100 + n) % 3]) for n in range(6))
    ]
    files["table/table.jsonl"] = "".join(json.dumps(row) + "\n" for row in rows).encode()
    files["tar/shard.tar"] = _tar()
    memory = fsspec.filesystem("memory")
    for key, data in files.items():
        memory.pipe_file(f"/{NAME}/{key}", data)


def _tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for number, picture in enumerate(pictures(4, SQUARES, 300)):
            members = {"png": picture, "txt": f"member {number}".encode()}
            for suffix, data in members.items():
                member = tarfile.TarInfo(f"{number:03}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


def overrides(root: Path, cache: str) -> list[str]:
    """Return the options that the fixtures were made with, and are read with, below a folder."""
    return [
        "data=witness_fixtures", "storage=memory", f"storage.name={NAME}",
        "storage@cache=local", f"cache.storage.root={root}", f"cache.prefix={cache}",
        f"cache.compression={CACHES[cache]}", f"paths.scratch_dir={root}/scratch",
        "+encoder.text.tokens=6", "+encoder.text.dim=8", "encoder.image.channels=4",
        "+encoder.vision._target_=tests.compatibility.encoders.Looks",
        "seed=7", "data.peer_timeout_s=null",
    ]  # fmt: skip


def module(root: Path, cache: str, *more: str) -> FactoryDataModule:
    """Build the data module of the fixtures."""
    given = [*overrides(root, cache), *more]
    return build(compose(given, config_dir=HERE / "conf"), given)
