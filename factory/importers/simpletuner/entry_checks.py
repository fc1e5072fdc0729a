"""Checks of a single entry."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from factory.importers.simpletuner import generator_options, size_checks
from factory.importers.simpletuner.arguments import as_number
from factory.importers.simpletuner.caption_checks import caption_problems
from factory.importers.simpletuner.entry import (
    CONDITIONING_TYPES,
    KINDS,
    OWN_METADATA,
    SAMPLES,
    STORAGES,
    STORES,
    Entry,
    whole,
)
from factory.importers.simpletuner.problem import ImportProblem, shown
from factory.importers.simpletuner.variables import reads_environment

METADATA = ("discovery", "parquet", "huggingface", "webshart")
# Storages that can hold embeddings, by kind; upstream takes no others.
STORE_STORAGES = {
    "text_embeds": ("local", "memory", "aws"),
    "image_embeds": ("local", "memory", "aws"),
    "conditioning_image_embeds": ("local", "aws"),
    "distillation_cache": ("local", "aws"),
}
# Digits of the largest batch size taken from text: more would be no batch.
MAX_DIGITS = 9
_NEEDED = {
    "aws": (
        "aws_bucket_name", "aws_endpoint_url", "aws_access_key_id", "aws_secret_access_key",
    ),
    "csv": ("csv_file", "csv_cache_dir", "csv_caption_column"),
    "huggingface": ("dataset_name",),
    "webshart": ("source",),
}  # fmt: skip
_TEXTS = (
    "instance_data_dir", "aws_bucket_name", "aws_endpoint_url", "aws_data_prefix", "csv_file",
    "csv_cache_dir", "csv_caption_column", "csv_url_column", "dataset_name", "split", "revision",
    "image_column", "video_column", "cache_dir",
)  # fmt: skip

# What is said where a placeholder stands in a key that does not read it.
_LITERAL = "; only keys that name places or credentials read the environment: write the value"

Problems = Iterator[ImportProblem]


def entry_problems(entry: Entry) -> Problems:
    """Yield what is wrong with an entry, without looking at others or at any file."""
    checks: list[Callable[[Entry], Problems]] = [_identity, _storage]
    if entry.kind in SAMPLES:
        checks += [
            _metadata, _batch, _window, _conditioning, _video, _vae,
            size_checks.size_problems, size_checks.crop_problems,
        ]  # fmt: skip
    checks += [_texts, caption_problems]
    for check in checks:
        for problem in check(entry):
            hint = _LITERAL if reads_environment(problem.message) else ""
            yield ImportProblem(problem.category, f"{entry.title} {problem.message}{hint}")


def is_blank(value: Any) -> bool:
    """Tell whether a value says nothing."""
    return value is None or (isinstance(value, str) and not value.strip())


def _identity(entry: Entry) -> Problems:
    name = entry.filled.get("id")
    if is_blank(name):
        yield ImportProblem("missing_key", "needs an 'id', unique in the file")
    elif not isinstance(name, str):
        yield ImportProblem("invalid_type", "id must be a text")
    if entry.kind not in KINDS:
        known = ", ".join(KINDS)
        yield ImportProblem(
            "unknown_dataset_type", f"dataset_type {shown(entry.kind)} is none of {known}"
        )


def _storage(entry: Entry) -> Problems:
    if is_blank(entry.filled.get("type")):
        yield ImportProblem("missing_key", f"needs a 'type': one of {', '.join(STORAGES)}")
    elif entry.storage not in STORAGES:
        text = f"type {shown(entry.storage)} is none of {', '.join(STORAGES)}"
        yield ImportProblem("unknown_type", text)
    elif entry.kind in STORES and entry.storage not in STORE_STORAGES[entry.kind]:
        allowed = " or ".join(STORE_STORAGES[entry.kind])
        text = f"{entry.kind} cannot be stored on {entry.storage}; use {allowed}"
        yield ImportProblem("unsupported_combination", text)
    elif entry.kind not in STORES and entry.storage == "memory":
        text = "type memory holds only text_embeds or image_embeds"
        yield ImportProblem("unsupported_combination", text)
    elif entry.kind == "caption" and entry.storage == "csv":
        text = "a caption set cannot be on csv"
        yield ImportProblem("unsupported_combination", text)
    else:
        yield from _needed(entry)


def _needed(entry: Entry) -> Problems:
    needed: tuple[str, ...] = _NEEDED.get(entry.storage, ())
    if entry.storage == "local" and entry.kind in (*SAMPLES, "caption"):
        needed = ("instance_data_dir",)
    # What the environment is to say may be said later: it is read when a run starts.
    absent = [key for key in needed if is_blank(entry.get(key, written=True))]
    if entry.dataset_name not in needed:
        absent = [key for key in absent if key != "dataset_name"]
    if absent:
        text = f"type {entry.storage} needs {', '.join(absent)}"
        yield ImportProblem("missing_key", text)
    size = entry.block("webshart").get("shard_cache_gb", entry.filled.get("shard_cache_gb"))
    if is_number(size) and size < 0:
        yield ImportProblem("invalid_value", "webshart.shard_cache_gb must not be negative")


def _texts(entry: Entry) -> Problems:
    given = {key: entry.get(key) for key in _TEXTS}
    block = entry.block("huggingface")
    for name in ("dataset_name", "split", "revision", "image_column", "video_column", "cache_dir"):
        given[f"huggingface.{name}"] = block.get(name)
    for key, value in given.items():
        if value is not None and not isinstance(value, str):
            yield ImportProblem("invalid_type", f"{key} must be a text")
    if _holds_missing(entry.filled):
        text = "holds the text '???', which means 'no value yet' in a YAML config"
        yield ImportProblem("invalid_value", text)
    for key in ("huggingface", "webshart", "video", "audio"):
        value = entry.filled.get(key)
        if value is not None and not isinstance(value, Mapping):
            yield ImportProblem("invalid_type", f"{key} must be an object of keys")


def _holds_missing(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_holds_missing(part) for part in value.values())
    if isinstance(value, list):
        return any(_holds_missing(part) for part in value)
    return bool(value == "???")


def _metadata(entry: Entry) -> Problems:
    name = entry.metadata
    if name not in METADATA:
        text = f"metadata_backend {shown(name)} is none of {', '.join(METADATA)}"
        yield ImportProblem("unknown_type", text)
    elif (entry.storage in OWN_METADATA or name in OWN_METADATA) and name != entry.storage:
        text = f"metadata_backend {shown(name)} does not fit type {entry.storage}"
        yield ImportProblem("unsupported_combination", text)
    elif name == "parquet":
        yield from _parquet(entry)


def _parquet(entry: Entry) -> Problems:
    block = entry.filled.get("parquet")
    if block is None:
        yield ImportProblem("missing_key", "metadata_backend parquet needs a 'parquet' block")
    elif not isinstance(block, Mapping):
        yield ImportProblem("invalid_type", "parquet must be an object of keys")
    elif is_blank(block.get("path")):
        yield ImportProblem("missing_key", "parquet needs a 'path'")
    else:
        for key in ("path", "filename_column", "width_column", "height_column"):
            if block.get(key) is not None and not isinstance(block[key], str):
                yield ImportProblem("invalid_type", f"parquet.{key} must be a text")


def is_number(value: Any) -> bool:
    """Tell whether a value is a number, which true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _batch(entry: Entry) -> Problems:
    size = entry.get("train_batch_size")
    if size is not None and batch_size(size) is None:
        text = f"train_batch_size must be a positive whole number, got {shown(size)}"
        yield ImportProblem("invalid_value", text)
    for key, is_whole, least in (
        ("probability", False, 0),
        ("repeats", True, 0),
        ("max_num_samples", True, 1),
        ("timestep_sampling_offset", False, None),
    ):
        value = entry.filled.get(key)
        if value is None or value == "":
            continue
        number = as_number(value)
        if number is None:
            yield ImportProblem("invalid_type", f"{key} must be a number, got {shown(value)}")
        elif least is not None and number < least:
            yield ImportProblem(
                "invalid_value", f"{key} must be at least {least}, got {shown(value)}"
            )
        elif is_whole and number != int(number):
            yield ImportProblem("invalid_value", f"{key} must be whole, got {shown(value)}")


