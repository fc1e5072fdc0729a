"""Storage and table options of a dataset, and the environment variables of its secrets."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

from factory.importers.simpletuner.dataset import Dataset, Outcome
from factory.importers.simpletuner.variables import is_interpolated
from factory.untrusted_text import without_interpolation

# Everything between the scheme and the last "@" of a URL: a name and a password.
_USER = re.compile(r"^(\w+://).*@", re.DOTALL)


def place(dataset: Dataset) -> None:
    """Pin the storage of a dataset of samples, and its metadata where a table has them."""
    _STORAGES[dataset.entry.storage](dataset)
    if dataset.entry.metadata == "parquet":
        _table(dataset)


def _local(dataset: Dataset) -> None:
    dataset.pin("storage", "local")
    root, prefix = str(dataset.text("instance_data_dir")), ""
    if dataset.entry.metadata == "parquet":
        root, prefix, _ = around_table(dataset)
    dataset.put("instance_data_dir", "storage.root", root)
    dataset.put("instance_data_dir", "prefix", prefix)


def bucket(dataset: Dataset, slot: str) -> None:
    """Pin a storage slot to the entry's bucket, without its credentials."""
    dataset.pin(slot, "s3")
    dataset.put("aws_bucket_name", f"{slot}.bucket", dataset.text("aws_bucket_name"))
    endpoint = str(dataset.text("aws_endpoint_url"))
    dataset.put("aws_endpoint_url", f"{slot}.endpoint_url", _USER.sub(r"\1", endpoint))
    if _USER.match(endpoint):
        what = "without the credentials in it, which belong into the environment"
        dataset.note("aws_endpoint_url", Outcome.changed, what)
    dataset.put("aws_region_name", f"{slot}.region", dataset.text("aws_region_name"))
    connections = dataset.text("aws_max_pool_connections")
    dataset.put("aws_max_pool_connections", f"{slot}.max_connections", connections)


def _aws(dataset: Dataset) -> None:
    bucket(dataset, "storage")
    folder = str(dataset.text("aws_data_prefix") or "").strip("/")
    dataset.put("aws_data_prefix", "prefix", folder)


def _csv(dataset: Dataset) -> None:
    dataset.pin("storage", "csv")
    folder, name = _split(dataset, "csv_file")
    # The list has a storage of its own: it need not lie where the run's data do.
    dataset.parts["storage.table_storage"] = ("/schema/storage", "local")
    dataset.put("csv_file", "storage.table", name)
    dataset.put("csv_file", "storage.table_storage", {"root": folder})
    dataset.put("csv_url_column", "storage.url_column", dataset.text("csv_url_column"))
    dataset.put("csv_cache_dir", "storage.cache_dir", dataset.text("csv_cache_dir"))


def _split(dataset: Dataset, key: str) -> tuple[str, str]:
    """Return the folder and the name of a file; a name must be known now to be a key."""
    path = PurePosixPath(str(dataset.text(key)))
    if is_interpolated(path.name):
        path = PurePosixPath(without_interpolation(str(dataset.entry.get(key))))
        dataset.note(key, Outcome.changed, "with the environment variable's value of now")
    return str(path.parent), path.name


def _huggingface(dataset: Dataset) -> None:
    dataset.pin("storage", "huggingface")
    block = dataset.entry.block("huggingface", written=True)
    name = dataset.entry.dataset_name
    source = dataset.entry.written if name == "dataset_name" else block
    dataset.put(name, "storage.dataset", source["dataset_name"])
    for name in ("split", "revision"):
        dataset.put(f"huggingface.{name}", f"storage.{name}", block.get(name))
        dataset.put(name, f"storage.{name}", dataset.text(name))
    if not dataset.text("split") and not block.get("split"):
        dataset.put("split", "storage.split", "train")
    column = "video_column" if dataset.kind == "video" else "image_column"
    if dataset.kind == "video":
        dataset.put(column, "storage.image_column", "video")
    # What stands outside of the block counts, as upstream reads it.
    dataset.put(f"huggingface.{column}", "storage.image_column", block.get(column))
    dataset.put(column, "storage.image_column", dataset.text(column))
    dataset.put("huggingface.cache_dir", "storage.cache_dir", block.get("cache_dir"))
    for key, count in (
        ("num_proc", dataset.entry.get("num_proc")),
        ("huggingface.num_proc", block.get("num_proc")),
    ):
        dataset.put(key, "storage.num_proc", count)
    _filters(dataset, block)
    _composite(dataset, block.get("composite_image_config"))


