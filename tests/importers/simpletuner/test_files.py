"""What is written is what OmegaConf reads."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from factory.importers.simpletuner.files import comment, dump
from factory.untrusted_text import without_interpolation
from tests.support.examples import examples

TEXTS = st.one_of(
    st.text(alphabet=st.characters(exclude_categories=["Cs"])),
    st.from_regex(r"[-+]?[0-9._]{0,4}([eE][-+]?[0-9]{1,3})?", fullmatch=True),
    st.sampled_from(["on", "NO", "null", "~", "1e3", ".inf", "0x1f", "1:30", "2001-01-01", "=",
                     "a: b", "- a", "# a", "a #b", "{a}", "[a]", "*a", "&a", "!a", "@a", "`a",
                     "'", '"', "a\nb", "\x85", "\u2028", "\ufeff", "a\u00a0", " a ",
                     "C:\\x", "<<"]),
)  # fmt: skip
VALUES = st.recursive(
    st.one_of(TEXTS, st.integers(-(2**63), 2**63), st.booleans(), st.none(),
              st.floats(allow_nan=False, allow_infinity=False)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.just("key"), inner)),
    max_leaves=6,
)  # fmt: skip


def escaped(value: Any) -> Any:
    if isinstance(value, str):
        return without_interpolation(value)
    if isinstance(value, dict):
        return {key: escaped(part) for key, part in value.items()}
    return [escaped(part) for part in value] if isinstance(value, list) else value


@settings(deadline=None, max_examples=examples(400))
@given(VALUES.filter(lambda value: "???" not in repr(value)))
def test_values_come_back(value: Any) -> None:
    read = OmegaConf.to_container(OmegaConf.create(dump({"x": escaped(value)})), resolve=True)
    assert read == {"x": value}
    assert repr(read) == repr({"x": value})  # 1 is not True, nor 1.0


def test_lists_of_values_stand_in_one_line_and_no_line_is_folded() -> None:
    text = dump({"a": [1.0, 0.5], "b": "word " * 60, "c": {"d": None}})
    assert text.splitlines()[0] == "a: [1.0, 0.5]"
    assert len(text.splitlines()) == 4


def test_comments_have_no_trailing_blanks() -> None:
    assert comment(["a", ""]) == "# a\n#\n"
