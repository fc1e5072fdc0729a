"""The demo's datasets: a folder, a table, URLs and a Hugging Face dataset of pictures."""

import csv
import glob
import io
import json
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from factory.demo.crops import CroppedPicture, encode, plan_pictures
from factory.demo.photographs import PHOTOGRAPHS
from factory.errors import StorageError
from factory.metrics.stages import progress

if TYPE_CHECKING:
    from PIL.Image import Image

# Raised whenever the bytes change, so that folders of an older version are written anew.
VERSION = 1
MARKER = "demo.json"
# How many of the pictures go where.
SETS = {"photos": 110, "table": 80, "web": 60, "hub": 60, "holdout": 16}
# Encoding leaves the interpreter's lock; more threads than this gain nothing for so little work.
THREADS = 4
# No run takes an hour, so an unfinished folder that is older was left by a killed one.
STALE_SECONDS = 3600
# How often another process may get in between two renames before it is an error.
PUBLISH_ATTEMPTS = 5

Encoded = tuple[CroppedPicture, bytes]


@dataclass(frozen=True, slots=True)
class OddFile:
    """A file that is broken or unusual on purpose, and what should become of it.

    Attributes:
        key: Where it is, relative to the root of the demo data.
        kept: Whether it should be trained on.
        why: What is odd about it, which is also why it is dropped if it is.
        seen_in: What has to be read to notice: "listing", "caption", "header", "pixels" (the
            header is sound, so only decoding tells) or "answer" (of the HTTP server).
    """

    key: str
    kept: bool
    why: str
    seen_in: Literal["listing", "caption", "header", "pixels", "answer"]


EXPECTED: tuple[OddFile, ...] = (
    OddFile("photos/odd/truncated.jpg", False, "truncated: the second half is missing", "pixels"),
    OddFile("photos/odd/text_named.png", False, "not a picture: plain text", "header"),
    OddFile("photos/odd/one_pixel.png", False, "too small: 1x1", "header"),
    OddFile("photos/odd/zero_byte.jpg", False, "empty: 0 bytes", "listing"),
    OddFile("photos/odd/no_caption.jpg", False, "no caption", "caption"),
    OddFile("photos/odd/rotated_exif.jpg", True, "EXIF orientation 6: upright is tall", "header"),
    OddFile("photos/odd/cmyk.jpg", True, "CMYK, to be converted to RGB", "header"),
    OddFile("photos/odd/transparent.png", True, "RGBA with a transparent border", "header"),
    OddFile("photos/odd/sixteen_bit.png", True, "grey with 16 bits a sample", "header"),
    OddFile("photos/odd/animated.gif", True, "four frames, of which the first counts", "header"),
    OddFile("photos/odd/ünïcode name 写真.jpg", True, "spaces and Unicode in the name", "listing"),
    OddFile("web/pictures/not_there.jpg", False, "HTTP 404", "answer"),
    OddFile("web/pictures/page.html", False, "HTML instead of a picture", "answer"),
)


def write_demo_data(root: Path, *, seed: int = 0) -> bool:
    """Write the demo data below `root`, unless it is there already.

    The same library versions and seed give the same bytes. All is written to a folder beside
    `root` that takes its place at the end, so neither an interrupted run nor a second one at
    the same time does harm. A copy that is incomplete, or of another version or seed, is
    replaced as a whole. ::

        photos/    pictures in folders by kind, each with a .txt; odd/ holds the odd files
        table/     pictures, and metadata.parquet (file_name, caption, width, height, ...)
        web/       urls.csv (url, caption) and the pictures that its relative URLs name
        hub/       a Hugging Face dataset on disk (image, caption, source)
        holdout/   pictures with .txt that no other folder holds

    Args:
        root: Where to; its parent is made if absent.
        seed: Chooses crops, sizes and wordings.

    Returns:
        True if it wrote, False if a complete copy was there.

    Raises:
        MissingExtraError: A package that ships the photographs is not installed.
        StorageError: `root` holds other files; those are never replaced.
    """
    root = root.resolve()
    if _is_complete(root, seed):
        return False
    _refuse_foreign(root)
    root.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(root)
    part = _sibling(root)
    try:
        part.mkdir()
        _mark(part, seed, complete=False)
        _write_all(part, seed)
        _mark(part, seed, complete=True)
        return _publish(part, root, seed)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _mark(folder: Path, seed: int, *, complete: bool) -> None:
    """Say whose folder this is, and whether all of it is there."""
    marker = {"demo data of": "factory", "version": VERSION, "seed": seed, "complete": complete}
    (folder / MARKER).write_text(json.dumps(marker) + "\n")


