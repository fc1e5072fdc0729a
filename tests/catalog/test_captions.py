"""Caption strategies, decoding of caption files, and the draw among several captions."""

import pickle
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.catalog.captions import (
    LIST_SEPARATOR,
    Captions,
    ColumnCaptions,
    FilenameCaptions,
    InstanceCaptions,
    TextFileCaptions,
    choose,
    decode_text,
)
from factory.errors import MediaError

ALL: list[Captions] = [
    TextFileCaptions(prepend="sks"),
    FilenameCaptions(),
    InstanceCaptions(["a", "b"]),
    ColumnCaptions(("caption",), ("alt",)),
]


def test_what_each_strategy_reads() -> None:
    assert [(c.sidecar, c.columns, c.source) for c in ALL] == [
        (".txt", (), "sidecar:.txt"),
        (None, (), "none"),
        (None, (), "none"),
        (None, ("caption", "alt"), "columns:caption|alt"),
    ]


def test_options_that_leave_the_raw_texts_alone_leave_the_source_alone() -> None:
    assert TextFileCaptions(split_lines=False, prepend="x").source == TextFileCaptions().source
    assert TextFileCaptions(".caption").source != TextFileCaptions().source


@pytest.mark.parametrize("captions", ALL, ids=lambda c: type(c).__name__)
def test_strategies_are_values(captions: Captions) -> None:
    assert pickle.loads(pickle.dumps(captions)) == captions
    assert hash(captions) == hash(pickle.loads(pickle.dumps(captions)))
    assert type(captions).__name__ in repr(captions)


def test_text_file_lines() -> None:
    text = "one\r\n\r\n  two  \nthree\rfour\n"
    assert TextFileCaptions().captions("a.jpg", [text]) == ("one", "two", "three", "four")
    whole = TextFileCaptions(split_lines=False).captions("a.jpg", ["one\r\n two \r\n"])
    assert whole == ("one\n two",)
    assert TextFileCaptions().captions("a.jpg", []) == ()
    assert TextFileCaptions().captions("a.jpg", [" \r\n\t\n"]) == ()


def test_only_line_ends_split_lines() -> None:
    text = "a\x0bb\x0cc\x85d\u2028e"
    assert TextFileCaptions().captions("a.jpg", [text]) == (text,)


def test_prepend_stands_before_every_caption_but_makes_none() -> None:
    captions = TextFileCaptions(prepend=" sks ")
    assert captions.captions("a.jpg", ["one\ntwo"]) == ("sks one", "sks two")
    assert captions.captions("a.jpg", [""]) == ()
    assert TextFileCaptions(prepend="  ").captions("a.jpg", ["one"]) == ("one",)
    assert InstanceCaptions("dog", prepend="sks").captions("k", ()) == ("sks dog",)


def test_file_names() -> None:
    names = {
        "a/b_c/the.big_dog.v2.jpeg": ("the.big dog.v2",),
        "my_red_cat.png": ("my red cat",),
        "süß 🐈_x.png": ("süß 🐈 x",),
        "___.png": (),
    }
    assert {key: FilenameCaptions().captions(key, ["ignored"]) for key in names} == names


def test_instance_prompts() -> None:
    assert InstanceCaptions("  a dog ").captions("k", ()) == ("a dog",)
    assert InstanceCaptions(["a", " ", " b "]).captions("k", ()) == ("a", "b")
    assert InstanceCaptions(("a",)) == InstanceCaptions(["a"])


@pytest.mark.parametrize("prompt", ["", "  ", [], [" ", ""], None])
def test_blank_instance_prompts_are_refused(prompt: object) -> None:
    with pytest.raises(ValueError, match="prompt must be a text or texts, not blank"):
        InstanceCaptions(prompt)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (("one", "two", "three"), ("one", "two")),
        (("", " two ", "three"), ("two",)),
        (("", "  ", "three"), ("three",)),
        ((LIST_SEPARATOR, "", "three"), ("three",)),
        (("", "", ""), ()),
        ((), ()),
        ((f"a{LIST_SEPARATOR}b{LIST_SEPARATOR} ", "", "three"), ("a", "b")),
        (("first line\nsecond line", "", ""), ("first line\nsecond line",)),
    ],
)
def test_columns_and_fallbacks(raw: tuple[str, ...], expected: tuple[str, ...]) -> None:
    captions = ColumnCaptions(["short", "long"], ["alt"])  # type: ignore[arg-type]
    assert captions.columns == ("short", "long", "alt")
    assert captions.captions("k", raw) == expected


def test_columns_are_joined_once_however_often_they_are_built() -> None:
    first = ColumnCaptions(("a",), ("b",))
    assert ColumnCaptions(first.columns, first.fallback_columns) == first


@pytest.mark.parametrize("columns", [(), ("",), (3,)])
def test_no_column_is_refused(columns: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="at least one column"):
        ColumnCaptions(columns)


def test_a_suffix_without_its_dot_is_refused() -> None:
    with pytest.raises(ValueError, match=r"such as \.txt; got 'txt'"):
        TextFileCaptions("txt")


def test_the_byte_order_mark_is_no_text() -> None:
    assert decode_text("süß".encode()) == "süß"
    assert decode_text(b"\xef\xbb\xbf" + "süß".encode()) == "süß"
    assert decode_text(b"") == ""


def test_other_encodings_are_reported_with_their_place_and_the_way_out() -> None:
    with pytest.raises(MediaError, match=r"byte 0xfc at position 1; .* iconv -f WINDOWS") as caught:
        decode_text("süß".encode("latin-1"))
    assert caught.value.reason == "caption not UTF-8"
    with pytest.raises(MediaError, match="position 4"):
        decode_text(b"\xef\xbb\xbfs\xfc")
    with pytest.raises(MediaError, match="iconv -f UTF-16"):
        decode_text("süß".encode("utf-16"))


@given(st.binary())
def test_any_bytes_give_text_or_a_reason(data: bytes) -> None:
    try:
        decode_text(data)
    except MediaError as error:
        assert error.reason == "caption not UTF-8"


@given(st.lists(st.text(), min_size=1), st.integers(), st.integers(), st.integers())
def test_the_choice_depends_on_its_numbers_alone(
    captions: list[str], seed: int, epoch: int, row: int
) -> None:
    first = choose(captions, seed=seed, epoch=epoch, row=row)
    assert first in captions
    assert choose(tuple(captions), seed=seed, epoch=epoch, row=row) == first


def test_the_choice_is_even_over_rows_epochs_and_seeds() -> None:
    captions = ["a", "b", "c"]
    draws = {
        "row": [choose(captions, seed=1, epoch=1, row=n) for n in range(3000)],
        "epoch": [choose(captions, seed=1, epoch=n, row=1) for n in range(3000)],
        "seed": [choose(captions, seed=n, epoch=1, row=1) for n in range(3000)],
    }
    for name, drawn in draws.items():
        assert min(Counter(drawn).values()) > 900, name
    assert len({tuple(drawn) for drawn in draws.values()}) == 3


def test_the_choice_stays_the_same_between_versions() -> None:
    captions = [str(n) for n in range(1000)]
    drawn = [choose(captions, seed=7, epoch=e, row=r) for e, r in ((1, 0), (1, 1), (2, 0))]
    assert drawn == ["437", "790", "506"]


def test_there_must_be_something_to_choose_from() -> None:
    with pytest.raises(ValueError, match="row 3 has no caption"):
        choose((), seed=0, epoch=0, row=3)
