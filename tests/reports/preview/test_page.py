"""The page of a dry run: whole by itself, nothing taken for markup, nothing secret."""

import base64
import io
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from factory import EvalBackend, VideoBackend
from factory.backends.image import Crop
from factory.catalog.captions.sources import TextFileCaptions
from factory.engine.local_engine import LocalEngine
from factory.errors import MediaError
from factory.reports.preview.page import SHOWN, page
from factory.reports.preview.thumbnails import EDGE, looks
from factory.sampling.active_window import ActiveWindow
from factory.storage.local import LocalStorage
from tests.catalog.fakes import Scattered
from tests.reports.preview.building import CHROMIUM, browse, dry_run, one_backend, write
from tests.support.clips import write_clips
from tests.support.pictures import write_pictures

ENGINE = LocalEngine(workers=2)
NASTY = "\"><script>alert('x')</script>&\N{GRINNING FACE}"
TABS = ["overview", "problems", "samples", "dropped", "reading"]


class Reader(HTMLParser):
    """Collects elements with their attributes, the text, and the sections it stands in."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, str] = {}
        self.section = ""
        self.feed(document)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "section":
            self.section = dict(attrs)["id"] or ""

    def handle_data(self, data: str) -> None:
        self.text[self.section] = self.text.get(self.section, "") + data + "\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("page")
    write_pictures(root / "a", 40, sizes=[(96, 64), (64, 96), (120, 60)])
    write(root, {"held": 3})
    (root / "a/0001.txt").write_text(NASTY)
    name = NASTY.replace("/", "|")
    shutil.copy(root / "a/0001.png", root / f"a/{name}.png")  # without a caption: dropped
    (root / "a/zero.png").write_bytes(b"")
    return root


@pytest.fixture(scope="module")
def document(folder: Path) -> str:
    closest = one_backend(
        folder, caption=TextFileCaptions(), crop=Crop("closest", aspect_buckets=(1.0, 1.5)),
        window=ActiveWindow(end_step=20),
    )  # fmt: skip
    held = EvalBackend(name="held", prefix="held", storage=LocalStorage(str(folder)), resolution=64)
    other = one_backend(folder, folder="held", name="b")
    return page(dry_run(folder, closest, other, held), ENGINE)


def test_it_needs_nothing_but_itself(document: str) -> None:
    read = Reader(document)
    for name, attributes in read.elements:
        assert name not in ("script", "link", "iframe", "object", "base", "form")
        assert not any(key.startswith("on") for key in attributes)
        for key in ("src", "href", "srcset", "xlink:href", "action"):
            assert (attributes.get(key) or "#").startswith(("#", "data:image/jpeg;base64,"))
    assert not re.search(r"url\(|@import", document)
    policy = dict(read.elements)["meta"]
    metas = [a for name, a in read.elements if name == "meta"]
    assert policy in metas
    assert any("default-src 'none'" in (a.get("content") or "") for a in metas)


def test_names_and_captions_are_text(document: str) -> None:
    read = Reader(document)
    assert NASTY in read.text["samples"]
    assert NASTY.replace("/", "|") in read.text["dropped"]
    assert "<script" not in document


def test_every_tab_has_its_part(document: str) -> None:
    read = Reader(document)
    assert [a["id"] for name, a in read.elements if name == "section"] == TABS
    links = [a["href"] for name, a in read.elements if name == "a"]
    assert links == [f"#{name}" for name in TABS]


def test_numbers_reasons_and_problems_are_there(document: str) -> None:
    text = Reader(document).text
    assert "no caption" in text["dropped"]
    assert "empty file" in text["dropped"]
    assert "samples kept" in text["overview"]
    assert "Epoch 1" in text["overview"]
    assert "Shares, as backends come and go" in text["overview"]
    assert "also trained on in 'b'" in text["problems"]
    assert "96x64 → " in text["samples"]
    assert "first scan" in text["reading"]


def test_thumbnails_are_small_upright_and_few(document: str) -> None:
    images = [a["src"] or "" for name, a in Reader(document).elements if name == "img"]
    assert len(images) == SHOWN + 3 + 3 + 1  # kept of three backends, one dropped
    with Image.open(io.BytesIO(base64.b64decode(images[0].partition(",")[2]))) as picture:
        assert picture.format == "JPEG"
        assert max(picture.size) <= EDGE


def test_the_same_page_every_time(folder: Path) -> None:
    first, second = (
        page(dry_run(folder, one_backend(folder)), ENGINE) for _ in range(2)
    )  # fmt: skip
    free = re.compile(r"[\d.,]+ [KMGT]?i?B free")
    assert free.sub("", first) == free.sub("", second)


def test_the_frame_is_the_part_that_is_cut(tmp_path: Path) -> None:
    # Left half red, right half blue; a square from the corner is all red.
    picture = Image.new("RGB", (160, 80), (255, 0, 0))
    picture.paste((0, 0, 255), (80, 0, 160, 80))
    (tmp_path / "a").mkdir()
    picture.save(tmp_path / "a/one.png")
    backend = one_backend(tmp_path, crop=Crop("square", "corner"))
    source = dry_run(tmp_path, backend, batch_size=1).sources["a"]
    [look] = looks(source, source.catalog.decisions.buckets[0].rows, ENGINE)
    assert look.frame == pytest.approx((0, 0, 0.5, 1))
    assert (look.width, look.height, look.bucket) == (160, 80, "64x64")
    assert (look.captions, look.why) == (("one",), "")


def test_a_picture_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    write(tmp_path, {"a": 4})
    source = dry_run(tmp_path, one_backend(tmp_path)).sources["a"]
    (tmp_path / "a/0002.png").write_bytes(b"gone bad")
    shown = looks(source, source.catalog.decisions.buckets[0].rows, ENGINE)
    assert [bool(look.image) for look in shown] == [True, True, False, True]
    assert shown[2].why.startswith("not a picture")


def test_files_too_large_are_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"a": 4})
    monkeypatch.setattr("factory.reports.preview.thumbnails.MOST_BYTES", 10)
    storage = Scattered(str(tmp_path))
    source = dry_run(tmp_path, one_backend(tmp_path, storage=storage)).sources["a"]
    storage.taken()
    shown = looks(source, source.catalog.decisions.buckets[0].rows, ENGINE)
    assert {look.why for look in shown} == {"too large to show"}
    assert storage.taken() == []


def test_passwords_and_signatures_of_urls_are_not_shown(tmp_path: Path) -> None:
    write(tmp_path, {"a": 8})
    error = MediaError("not readable", "http://me:sECRET@h/x.png?X-Amz-Signature=sECRET is gone")
    storage = Scattered(str(tmp_path), broken={"a/0003.png": error})
    run = dry_run(tmp_path, one_backend(tmp_path, storage=storage))
    document = page(run, ENGINE)
    assert "http://…@h/x.png?…" in document
    assert "sECRET" not in document
    assert "sECRET" not in str(run.summary.as_json())


def test_clips_show_their_first_frame_as_it_is_cut(tmp_path: Path) -> None:
    write_clips(tmp_path / "v", 3, 12)
    clips = VideoBackend(
        name="v", prefix="v", storage=LocalStorage(str(tmp_path)), resolution=64, alignment=16,
        frames=4, caption=TextFileCaptions(),
    )  # fmt: skip
    run = dry_run(tmp_path, clips)
    buckets = {bucket.name: bucket.frames for bucket in run.summary.backends[0].buckets}
    assert set(buckets.values()) == {4}
    read = Reader(page(run, ENGINE))
    images = [a["src"] or "" for name, a in read.elements if name == "img"]
    assert len(images) == 3
    with Image.open(io.BytesIO(base64.b64decode(images[0].partition(",")[2]))) as picture:
        assert f"{picture.width}x{picture.height}@4" in buckets
    assert not [a for _, a in read.elements if a.get("class") == "cut"]


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")
def test_a_browser_shows_the_tab_asked_for_and_complains_of_nothing(
    document: str, tmp_path: Path
) -> None:
    plain = tmp_path / "plain.html"
    plain.write_text(document, encoding="utf-8")
    _, console = browse(plain, "#samples", tmp_path / "profile")
    assert console == ""
    # A copy with a script of the test's own tells which parts are shown.
    policy = "default-src 'none'"
    watched = document.replace(policy, f"{policy}; script-src 'unsafe-inline'")
    script = (
        "<script>addEventListener('load', () => {document.title = [...document.querySelectorAll("
        "'section')].filter(s => getComputedStyle(s).display != 'none').map(s => s.id).join() + "
        "' ' + (document.documentElement.scrollWidth <= innerWidth) + ' ' + scrollY})</script>"
    )
    copy = tmp_path / "watched.html"
    copy.write_text(watched.replace("</body>", f"{script}</body>"), encoding="utf-8")
    for fragment, section in (("", "overview"), ("#dropped", "dropped")):
        seen, console = browse(copy, fragment, tmp_path / "profile")
        assert console == ""
        assert f"<title>{section} true 0</title>" in seen
