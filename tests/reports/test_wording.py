"""Numbers and names as people read them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.reports.wording import listed, place, plural, redact, short_name, size


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, "unknown"), (0, "0 B"), (999, "999 B"), (1000, "1.0 KiB"), (1536, "1.5 KiB"),
        (300 * 1024, "300 KiB"), (1023 * 1024, "1.0 MiB"), (2**40, "1.0 TiB"),
        (5000 * 2**40, "5,000 TiB"),
    ],
)  # fmt: skip
def test_bytes(count: int | None, text: str) -> None:
    assert size(count) == text


def test_counts_and_lists() -> None:
    assert [plural(1, "batch"), plural(2, "batch"), plural(1234, "sample")] == [
        "1 batch", "2 batches", "1,234 samples",
    ]  # fmt: skip
    assert listed(["a", "b", "c"], 3) == "a, b, c"
    assert listed(["a", "b", "c"], 1) == "a and 2 more"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://h/a.jpg?X-Amz-Signature=sECRET (row 3)", "http://h/a.jpg?… (row 3)"),
        ("s3://me:sECRET@host/b/c", "s3://…@host/b/c"),
        ("'https://h/p#sECRET'", "'https://h/p?…'"),
        ("what? a.jpg?b=c", "what? a.jpg?b=c"),
        ("urls+s3://b/@x http://h", "urls+s3://b/@x http://h"),
    ],
)
def test_urls_lose_what_may_be_secret(text: str, shown: str) -> None:
    assert redact(text) == shown


@given(
    st.from_regex(r"[a-z][a-z0-9]{0,5}://", fullmatch=True),
    st.from_regex(r"[a-z0-9.]{1,9}(/[a-z.]{1,9}){0,3}", fullmatch=True),
)
def test_no_query_and_no_password_survives(scheme: str, rest: str) -> None:
    text = redact(f"at {scheme}u:sECRET@{rest}?k=sECRET&l=sECRET end")
    assert "sECRET" not in text
    assert rest in text
    assert text.endswith(" end")


def test_the_last_part_of_a_key() -> None:
    assert short_name("a/b/c.png") == "c.png"
    assert short_name("http://h/a.jpg?k=v/w") == "a.jpg?…"


@pytest.mark.parametrize(
    ("identity", "folder", "shown"),
    [
        ("file:///data", "a/b", "file:///data/a/b"),
        ("s3://b?endpoint=http://me:sECRET@host:9", "a", "s3://b/a?endpoint=http://…@host:9"),
        ("hf+demo@train", "", "hf+demo@train"),
    ],
)
def test_where_a_backend_lies(identity: str, folder: str, shown: str) -> None:
    assert place(identity, folder) == shown
