"""Schema of the whole run: one field for each config group, and those groups that are small."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from omegaconf import MISSING

from factory.config.schema.data import DataConfig
from factory.config.schema.metadata import MetadataConfig
from factory.config.schema.options import above, at_least, opt
from factory.config.schema.storage import StorageConfig
from factory.config.secrets import holds_password

# Names of environment variables that hold secrets have one of these in them.
_SECRET_WORDS = ("SECRET", "TOKEN", "PASSWORD", "KEY")


class ShortBatch(StrEnum):
    """What becomes of the last batch of a bucket when rows run out."""

    fill = "fill"
    short = "short"
    drop = "drop"


class DamagedRows(StrEnum):
    """What becomes of cached rows that turn out damaged or gone."""

    rebuild = "rebuild"
    stop = "stop"


class EpochRule(StrEnum):
    """When an epoch ends."""

    all_exhausted = "all_exhausted"
    first_exhausted = "first_exhausted"
    cycle = "cycle"


class Compression(StrEnum):
    """How shards are kept in the storage."""

    none = "none"
    zstd = "zstd"


class PrefetchMode(StrEnum):
    """Where batches are put together."""

    thread = "thread"
    process = "process"
    inline = "inline"


@dataclass
class PathsConfig:
    """Where things are on this machine."""

    data_dir: str = opt(MISSING, "root of storage=local (DATA_DIR)")
    bucket: str | None = opt(MISSING, "bucket of storage=s3 (DATA_BUCKET)")
    scratch_dir: str = opt(MISSING, "local folder for downloads and mirrors (SCRATCH_DIR)")
    output_dir: str = opt(MISSING, "folder that run folders are made in (OUTPUT_DIR)")
    run_dir: str = opt(".", "folder of this run's results; train.py sets it to its run folder")


@dataclass
class SamplingConfig:
    """Which backend the next batch comes from."""

    _target_: str = "factory.sampling.mixture.Mixture"
    weighting: Any = opt(MISSING, "how probabilities become weights (a `_target_`)")
    selection: Any = opt(MISSING, "how weights become a sequence (a `_target_`)")
    short_batch: ShortBatch = opt(
        ShortBatch.fill, "last batch of a bucket: fill from the bucket | short | drop"
    )
    epoch: EpochRule = opt(
        EpochRule.all_exhausted,
        "it ends when all_exhausted: all backends have given all they hold | first_exhausted: one "
        "has | cycle: all have, those that are done beginning again meanwhile",
    )
    epoch_steps: int | None = opt(
        None, "length of every epoch, optimizer steps; passes go on over its end; null: the rule's"
    )

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values."""
        for name, example in (("weighting", "weights.AutoWeighting"),
                              ("selection", "selection.Random")):  # fmt: skip
            given = getattr(self, name)
            if not isinstance(given, dict) or "_target_" not in given:
                yield (
                    f"{name} must be a mapping with a _target_, got {given!r}; "
                    f"set sampling.{name}._target_=factory.sampling.{example}"
                )
        yield from at_least("epoch_steps", self.epoch_steps, 1)
        if self.epoch_steps is not None and self.epoch == EpochRule.first_exhausted:
            yield (
                f"epoch_steps={self.epoch_steps} and epoch=first_exhausted contradict each other; "
                "set epoch_steps=null, or epoch=cycle"
            )


@dataclass
class CacheConfig:
    """Where facts and encoded tensors are kept."""

    _target_: str = "factory.workspace.Workspace"
    storage: StorageConfig = opt(MISSING, "slot: storage of the cache")
    prefix: str = opt("cache", "folder of the cache in its storage")
    scratch_dir: str = opt(MISSING, "local folder that remote shards are copied to")
    shard_mb: float = opt(256.0, "size a shard is closed at, MiB")
    disk_gb: float | None = opt(None, "limit of the copies there, GiB; null: none, 0: no copies")
    ram_gb: float = opt(0.0, "limit of copies in memory, shared by a machine's processes, GiB")
    ram_dir: str = opt("/dev/shm", "memory file system they lie in")  # noqa: S108 - no temporary
    ahead_mb: float = opt(1024.0, "how far ahead of the trainer rows are fetched, MiB; 0: not")
    preload: bool = opt(False, "copy all to memory, up to ram_gb, before training")
    compression: Compression = opt(
        Compression.none,
        "how new shards are kept in the storage: none | zstd, which takes a tenth off latents and "
        "more off padded texts; unpacked to scratch_dir when first used; both kinds are read",
    )
    damaged: DamagedRows = opt(
        DamagedRows.rebuild,
        "rows that turn out damaged or gone: rebuild: encode them anew, and say so | stop the run",
    )

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values."""
        yield from above("shard_mb", self.shard_mb, 0)
        for name in ("disk_gb", "ram_gb", "ahead_mb"):
            yield from at_least(name, getattr(self, name), 0)
        if self.preload and not self.ram_gb:
            yield "preload=true needs memory; set ram_gb to what it may take up, or cache=memory"
        if not self.ram_dir.strip():
            yield "ram_dir must name a folder; set ram_dir=/dev/shm"
        if not self.prefix.strip("/"):
            yield "prefix must not be empty: the cache needs a folder of its own; set prefix=cache"


@dataclass
class EncoderConfig:
    """What turns samples into tensors; null leaves pixels and texts as they are."""

    image: Any = opt(None, "follows the group `encoder/image`")
    text: Any = opt(None, "follows the group `encoder/text`")
    vision: Any = opt(None, "follows the group `encoder/vision`")


@dataclass
class PrefetchConfig:
    """How far batches are prepared ahead of the trainer."""

    _target_: str = "factory.runtime.prefetch.batch_fetcher.Prefetch"
    mode: PrefetchMode = opt(
        PrefetchMode.thread,
        "thread: in the background | process: in another process, which leaves this one's "
        "interpreter to the trainer (streams stay here) | inline: on demand",
    )
    batches: int = opt(4, "batches kept ready, those in the making included")
    megabytes: float = opt(1024.0, "memory that they may hold, MiB; one batch is always allowed")
    timeout_s: float = opt(
        300.0, "seconds to wait for a batch before the run is stopped with a report"
    )
    workers: int = opt(2, "threads that make batches, each a whole one")
    pin_memory: Any = opt(
        "auto", "whether batches go through pinned memory: true | false | auto, where CUDA is"
    )
    device_ahead: bool = opt(
        True, "copy the next batch to the CUDA device while the trainer works on this one"
    )

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values."""
        if self.pin_memory not in ("auto", True, False):
            yield f"pin_memory must be auto, true or false, got {self.pin_memory!r}"
        yield from at_least("batches", self.batches, 1)
        yield from above("megabytes", self.megabytes, 0)
        yield from above("timeout_s", self.timeout_s, 0)
        yield from at_least("workers", self.workers, 1)