def batch_size(value: Any) -> int | None:
    """Return a positive number, or its usual decimal text, as a number; else None."""
    if isinstance(value, str):
        is_usual = value.isascii() and value.isdigit() and not value.startswith("0")
        return int(value) if is_usual and len(value) <= MAX_DIGITS else None
    return value if isinstance(value, int) and value is not True and value > 0 else None


def _window(entry: Entry) -> Problems:
    for unit, first in (("epoch", 1), ("step", 0)):
        start = whole(entry.filled.get(f"start_{unit}"), first)
        end = whole(entry.filled.get(f"end_{unit}"), 0)
        if 0 < end < start:
            text = f"end_{unit} ({end}) must be >= start_{unit} ({start})"
            yield ImportProblem("schedule", text)


def _conditioning(entry: Entry) -> Problems:
    kind = entry.filled.get("conditioning_type")
    if kind is not None and kind not in CONDITIONING_TYPES:
        text = f"conditioning_type {shown(kind)} is none of {', '.join(CONDITIONING_TYPES)}"
        yield ImportProblem("invalid_value", text)
    for key in ("text_embeds", "image_embeds", "source_dataset_id"):
        if entry.get(key) is not None and not isinstance(entry.get(key), str):
            yield ImportProblem("invalid_type", f"{key} must be an id")
    for key in ("conditioning_data", "s2v_datasets"):
        value = entry.filled.get(key)
        listed = value if isinstance(value, list) else [value]
        if value is not None and not all(isinstance(name, str) for name in listed):
            yield ImportProblem("invalid_type", f"{key} must be an id or a list of ids")
    yield from generator_options.problems(entry)


def _video(entry: Entry) -> Problems:
    block = entry.block("video")
    given = {key: block.get(key) for key in ("num_frames", "min_frames", "max_frames")}
    numbers = {key: value for key, value in given.items() if value is not None}
    if entry.kind != "video" or not numbers:
        return
    if not all(isinstance(n, int) and not isinstance(n, bool) for n in numbers.values()):
        names = " and ".join(f"video.{key}" for key in numbers)
        yield ImportProblem("invalid_type", f"{names} must be whole numbers")
        return
    if min(numbers.values()) < 1:
        yield ImportProblem("invalid_value", "video frames must be at least 1")
    elif numbers.get("min_frames", math.inf) < numbers.get("num_frames", 0):
        text = "video.min_frames must be at least video.num_frames"
        yield ImportProblem("invalid_value", text)


def _vae(entry: Entry) -> Problems:
    if "disable_vae_cache" in entry.filled:
        text = "disable_vae_cache has been removed; use vae_cache_disable"
        yield ImportProblem("removed_key", text)
    behaviour = entry.filled.get("vae_cache_scan_behaviour")
    if behaviour not in (None, "sync", "recreate"):
        text = f"vae_cache_scan_behaviour must be sync or recreate, got {shown(behaviour)}"
        yield ImportProblem("invalid_value", text)
