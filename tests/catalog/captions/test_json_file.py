"""Captions in JSON files beside their samples."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.catalog.captions.json_file import JsonFileCaptions
from factory.catalog.captions.sources import LIST_SEPARATOR
from factory.catalog.decisions import decide
from factory.errors import MediaError
from factory.media.geometry.geometry import Geometry
from factory.storage.local import LocalStorage
from tests.catalog.fakes import Watched, by_key, scanned
from tests.support.pictures import write_pictures


def said(content: Any, *fields: str, fallback: tuple[str, ...] = ()) -> tuple[str, ...]:
    captions = JsonFileCaptions(fields or ("caption",), fallback)
    return captions.captions("k", captions.parse(json.dumps(content).encode()))


@pytest.mark.parametrize(
    ("content", "fields", "expected"),
    [
        ({"caption": " one "}, ("caption",), ("one",)),
        ({"caption": ["one", None, " ", "two"]}, ("caption",), ("one", "two")),
        ({"a": {"b": {"c": "deep"}}}, ("a.b.c",), ("deep",)),
        ({"a.b": "dotted", "a": {"b": "deep"}}, ("a.b",), ("dotted",)),
        ({"a": [{"t": "one"}, {"t": ["two"]}, {"u": "no"}]}, ("a.t",), ("one", "two")),
        ({"a": ["one", "two"]}, ("a.1",), ("two",)),
        ({"a": ["one", "two"]}, ("a.2",), ()),
        ([{"t": "one"}, {"t": "two"}], ("t",), ("one", "two")),
        ({"b": "two", "a": "one"}, ("a", "b"), ("one", "two")),
        ({"a": 3, "b": True, "c": 2.5}, ("a", "b", "c"), ("3", "true", "2.5")),
        ({"a": "line\nbreak"}, ("a",), ("line\nbreak",)),
        ({"a": None}, ("a", "b.c"), ()),
        ({"a": "text"}, ("a.b",), ()),
        ("text", ("a",), ()),
        ({"süß": "🐈"}, ("süß",), ("🐈",)),
    ],
)  # fmt: skip
def test_fields(content: Any, fields: tuple[str, ...], expected: tuple[str, ...]) -> None:
    assert said(content, *fields) == expected


def test_fallbacks_are_used_where_all_fields_are_empty() -> None:
    assert said({"a": " ", "b": ["", None], "c": "last"}, "a", "b", fallback=("c",)) == ("last",)
    assert said({"a": " ", "b": "one", "c": "last"}, "a", "b", fallback=("c",)) == ("one",)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b'{"caption": "a"', "caption not JSON: Expecting ',' delimiter: line 1 column 16"),
        (b"", "caption not JSON: Expecting value"),
        (b'{"caption": NaN}', "caption not JSON: NaN is no JSON value"),
        (b'{"caption": "\\ud800"}', "caption not JSON: .* surrogates not allowed"),
        (b"[" * 100_000, "caption not JSON: .*recursion"),
        (b'{"caption": "s\xfc"}', "caption not UTF-8: byte 0xfc at position 14"),
        (b'{"caption": {"en": "a", "de": "b"}}', "name one of its fields: caption.en, caption.de"),
        (b'{"caption": ["a", {"x": 1}]}', "caption not text: field 'caption' holds an object"),
    ],
)
def test_bad_files_have_a_reason(data: bytes, said: str) -> None:
    with pytest.raises(MediaError, match=said):
        JsonFileCaptions().parse(data)


@settings(deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda inner: (
    st.lists(inner) | st.dictionaries(st.sampled_from(["a", "b", "a.b", "0"]), inner)
)), st.sampled_from(["a", "a.b", "b.a.0", "0"]))  # fmt: skip
def test_any_json_gives_texts_or_a_reason(content: Any, field: str) -> None:
    captions = JsonFileCaptions((field,))
    try:
        (text,) = captions.parse(json.dumps(content).encode())
    except MediaError as error:
        assert error.reason in ("caption not JSON", "caption not text")
    else:
        text.encode()


def test_a_byte_order_mark_is_no_text() -> None:
    assert JsonFileCaptions().parse(b'\xef\xbb\xbf{"caption": "a"}') == ("a",)


def test_other_fields_are_another_source() -> None:
    sources = {
        JsonFileCaptions().source,
        JsonFileCaptions(("text",)).source,
        JsonFileCaptions(("text", "caption")).source,
        JsonFileCaptions(suffix=".meta").source,
    }
    assert len(sources) == 4
    assert JsonFileCaptions(("a", "b")).source == JsonFileCaptions(("a",), ("b",)).source
    assert JsonFileCaptions(filters=["x"]).source == JsonFileCaptions().source


@pytest.mark.parametrize("fields", [(), ("",), (3,)])
def test_no_field_is_refused(fields: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="at least one, none of them blank"):
        JsonFileCaptions(fields)
    with pytest.raises(ValueError, match=r"got 'json'; such as caption\.suffix=\.json"):
        JsonFileCaptions(suffix="json")


def test_a_scan_reads_each_file_once_and_drops_bad_ones_with_their_reason(tmp_path: Path) -> None:
    write_pictures(tmp_path / "p", 4, captions=False)
    files = sorted((tmp_path / "p").iterdir())
    contents = ['{"text": ["one", "two"]}', "{", '{"other": 1}']
    for file, content in zip(files, contents, strict=False):
        file.with_suffix(".json").write_text(content)
    captions, storage = JsonFileCaptions(("text",)), Watched(str(tmp_path))
    facts = scanned(storage, captions=captions)
    texts = [fact.text for fact in by_key(facts).values()]
    assert texts == [(f"one{LIST_SEPARATOR}two",), None, ("",), None]
    made = decide(facts, Geometry(64, alignment=16), captions, name="a")
    reasons = [made.reasons[code] for code in made.reason.tolist()]
    assert reasons == ["kept", "caption not JSON", "no caption", "no caption"]
    storage.taken()
    again = scanned(storage, captions=captions, known=facts)
    assert not [key for key in storage.taken() if key.endswith(".json")]
    assert again.table.equals(facts.table)
    other = scanned(LocalStorage(str(tmp_path)), captions=JsonFileCaptions(("other",)), known=facts)
    assert [fact.text for fact in by_key(other).values()] == [("",), None, ("1",), None]