@dataclass
class EngineConfig:
    """Where bulk work runs: scanning and encoding. Fields every engine shares."""

    _target_: str = MISSING

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values."""
        yield from ()


@dataclass
class LocalEngineConfig(EngineConfig):
    """Threads of this machine."""

    _target_: str = "factory.engine.local_engine.LocalEngine"
    workers: int | None = opt(None, "threads reading and decoding; null means 2 per core")

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values."""
        yield from at_least("workers", self.workers, 1)


@dataclass
class RayEngineConfig(EngineConfig):
    """Processes of a Ray cluster."""

    _target_: str = "factory.engine.ray.ray_engine.RayEngine"
    address: str | None = opt(
        None,
        "the cluster: auto | HOST:PORT | ray://HOST:PORT; null: RAY_ADDRESS, else the one that "
        "runs on this machine, else one that is started here",
    )
    encoders: int | None = opt(
        None, "encoders that work side by side; null: one for each GPU, or else each machine"
    )
    gpus_per_encoder: float | None = opt(
        None, "GPUs, or part of one, for each encoder; null: 1 where the cluster has any"
    )
    cpus_per_encoder: float = opt(1.0, "cores that Ray sets aside for each encoder")
    workers: int | None = opt(
        None, "threads reading and decoding for each encoder; null shares 2 per core among them"
    )
    runtime_env: dict[str, Any] = opt(
        factory=dict,
        meaning="what Ray brings to the workers, such as +engine.runtime_env.pip=[...]; no secrets",
    )

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values."""
        yield from at_least("encoders", self.encoders, 1)
        yield from at_least("workers", self.workers, 1)
        yield from at_least("gpus_per_encoder", self.gpus_per_encoder, 0)
        yield from above("cpus_per_encoder", self.cpus_per_encoder, 0)
        yield from _passwords(self.runtime_env, "runtime_env")
        for name in self.runtime_env.get("env_vars") or {}:
            if any(word in name.upper() for word in _SECRET_WORDS):
                yield (
                    f"runtime_env.env_vars.{name} looks like a secret, and Ray shows a "
                    f"runtime_env in its logs; set {name} where `ray start` runs on each machine"
                )


@dataclass
class RunConfig:
    """Root of every composed config; unknown top-level keys are refused."""

    seed: int = opt(42, "seed of data order, model and noise")
    ckpt_path: str | None = opt(
        None, "continue from a checkpoint file, or `last` for the newest run's"
    )
    optimized_metric: str | None = opt(
        None,
        "what train.py returns to a sweeper, as it is logged; null: val/loss, or train/loss where "
        "nothing is validated",
    )
    paths: PathsConfig = opt(MISSING, "")
    storage: StorageConfig = opt(MISSING, "")
    metadata: MetadataConfig = opt(MISSING, "")
    sampling: SamplingConfig = opt(MISSING, "")
    cache: CacheConfig = opt(MISSING, "")
    encoder: EncoderConfig = opt(MISSING, "")
    prefetch: PrefetchConfig = opt(MISSING, "")
    engine: EngineConfig = opt(MISSING, "")
    data: DataConfig = opt(MISSING, "")
    model: dict[str, Any] = opt(factory=dict, meaning="the Lightning module (a `_target_`)")
    trainer: dict[str, Any] = opt(factory=dict, meaning="arguments of lightning.Trainer")
    callbacks: dict[str, Any] = opt(factory=dict, meaning="Lightning callbacks, by name")

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values."""
        yield from ()


def _passwords(value: Any, key: str) -> Iterator[str]:
    """Yield what is wrong with URLs of a runtime environment, wherever they were read from."""
    if isinstance(value, dict | list):
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        for name, part in parts:
            yield from _passwords(part, f"{key}.{name}")
    elif isinstance(value, str) and holds_password(value):
        yield (
            f"{key} holds a URL with a user or password, and Ray shows a runtime_env in its logs; "
            "take them out, and give each machine its own, such as in its pip.conf"
        )
