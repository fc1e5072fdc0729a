"""Overrides that Hydra's grammar refuses come back in quotes that it takes."""

import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from factory.config.compose import refusals
from factory.config.override_quotes import advice


def value(written: str) -> object:
    """Return what Hydra makes of an override as it is written in a shell."""
    [word] = shlex.split(written)
    return OverridesParser.create().parse_override(word).value()


@pytest.mark.parametrize(
    "text",
    ["a=b", "/data/my(1)", "[x", "it's", "~/x", "a [b] c", 'say "hi"', "a{b}", "a;b", "naïve",
     "日本", "a&b", "<x>", "x'y\"z", '"a', "a=b\\", 'q="\\'],
)  # fmt: skip
def test_a_text_is_quoted_with_its_value_filled_in(text: str) -> None:
    [told] = refusals([f"storage.root={text}"])[0]
    assert told.startswith(f"storage.root={text}: Hydra takes this only with quotes inside: ")
    assert value(told.partition("inside: ")[2]) == text


@given(st.text(st.characters(exclude_categories=("C",)), min_size=1, max_size=12))
def test_any_text_that_is_refused_can_be_given_in_quotes(text: str) -> None:
    told = advice(f"storage.root={text}")
    written = told.partition("inside: ")[2]
    if written and text[0] not in "[{" and "${" not in text:
        assert value(written) == text


@pytest.mark.parametrize(
    ("override", "written"),
    [
        ("data.caption.filters=[s/a=b/c/,x]", "'data.caption.filters=[\"s/a=b/c/\",x]'"),
        ("+data.backends.extra={kind:image,prefix:a=b}",
         "'+data.backends.extra={kind:image,prefix:\"a=b\"}'"),
    ],
)  # fmt: skip
def test_of_a_list_or_mapping_the_texts_are_quoted(override: str, written: str) -> None:
    assert advice(override).endswith(written)


def test_a_comma_may_mean_a_list_or_a_text() -> None:
    [told] = refusals(["data.caption.prompt=a dog, running"])[0]
    assert told.endswith(
        "for one text write 'data.caption.prompt=\"a dog, running\"', "
        "for a list 'data.caption.prompt=[a dog, running]'"
    )


@pytest.mark.parametrize(
    ("given_one", "mend"),
    [
        ("+experiment=quick", "write experiment=quick"),
        ("++experiment=quick", "write experiment=quick"),
        ("+encoder/image=dct", "write encoder/image=dct"),
        ("+seed=3", "write seed=3"),
        ("trainer.min_steps=3", "write +trainer.min_steps=3"),
        ("hydra.job.env_set.A=x y", "write '+hydra.job.env_set.A=x y'"),
        ("experiment=", "options are quick, square_auto"),
        ("~data.backends.photos=x", "~data.backends.photos takes it away whatever it is"),
        ("foo", "is no KEY=VALUE"),
        ("=1", "is no KEY=VALUE"),
        ("callbacks=null", "choose an option of the group"),
    ],
)
def test_what_else_a_command_line_gets_wrong(given_one: str, mend: str) -> None:
    [told] = refusals([given_one])[0]
    assert told.startswith((f"{given_one}: ", f"{given_one!r} is"))
    assert mend in told
    assert len(told) < 200


def test_a_group_set_to_null_hides_nothing_else() -> None:
    found, accepted = refusals(["callbacks=null", "data.btch=1", "seed=3"])
    assert len(found) == 2
    assert accepted == ["seed=3"]
