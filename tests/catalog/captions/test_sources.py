"""Caption strategies, and decoding of caption files."""

import pickle
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.catalog.captions.shuffle import Shuffle
from factory.catalog.captions.sources import (
    LIST_SEPARATOR,
    Captions,
    ColumnCaptions,
    FilenameCaptions,
    InstanceCaptions,
    TextFileCaptions,
    decode_text,
)
from factory.errors import ConfigError, MediaError

ALL: list[Captions] = [
    TextFileCaptions(prepend="sks"),
    FilenameCaptions(filters=["s/a/b/", "(x"]),
    InstanceCaptions(["a", "b"], shuffle=Shuffle(count=2), dropout=0.5),
    ColumnCaptions(("caption",), ("alt",), filters_file="words.txt"),
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


def test_what_a_strategy_has_read_does_not_change_what_it_equals() -> None:
    used = FilenameCaptions(filters=["s/a/b/"])
    assert used.captions("aha.png", ()) == ("bhb",)
    assert used == FilenameCaptions(filters=["s/a/b/"])
    assert pickle.loads(pickle.dumps(used)).captions("aha.png", ()) == ("bhb",)


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
    with pytest.raises(ValueError, match="at least one, none of them blank"):
        ColumnCaptions(columns)


def test_a_suffix_without_its_dot_is_refused() -> None:
    with pytest.raises(ValueError, match=r"got 'txt'; such as caption\.suffix=\.txt"):
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
        assert error.reason in ("caption not UTF-8", "caption not text")


def test_null_texts_are_empty() -> None:
    raw = [None, "one"]
    assert ColumnCaptions(("a", "b")).captions("k", raw) == ("one",)  # type: ignore[arg-type]
    assert TextFileCaptions().captions("k", raw) == ("one",)  # type: ignore[arg-type]


def test_captions_are_filtered_then_shuffled_then_prefixed() -> None:
    captions = TextFileCaptions(
        prepend="a, sks", filters=["b, "], shuffle=Shuffle(count=50, seed=1)
    )
    made = captions.captions("k", ["a, b, c\nb, \nb, d"])
    assert made == ("a, sks a, c", "a, sks c, a", "a, sks b,", "a, sks d")


def test_filters_see_trimmed_captions_and_may_empty_them() -> None:
    captions = TextFileCaptions(filters=["^a ", "s/dog/ /"])
    assert captions.captions("k", ["  a cat\r\n a dog \n"]) == ("cat",)
    assert captions.captions("k", ["dog"]) == ()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"filters": "arafed"}, "filters must be a list of texts, got 'arafed'"),
        ({"filters": ["a", "s/(/x/"]}, r"filters entry 2: 's/\(/x/' .* missing \)"),
        ({"filters": [3]}, "filters entry 1 must be a text, got 3"),
        ({"filters_file": "words.csv"}, r"must end in \.txt .* got 'words.csv'"),
        ({"shuffle": {"count": 2}}, "shuffle must be a Shuffle or None"),
        ({"dropout": 1.5}, "dropout must be from 0 to 1, got 1.5"),
        ({"dropout": float("nan")}, "got nan"),
        ({"dropout": -0.1}, "got -0.1"),
    ],
)
@pytest.mark.parametrize("strategy", [FilenameCaptions, TextFileCaptions, ColumnCaptions])
def test_bad_options_are_refused_by_every_strategy(
    strategy: type[Captions], options: dict[str, object], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        strategy(**options)  # type: ignore[arg-type]


def test_all_bad_filters_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        InstanceCaptions("a", filters=["s/(/x/", "fine", "s/a/\\3/"])
    assert [problem.partition(":")[0] for problem in caught.value.problems] == [
        "filters entry 1",
        "filters entry 3",
    ]


class Halves(ColumnCaptions):
    """Cuts its texts in its own way."""

    def _texts(self, key: str, raw: Sequence[str]) -> Iterable[str]:
        return (half for text in raw for half in text.split(";"))


@given(
    strategy=st.sampled_from(
        [
            ColumnCaptions(),
            ColumnCaptions(columns=("a", "b"), fallback_columns=("b",)),
            ColumnCaptions(prepend="x"),
            ColumnCaptions(filters=["a"]),
            ColumnCaptions(shuffle=Shuffle()),
            TextFileCaptions(),
            TextFileCaptions(split_lines=False),
            FilenameCaptions(),
            Halves(),
        ]
    ),
    raws=st.lists(
        st.none() | st.lists(st.text("ab ;,\r\n\x1e\t\u2028", max_size=6), max_size=2),
        max_size=3,
    ),
)
def test_the_short_way_to_captions_leads_to_the_same(
    strategy: Captions, raws: list[list[str] | None]
) -> None:
    plain = strategy.plain(raws)
    assert len(plain) == len(raws)
    for text, raw in zip(plain, raws, strict=True):
        if text:
            assert strategy.captions("a/b.png", raw or []) == (text,)


def test_the_short_way_is_open_to_single_plain_texts() -> None:
    raws: list[Any] = [[" a cat "], None, ["two\nlines"], [], ["a", "b"], ["\t"], [None], ["last"]]
    assert TextFileCaptions().plain(raws) == ["a cat", "", "", "", "", "", "", "last"]
    assert TextFileCaptions(prepend="x").plain(raws) == [""] * len(raws)
