"""Caption, size and crop options of a dataset."""

from typing import Any

from factory.importers.simpletuner.caption_checks import prompts
from factory.importers.simpletuner.dataset import Dataset, Outcome
from factory.importers.simpletuner.project_options import has_faces, takes_weights
from factory.importers.simpletuner.size_checks import STYLES, is_off, ratio_of

_LIMITS = (
    "minimum_image_size", "maximum_image_size", "target_downsample_size",
    "minimum_aspect_ratio", "maximum_aspect_ratio",
)  # fmt: skip


def cut(dataset: Dataset, resolution: Any, unit: str) -> None:
    """Set sizes and the crop of a dataset of samples.

    Args:
        dataset: The dataset.
        resolution: What `data.resolution` is going to be.
        unit: What `data.resolution_type` is going to be.
    """
    entry = dataset.entry
    if entry.get("resolution") != resolution:
        dataset.put("resolution", "resolution", entry.get("resolution"))
    if entry.get("resolution_type") != unit:
        dataset.put("resolution_type", "resolution_type", entry.get("resolution_type"))
    dataset.placed.setdefault("resolution", ["resolution"])
    dataset.placed.setdefault("resolution_type", ["resolution_type"])
    for key in _LIMITS:
        value = entry.get(key)
        if key == "target_downsample_size" and is_off(entry.get("maximum_image_size")):
            dataset.note(key, Outcome.needless, "nothing is shrunk without maximum_image_size")
            continue
        dataset.put(key, key, None if is_off(value) else value)
    most, target = (
        dataset.body.get("maximum_image_size"),
        dataset.body.get("target_downsample_size"),
    )
    if most is not None and target is not None and target > most:
        dataset.body["maximum_image_size"] = target
        what = "as large as target_downsample_size, since nothing is enlarged to be shrunk"
        dataset.note("maximum_image_size", Outcome.changed, what)
    _crop(dataset)


def _crop(dataset: Dataset) -> None:
    entry = dataset.entry
    given = entry.filled
    aspect = (given.get("crop_aspect") or "square") if given.get("crop") else "preserve"
    style = STYLES[given.get("crop_style") or "random"]
    if style == "face" and not has_faces():
        style = "random"
        dataset.note("crop_style", Outcome.changed, "faces are not looked for; the cut is random")
    _pin_crop(dataset, aspect, style)
    dataset.draws_cuts = style in ("random", "face")
    dataset.placed.setdefault("crop", ["crop"])
    if given.get("crop_aspect") is not None:
        dataset.placed.setdefault("crop_aspect", ["crop.aspect"])
        if not given.get("crop"):
            dataset.note("crop_aspect", Outcome.needless, "crop is off")
    if given.get("crop_style") is not None:
        dataset.placed.setdefault("crop_style", ["crop.style"])
    if aspect in ("closest", "random"):
        dataset.put("crop_aspect_buckets", "crop.aspect_buckets", _buckets(dataset))
    elif given.get("crop_aspect_buckets") is not None:
        what = "only crop_aspect closest and random choose from a list"
        dataset.note("crop_aspect_buckets", Outcome.needless, what)
    if aspect == "random":
        threshold = given.get("max_upscale_threshold")
        off = threshold is None or threshold == ""  # 0 allows no enlarging at all
        dataset.put(
            "max_upscale_threshold", "crop.max_upscale_threshold", None if off else threshold
        )
    else:
        what = "it only bears on crop_aspect random"
        dataset.note("max_upscale_threshold", Outcome.needless, what)


def _pin_crop(dataset: Dataset, aspect: str, style: str) -> None:
    """Pin the option nearest to what is asked, and set what differs from it."""
    if aspect == "preserve" and style == "random":
        dataset.pin("crop", "random")
        return
    dataset.pin("crop", "preserve" if aspect == "random" else aspect)
    if aspect == "random":
        dataset.put("crop_aspect", "crop.aspect", "random")
        what = "a ratio is drawn once for each picture, not anew each epoch"
        dataset.note("crop_aspect", Outcome.changed, what)
    dataset.put("crop_style", "crop.style", style)


def _buckets(dataset: Dataset) -> list[Any]:
    """Return ratios, or ratios with weights where they have any that differ."""
    given = dataset.entry.filled["crop_aspect_buckets"]
    ratios = [float(ratio_of(bucket)) for bucket in given]
    weights = [bucket["weight"] for bucket in given if isinstance(bucket, dict)]
    if len(set(weights)) <= 1:
        return ratios
    if takes_weights():
        pairs = zip(ratios, weights, strict=True)
        return [{"aspect": ratio, "weight": float(weight)} for ratio, weight in pairs]
    dataset.note("crop_aspect_buckets", Outcome.later, "ratios are carried, without their weights")
    return ratios


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
