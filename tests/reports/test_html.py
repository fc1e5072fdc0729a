"""Nothing in a text is taken for markup."""

from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import UndefinedError
from markupsafe import Markup

from factory.reports.html import environment
from factory.untrusted_text import printable


class Reader(HTMLParser):
    """Collects elements and text as a browser would see them."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def shown(template: str, **values: object) -> str:
    return environment().from_string(template).render(**values)


# What HTML's own reading of line ends would change is left out.
ANY = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"))


@given(ANY, ANY)
def test_any_text_comes_back_as_it_was(content: str, value: str) -> None:
    reader = Reader()
    template = "{% macro p(title) %}<p title='{{ title }}'>{{ caller() }}</p>{% endmacro %}"
    called = "{% call p(value) %}{{ content }}{% endcall %}"
    reader.feed(shown(template + called, content=content, value=value))
    reader.close()
    assert reader.tags == [("p", {"title": printable(value, keep="\n\t")})]
    assert reader.text == printable(content, keep="\n\t")


def test_names_that_are_markup() -> None:
    made = shown("{{ name }}{{ markup }}", name="<script>\"&'", markup=Markup("<b></b>"))
    assert made == "&lt;script&gt;&#34;&amp;&#39;<b></b>"


def test_nothing_stands_for_none_and_what_is_not_given_is_an_error() -> None:
    assert shown("[{{ nothing }}{{ zero }}]", nothing=None, zero=0) == "[0]"
    with pytest.raises(UndefinedError, match="gone"):
        shown("{{ gone }}")
