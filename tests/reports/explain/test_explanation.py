"""What can be asked, and the line that is pasted."""

import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from factory.errors import ConfigError
from factory.reports.explain.explanation import ExplainRequest, exclude_line, parse


@pytest.mark.parametrize(
    ("text", "request_"),
    [
        ("step=1", ExplainRequest(0, 0)),
        ("step=1200..1240", ExplainRequest(1199, 1239)),
        ("sample=photos:a=b.jpg", ExplainRequest(sample="photos:a=b.jpg")),
    ],
)
def test_what_can_be_asked(text: str, request_: ExplainRequest) -> None:
    assert parse([text]) == request_


@pytest.mark.parametrize(
    "texts",
    [[], ["step=0"], ["step=5..4"], ["step=x"], ["sample="], ["step=1", "step=2"],
     ["step=1..100000"], ["epoch=3"]],
)  # fmt: skip
def test_what_cannot_is_refused(texts: list[str]) -> None:
    with pytest.raises(ConfigError, match="step"):
        parse(texts)


keys = st.text(st.characters(exclude_categories=["Cs", "Cc", "Cf", "Zl", "Zp"]), min_size=1)


@given(st.lists(keys, min_size=1, max_size=3), st.integers(1, 9))
def test_the_line_to_paste_means_what_it_says(names: list[str], step: int) -> None:
    ids = [f"photos:{name}" for name in names]
    [argument] = shlex.split(exclude_line(ids, step))
    [override] = OverridesParser.create().parse_overrides([argument])
    assert override.key_or_group == "data.exclude"
    [entry] = override.value()
    assert entry["from_step"] == step
    read = OmegaConf.create({"ids": [str(one) for one in entry["ids"]]})
    assert list(read.ids) == ids
