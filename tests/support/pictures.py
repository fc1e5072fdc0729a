"""Small pictures for tests: each one's colour tells which it is."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

SIZES = ((96, 64), (64, 96), (80, 80))


def colour(number: int) -> tuple[int, int, int]:
    """Return a colour no other number below 4096 has."""
    return (number % 16 * 16, number // 16 % 16 * 16, number // 256 * 16)


def write_pictures(
    folder: Path,
    count: int,
    *,
    sizes: Sequence[tuple[int, int]] = SIZES,
    first: int = 0,
    captions: bool = True,
) -> list[Path]:
    """Write `count` PNG files of one colour each, with a caption file beside each."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number in range(first, first + count):
        file = folder / f"{number:04d}.png"
        Image.new("RGB", sizes[number % len(sizes)], colour(number)).save(file)
        if captions:
            file.with_suffix(".txt").write_text(f"picture {number}\n")
        files.append(file)
    return files
