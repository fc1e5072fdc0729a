"""Size and crop options of a dataset."""

from typing import Any

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
