"""Conversion of a checked config: its datasets, and how they run together."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from factory.importers.simpletuner import (
    checks,
    generator_options,
    sample_options,
    storage_options,
)
from factory.importers.simpletuner.arguments import Arguments, as_number
from factory.importers.simpletuner.dataset import Dataset, Outcome
from factory.importers.simpletuner.dataset_names import safe_names
from factory.importers.simpletuner.dataset_order import duplicates, is_disabled, sort_entries
from factory.importers.simpletuner.encoders import Encoders
from factory.importers.simpletuner.entry import KINDS, SAMPLES, Entry, as_switch, sources, whole
from factory.importers.simpletuner.entry_checks import batch_size
from factory.importers.simpletuner.problem import ImportProblem, ImportRefusedError, shown

# What upstream assumes where no frames are given: 5 s at this rate, frames per second.
FRAMERATE = 25
CLIP_S = 5
_NO_KIND = {
    "audio": "there is no audio here",
    "caption": "sets of captions without pictures are not trained on",
    "conditioning_image_embeds": "add a store with data/backend=conditioning_image_embeds",
    "distillation_cache": "there are no distillation caches here",
    "grounding": "there are no grounding boxes here",
}
_NO_SHARDS = "shards on the Hub (webshart) are not read; download the pictures, as type local"


@dataclass(frozen=True)
class Launch:
    """How upstream was started, as far as its config does not say.

    Attributes:
        gpus: Processes that train, of one GPU each.
        accumulation: Batches per optimizer step; None follows the trainer's arguments.
        batch_size: The global batch itself; None computes it.
    """

    gpus: int = 1
    accumulation: int | None = None
    batch_size: int | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be a count."""
        for name in ("gpus", "accumulation", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                option = f"--{name.replace('_', '-')}"
                text = f"{option} must be at least 1, got {value}"
                raise ImportRefusedError([ImportProblem("invalid_value", text)])


@dataclass(frozen=True)
class Conversion:
    """A config as this project would have it.

    Attributes:
        datasets: One for each enabled entry, in the order they depend on each other.
        data: Values of the `data` option.
        sampling: Option of the group `sampling`.
        accumulation: Batches per optimizer step.
        disabled: Ids of entries that are switched off.
        remarks: What concerns the whole.
        arguments: The trainer's arguments.
        encoders: What the run encodes with, and for how long it trains.
    """

    datasets: list[Dataset]
    data: dict[str, Any]
    sampling: str
    accumulation: int
    disabled: list[str]
    remarks: list[str]
    arguments: Arguments
    encoders: Encoders

    @property
    def kept(self) -> list[Dataset]:
        """The datasets that are imported."""
        return [dataset for dataset in self.datasets if not dataset.left_out]

    @property
    def is_trainable(self) -> bool:
        """Tell whether anything to train on is left."""
        return any(dataset.kind in ("image", "video") for dataset in self.kept)


def convert(
    raw: Sequence[Mapping[str, Any]],
    arguments: Mapping[str, Any] | None = None,
    launch: Launch | None = None,
    *,
    paths: bool = True,
    environment: Mapping[str, str] | None = None,
) -> Conversion:
    """Check a config and turn every entry into a dataset.

    Args:
        raw: The entries of `multidatabackend.json`.
        arguments: The trainer's arguments.
        launch: How upstream was started.
        paths: Whether local folders must exist.
        environment: What `{env:NAME}` reads; this process's if None.

    Raises:
        ImportRefusedError: The config is not one that upstream could use; all problems at
            once, each with its category.
    """
    told = Arguments.of(arguments or {})
    launch = launch or Launch()
    order = sort_entries(raw)
    positions = {id(entry): n for n, entry in enumerate(raw, 1)}
    listed = [Entry.of(positions[id(item)], item, told, environment) for item in order]
    entries = [each for entry in listed for each in (entry, *generator_options.generated(entry))]
    disabled = [str(entry.get("id", "")) for entry in raw if is_disabled(entry)]
    found = [*duplicates([entry.filled for entry in entries]), *told.problems()]
    found += checks.problems(listed, absent=disabled, paths=paths)
    if found:
        raise ImportRefusedError(found)
    names = safe_names(entry.id for entry in entries)
    datasets = [Dataset(entry, names[entry.id], KINDS[entry.kind]) for entry in entries]
    _leave_out(datasets)
    _DatasetFiller(datasets, told).fill()
    return _together(datasets, told, launch, disabled)


def _leave_out(datasets: Sequence[Dataset]) -> None:
    """Mark what has no counterpart, and what depends on it."""
    for dataset in datasets:
        if not dataset.kind:
            dataset.left_out = _NO_KIND[dataset.entry.kind]
        elif generator_options.is_generated(dataset.entry):
            dataset.left_out = generator_options.missing(dataset.entry)
        elif dataset.entry.storage == "webshart":
            dataset.left_out = _NO_SHARDS
    found = sources([dataset.entry for dataset in datasets])
    by_id = {dataset.entry.id: dataset for dataset in datasets}
    for dataset in datasets:
        if dataset.kind != "conditioning" or dataset.left_out:
            continue
        source = by_id.get(found[dataset.entry.id] or "")
        if source is None:
            dataset.left_out = "no dataset names it in conditioning_data, so it has no source"
        elif source.left_out or source.kind not in _sources(dataset):
            dataset.left_out = f"its source {source.entry.id!r} is no set of pictures here"


def _sources(dataset: Dataset) -> tuple[str, ...]:
    """Return the kinds that pictures can belong to; what is made of frames, to clips as well."""
    return ("image", "eval", *(["video"] if generator_options.is_generated(dataset.entry) else []))


class _DatasetFiller:
    """Fills the datasets of one config, which refer to each other."""

    def __init__(self, datasets: Sequence[Dataset], arguments: Arguments) -> None:
        self.datasets = [dataset for dataset in datasets if not dataset.left_out]
        self.arguments = arguments
        self.names = {dataset.entry.id: dataset.name for dataset in self.datasets}
        self.by_id = {dataset.entry.id: dataset for dataset in self.datasets}
        self.sources = sources([dataset.entry for dataset in self.datasets])
        self.resolution, self.unit = common_resolution(self.datasets, arguments)

    def fill(self) -> None:
        for dataset in self.datasets:
            if generator_options.is_generated(dataset.entry):
                generator_options.generate(dataset, self.by_id[str(self.sources[dataset.entry.id])])
            elif dataset.kind in SAMPLES:
                self._samples(dataset)
            else:
                _store(dataset)
        for kind in ("text_embeds", "image_embeds"):
            self._default(kind)
        self._filters()

    def _samples(self, dataset: Dataset) -> None:
        storage_options.place(dataset)
        sample_options.word(dataset)
        if dataset.kind == "conditioning":
            self._source(dataset)
        else:
            sample_options.cut(dataset, self.resolution, self.unit)
        for key, name in (("text_embeds", "text_embed_cache"), ("image_embeds", "image_embeds")):
            given = key if dataset.entry.filled.get(key) is not None else name
            dataset.put(given, key, self.names.get(dataset.entry.get(key)))
        if generator_options.blocks_of(dataset.entry):
            what = "paired beside what `conditioning` makes, for which upstream forgets these"
            dataset.note("conditioning_data", Outcome.changed, what)
        _mixture(dataset)
        _mode(dataset, "vae_cache")
        self._each_epoch(dataset)
        if dataset.kind == "video":
            _frames(dataset, self.arguments)

    def _each_epoch(self, dataset: Dataset) -> None:
        """Draw cuts anew in each epoch, where latents are to be cleared or their store is."""
        key = "vae_cache_clear_each_epoch"
        stores = [each for each in self.datasets if each.kind == "image_embeds"]
        store = self.by_id.get(str(dataset.entry.get("image_embeds")))
        store = store or next((s for s in stores if s.entry.filled.get("default")), None)
        store = store or next(iter(stores), None)
        own = dataset.entry.filled.get(key)
        if not own and not (store and store.entry.filled.get(key)):
            return
        if store is not None:
            store.note(key, Outcome.changed, "to `encode_mode` of the datasets that use it")
        if dataset.kind not in ("image", "video"):
            dataset.note(key, Outcome.changed, f"cuts of {dataset.kind} sets are never drawn anew")
        elif not dataset.draws_cuts:
            what = "nothing is drawn in cutting these pictures, so their latents stay true"
            dataset.note(key, Outcome.needless, what)
        else:
            dataset.body.pop("encode_mode", None)
            dataset.put(key, "encode_mode", "each_epoch")

    def _source(self, dataset: Dataset) -> None:
        source = self.sources[dataset.entry.id]
        dataset.put("source_dataset_id", "source", self.names[str(source)])
        kind = dataset.entry.filled.get("conditioning_type")
        dataset.put("conditioning_type", "type", kind)
        if kind == "reference_loose":
            # Its own, even where it is the run's: what is not set is the source's.
            sample_options.cut(dataset, None, "")
            return
        for key in ("resolution", "resolution_type", "crop", "crop_aspect", "crop_style",
                    "crop_aspect_buckets", "minimum_image_size"):  # fmt: skip
            dataset.note(key, Outcome.needless, "it is cut exactly as its source")

    def _default(self, kind: str) -> None:
        """Mark the store that is used by all who name none: the first, if none is marked."""
        stores = [dataset for dataset in self.datasets if dataset.kind == kind]
        marked = [store for store in stores if store.entry.filled.get("default")]
        for store in marked or stores[:1]:
            store.put("default", "default", True)

    def _filters(self) -> None:
        stores = [dataset for dataset in self.datasets if dataset.kind == "text_embeds"]
        standard = next((store.name for store in stores if store.body.get("default")), None)
        users: dict[str | None, list[Dataset]] = {}
        for dataset in self.datasets:
            if dataset.kind in SAMPLES and not generator_options.is_generated(dataset.entry):
                store_name = self.names.get(dataset.entry.get("text_embeds")) or standard
                users.setdefault(store_name, []).append(dataset)
        for store in stores:
            sample_options.filter_captions(users.get(store.name, []), store)


def common_resolution(datasets: Sequence[Dataset], arguments: Arguments) -> tuple[Any, str]:
    """Return the resolution and its unit that most datasets have; the arguments' if given."""
    sized = [d.entry for d in datasets if d.kind in ("image", "video", "eval")]
    if not sized or "resolution" in arguments.given:
        return arguments["resolution"], arguments["resolution_type"]
    pairs = Counter((entry.get("resolution"), entry.get("resolution_type")) for entry in sized)
    return pairs.most_common(1)[0][0]


def _mixture(dataset: Dataset) -> None:
    """Set weight, passes, window and limit of a dataset."""
    given = dataset.entry.filled
    probability = as_number(given.get("probability"))
    repeats, most = as_number(given.get("repeats")), as_number(given.get("max_num_samples"))
    dataset.put("probability", "probability", probability)
    dataset.put("repeats", "repeats", None if repeats is None else int(repeats))
    dataset.put("max_num_samples", "max_samples", None if most is None else int(most))
    window = {}
    for key, first in (("start_epoch", 1), ("start_step", 0), ("end_epoch", 0), ("end_step", 0)):
        value = whole(given.get(key), first)
        if value > first:
            window[key] = value
    for key in window:
        dataset.put(key, "window", window)
    _fade(dataset, window)
    dataset.put("slider_strength", "slider_strength", as_number(given.get("slider_strength")))
    for key in ("start_epoch", "start_step", "end_epoch", "end_step"):
        if given.get(key) is not None and key not in window:
            dataset.placed.setdefault(key, ["window"])


def _fade(dataset: Dataset, window: dict[str, int]) -> None:
    """Set the step that a set fades out until, and say so where it names none."""
    key = "disable_after_epoch_step"
    value = dataset.entry.filled.get(key)
    if value is None or value == "":
        return
    number, start = as_number(value), window.get("start_step", 1)
    if number is None:
        what = f"{shown(value)} is no number of steps, so the set does not fade, as upstream has it"
        dataset.note(key, Outcome.changed, what)
    elif number < 1:
        dataset.note(key, Outcome.changed, f"{shown(value)} means never: the set does not fade")
    elif int(number) < start:
        what = f"it ends before start_step {start}, which would leave nothing: no fade"
        dataset.note(key, Outcome.changed, what)
    else:
        window["fade_to_step"] = int(number)
        dataset.put(key, "window", window)


def _mode(dataset: Dataset, prefix: str) -> None:
    """Set when samples or captions are encoded; of two flags the first one counts.

    A flag of the trainer's arguments counts for every set.
    """
    for key, mode in ((f"{prefix}_disable", "transient"), (f"{prefix}_ondemand", "on_demand")):
        for given in (dataset.entry.filled, dataset.entry.arguments.given):
            name = key if given is dataset.entry.filled else f"args.{key}"
            if as_switch(given.get(key)) and "encode_mode" not in dataset.body:
                dataset.put(name, "encode_mode", mode)
            elif key in given:
                dataset.placed.setdefault(name, ["encode_mode"])


def _frames(dataset: Dataset, arguments: Arguments) -> None:
    given = dataset.entry.block("video").get("num_frames")
    rate = as_number(arguments["framerate"]) or FRAMERATE
    dataset.put("video.num_frames", "frames", given or int(CLIP_S * rate))
    shortest = dataset.entry.block("video").get("min_frames")
    if shortest is not None and given is not None and shortest > given:
        what = f"videos from {given} frames on are kept, not only longer ones"
        dataset.note("video.min_frames", Outcome.changed, what)


def _store(dataset: Dataset) -> None:
    """Pin the cache of a store of embeddings where the entry names a place."""
    entry = dataset.entry
    if dataset.kind == "text_embeds":
        size = as_number(entry.get("text_encoder_batch_size"))
        dataset.put("text_encoder_batch_size", "batch_size", None if size is None else int(size))
        size = as_number(entry.filled.get("write_batch_size"))
        dataset.put("write_batch_size", "write_batch_size", None if size is None else int(size))
        _mode(dataset, "text_cache")
    folder = dataset.text("cache_dir")
    if entry.storage == "local" and folder:
        dataset.pin("cache", "default")
        dataset.pin("cache.storage", "local")
        dataset.put("cache_dir", "cache.storage.root", folder)
    elif entry.storage == "memory":
        dataset.pin("cache", "default")
        dataset.pin("cache.storage", "memory")
        dataset.put("id", "cache.storage.name", dataset.name)
        dataset.note("cache_dir", Outcome.left_out, "nothing is loaded into memory at the start")
    elif entry.storage == "aws":
        dataset.pin("cache", "default")
        storage_options.bucket(dataset, "cache.storage")
        folder = str(dataset.text("aws_data_prefix") or "").strip("/")
        dataset.put("aws_data_prefix", "cache.storage.prefix", folder)


def _together(
    datasets: list[Dataset], arguments: Arguments, launch: Launch, disabled: list[str]
) -> Conversion:
    """Compute what the datasets share."""
    remarks: list[str] = []
    accumulation = launch.accumulation or int(arguments["gradient_accumulation_steps"])
    kept = [dataset for dataset in datasets if not dataset.left_out]
    resolution, unit = common_resolution(kept, arguments)
    data: dict[str, Any] = {}
    size = global_batch(kept, launch, accumulation, remarks)
    data["batch_size"] = size
    if arguments["seed"] is not None:
        data["seed"] = int(arguments["seed"])
    data |= {"resolution": resolution, "resolution_type": unit}
    data["alignment"] = int(arguments["aspect_bucket_alignment"])
    linked = Counter(dataset.body.get("source") for dataset in kept)
    if any(sets > 1 for source, sets in linked.items() if source is not None):
        data["conditioning_sampling"] = arguments["conditioning_multidataset_sampling"]
    sampling = "auto" if arguments["data_backend_sampling"] == "auto-weighting" else "uniform"
    trained = {dataset.kind for dataset in kept if dataset.kind in ("image", "video")}
    encoders = Encoders.of(arguments, clips=trained == {"video"})
    return Conversion(
        datasets, data, sampling, accumulation, disabled, remarks, arguments, encoders
    )


def global_batch(
    datasets: Sequence[Dataset], launch: Launch, accumulation: int, remarks: list[str]
) -> int | None:
    """Return samples per optimizer step, and remark on how they came about.

    None where no size is given anywhere: the option's own default holds.
    """
    trained = [d for d in datasets if d.kind in ("image", "video")]
    sizes = [batch_size(each.entry.get("train_batch_size")) for each in trained]
    given = [size for size in sizes if size is not None]
    if launch.batch_size is not None:
        remarks.append(f"data.batch_size = {launch.batch_size}, as --batch-size says")
        return launch.batch_size
    if not given:
        remarks.append(
            "no train_batch_size is given: data.batch_size keeps its default; set it with "
            "--batch-size, or data.batch_size=N"
        )
        return None
    size = Counter(given).most_common(1)[0][0]
    total = size * launch.gpus * accumulation
    remarks.append(
        f"data.batch_size = {total}: train_batch_size {size}, which is per GPU, "
        f"x {launch.gpus} (GPUs) x {accumulation} (accumulation)"
    )
    for dataset, other in zip(trained, sizes, strict=True):
        if other not in (size, None):
            dataset.put("train_batch_size", "batch_size", other * launch.gpus * accumulation)
    return total
