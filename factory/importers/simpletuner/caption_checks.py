"""Checks of an entry's captions: how they are found and changed."""

from collections.abc import Iterator, Mapping
from typing import Any

from factory.importers.simpletuner.entry import OWN_METADATA, SAMPLES, Entry
from factory.importers.simpletuner.problem import ImportProblem, shown

STRATEGIES = (
    "filename", "textfile", "instanceprompt", "parquet", "csv", "huggingface", "webshart",
)  # fmt: skip
SPLITS = ("comma", "space", "period")

Problems = Iterator[ImportProblem]


def caption_problems(entry: Entry) -> Problems:
    """Yield what is wrong with captions, filters and shuffling."""
    if entry.kind in (*SAMPLES, "caption"):
        yield from _strategy(entry)
        yield from _prompt(entry)
        yield from _columns(entry)
        yield from _shuffle(entry.filled.get("caption_shuffle"))
    yield from _filters(entry)


def _strategy(entry: Entry) -> Problems:
    name = entry.strategy
    if name not in STRATEGIES:
        text = f"caption_strategy {shown(name)} is none of {', '.join(STRATEGIES)}"
        yield ImportProblem("invalid_value", text)
        return
    allowed = _allowed(entry)
    if name not in allowed:
        text = (
            f"caption_strategy {shown(name)} does not fit type {entry.storage} with "
            f"metadata_backend {entry.metadata}; use {' or '.join(allowed)}"
        )
        yield ImportProblem("unsupported_combination", text)


def _allowed(entry: Entry) -> tuple[str, ...]:
    if entry.storage == "csv":
        return ("csv",)
    if entry.storage in OWN_METADATA:
        return (entry.storage, "instanceprompt")
    tables = ("parquet",) if entry.metadata == "parquet" else ()
    return ("filename", "textfile", "instanceprompt", *tables)


def _prompt(entry: Entry) -> Problems:
    prompt = entry.filled.get("instance_prompt")
    for key, wants in (
        ("caption_strategy instanceprompt", entry.strategy == "instanceprompt"),
        ("prepend_instance_prompt", entry.get("prepend_instance_prompt")),
        ("only_instance_prompt", entry.get("only_instance_prompt")),
    ):
        if wants and not prompts(prompt):
            yield ImportProblem("missing_key", f"{key} needs an instance_prompt")
            return
    listed = prompt if isinstance(prompt, list) else [prompt]
    if prompt is not None and not all(isinstance(text, str) for text in listed):
        yield ImportProblem("invalid_type", "instance_prompt must be a text or a list of texts")


def prompts(value: Any) -> list[str]:
    """Return the prompts that are not blank."""
    listed = value if isinstance(value, list) else [value]
    return [text for text in listed if isinstance(text, str) and text.strip()]


def _columns(entry: Entry) -> Problems:
    given = {"caption_column": entry.filled.get("caption_column")}
    for block in ("parquet", "huggingface"):
        for key in ("caption_column", "fallback_caption_column"):
            given[f"{block}.{key}"] = entry.block(block).get(key)
    for key, value in given.items():
        names = value if isinstance(value, list) else [value]
        if value is not None and not all(isinstance(name, str) and name for name in names):
            yield ImportProblem("invalid_type", f"{key} must be a column or a list of columns")


def _filters(entry: Entry) -> Problems:
    filters = entry.filled.get("caption_filter_list")
    if filters is None:
        return
    if entry.kind != "text_embeds":
        text = "caption_filter_list belongs to text_embeds sets, not to this one"
        yield ImportProblem("unsupported_combination", text)
    elif not isinstance(filters, str) and not (
        isinstance(filters, list) and all(isinstance(text, str) for text in filters)
    ):
        text = "caption_filter_list must be a list of texts, or the path of a file"
        yield ImportProblem("invalid_type", text)


def _shuffle(block: Any) -> Problems:
    if block is None:
        return
    if not isinstance(block, Mapping):
        yield ImportProblem("invalid_type", "caption_shuffle must be an object of keys")
        return
    for key in ("enable", "include_original"):
        if not isinstance(block.get(key, True), bool):
            text = f"caption_shuffle.{key} must be true or false, got {shown(block[key])}"
            yield ImportProblem("invalid_type", text)
    for key, least in (("count", 1), ("position_start", 0), ("seed", None)):
        value = block.get(key)
        if value is None and (key not in block or key == "seed"):
            continue
        if isinstance(value, bool) or not isinstance(value, int):
            text = f"caption_shuffle.{key} must be a whole number, got {shown(value)}"
            yield ImportProblem("invalid_type", text)
        elif least is not None and value < least:
            text = f"caption_shuffle.{key} must be at least {least}, got {shown(value)}"
            yield ImportProblem("invalid_value", text)
    split = block.get("split_on", "comma")
    if split not in SPLITS:
        text = f"caption_shuffle.split_on must be one of {', '.join(SPLITS)}, got {shown(split)}"
        yield ImportProblem("invalid_value", text)
