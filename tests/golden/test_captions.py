"""Caption filters, shuffled variants and strategies.

Here captions are trimmed and a file's line ends unified, where the former system keeps the
carriage return of CRLF files and blanks around lines; so texts of strategies are compared
after trimming. What it ignores in silence is refused here.
"""

import json
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from factory.catalog.captions.edits import edit_problems
from factory.catalog.captions.shuffle import SEPARATORS, Shuffle, shuffle_of
from factory.catalog.captions.sources import (
    Captions,
    ColumnCaptions,
    FilenameCaptions,
    InstanceCaptions,
    TextFileCaptions,
)

GOLDEN = "captions.json"
STRATEGIES = ("filename", "textfile", "instanceprompt", "parquet", "csv", "huggingface")


def test_captions(case: dict[str, Any], tmp_path: Path) -> None:
    expected = case.get("documented_intent", case["expected"])
    if case["kind"] == "filter":
        check_filter(case["inputs"], expected, tmp_path)
    elif case["kind"] == "shuffle":
        check_shuffle(case["inputs"], expected)
    elif case["kind"] == "strategy":
        check_strategy(case["inputs"], expected)
    else:
        pytest.skip(f"no part here is of the kind {case['kind']!r}")


def check_filter(inputs: dict[str, Any], expected: dict[str, Any], folder: Path) -> None:
    source, given = inputs["source"], inputs["filters"]
    if fault := ignored_there(source, given):
        with pytest.raises(ValueError, match=fault):
            _ = filtering(source, given, folder).edits
        return
    if "error" in expected:
        with pytest.raises(FileNotFoundError):
            _ = filtering(source, given, folder).edits
        return
    captions = filtering(source, given, folder)
    assert [edited(captions, text) for text in inputs["captions"]] == expected["captions"]


def ignored_there(source: str, given: Any) -> str | None:
    """Return what is said here of filters that the former system leaves out in silence."""
    if source == "path":
        return None if given.endswith((".txt", ".json")) else r"must end in \.txt"
    entries = given.split("\n") if source == "txt" else given
    if not isinstance(entries, list):
        return "holds no list"
    return "cannot be used" if any(edit_problems(entries, "entry")) else None


def filtering(source: str, given: Any, folder: Path) -> Captions:
    if source == "inline list":
        return FilenameCaptions(filters=given)
    if source == "path":
        return FilenameCaptions(filters_file=given)
    file = folder / f"filters.{source}"
    file.write_text(given if source == "txt" else json.dumps(given), encoding="utf-8")
    return FilenameCaptions(filters_file=str(file))


def edited(captions: Captions, text: str) -> str:
    for edit in captions.edits:
        text = edit(text)
    return text


def check_shuffle(inputs: dict[str, Any], expected: dict[str, Any]) -> None:
    if "error" in expected:
        with pytest.raises(ValueError, match="shuffle"):
            shuffle(inputs["caption_shuffle"])
    elif not refused(inputs["caption_shuffle"]):
        made = variants(inputs["caption_shuffle"], inputs["caption"])
        assert list(made) == expected["captions"]


def refused(options: dict[str, Any] | None) -> bool:
    """Check that what the former system puts a default in the place of is an error here."""
    split_on = (options or {}).get("split_on", "comma")
    if split_on in SEPARATORS:
        return False
    with pytest.raises(ValueError, match="split_on must be one of comma, space, period"):
        shuffle(options)
    return True


def variants(options: dict[str, Any] | None, caption: str) -> tuple[str, ...]:
    made = shuffle(options)
    return (caption,) if made is None else made.variants(caption)


def shuffle(options: dict[str, Any] | None) -> Shuffle | None:
    given = dict(options or {})
    if not given.pop("enable", False):
        return None
    if given.get("seed", 0) is None:
        del given["seed"]
    return shuffle_of(given.pop("count", 1), **given)


def check_strategy(inputs: dict[str, Any], expected: dict[str, Any]) -> None:
    if inputs["caption_strategy"] not in STRATEGIES:
        pytest.skip("a strategy is a class here: an unknown one is refused by the config")
    if "error" not in expected:
        made = strategy(inputs).captions(inputs["image_path"], raw_texts(inputs))
        assert made == trimmed(expected["prompt"])
    elif inputs["use_captions"] and inputs["caption_strategy"] == "textfile":
        # A missing file is no error of the run here: the sample is dropped with its reason.
        assert strategy(inputs).captions(inputs["image_path"], raw_texts(inputs)) == ()
    else:
        with pytest.raises(ValueError, match="prompt"):
            strategy(inputs)


def strategy(inputs: dict[str, Any]) -> Captions:
    name = inputs["caption_strategy"] if inputs["use_captions"] else "instanceprompt"
    shared: dict[str, Any] = {
        "prepend": inputs["instance_prompt"] if inputs["prepend_instance_prompt"] else None,
        "shuffle": shuffle(inputs["caption_shuffle"]),
    }
    if name == "filename":
        return FilenameCaptions(**shared)
    if name == "textfile":
        split = not inputs.get("disable_multiline_split", False)
        return TextFileCaptions(split_lines=split, **shared)
    if name == "instanceprompt":
        return InstanceCaptions(inputs["instance_prompt"], shuffle=shared["shuffle"])
    return ColumnCaptions(("caption",), **shared)


def raw_texts(inputs: dict[str, Any]) -> tuple[str, ...]:
    if inputs["caption_strategy"] == "textfile":
        path = str(PurePosixPath(inputs["image_path"]).with_suffix(".txt"))
        return (inputs["files"][path],) if path in inputs["files"] else ()
    # What the golden run's table held.
    return (f"{inputs['caption_strategy']} caption for {inputs['image_path']}",)


def trimmed(prompt: str | list[str] | None) -> tuple[str, ...]:
    texts = [prompt] if isinstance(prompt, str) else prompt or []
    return tuple(text.strip() for text in texts if text.strip())
