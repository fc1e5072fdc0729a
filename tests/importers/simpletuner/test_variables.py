"""Placeholders: filled now, or left for the start of a run, the result is the same."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from factory.importers.simpletuner.variables import Variables, interpolate, substitute
from factory.untrusted_text import without_interpolation

PIECES = st.sampled_from(
    [
        "{id}", "{model_family}", "{env:TRIAL_DIR}", "{env:TRIAL_NONE}", "{output_dir}", "{other}",
        "\\", "$", "{", "}", "${", "${x}", "\\${", "a", "/", "'", '"', ":", " ", "é", "{env:}",
    ]
)  # fmt: skip
TEXTS = st.lists(PIECES, max_size=8).map("".join)


@settings(deadline=None)
@given(TEXTS)
def test_interpolated_text_reads_as_the_substituted(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIAL_DIR", "/data")
        variables = Variables("name", "flux", "/out")
        written = OmegaConf.create({"x": interpolate(text, variables)})
        assert written.x == substitute(text, variables)


@settings(deadline=None)
@given(st.text())
def test_escaped_text_reads_as_itself(text: str) -> None:
    if text != "???":  # refused by the checks: OmegaConf has no way to say it
        assert OmegaConf.create({"x": without_interpolation(text)}).x == text


def test_values_at_any_depth_are_filled_and_keys_are_not() -> None:
    variables = Variables("name", environment={})
    value = {"{id}": [{"a": "{id}"}, 3, None, True]}
    assert substitute(value, variables) == {"{id}": [{"a": "name"}, 3, None, True]}


def test_the_output_folder_has_upstreams_default() -> None:
    variables = Variables.of({"id": "a"}, {"output_dir": ""}, {})
    assert variables.output_dir == str(Path.cwd() / ".simpletuner_output")