def _is_complete(root: Path, seed: int) -> bool:
    try:
        marker = json.loads((root / MARKER).read_text())
        told = (marker["version"], marker["seed"], marker["complete"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return told == (VERSION, seed, True) and all((root / name).is_dir() for name in SETS)


def _refuse_foreign(root: Path) -> None:
    """Raise if the folder holds anything but demo data, which a marker of any kind shows."""
    if not root.exists() or (root / MARKER).is_file():
        return
    if not root.is_dir() or any(root.iterdir()):
        raise StorageError(
            f"{str(root)!r} holds files that are not the demo's, which it will not replace; "
            "name an empty or a new folder"
        )


def _sibling(root: Path) -> Path:
    """Return a new name beside a folder, so that a rename can put it in its place."""
    return root.with_name(f".{root.name}.{secrets.token_hex(4)}.part")


def _remove_stale(root: Path) -> None:
    for left in root.parent.glob(f".{glob.escape(root.name)}.*.part"):
        if time.time() - left.stat().st_mtime > STALE_SECONDS:
            shutil.rmtree(left, ignore_errors=True)


def _publish(part: Path, root: Path, seed: int) -> bool:
    """Put the finished folder in its place; False if another process was there first."""
    for _ in range(PUBLISH_ATTEMPTS):
        try:
            # Replaces an absent or empty folder, and refuses one that holds anything.
            part.rename(root)
        except OSError:
            if not root.is_dir():
                raise
        else:
            return True
        if _is_complete(root, seed):
            return False
        _refuse_foreign(root)
        old = _sibling(root)
        try:
            root.rename(old)
        except FileNotFoundError:
            continue  # another process is just replacing it
        shutil.rmtree(old, ignore_errors=True)
    raise StorageError(f"{str(root)!r} keeps changing; is another program writing to it?")


def _write_all(root: Path, seed: int) -> None:
    """Cut, encode and write every set."""
    sources = {photograph.name: photograph.read() for photograph in PHOTOGRAPHS}
    pictures = iter(plan_pictures(seed))
    writers: dict[str, Callable[[Path, Iterable[Encoded]], None]] = {
        "photos": _write_photos,
        "table": _write_table,
        "web": _write_web,
        "hub": _write_hub,
        "holdout": _write_captioned,
    }
    with (
        progress("write demo data", sum(SETS.values()), "pictures") as advance,
        ThreadPoolExecutor(THREADS, thread_name_prefix="factory-demo") as pool,
    ):

        def cut(picture: CroppedPicture) -> Encoded:
            data = picture.encode(sources[picture.photograph.name])
            advance(1)
            return picture, data

        for name, count in SETS.items():
            (root / name).mkdir()
            writers[name](root / name, pool.map(cut, [next(pictures) for _ in range(count)]))
    _write_odd(root / "photos" / "odd", sources)
    (root / "README.txt").write_text(_readme(), encoding="utf-8")


def _write_file(path: Path, data: bytes, captions: Sequence[str] = ()) -> None:
    """Write a picture, and its captions one a line beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    if captions:
        path.with_suffix(".txt").write_text("\n".join(captions) + "\n", encoding="utf-8")


def _write_photos(folder: Path, pictures: Iterable[Encoded]) -> None:
    for picture, data in pictures:
        _write_file(folder / picture.photograph.kind / picture.name, data, picture.captions)


def _write_captioned(folder: Path, pictures: Iterable[Encoded]) -> None:
    for picture, data in pictures:
        _write_file(folder / picture.name, data, picture.captions)


def _write_table(folder: Path, pictures: Iterable[Encoded]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = []
    for picture, data in pictures:
        _write_file(folder / picture.name, data)
        rows.append(
            {
                "file_name": picture.name,
                "caption": picture.captions[0],
                "width": picture.size[0],
                "height": picture.size[1],
                "quality": picture.quality,
                "source": picture.photograph.name,
                "licence": picture.photograph.licence,
            }
        )
    pq.write_table(pa.Table.from_pylist(rows), folder / "metadata.parquet")


def _write_web(folder: Path, pictures: Iterable[Encoded]) -> None:
    rows = []
    for number, (picture, data) in enumerate(pictures, 1):
        url = f"pictures/{number:04d}{Path(picture.name).suffix}"
        _write_file(folder / url, data)
        rows.append((url, picture.captions[0]))
    page = b"<!doctype html>\n<title>Moved</title>\n<p>The picture has moved.\n"
    _write_file(folder / "pictures/page.html", page)
    rows.append(("pictures/not_there.jpg", "a picture that is not there"))
    rows.append(("pictures/page.html", "a page where a picture should be"))
    with (folder / "urls.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("url", "caption"))
        writer.writerows(rows)


def _write_hub(folder: Path, pictures: Iterable[Encoded]) -> None:
    from datasets import Dataset, Features, Image, Value

    columns: dict[str, list[object]] = {"image": [], "caption": [], "source": []}
    for picture, data in pictures:
        columns["image"].append({"bytes": data, "path": picture.name})
        columns["caption"].append(picture.captions[0])
        columns["source"].append(picture.photograph.name)
    features = Features(image=Image(), caption=Value("string"), source=Value("string"))
    with _no_bars_of_others():
        Dataset.from_dict(columns, features=features).save_to_disk(folder)


@contextmanager
def _no_bars_of_others() -> Iterator[None]:
    """Keep the datasets library from drawing its bar into ours."""
    from datasets.utils import are_progress_bars_disabled, logging

    disabled = are_progress_bars_disabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if not disabled:
            logging.enable_progress_bar()


def _write_odd(folder: Path, sources: dict[str, "Image"]) -> None:
    """Write the files that `EXPECTED` lists; one_pixel and the like stay as small as they are."""
    cat = sources["cat"].resize((300, 200))
    jpeg = encode(cat, "jpg")
    cup = sources["coffee"].resize((240, 200), box=(165, 10, 420, 215))
    tower = sources["pagoda"].resize((240, 304), box=(60, 20, 360, 400))
    files = {
        "truncated.jpg": (jpeg[: len(jpeg) // 2], "a tabby cat, cut off in the middle"),
        "text_named.png": (b"These are words, not a picture.\n", "words in place of a picture"),
        "one_pixel.png": (encode(cat.resize((1, 1)), "png"), "the average colour of a cat"),
        "zero_byte.jpg": (b"", "a file without a single byte"),
        "no_caption.jpg": (encode(cup, "jpg"), ""),
        "rotated_exif.jpg": _rotated(sources["astronaut"]),
        "cmyk.jpg": (encode(cup.convert("CMYK"), "jpg"), "a cup half filled with coffee, in CMYK"),
        "transparent.png": _transparent(sources["dahlia"]),
        "sixteen_bit.png": _sixteen_bit(sources["moon"]),
        "animated.gif": _animated(sources["motorcycle"]),
        "ünïcode name 写真.jpg": (encode(tower, "jpg"), "a pagoda with tiled roofs, 写真"),
    }
    for name, (data, caption) in files.items():
        _write_file(folder / name, data, (caption,) if caption else ())


def _rotated(source: "Image") -> tuple[bytes, str]:
    """Return a JPEG that lies on its side and says so in its EXIF orientation."""
    from PIL import Image

    upright = source.resize((192, 256), box=(100, 0, 340, 320))
    exif = Image.Exif()
    exif[0x0112] = 6  # the orientation tag: turn by 90 degrees clockwise to see it upright
    buffer = io.BytesIO()
    upright.transpose(Image.Transpose.ROTATE_90).save(buffer, "JPEG", quality=90, exif=exif)
    caption = "an astronaut smiling, stored on its side and turned upright by EXIF orientation 6"
    return buffer.getvalue(), caption


def _transparent(source: "Image") -> tuple[bytes, str]:
    """Return a PNG whose outside is transparent."""
    from PIL import Image, ImageDraw

    size = (240, 240)
    flower = source.resize(size, box=(160, 75, 455, 370))
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).ellipse((8, 8, size[0] - 8, size[1] - 8), fill=255)
    flower.putalpha(mask)
    return encode(flower, "png"), "a round dahlia on a transparent background, in orange"


def _sixteen_bit(source: "Image") -> tuple[bytes, str]:
    """Return a grey PNG with 16 bits a sample, which reach from 0 to 65535."""
    import numpy as np
    from PIL import Image

    grey = np.asarray(source.convert("L").resize((224, 224))).astype(np.float64)
    stretched = (grey - grey.min()) / (grey.max() - grey.min()) * 65535
    deep = Image.fromarray(stretched.round().astype(np.uint16))
    return encode(deep, "png"), "the surface of the moon, in 65536 shades of grey"


def _animated(source: "Image") -> tuple[bytes, str]:
    """Return a GIF of four frames that pan over a picture."""
    frames = [
        source.resize((200, 160), box=(left, 100, left + 450, 460)).quantize(64)
        for left in (0, 97, 194, 291)
    ]
    buffer = io.BytesIO()
    frames[0].save(
        buffer, "GIF", save_all=True, append_images=frames[1:], duration=120, loop=0
    )  # fmt: skip
    return buffer.getvalue(), "the rear of a motorcycle, moving out of sight"


def _readme() -> str:
    """Return what the folder is and where its photographs come from."""
    lines = [
        "Demo data of the Data Backend Factory",
        "",
        "Pictures cut from photographs that the packages scikit-image and scikit-learn ship.",
        "Written by the demo and written anew when it changes: keep nothing of your own here.",
        "",
        "photos/    pictures in folders by kind, each with a .txt of one or more captions",
        "photos/odd/  broken and unusual files, on purpose:",
        *(f"    {_verdict(odd)}" for odd in EXPECTED if odd.key.startswith("photos/")),
        "table/     pictures, and metadata.parquet that describes them",
        "web/       urls.csv, with URLs relative to this folder, and its pictures; two are bad:",
        *(f"    {_verdict(odd)}" for odd in EXPECTED if odd.key.startswith("web/")),
        "hub/       a Hugging Face dataset, as save_to_disk writes it",
        "holdout/   pictures for validation, each with a .txt",
        "",
        "Sources, with the terms that their packages state:",
        *(
            f"    {photograph.package[1]} {photograph.file}: "
            f"{photograph.credit}; {photograph.licence}"
            for photograph in PHOTOGRAPHS
        ),
    ]
    return "\n".join(lines) + "\n"


def _verdict(odd: OddFile) -> str:
    return f"{odd.key.rpartition('/')[2]}: {'kept' if odd.kept else 'dropped'}; {odd.why}"
