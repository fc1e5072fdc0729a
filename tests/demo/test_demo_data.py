"""The demo data: the same bytes each time, whole or not at all, and as odd as it says."""

import csv
import hashlib
import json
import os
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps, UnidentifiedImageError

from factory.demo import demo_data, photographs
from factory.demo.crops import plan_pictures
from factory.demo.demo_data import EXPECTED, MARKER, SETS, write_demo_data
from factory.errors import MissingExtraError, ObjectNotFoundError, StorageError


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("demo") / "data"
    assert write_demo_data(root)
    return root


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write hardly anything, for what does not depend on the pictures."""

    def write_little(root: Path, seed: int) -> None:
        for name in SETS:
            (root / name).mkdir()
        (root / "photos" / "seed.txt").write_text(str(seed))

    monkeypatch.setattr(demo_data, "_write_all", write_little)


def hashes(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


def is_picture(path: Path) -> bool:
    return path.suffix in {".jpg", ".png", ".webp", ".gif"}


def decode(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
        return image.copy()


def test_two_writes_are_byte_identical(demo: Path, tmp_path: Path) -> None:
    write_demo_data(tmp_path / "again")
    assert hashes(tmp_path / "again") == hashes(demo)


def test_it_is_small_and_complete(demo: Path) -> None:
    files = [path for path in demo.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 40 * 2**20
    assert {path.name for path in demo.iterdir()} == {*SETS, MARKER, "README.txt"}
    odd = {odd.key for odd in EXPECTED}
    found = {path.relative_to(demo).as_posix() for path in files if is_picture(path)} - odd
    for name in ("photos", "table", "web", "holdout"):
        assert sum(key.startswith(f"{name}/") for key in found) == SETS[name]


def test_the_plan_spends_every_share_once() -> None:
    pictures = plan_pictures(0)
    assert len(pictures) == sum(SETS.values())
    assert len({picture.name.split(".")[0] for picture in pictures}) == len(pictures)
    looks = {(p.photograph.name, p.box, p.size, p.mirrored, p.grey) for p in pictures}
    assert len(looks) == len(pictures)
    assert plan_pictures(1) != pictures


def test_sizes_and_aspects_vary() -> None:
    sizes = [picture.size for picture in plan_pictures(0)]
    shorts = [min(size) for size in sizes]
    assert min(shorts) >= 96
    assert max(shorts) <= 400
    aspects = {round(width / height, 1) for width, height in sizes}
    assert min(aspects) <= 0.5
    assert max(aspects) >= 2.0
    assert len(aspects) > 10


def test_a_crop_holds_the_part_that_its_caption_names() -> None:
    parts = {view.shows: view.box for photo in photographs.PHOTOGRAPHS for view in photo.views}
    seen = 0
    for picture in plan_pictures(0):
        for shows, (left, upper, right, lower) in parts.items():
            if shows in picture.captions[0]:
                x0, y0, x1, y1 = picture.box
                assert x0 <= left
                assert y0 <= upper
                assert x1 >= right
                assert y1 >= lower
                seen += 1
    assert seen > 100


def test_captions_say_what_was_done_to_the_picture() -> None:
    for picture in plan_pictures(0):
        for caption in picture.captions:
            assert ("mirrored" in caption) == picture.mirrored
            assert caption.removesuffix(", mirrored").endswith("in black and white") or (
                not picture.grey
            )


def test_every_photo_but_one_has_a_caption_beside_it(demo: Path) -> None:
    silent = [
        path.name
        for path in (demo / "photos").rglob("*")
        if is_picture(path) and not path.with_suffix(".txt").exists()
    ]
    assert silent == ["no_caption.jpg"]
    texts = [path.read_text("utf-8").splitlines() for path in (demo / "photos").rglob("*.txt")]
    assert all(line.strip() for lines in texts for line in lines)
    assert any(len(lines) > 1 for lines in texts)


def test_the_table_tells_the_true_sizes(demo: Path) -> None:
    rows = pq.read_table(demo / "table" / "metadata.parquet").to_pylist()
    assert len(rows) == SETS["table"]
    for row in rows:
        with Image.open(demo / "table" / row["file_name"]) as image:
            assert image.size == (row["width"], row["height"])
        assert row["caption"]
        assert 0 < row["quality"] <= 1


def test_the_csv_names_pictures_by_relative_url_and_two_bad_rows(demo: Path) -> None:
    with (demo / "web" / "urls.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert set(rows[0]) == {"url", "caption"}
    good = [row["url"] for row in rows[:-2]]
    assert len(set(good)) == SETS["web"]
    for url in good:
        decode(demo / "web" / url)
    bad = {row["url"] for row in rows[-2:]}
    assert {f"web/{url}" for url in bad} == {odd.key for odd in EXPECTED if odd.seen_in == "answer"}
    assert not (demo / "web" / "pictures" / "not_there.jpg").exists()
    assert (demo / "web" / "pictures" / "page.html").read_text().startswith("<!doctype html>")


def test_the_hub_dataset_keeps_the_encoded_bytes(demo: Path) -> None:
    from datasets import Image as HubImage
    from datasets import load_from_disk

    dataset = load_from_disk(demo / "hub").cast_column("image", HubImage(decode=False))
    assert dataset.column_names == ["image", "caption", "source"]
    assert len(dataset) == SETS["hub"]
    starts = {row["image"]["bytes"][:2] for row in dataset}
    assert b"\xff\xd8" in starts, "JPEG stays JPEG"


def test_every_odd_file_is_as_odd_as_it_says(demo: Path) -> None:
    odd = demo / "photos" / "odd"
    listed = {item.key for item in EXPECTED if item.key.startswith("photos/odd/")}
    assert {p.relative_to(demo).as_posix() for p in odd.iterdir() if is_picture(p)} == listed
    with Image.open(odd / "truncated.jpg") as image:
        assert image.size == (300, 200)
        with pytest.raises(OSError, match="truncated"):
            image.load()
    with pytest.raises(UnidentifiedImageError):
        decode(odd / "text_named.png")
    assert decode(odd / "one_pixel.png").size == (1, 1)
    assert (odd / "zero_byte.jpg").stat().st_size == 0
    turned = decode(odd / "rotated_exif.jpg")
    assert turned.getexif()[0x0112] == 6
    assert turned.size == (256, 192)
    assert ImageOps.exif_transpose(turned).size == (192, 256)
    assert decode(odd / "cmyk.jpg").mode == "CMYK"
    clear = decode(odd / "transparent.png")
    assert clear.getchannel("A").getextrema() == (0, 255)
    deep = decode(odd / "sixteen_bit.png")
    assert deep.mode.startswith("I;16")
    assert deep.getextrema() == (0, 65535)
    with Image.open(odd / "animated.gif") as image:
        assert getattr(image, "n_frames", 1) == 4


def test_the_rotated_photo_is_upright_once_turned(demo: Path) -> None:
    upright = ImageOps.exif_transpose(decode(demo / "photos/odd/rotated_exif.jpg")).convert("RGB")
    source = next(p for p in photographs.PHOTOGRAPHS if p.name == "astronaut").read()
    wanted = source.resize((24, 32), box=(100, 0, 340, 320)).tobytes()
    got = upright.resize((24, 32)).tobytes()
    assert sum(abs(a - b) for a, b in zip(wanted, got, strict=True)) / len(got) < 8


def test_kept_odd_files_decode_and_every_other_picture_too(demo: Path) -> None:
    dropped = {odd.key for odd in EXPECTED if not odd.kept}
    for path in demo.rglob("*"):
        if is_picture(path) and path.relative_to(demo).as_posix() not in dropped:
            decode(path)


def test_the_readme_names_every_source_and_odd_file(demo: Path) -> None:
    text = (demo / "README.txt").read_text(encoding="utf-8")
    assert all(photo.file in text for photo in photographs.PHOTOGRAPHS)
    assert all(odd.key.rpartition("/")[2] in text for odd in EXPECTED)


@pytest.mark.usefixtures("quick")
def test_a_complete_copy_is_left_alone(tmp_path: Path) -> None:
    root = tmp_path / "demo"
    assert write_demo_data(root)
    before = hashes(root)
    assert not write_demo_data(root)
    assert hashes(root) == before
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "marker",
    ["", "[]", '{"version": 0, "seed": 0, "complete": true}', '{"complete": false}'],
)
def test_an_incomplete_or_older_copy_is_replaced(tmp_path: Path, marker: str) -> None:
    root = tmp_path / "demo"
    root.mkdir()
    (root / MARKER).write_text(marker)
    (root / "left over").write_text("from an earlier version")
    assert write_demo_data(root)
    assert not (root / "left over").exists()
    assert json.loads((root / MARKER).read_text())["complete"] is True


@pytest.mark.usefixtures("quick")
def test_another_seed_or_a_missing_folder_is_written_anew(tmp_path: Path) -> None:
    root = tmp_path / "demo"
    write_demo_data(root)
    assert write_demo_data(root, seed=1)
    assert (root / "photos" / "seed.txt").read_text() == "1"
    (root / "hub").rmdir()
    assert write_demo_data(root, seed=1)


@pytest.mark.usefixtures("quick")
def test_an_interrupted_write_leaves_nothing_and_is_redone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(root: Path, seed: int) -> None:
        (root / "photos").mkdir()
        raise KeyboardInterrupt(seed)

    with monkeypatch.context() as patch:
        patch.setattr(demo_data, "_write_all", interrupt)
        with pytest.raises(KeyboardInterrupt):
            write_demo_data(tmp_path / "demo")
    assert list(tmp_path.iterdir()) == []
    assert write_demo_data(tmp_path / "demo")


@pytest.mark.usefixtures("quick")
def test_what_a_killed_run_left_is_removed_and_what_another_writes_is_not(tmp_path: Path) -> None:
    for name in (".demo.old.part", ".demo.new.part"):
        (tmp_path / name).mkdir()
    long_ago = time.time() - 2 * demo_data.STALE_SECONDS
    os.utime(tmp_path / ".demo.old.part", (long_ago, long_ago))
    write_demo_data(tmp_path / "demo")
    assert {path.name for path in tmp_path.iterdir()} == {"demo", ".demo.new.part"}


@pytest.mark.usefixtures("quick")
def test_a_second_writer_that_comes_late_keeps_the_first_ones_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "demo"
    write_little = demo_data._write_all

    def overtaken(part: Path, seed: int) -> None:
        write_little(part, seed)
        monkeypatch.setattr(demo_data, "_write_all", write_little)
        assert write_demo_data(root)

    monkeypatch.setattr(demo_data, "_write_all", overtaken)
    assert not write_demo_data(root)
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


@pytest.mark.usefixtures("quick")
def test_files_of_the_users_are_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.jpg").write_bytes(b"precious")
    with pytest.raises(StorageError, match="not the demo's"):
        write_demo_data(tmp_path)
    assert (tmp_path / "photos" / "mine.jpg").read_bytes() == b"precious"


@pytest.mark.usefixtures("quick")
def test_a_root_that_is_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert write_demo_data(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / MARKER).exists()


def test_an_absent_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"\[demo\]"):
        write_demo_data(tmp_path / "demo")
    assert list(tmp_path.iterdir()) == []


def test_a_package_without_the_photograph_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    photo = photographs.PHOTOGRAPHS[0]
    monkeypatch.setattr(Path, "is_file", lambda path: False)
    with pytest.raises(ObjectNotFoundError, match=photo.file):
        photo.path()


def test_the_photographs_are_found_without_importing_their_packages() -> None:
    before = set(sys.modules)
    for photo in photographs.PHOTOGRAPHS:
        photo.path()
    assert not {"skimage", "sklearn"} & (set(sys.modules) - before)
