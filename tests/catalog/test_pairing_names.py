"""Captions, rows and partners are found under another case, suffix or form of Unicode."""

import csv
import tarfile
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from factory import ConditioningBackend
from factory.backends.image import ImageBackend
from factory.catalog.arrow_columns import find, stems
from factory.catalog.captions.caption_reader import paired
from factory.catalog.captions.json_file import JsonFileCaptions
from factory.catalog.captions.sources import Captions, FilenameCaptions, TextFileCaptions
from factory.catalog.decisions import decide
from factory.catalog.pairing import pair
from factory.catalog.scan.table import ParquetTable
from factory.engine.local_engine import LocalEngine
from factory.storage.base import Storage
from factory.storage.local import LocalStorage
from factory.storage.tar.tar_storage import TarStorage

NFC, NFD = (unicodedata.normalize(form, "Grüße é") for form in ("NFC", "NFD"))


def write(folder: Path, *names: str) -> None:
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix.lower() in (".txt", ".json"):
            file.write_text(f'{{"caption": "{name}"}}' if ".json" in name.lower() else name)
        else:
            Image.new("RGB", (64, 64)).save(file, format="PNG")


def said(storage: Storage, captions: Captions | None = None) -> dict[str, tuple[str, ...]]:
    """Return the text of each picture."""
    captions = captions or TextFileCaptions()
    backend = ImageBackend(name="pics", storage=storage, caption=captions)
    facts = backend.scan(None, LocalEngine(1))
    again = backend.scan(facts, LocalEngine(1))
    assert again.table.equals(facts.table)  # nothing is read anew, nor lost
    return {facts.key(row): facts.text(row) for row in range(len(facts))}


@pytest.mark.parametrize(
    ("picture", "text"),
    [
        ("IMG_0.JPG", "IMG_0.TXT"),
        ("IMG_0.jpg", "IMG_0.Txt"),
        ("a/img_0.jpg", "a/IMG_0.txt"),
        ("p0.jpg", "p0.jpg.txt"),
        ("P0.JPG", "P0.JPG.TXT"),
        ("p0.jpg", "P0.jpg.TXT"),
        (f"{NFD}.png", f"{NFC}.txt"),
        (f"{NFC}.png", f"{NFD}.TXT"),
        (f"{NFC}/a.png", f"{NFD}/a.png.txt"),
    ],
)
def test_captions_are_found(tmp_path: Path, picture: str, text: str) -> None:
    write(tmp_path / "d", picture, text)
    assert said(LocalStorage(str(tmp_path / "d"))) == {picture: (text,)}
    with tarfile.open(tmp_path / "d.tar", "w") as archive:
        for name in (picture, text):
            archive.add(tmp_path / "d" / name, name)
    assert said(TarStorage(LocalStorage(str(tmp_path)), shards=("d.tar",))) == {
        f"d.tar/{picture}": (text,)
    }


def test_json_files_are_found_alike(tmp_path: Path) -> None:
    write(tmp_path, "IMG_0.JPG", "IMG_0.JSON", "b.png", "b.png.json")
    found = said(LocalStorage(str(tmp_path)), JsonFileCaptions())
    assert found == {"IMG_0.JPG": ("IMG_0.JSON",), "b.png": ("b.png.json",)}


def test_an_exact_name_comes_first_and_is_not_shared(tmp_path: Path) -> None:
    write(tmp_path, "a.png", "A.png", "a.txt", "b.png", "b.txt", "B.TXT", "b.png.txt")
    found = said(LocalStorage(str(tmp_path)))
    assert found == {"a.png": ("a.txt",), "A.png": (), "b.png": ("b.txt",)}


@given(st.lists(st.text("aB.é", min_size=1, max_size=4), unique=True, max_size=8), st.data())
def test_what_was_paired_before_still_is(names: list[str], data: st.DataObject) -> None:
    keys = pa.array(sorted(f"{name}.png" for name in names), pa.large_string())
    texts = data.draw(st.lists(st.text("aB.é", min_size=1, max_size=4), unique=True, max_size=8))
    files = pa.array(sorted(f"{text}.txt" for text in texts), pa.large_string())
    before = find(stems(keys), stems(files))
    now = paired(keys, files, ".txt")
    assert np.array_equal(now[before >= 0], before[before >= 0])


def test_rows_of_tables_are_found(tmp_path: Path) -> None:
    write(tmp_path / "p", f"{NFD}.png", "b.png")
    for named in (True, False):
        suffix = ".png" if named else ""
        with (tmp_path / "t.csv").open("w", encoding="utf-8") as file:
            rows = [
                ["file_name", "width", "height"],
                [NFC + suffix, 64, 64],
                ["b" + suffix, 64, 64],
            ]
            csv.writer(file).writerows(rows)
        backend = ImageBackend(
            name="pics", storage=LocalStorage(str(tmp_path)), prefix="p",
            caption=FilenameCaptions(),
            metadata=ParquetTable(path="t.csv", extensionless=not named),
        )  # fmt: skip
        facts = backend.scan(None, LocalEngine(1))
        assert facts.table["error"].null_count == 2
        assert f"p/{NFD}.png" in facts.table["key"].to_pylist()


def test_partners_are_found(tmp_path: Path) -> None:
    write(tmp_path / "a", f"{NFD}.png")
    write(tmp_path / "b", f"{NFC}.png")
    storage, engine = LocalStorage(str(tmp_path)), LocalEngine(1)
    own = ImageBackend(name="a", storage=storage, prefix="a", caption=FilenameCaptions())
    other = ConditioningBackend(name="b", storage=storage, prefix="b", source="a")
    facts, partners = own.scan(None, engine), other.scan(None, engine)
    made = decide(facts, own.geometry, own.caption, name="a")
    assert pair(facts, made, "a", partners, "b")[0].tolist() == [0]
