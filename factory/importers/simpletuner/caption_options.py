"""Caption options of a dataset."""

from typing import Any

from factory.importers.simpletuner.caption_checks import prompts
from factory.importers.simpletuner.dataset import Dataset, Outcome

_OPTIONS = {
    "filename": "filename",
    "textfile": "textfile",
    "instanceprompt": "instance",
    "parquet": "parquet",
    "csv": "csv",
    "huggingface": "huggingface",
}
_SHUFFLE = ("count", "seed", "split_on", "position_start", "include_original")


def word(dataset: Dataset) -> None:
    """Pin the caption slot of a dataset of samples."""
    entry = dataset.entry
    option = _OPTIONS[entry.strategy]
    if entry.get("only_instance_prompt"):
        option = "instance"
        dataset.placed["only_instance_prompt"] = ["caption.prompt"]
    dataset.pin("caption", option)
    dataset.placed.setdefault("caption_strategy", ["caption"])
    _prompts(dataset, option)
    if option == "textfile" and entry.get("disable_multiline_split"):
        dataset.put("disable_multiline_split", "caption.split_lines", False)
    if entry.strategy != "instanceprompt":
        _columns(dataset, option)
    _shuffle(dataset)
    if dataset.kind in ("image", "video"):
        share = float(entry.arguments["caption_dropout_probability"])
        dataset.put("args.caption_dropout_probability", "caption.dropout", share or None)


def _prompts(dataset: Dataset, option: str) -> None:
    texts = prompts(dataset.text("instance_prompt"))
    if option == "instance":
        dataset.put("instance_prompt", "caption.prompt", texts[0] if len(texts) == 1 else texts)
        return
    if not dataset.entry.get("prepend_instance_prompt") or not texts:
        return
    for key in ("prepend_instance_prompt", "instance_prompt"):
        dataset.put(key, "caption.prepend", texts[0])
        if len(texts) > 1:
            dataset.note(key, Outcome.changed, "only the first prompt is put before captions")


def _columns(dataset: Dataset, option: str) -> None:
    """Name the columns of captions, and those to fall back to."""
    entry = dataset.entry
    if option == "csv":
        column = dataset.text("csv_caption_column")
        dataset.put("csv_caption_column", "caption.columns", _listed(column))
    if option not in ("parquet", "huggingface"):
        return
    block = entry.block(option, written=True)
    keys = [(f"{option}.caption_column", block.get("caption_column"))]
    if option == "huggingface":
        keys.append(("caption_column", dataset.text("caption_column")))
    for key, value in keys:
        # The block's own column is what upstream read; the one outside only documented.
        if value is not None and not (key == "caption_column" and block.get(key)):
            dataset.put(key, "caption.columns", _listed(value))
    fallback = block.get("fallback_caption_column")
    key = f"{option}.fallback_caption_column"
    dataset.put(key, "caption.fallback_columns", _listed(fallback) or None)


def _listed(value: Any) -> list[str]:
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]


def _shuffle(dataset: Dataset) -> None:
    block = dataset.entry.block("caption_shuffle", written=True)
    if not block.get("enable"):
        return
    value = {key: block[key] for key in _SHUFFLE if block.get(key) is not None}
    value.setdefault("count", 1)
    for key in ["caption_shuffle", *(f"caption_shuffle.{key}" for key in block)]:
        dataset.put(key, "caption.shuffle", value)


def filter_captions(users: list[Dataset], store: Dataset) -> None:
    """Carry the filters of a text_embeds set to every dataset that uses it."""
    filters = store.text("caption_filter_list")
    if not filters:
        return
    at = "caption.filters_file" if isinstance(filters, str) else "caption.filters"
    placed = [user.put("caption_filter_list", at, filters) for user in users]
    names = ", ".join(user.name for user in users) or "no dataset"
    if all(placed):
        store.note("caption_filter_list", Outcome.changed, f"to `{at}` of {names}")
    else:
        store.note("caption_filter_list", Outcome.later, f"`{at}` of {names}")
