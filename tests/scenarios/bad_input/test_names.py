"""File names and folders as people and systems make them: every picture keeps its caption."""

import io
import logging
import os
import socket
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from factory.catalog.captions.sources import TextFileCaptions
from factory.catalog.scan.discovery import Discovery
from factory.errors import EmptyBackendError, ObjectNotFoundError, UnsafeKeyError
from factory.reports.run_report import show
from factory.storage.local import LocalStorage
from tests.scenarios.bad_input.building import refused
from tests.scenarios.bad_input.making import (
    backend,
    batches,
    dropped,
    kept,
    pixels,
    place,
    png,
    prepared,
)
from tests.support.pictures import write_pictures

STEMS = [
    "new\nline", "tab\t", "emoji-🦊", "back\\slash", "-dash", "--help", "dots..inside", "..two",
    ".hidden", "trailing ", " leading", "Case", "case", "CASE", "quote'\"", "[bold]markup",
    ":smile:", "%s {0} $HOME", "hash#?&=", "x" * 251, "é" * 125, "e\u0301", "é", "\u202eltr",
    "a.b.c", "sub folder/..name", "CON", "\x1b[31mred", "\x7f", "*?",
]  # fmt: skip


def folder_of_names(root: Path) -> dict[str, str]:
    """Write a picture and a caption file of each name; return captions by key."""
    captions = {}
    for number, stem in enumerate(STEMS):
        place(root, {f"pics/{stem}.png": png(), f"pics/{stem}.txt": b"caption %d" % number})
        captions[f"pics/{stem}.png"] = f"caption {number}"
    return captions


@pytest.mark.parametrize("encoded", [False, True])
def test_odd_names_are_names(tmp_path: Path, encoded: bool) -> None:
    captions = folder_of_names(tmp_path)
    assert len(captions) == len(STEMS)
    every = Discovery(ignore=())  # hidden ones, too
    with prepared(tmp_path, encoded=encoded, caption=TextFileCaptions(), metadata=every) as data:
        assert dropped(data) == []
        assert kept(data) == sorted(captions)
        seen = {key: text for batch in batches(data)
                for key, text in zip(batch.keys, batch.captions, strict=True)}  # fmt: skip
    assert seen == captions


def test_odd_names_of_damaged_files_stay_on_their_line(tmp_path: Path) -> None:
    folder_of_names(tmp_path)
    odd = ["\x1b[31mred", "new\nline", ":smile:", "[bold]markup"]
    place(tmp_path, {f"pics/{stem}.png": b"" for stem in odd})
    with prepared(tmp_path) as data:
        printed = io.StringIO()
        show(data, Console(file=printed, width=120))
        assert dropped(data) == [
            r"pics: 4 empty file (\x1b[31mred.png, :smile:.png, [bold]markup.png, ...)"
        ]
    assert dropped(data)[0] in printed.getvalue()
    place(tmp_path, {f"pics/{stem}.png": png() for stem in odd if stem != "new\nline"})
    with prepared(tmp_path) as data:
        assert dropped(data) == [r"pics: 1 empty file (new\nline.png)"]


def test_suffixes_count_in_any_case_and_at_the_very_end(tmp_path: Path) -> None:
    names = ["LOUD.PNG", "Mixed.JpEg", "plain.png", "blank.png ", "backup.png~", "png", ".png"]
    place(tmp_path, {f"pics/{name}": png() for name in names})
    with prepared(tmp_path) as data:
        assert kept(data) == ["pics/LOUD.PNG", "pics/Mixed.JpEg", "pics/plain.png"]


