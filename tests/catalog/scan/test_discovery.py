"""Discovery measures what is new or changed, and gives every sample it cannot use a reason."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from factory.catalog.captions.sources import ColumnCaptions, FilenameCaptions, TextFileCaptions
from factory.catalog.crops import OwnCrops
from factory.catalog.facts import Fact, Facts
from factory.catalog.facts_store import FactsStore
from factory.catalog.row_filters import RowFilter
from factory.catalog.scan.discovery import Discovery
from factory.catalog.scan.media_type import Pictures
from factory.catalog.scan.scan import Scan
from factory.errors import (
    AccessDeniedError,
    ObjectNotFoundError,
    StorageUnavailableError,
    TableError,
)
from factory.media.geometry.geometry import Geometry
from factory.media.headers import HEAD_BYTES
from factory.storage.local import LocalStorage
from factory.storage.url_list.url_list_storage import UrlListStorage
from tests.catalog.fakes import ENGINE, Scattered, Stale, Watched, by_key, replace_file, scanned
from tests.support.pictures import SIZES, write_pictures

PICTURES = [f"p/{n:04d}.png" for n in range(4)]


@pytest.fixture
def storage(tmp_path: Path) -> Watched:
    write_pictures(tmp_path / "p", 4)
    return Watched(str(tmp_path))


def saved(facts: Facts, storage: Watched) -> Facts:
    """Return facts as the next run finds them."""
    shelf = FactsStore(storage, "catalog.parquet", Path(storage.root) / "catalog.arrow")
    shelf.save(facts)
    loaded = shelf.load()
    assert loaded is not None
    storage.taken()
    return loaded


def test_sizes_formats_and_changes_are_measured(storage: Watched) -> None:
    facts = scanned(storage)
    assert [fact.key for fact in facts.rows()] == PICTURES
    assert [(f.width, f.height) for f in facts.rows()] == [SIZES[n % 3] for n in range(4)]
    assert {fact.format for fact in facts.rows()} == {"PNG"}
    assert storage.taken() == PICTURES
    assert facts.changes.added == 4


def test_only_what_is_new_or_changed_is_measured_again(storage: Watched, tmp_path: Path) -> None:
    known = saved(scanned(storage), storage)
    again = scanned(storage, known=known)
    assert storage.taken() == []
    assert again.table.equals(known.table)
    assert again.changes.unchanged == 4

    replace_file(tmp_path / PICTURES[1], tmp_path / PICTURES[2])
    write_pictures(tmp_path / "p", 1, first=9)
    (tmp_path / PICTURES[3]).unlink()
    now = scanned(storage, known=known)
    assert storage.taken() == ["p/0001.png", "p/0009.png"]
    assert (by_key(now)["p/0001.png"].width, by_key(now)["p/0001.png"].height) == SIZES[2]
    assert str(now.changes) == "1 added, 1 changed, 1 removed, 2 unchanged"
    assert [fact.key for fact in now.rows()] == [*PICTURES[:3], "p/0009.png"]


def test_one_header_is_one_read(storage: Watched) -> None:
    scanned(storage)
    assert set(storage.reads.values()) == {1}


def test_a_long_header_is_read_again_and_further(storage: Watched, tmp_path: Path) -> None:
    picture = Image.effect_noise((64, 48), 50)
    picture.save(tmp_path / "p/long.jpg", exif=b"Exif\0\0" + bytes(60_000))
    assert (tmp_path / "p/long.jpg").read_bytes().find(b"\xff\xc0") > HEAD_BYTES
    fact = by_key(scanned(storage))["p/long.jpg"]
    assert (fact.width, fact.height, fact.error) == (64, 48, None)
    assert storage.reads["p/long.jpg"] == 2


def test_another_caption_strategy_does_not_measure_again(storage: Watched) -> None:
    known = saved(scanned(storage, captions=FilenameCaptions()), storage)
    now = scanned(storage, captions=TextFileCaptions(), known=known)
    assert storage.taken() == [f"p/{n:04d}.txt" for n in range(4)]
    assert [fact.text for fact in now.rows()] == [(f"picture {n}\n",) for n in range(4)]
    back = scanned(storage, captions=FilenameCaptions(), known=saved(now, storage))
    assert storage.taken() == []
    assert [fact.text for fact in back.rows()] == [None] * 4


@pytest.mark.parametrize("other", [Discovery(verify=True), Discovery(max_megapixels=9)])
def test_other_settings_measure_everything_again(storage: Watched, other: Discovery) -> None:
    known = saved(scanned(storage), storage)
    scanned(storage, metadata=other, known=known)
    assert storage.taken() == PICTURES


def test_other_files_that_count_do_not_measure_the_same_ones_again(storage: Watched) -> None:
    known = saved(scanned(storage), storage)
    fewer = scanned(storage, metadata=Discovery(exclude=("*2.png",)), known=known)
    assert storage.taken() == []
    assert [fact.key for fact in fewer.rows()] == [PICTURES[n] for n in (0, 1, 3)]
    now = scanned(storage, metadata=Discovery(suffixes=(".png",)), known=saved(fewer, storage))
    assert storage.taken() == [PICTURES[2]]
    assert [fact.key for fact in now.rows()] == PICTURES


def test_a_changed_caption_file_is_read_alone(storage: Watched, tmp_path: Path) -> None:
    known = saved(scanned(storage, captions=TextFileCaptions()), storage)
    scanned(storage, captions=TextFileCaptions(), known=known)
    assert storage.taken() == []
    (tmp_path / "p/0002.txt").write_text("something else\n")
    now = scanned(storage, captions=TextFileCaptions(), known=known)
    assert storage.taken() == ["p/0002.txt"]
    assert by_key(now)["p/0002.png"].text == ("something else\n",)
    assert by_key(now)["p/0001.png"].text == ("picture 1\n",)


def test_captions_come_and_go(storage: Watched, tmp_path: Path) -> None:
    (tmp_path / "p/0000.txt").rename(tmp_path / "elsewhere.txt")
    known = saved(scanned(storage, captions=TextFileCaptions()), storage)
    assert by_key(known)["p/0000.png"].text is None
    (tmp_path / "elsewhere.txt").rename(tmp_path / "p/0000.txt")
    (tmp_path / "p/0001.txt").unlink()
    now = scanned(storage, captions=TextFileCaptions(), known=known)
    assert storage.taken() == ["p/0000.txt"]
    assert by_key(now)["p/0000.png"].text == ("picture 0\n",)
    assert by_key(now)["p/0001.png"].text is None


def test_sub_folders_and_upper_case_suffixes_are_found(storage: Watched, tmp_path: Path) -> None:
    write_pictures(tmp_path / "p/sub", 1)
    (tmp_path / "p/sub/0000.png").rename(tmp_path / "p/sub/LOUD.PNG")
    (tmp_path / "p/notes.md").write_text("no picture")
    assert [f.key for f in scanned(storage).rows()] == [*PICTURES, "p/sub/LOUD.PNG"]
    only = scanned(storage, metadata=Discovery(suffixes=(".JPG",)))
    assert len(only) == 0


def damage(folder: Path) -> dict[str, str]:
    """Write files that are no pictures; return the reason each one must get."""
    whole = (folder / "0000.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[:20])
    (folder / "empty.png").write_bytes(b"")
    (folder / "page.png").write_text("<!doctype html><html>not found</html>")
    return {
        "p/cut.png": "truncated header",
        "p/empty.png": "empty file",
        "p/page.png": "not a picture",
    }


def test_what_is_no_picture_gets_its_reason_and_is_not_read_again(
    storage: Watched, tmp_path: Path
) -> None:
    reasons = damage(tmp_path / "p")
    known = saved(scanned(storage), storage)
    facts = by_key(known)
    assert {key: (facts[key].error or "").partition(":")[0] for key in reasons} == reasons
    assert all(facts[key].error is None for key in PICTURES)
    scanned(storage, known=known)
    assert storage.taken() == []
    replace_file(tmp_path / "p/cut.png", tmp_path / "p/0001.png")
    now = scanned(storage, known=known)
    assert storage.taken() == ["p/cut.png"]
    assert by_key(now)["p/cut.png"].error is None


def test_a_picture_that_breaks_off_is_found_by_verify_only(
    storage: Watched, tmp_path: Path
) -> None:
    Image.effect_noise((64, 64), 80).save(tmp_path / "p/whole.jpg")
    whole = (tmp_path / "p/whole.jpg").read_bytes()
    (tmp_path / "p/half.jpg").write_bytes(whole[: len(whole) // 2])
    assert by_key(scanned(storage))["p/half.jpg"].error is None
    facts = by_key(scanned(storage, metadata=Discovery(verify=True)))
    assert (facts["p/half.jpg"].error or "").startswith("truncated: ")
    assert facts["p/whole.jpg"].error is None


def test_a_bomb_is_dropped_with_its_size(storage: Watched) -> None:
    facts = scanned(storage, metadata=Discovery(max_megapixels=0.001))
    assert {(f.error or "").partition(":")[0] for f in facts.rows()} == {"too large"}
    assert "raise the limit" in (facts.rows()[0].error or "")


def test_a_caption_that_is_not_utf8_says_how_to_mend_it(storage: Watched, tmp_path: Path) -> None:
    (tmp_path / "p/0001.txt").write_bytes("caf\xe9".encode("latin-1"))
    known = saved(scanned(storage, captions=TextFileCaptions()), storage)
    fact = by_key(known)["p/0001.png"]
    assert fact.text is None
    assert fact.error is None
    assert (fact.text_error or "").startswith("caption not UTF-8: byte 0xe9 at position 3")
    assert "iconv" in (fact.text_error or "")
    scanned(storage, captions=TextFileCaptions(), known=known)
    assert storage.taken() == []
    (tmp_path / "p/0001.txt").write_text("café")
    now = scanned(storage, captions=TextFileCaptions(), known=known)
    assert by_key(now)["p/0001.png"].text == ("café",)
    assert by_key(now)["p/0001.png"].text_error is None


def test_a_picture_that_vanished_since_the_listing_is_one_samples_misfortune(
    storage: Watched, tmp_path: Path
) -> None:
    stale = Stale(str(tmp_path), ghosts=("p/ghost.png",))
    known = saved(scanned(stale), stale)
    assert (by_key(known)["p/ghost.png"].error or "").startswith("not readable: cannot read ")
    scanned(stale, known=known)
    assert stale.taken() == ["p/ghost.png"]
    gone = scanned(storage, known=known)
    assert "p/ghost.png" not in by_key(gone)
    assert gone.changes.removed == 1


def test_a_caption_that_vanished_since_the_listing_is_looked_for_again(tmp_path: Path) -> None:
    write_pictures(tmp_path / "p", 2, captions=False)
    stale = Stale(str(tmp_path), ghosts=("p/0001.txt",))
    known = saved(scanned(stale, captions=TextFileCaptions()), stale)
    assert by_key(known)["p/0001.png"].text_error == "no caption: p/0001.txt vanished"
    scanned(stale, captions=TextFileCaptions(), known=known)
    assert stale.taken() == ["p/0001.txt"]


def test_a_server_of_its_own_that_fails_costs_its_sample_and_is_tried_again(
    tmp_path: Path,
) -> None:
    write_pictures(tmp_path / "p", 3)
    storage = Scattered(str(tmp_path))
    storage.broken["p/0001.png"] = StorageUnavailableError("no answer in 3 tries")
    known = saved(scanned(storage), storage)
    assert by_key(known)["p/0001.png"].error == "not readable: no answer in 3 tries"
    assert by_key(known)["p/0000.png"].error is None
    storage.broken.clear()
    now = scanned(storage, known=known)
    assert storage.taken() == ["p/0001.png"]
    assert by_key(now)["p/0001.png"].error is None


@pytest.mark.parametrize("key", ["p/0001.png", "p/0001.txt"])
def test_a_storage_that_fails_as_a_whole_ends_the_scan(storage: Watched, key: str) -> None:
    storage.broken[key] = AccessDeniedError("the credentials have expired")
    with pytest.raises(AccessDeniedError, match="expired") as caught:
        scanned(storage, captions=TextFileCaptions())
    (note,) = caught.value.__notes__
    assert key in note
    assert note.startswith("while ")


def test_a_bug_in_a_storage_is_no_samples_misfortune(tmp_path: Path) -> None:
    write_pictures(tmp_path / "p", 2)
    storage = Scattered(str(tmp_path))
    storage.broken["p/0001.png"] = ZeroDivisionError("a bug")
    with pytest.raises(ZeroDivisionError, match="a bug"):
        scanned(storage)


def test_a_folder_that_is_not_there_is_an_error(storage: Watched) -> None:
    with pytest.raises(ObjectNotFoundError, match="nowhere"):
        scanned(storage, "nowhere")


def test_a_touched_file_is_measured_again(storage: Watched, tmp_path: Path) -> None:
    known = saved(scanned(storage), storage)
    os.utime(tmp_path / PICTURES[0], ns=(1, 1))
    assert scanned(storage, known=known).changes.changed == 1
    assert storage.taken() == PICTURES[:1]


def test_rows_of_a_table_are_pictures_whatever_they_are_called(tmp_path: Path) -> None:
    write_pictures(tmp_path / "www", 2)
    files = sorted((tmp_path / "www").glob("*.png"))
    storage = UrlListStorage(
        table="urls.csv",
        table_storage=Watched(str(tmp_path)),
        cache_dir=str(tmp_path / "down"),
        timeout_s=0.2,
    )
    (tmp_path / "urls.csv").write_text("url,caption\nno-url-at-all,a hill\nneither,\n")
    facts = scanned(storage, captions=ColumnCaptions())
    assert len(facts) == 2
    assert sorted(fact.text or () for fact in facts.rows()) == [("",), ("a hill",)]
    for fact in facts.rows():
        assert (fact.error or "").startswith("not readable: row ")
        assert "is no http(s) URL" in (fact.error or "")
    assert files


def with_faces(storage: Watched, known: Facts | None = None, *, faces: bool = True) -> Facts:
    """Scan the folder, looking for faces or not."""
    medium = Pictures(faces=faces)
    scan = Scan("pics", storage, "p", FilenameCaptions(), known, medium)
    return Discovery().scan(scan, ENGINE)


def test_faces_are_looked_for_once_where_cuts_are_placed_by_them(
    storage: Watched, tmp_path: Path
) -> None:
    astronaut = pytest.importorskip("skimage.data").astronaut()
    Image.fromarray(astronaut).save(tmp_path / "p/astronaut.jpg", quality=90)
    plain = saved(with_faces(storage, faces=False), storage)
    assert plain.extra == []
    known = saved(with_faces(storage, plain), storage)
    assert known.extra == ["focus_x", "focus_y"]
    row = [fact.key for fact in known.rows()].index("p/astronaut.jpg")
    x, y = (float(known.take(name, [row])[0]) for name in known.extra)
    assert 0.35 < x < 0.55  # her face is left of the middle, in the upper half
    assert 0.1 < y < 0.4
    others = np.delete(known.column("focus_x"), row)
    assert (others == -1).all()
    with_faces(storage, known)
    assert storage.taken() == []
    centred = saved(with_faces(storage, known, faces=False), storage)
    assert storage.taken() == []
    assert with_faces(storage, centred).table.equals(known.table)
    assert storage.taken() == []

    square = Geometry(256, alignment=16, crop_aspect="square", crop_style="face")
    wide = Facts.of([Fact("a.png", 1, "e", 1024, 256)], {},
                    extra={"focus_x": pa.array([0.9], pa.float32()),
                           "focus_y": pa.array([0.5], pa.float32())})  # fmt: skip
    assert OwnCrops(wide, square).of(np.array([0])).offset.tolist() == [[0, 768]]


def test_a_file_that_vanished_and_is_no_longer_listed_leaves_no_error(tmp_path: Path) -> None:
    write_pictures(tmp_path / "p", 2, captions=False)
    ghosts = Stale(str(tmp_path), ghosts=("p/0000.txt",))
    known = scanned(ghosts, captions=TextFileCaptions())
    assert (by_key(known)["p/0000.png"].text_error or "").startswith("no caption: ")
    (tmp_path / "p/0001.txt").write_text("a hill")
    now = by_key(scanned(Stale(str(tmp_path)), captions=TextFileCaptions(), known=known))
    assert [now[f"p/000{n}.png"].text_error for n in (0, 1)] == [None, None]
    assert [now[f"p/000{n}.png"].text for n in (0, 1)] == [None, ("a hill",)]
    assert now["p/0000.png"].text_etag is None


@pytest.mark.parametrize("style", ["known", "new"])
def test_faces_do_not_make_a_scan_decode_every_picture_whole(
    storage: Watched, tmp_path: Path, style: str
) -> None:
    pytest.importorskip("skimage")
    whole = (tmp_path / "p/0000.png").read_bytes()
    (tmp_path / "p/cut.png").write_bytes(whole[: len(whole) // 2])
    known = with_faces(storage, faces=False) if style == "known" else None
    fact = by_key(with_faces(storage, known))["p/cut.png"]
    assert (fact.error, fact.width > 0) == (None, True)


def test_filters_without_a_table_are_refused_before_anything_is_listed(storage: Watched) -> None:
    scan = Scan("pics", storage, "nowhere", FilenameCaptions(), columns=("score",))
    with pytest.raises(TableError, match=r"no column score for data\.backends\.pics\.filters; set"):
        Discovery().scan(scan, ENGINE)


def test_filters_look_at_the_columns_of_a_list_of_urls(tmp_path: Path) -> None:
    (tmp_path / "urls.csv").write_text("url,score\nhttp://127.0.0.1:9/a,0.5\nno-url,7\n")
    storage = UrlListStorage(
        table="urls.csv", table_storage=LocalStorage(str(tmp_path)), cache_dir=str(tmp_path / "c")
    )
    scan = Scan("pics", storage, "", FilenameCaptions(), columns=("score",))
    facts = Discovery().scan(scan, ENGINE)
    kept = RowFilter("score", minimum=1).keeps(facts.table["column.score"])
    errors = [fact.error or "" for fact in facts.rows()]
    assert ["no-url" in error or "no http" in error for error in errors] == kept.tolist()
    assert sorted(kept.tolist()) == [False, True]
