"""Schema of the whole run: one field for each config group, and those groups that are small."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from omegaconf import MISSING

from factory.config.schema.data import DataConfig
from factory.config.schema.derived import SLOT, settings_of
from factory.config.schema.metadata import MetadataConfig
from factory.config.schema.options import opt
from factory.config.schema.storage import StorageConfig
from factory.config.secrets import holds_password
from factory.limits import AtLeast

# Names of environment variables that hold secrets have one of these in them.
_SECRET_WORDS = ("SECRET", "TOKEN", "PASSWORD", "KEY")


@dataclass
class PathsConfig:
    """Where things are on this machine."""

    data_dir: str = opt(MISSING, "root of storage=local (DATA_DIR)")
    bucket: str | None = opt(MISSING, "bucket of storage=s3 (DATA_BUCKET)")
    scratch_dir: str = opt(MISSING, "local folder for downloads and mirrors (SCRATCH_DIR)")
    output_dir: str = opt(MISSING, "folder that run folders are made in (OUTPUT_DIR)")
    run_dir: str = opt(".", "folder of this run's results; train.py sets it to its run folder")


@settings_of("factory.sampling.mixture.Mixture")
class SamplingConfig:
    """Which backend the next batch comes from."""

    weighting: Any = opt(MISSING, "how probabilities become weights (a `_target_`)")
    selection: Any = opt(MISSING, "how weights become a sequence (a `_target_`)")
    epoch_steps: Annotated[int | None, AtLeast(1)]

    def problems(self: Any) -> Iterator[str]:
        """Yield what is wrong with the values."""
        for name, example in (("weighting", "weights.AutoWeighting"),
                              ("selection", "selection.Random")):  # fmt: skip
            given = getattr(self, name)
            if not isinstance(given, dict) or "_target_" not in given:
                yield (
                    f"{name} must be a mapping with a _target_, got {given!r}; "
                    f"set sampling.{name}._target_=factory.sampling.{example}"
                )
        if self.epoch_steps is not None and self.epoch == "first_exhausted":
            yield (
                f"epoch_steps={self.epoch_steps} and epoch=first_exhausted contradict each other; "
                "set epoch_steps=null, or epoch=cycle"
            )


@settings_of("factory.workspace.Workspace")
class CacheConfig:
    """Where facts and encoded tensors are kept."""

    storage: StorageConfig = SLOT
    scratch_dir = MISSING

    def problems(self: Any) -> Iterator[str]:
        """Yield what is wrong with the values."""
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


@settings_of("factory.runtime.prefetch.batch_fetcher.Prefetch")
class PrefetchConfig:
    """How far batches are prepared ahead of the trainer."""

    def problems(self: Any) -> Iterator[str]:
        """Yield what is wrong with the values."""
        if self.pin_memory not in ("auto", True, False):
            yield f"pin_memory must be auto, true or false, got {self.pin_memory!r}"


@dataclass
class EngineConfig:
    """Where bulk work runs: scanning and encoding. Fields every engine shares."""

    _target_: str = MISSING


@settings_of("factory.engine.local_engine.LocalEngine")
class LocalEngineConfig(EngineConfig):
    """Threads of this machine."""


@settings_of("factory.engine.ray.ray_engine.RayEngine")
class RayEngineConfig(EngineConfig):
    """Processes of a Ray cluster."""

    def problems(self: Any) -> Iterator[str]:
        """Yield what is wrong with the values."""
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