def test_what_is_no_file_is_no_sample(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pics = place(tmp_path / "root", {"pics/a.png": png(), "pics/folder.png/b.png": png()}) / "pics"
    place(tmp_path, {"outside/c.png": png()})
    os.mkfifo(pics / "pipe.png")
    (pics / "loop.png").symlink_to("loop.png")
    (pics / "round").symlink_to(".")
    (pics / "ping").symlink_to("pong")
    (pics / "pong").symlink_to("ping")
    (pics / "gone.png").symlink_to("nowhere.png")
    (pics / "out.png").symlink_to(tmp_path / "outside/c.png")
    (pics / "away").symlink_to(tmp_path / "outside")
    (pics / "twin.png").symlink_to("a.png")
    (pics / os.fsdecode(b"\xff\xfe.png")).write_bytes(png())
    with socket.socket(socket.AF_UNIX) as made:
        here = Path.cwd()
        os.chdir(pics)  # names of sockets may be 108 bytes long
        try:
            made.bind("socket.png")
        finally:
            os.chdir(here)
        caplog.set_level(logging.WARNING)
        with prepared(tmp_path / "root") as data:
            assert kept(data) == ["pics/a.png", "pics/folder.png/b.png", "pics/twin.png"]
            assert dropped(data) == []
            assert len(pixels(data)) == 3
    (said,) = {record.getMessage() for record in caplog.records if "not listed" in record.msg}
    assert "7 entries not listed (dangling or leaving links, names that are not UTF-8)" in said
    assert "storage.follow_links=true" in said


def test_a_link_out_of_the_root_is_followed_where_that_is_allowed(tmp_path: Path) -> None:
    place(tmp_path, {"root/pics/a.png": png(), "outside/c.png": png()})
    (tmp_path / "root/pics/away").symlink_to(tmp_path / "outside")
    storage = LocalStorage(str(tmp_path / "root"), follow_links=True)
    with prepared(tmp_path / "root", storage=storage) as data:
        assert kept(data) == ["pics/a.png", "pics/away/c.png"]


def test_two_backends_of_one_folder_and_one_inside(tmp_path: Path) -> None:
    write_pictures(tmp_path / "pics", 3)
    write_pictures(tmp_path / "pics/sub", 2, first=10)
    others = [backend(tmp_path, name="again"), backend(tmp_path, name="sub", prefix="pics/sub")]
    with prepared(tmp_path, *others, encoded=True) as data:
        assert kept(data) == kept(data, "again")
        assert kept(data, "sub") == ["pics/sub/0010.png", "pics/sub/0011.png"]
        assert set(kept(data, "sub")) < set(kept(data))
        seen = {(batch.backend, key) for batch in batches(data) for key in batch.keys}
        wanted = {(name, key) for name in ("pics", "again", "sub") for key in kept(data, name)}
        # Of three pictures of one bucket with pairs a batch, all are seen: the last is repeated.
        assert seen == wanted
        of_row = data.sources["again"]
        rows = np.arange(len(kept(data)))
        assert [p.key for p in of_row.pictures(rows)] == kept(data)


def test_a_prefix_does_not_reach_a_folder_whose_name_goes_on(tmp_path: Path) -> None:
    place(tmp_path, {"pics/a.png": png(), "pics2/b.png": png(), "pics.png": png()})
    with prepared(tmp_path) as data:
        assert kept(data) == ["pics/a.png"]


def test_a_prefix_that_is_a_picture(tmp_path: Path) -> None:
    place(tmp_path, {"pics": png()})
    with (
        refused(
            ObjectNotFoundError,
            "pics: it is a file, not a folder",
            "mend the path, or drop the backend with '~data.backends.pics'",
        ),
        prepared(tmp_path),
    ):
        pass


@pytest.mark.parametrize(
    ("patterns", "named"),
    [
        ({"include": ("*.jpg",)}, "data.backends.pics.metadata.include=['*.jpg']"),
        ({"exclude": ("**",)}, "data.backends.pics.metadata.exclude=['**']"),
        (
            {"include": ("sub/*",), "exclude": ("*.png",)},
            "metadata.include=['sub/*'] and data.backends.pics.metadata.exclude=['*.png']",
        ),
        # Written as if they counted from the root.
        ({"include": ("pics/sub/*",)}, "data.backends.pics.metadata.include=['pics/sub/*']"),
    ],
)
def test_patterns_that_match_nothing(
    tmp_path: Path, patterns: dict[str, tuple[str, ...]], named: str
) -> None:
    write_pictures(tmp_path / "pics/sub", 3)
    with (
        refused(
            EmptyBackendError,
            f"backend 'pics': none of 3 files in 'pics' of file://{tmp_path} passes ",
            named,
            "compared with keys below the prefix, such as 'sub/0000.png'",
        ),
        prepared(tmp_path, metadata=Discovery(**patterns)),
    ):
        pass


def test_patterns_over_a_folder_without_pictures_are_not_blamed(tmp_path: Path) -> None:
    place(tmp_path, {"pics/a.txt": b"no picture"})
    with (
        refused(EmptyBackendError, "no picture in 'pics'", "metadata.suffixes"),
        prepared(tmp_path, metadata=Discovery(include=("*.png",))),
    ):
        pass


@pytest.mark.parametrize("prefix", ["../outside", "pics/../../outside"])
def test_a_prefix_that_leaves_the_root(tmp_path: Path, prefix: str) -> None:
    place(tmp_path, {"root/pics/a.png": png(), "outside/c.png": png()})
    with refused(UnsafeKeyError, "holds '..'", prefix), prepared(tmp_path / "root", prefix=prefix):
        pass
