"""Nothing in a text is taken for markup."""

from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from factory.reports.preview.html import Safe, tag
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


# What HTML's own reading of line ends would change is left out.
ANY = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"))


@given(ANY, ANY)
def test_any_text_comes_back_as_it_was(content: str, value: str) -> None:
    reader = Reader()
    reader.feed(tag("p", content, title=value))
    reader.close()
    assert reader.tags == [("p", {"title": printable(value, keep="\n\t")})]
    assert reader.text == printable(content, keep="\n\t")


def test_names_that_are_markup() -> None:
    made = tag("p", "<script>alert('x')</script> \"&\"", tag("b", "\N{GRINNING FACE}"))
    assert made == (
        "<p>&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt; &quot;&amp;&quot;"
        "<b>\N{GRINNING FACE}</b></p>"
    )


def test_attributes_and_elements_without_an_end() -> None:
    assert tag("img", src='a"b', class_="x", aria_hidden="true", alt=None) == (
        '<img src="a&quot;b" class="x" aria-hidden="true">'
    )
    assert tag("rect", x=0) == '<rect x="0"/>'
    assert tag("ul", [tag("li", n) for n in (1, 2)], None) == "<ul><li>1</li><li>2</li></ul>"
    assert tag("style", Safe("a>b{}")) == "<style>a>b{}</style>"
