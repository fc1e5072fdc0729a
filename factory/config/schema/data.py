"""Schema of `data`: named backends, and the settings they share."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from omegaconf import II, MISSING

from factory.config.schema.backends import ConditioningSampling, ResolutionType
from factory.config.schema.captions import CaptionConfig
from factory.config.schema.crop import CropConfig
from factory.config.schema.derived import limit_problems, settings_of
from factory.config.schema.options import above, at_least, opt


@settings_of("factory.runtime.batches.quarantine.QuarantineLimit")
class QuarantineConfig:
    """How many samples may turn out damaged or gone while they are trained on."""

    path: str | None = "${paths.run_dir}/quarantine.jsonl"

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values."""
        given: Any = self
        if not 0 <= given.share <= 1:
            yield f"share must be 0 to 1, got {given.share:g}; 0.01 allows one sample in a hundred"
        yield from limit_problems(self)


@settings_of("factory.media.decode_limits.DecodeLimits")
class LimitsConfig:
    """What decoding one picture may take; those that take more are dropped with the reason."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values."""
        yield from limit_problems(self)


@settings_of("factory.sampling.exclusion.Exclude")
class ExcludeConfig:
    """Samples that are not used from a step on."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values."""
        given: Any = self
        yield from at_least("from_step", given.from_step, 1)
        if not given.ids:
            yield "ids must name at least one sample, as photos:people/a.jpg"


@dataclass
class DataConfig:
    """Every backend of the run, and what they share."""

    _target_: str = "factory.lightning.datamodule.FactoryDataModule"
    path: str | None = opt(
        None, "where the samples lie: a folder, s3://bucket/folder, gs://…, az://…, "
        "hf://datasets/…, https://…, or what fsspec knows; chooses the storage, where none is "
        "chosen",
    )  # fmt: skip
    batch_size: int = opt(16, "samples per optimizer step, over all ranks and accumulation")
    seed: int = opt(II("seed"), "seed of the plan")
    resolution: float = opt(1024, "target size of backends that set none")
    resolution_type: ResolutionType = opt(
        ResolutionType.pixel_area,
        "pixel: short edge, px | pixel_area: edge of the square of equal area, px | area: MP",
    )
    alignment: int = opt(64, "target edges are multiples of this, px")
    maximum_canvas: float | None = opt(None, "largest area of a target, MP; null means any")
    aspect_sizes: Any = opt(
        None, "forced targets, px, by the label they replace: {0.75: [768,1024]}"
    )
    caption: CaptionConfig = opt(MISSING, "caption strategy of backends that pin none")
    crop: CropConfig = opt(MISSING, "crop of backends that pin none")
    conditioning_sampling: ConditioningSampling = opt(
        ConditioningSampling.combined,
        "of several conditioning backends of a source, combined: all in every batch | random: one "
        "for each sample and epoch",
    )
    # Values are BackendConfig; `Any` lets `+data.backends.NAME={...}` in, which `check` then types.
    backends: dict[str, Any] = opt(factory=dict, meaning="the backends, by name")
    sampling: Any = opt(MISSING, "follows the group `sampling`")
    cache: Any = opt(MISSING, "follows the group `cache`")
    prefetch: Any = opt(MISSING, "follows the group `prefetch`")
    engine: Any = opt(MISSING, "follows the group `engine`")
    quarantine: QuarantineConfig = opt(factory=QuarantineConfig, meaning="")
    limits: LimitsConfig = opt(factory=LimitsConfig, meaning="")
    accept_changed_plan: Any = opt(
        False, "continue from a checkpoint of another plan, from the same step on: true, or the "
        "keys that may have changed: [batch_size, backends.web]",
    )  # fmt: skip
    context_parallel: int = opt(1, "consecutive ranks that get the same samples; divides the ranks")
    peer_timeout_s: float | None = opt(
        120.0, "seconds without a sign of life after which another process counts as hanging and "
        "this one ends with a report; null watches none",
    )  # fmt: skip
    exclude: list[ExcludeConfig] = opt(
        factory=list, meaning="samples not used from a step on: [{from_step: 9, ids: [NAME:KEY]}]"
    )
    ledger: str | None = opt(
        "${paths.run_dir}/ledger", "folder for the record of what each step used; null: no record"
    )
    demo: bool = opt(False, "these are the demo's own pictures: write them if they are absent")

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values."""
        yield from at_least("batch_size", self.batch_size, 1)
        yield from above("resolution", self.resolution, 0)
        yield from at_least("alignment", self.alignment, 1)
        yield from at_least("context_parallel", self.context_parallel, 1)
        yield from above("peer_timeout_s", self.peer_timeout_s, 0)
        accepted = self.accept_changed_plan
        is_list = isinstance(accepted, list) and all(isinstance(key, str) for key in accepted)
        if not isinstance(accepted, bool) and not is_list:
            yield (
                "accept_changed_plan must be true, false or a list of keys such as "
                f"[batch_size,backends.web], got {accepted!r}"
            )