def _filters(dataset: Dataset, block: Any) -> None:
    """Carry `filter_func`: each of its conditions is a filter on a column."""
    asked = block.get("filter_func")
    if not isinstance(asked, dict):
        return
    filters: list[dict[str, Any]] = []
    wanted = asked.get("collection")
    if wanted is not None:
        values = wanted if isinstance(wanted, list) else [wanted]
        filters.append({"column": "collection", "one_of": values})
    column = asked.get("quality_column") or block.get("quality_column") or "quality_assessment"
    thresholds = asked.get("quality_thresholds")
    for name, least in thresholds.items() if isinstance(thresholds, dict) else ():
        filters.append({"column": f"{column}.{name}", "minimum": least})
    for edge in ("width", "height"):
        if asked.get(f"min_{edge}") is not None:
            column = block.get(f"{edge}_column") or edge
            filters.append({"column": column, "minimum": asked[f"min_{edge}"]})
    if filters:
        _all_keys(dataset, "huggingface.filter_func", asked, "filters", filters)


def _composite(dataset: Dataset, asked: Any) -> None:
    if not isinstance(asked, dict) or not asked.get("enabled"):
        return
    cut = {key: asked[key] for key in ("image_count", "select_index") if key in asked}
    _all_keys(dataset, "huggingface.composite_image_config", asked, "composite", cut)


def _all_keys(dataset: Dataset, block: str, keys: Any, at: str, value: Any) -> None:
    """Set one option from all keys of a block, and note each of them."""
    for key in [block, *(f"{block}.{key}" for key in keys)]:
        dataset.put(key, at, value)


def _table(dataset: Dataset) -> None:
    """Carry the `parquet` block to the metadata slot."""
    dataset.pin("metadata", "parquet")
    block = dataset.entry.block("parquet", written=True)
    path = str(block["path"])
    if dataset.entry.storage == "local":
        path = around_table(dataset)[2]
    dataset.put("parquet.path", "metadata.path", path)
    for key, at in (
        ("filename_column", "file_column"),
        ("width_column", "width_column"),
        ("height_column", "height_column"),
        ("num_frames_column", "frames_column"),
    ):
        dataset.put(f"parquet.{key}", f"metadata.{at}", block.get(key))
    if not block.get("identifier_includes_extension"):
        dataset.put("parquet.identifier_includes_extension", "metadata.extensionless", True)


def around_table(dataset: Dataset) -> tuple[str, str, str]:
    """Return a root that holds the samples and their table, and both below it.

    Returns:
        The root, the samples' folder below it ("" where it is the root), the table's key.
    """
    folder = str(dataset.text("instance_data_dir"))
    table = str(dataset.entry.block("parquet", written=True)["path"])
    found = _common(folder, table)
    if found is None:
        # Known from different starting points: only as absolute paths of now do they compare.
        folder = without_interpolation(os.path.abspath(str(dataset.entry.get("instance_data_dir"))))  # noqa: PTH100 - keeps links
        table = without_interpolation(os.path.abspath(str(dataset.entry.block("parquet")["path"])))  # noqa: PTH100
        found = _common(folder, table)
        what = "as an absolute path, below a root it shares with the pictures"
        dataset.note("parquet.path", Outcome.changed, what)
    root = found or "/"
    return root, _below(folder, root), _below(table, root)


def _common(folder: str, table: str) -> str | None:
    """Return the longest path both are below; None where they share no beginning."""
    parts = []
    ours, other = PurePosixPath(folder).parts, PurePosixPath(table).parent.parts
    for part, same in zip(ours, other, strict=False):
        if part != same:
            break
        parts.append(part)
    return str(PurePosixPath(*parts)) if parts else None


def _below(path: str, root: str) -> str:
    rest = str(PurePosixPath(path).relative_to(root))
    return "" if rest == "." else rest


_STORAGES = {"local": _local, "aws": _aws, "csv": _csv, "huggingface": _huggingface}


VARIABLES = {
    "aws_access_key_id": "AWS_ACCESS_KEY_ID",
    "aws_secret_access_key": "AWS_SECRET_ACCESS_KEY",
    "aws_session_token": "AWS_SESSION_TOKEN",
    "hf_token": "HF_TOKEN",
}
_ENV = re.compile(r"\$\{oc\.env:(\w+),''\}")


def exports(datasets: Sequence[Dataset]) -> list[str]:
    """Return a shell line for each variable to set; none shows a value."""
    lines = {}
    for key, variable in VARIABLES.items():
        for dataset in datasets:
            value = _value(dataset, key)
            if not value or variable in lines:
                continue
            source = _ENV.fullmatch(value)
            if source is None:
                lines[variable] = f"export {variable}=...   # {key} of {dataset.name}"
            elif source[1] != variable:
                lines[variable] = f'export {variable}="${source[1]}"'
    return list(lines.values())


def conflicts(datasets: Sequence[Dataset]) -> Iterator[str]:
    """Yield a remark for each variable that datasets want different values of."""
    for key, variable in VARIABLES.items():
        values = {d.name: _value(d, key) for d in datasets if _value(d, key)}
        if len(set(values.values())) > 1:
            yield (
                f"{variable} is one for the whole run, but {', '.join(values)} have different "
                "ones: give one key access to all of them"
            )


def _value(dataset: Dataset, key: str) -> str:
    written: Any = dataset.entry.written
    value = written.get(key)
    if value is None and key == "hf_token":
        value = dataset.entry.block("webshart", written=True).get(key)
    return "" if value is None else str(value)
