"""Caption strategies.

Upstream keeps the carriage return of CRLF files and blanks around lines; here captions are
trimmed, so golden texts are compared after trimming.
"""

from pathlib import PurePosixPath
from typing import Any

import pytest

from factory.catalog.captions import (
    Captions,
    ColumnCaptions,
    FilenameCaptions,
    InstanceCaptions,
    TextFileCaptions,
)

GOLDEN = "captions.json"


def strategy(inputs: dict[str, Any]) -> Captions:
    prepend = inputs["instance_prompt"] if inputs["prepend_instance_prompt"] else None
    name = inputs["caption_strategy"] if inputs["use_captions"] else "instanceprompt"
    if name == "filename":
        return FilenameCaptions(prepend=prepend)
    if name == "textfile":
        split = not inputs.get("disable_multiline_split", False)
        return TextFileCaptions(split_lines=split, prepend=prepend)
    if name == "instanceprompt":
        return InstanceCaptions(inputs["instance_prompt"])
    return ColumnCaptions(("caption",), prepend=prepend)


def raw_texts(inputs: dict[str, Any]) -> tuple[str, ...]:
    if inputs["caption_strategy"] == "textfile":
        path = str(PurePosixPath(inputs["image_path"]).with_suffix(".txt"))
        return (inputs["files"][path],) if path in inputs["files"] else ()
    # What the golden run's table held.
    return (f"{inputs['caption_strategy']} caption for {inputs['image_path']}",)


def trimmed(prompt: str | list[str] | None) -> tuple[str, ...]:
    texts = [prompt] if isinstance(prompt, str) else prompt or []
    return tuple(text.strip() for text in texts if text.strip())


def test_captions(case: dict[str, Any]) -> None:
    inputs = case["inputs"]
    if case["kind"] != "strategy" or inputs["caption_shuffle"]:
        pytest.skip("caption filters/shuffle not built yet")
    known = ("filename", "textfile", "instanceprompt", "parquet", "csv", "huggingface")
    if inputs["caption_strategy"] not in known:
        pytest.skip("the strategy is a class here: an unknown one is refused by the config")
    expected = case.get("documented_intent", case["expected"])
    if "error" not in expected:
        got = strategy(inputs).captions(inputs["image_path"], raw_texts(inputs))
        assert got == trimmed(expected["prompt"])
    elif inputs["use_captions"] and inputs["caption_strategy"] == "textfile":
        # A missing file is no error of the run here: the sample is dropped with its reason.
        assert strategy(inputs).captions(inputs["image_path"], raw_texts(inputs)) == ()
    else:
        with pytest.raises(ValueError, match="prompt"):
            strategy(inputs)
