"""Schema of `data`: named backends, and the settings they share."""

from collections.abc import Iterator
from typing import Any

from omegaconf import II, MISSING

from factory.config.schema.captions import CaptionConfig
from factory.config.schema.crop import CropConfig
from factory.config.schema.derived import Derived, settings_of
from factory.config.schema.options import opt
from factory.media.geometry.validation import number_problems


@settings_of("factory.runtime.batches.quarantine.QuarantineLimit")
class QuarantineConfig:
    """How many samples may turn out damaged or gone while they are trained on."""

    path = "${paths.run_dir}/quarantine.jsonl"


@settings_of("factory.media.decode_limits.DecodeLimits")
class LimitsConfig:
    """What decoding one picture may take; those that take more are dropped with the reason."""


@settings_of("factory.sampling.exclusion.Exclude", rules=True)
class ExcludeConfig:
    """Samples that are not used from a step on."""


@settings_of(
    "factory.lightning.datamodule.FactoryDataModule",
    "factory.backends.image.SampleBackend",
    "factory.backends.image.ImageBackend",
    listed=True,
)
class DataConfig:
    """Every backend of the run, and what they share."""

    path: str | None = opt(
        None, "where the samples lie: a folder, s3://bucket/folder, gs://…, az://…, "
        "hf://datasets/…, https://…, or what fsspec knows; chooses the storage, where none is "
        "chosen",
    )  # fmt: skip
    batch_size: Derived
    seed: Derived = II("seed")
    resolution: Derived = opt(meaning="target size of backends that set none")
    resolution_type: Derived
    alignment: Derived
    maximum_canvas: Derived = opt(meaning="largest area of a target, MP; null means any")
    aspect_sizes: Derived
    caption: CaptionConfig = opt(MISSING, "caption strategy of backends that pin none")
    crop: CropConfig = opt(MISSING, "crop of backends that pin none")
    conditioning_sampling: Derived = opt(
        meaning="of several conditioning backends of a source, combined: all in every batch | "
        "random: one for each sample and epoch"
    )
    # Values are BackendConfig; `Any` lets `+data.backends.NAME={...}` in, which `check` then types.
    backends: dict[str, Any] = opt(factory=dict, meaning="the backends, by name")
    sampling: Any = opt(MISSING, "follows the group `sampling`")
    cache: Any = opt(MISSING, "follows the group `cache`")
    prefetch: Any = opt(MISSING, "follows the group `prefetch`")
    engine: Any = opt(MISSING, "follows the group `engine`")
    quarantine: QuarantineConfig = opt(factory=QuarantineConfig)
    limits: LimitsConfig = opt(factory=LimitsConfig)
    accept_changed_plan: Derived
    context_parallel: Derived
    peer_timeout_s: Derived
    exclude: list[ExcludeConfig] = opt(
        meaning="samples not used from a step on: [{from_step: 9, ids: [NAME:KEY]}]"
    )
    ledger: Derived = "${paths.run_dir}/ledger"  # type: ignore[assignment] # of the type that the class declares
    demo: bool = opt(False, "these are the demo's own pictures: write them if they are absent")

    def problems(self: Any) -> Iterator[str]:
        """Yield what is wrong with the values."""
        yield from number_problems(self)
        accepted = self.accept_changed_plan
        is_list = isinstance(accepted, list) and all(isinstance(key, str) for key in accepted)
        if not isinstance(accepted, bool) and not is_list:
            yield (
                "accept_changed_plan must be true, false or a list of keys such as "
                f"[batch_size,backends.web], got {accepted!r}"
            )
