"""What is read: named backends, and the settings they share."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from omegaconf import II, MISSING

from factory.schema.backends import ResolutionType
from factory.schema.captions import CaptionConfig
from factory.schema.crop import CropConfig
from factory.schema.options import above, at_least, opt


@dataclass
class ExcludeConfig:
    """Samples that are not used from a step on."""

    _target_: str = "factory.sampling.exclusion.Exclude"
    ids: list[str] = opt(MISSING, "samples, as BACKEND:KEY or KEY; scripts/explain.py prints them")
    from_step: int = opt(1, "first optimizer step of the whole run without them, from 1")

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values."""
        yield from at_least("from_step", self.from_step, 1)
        if not self.ids:
            yield "ids must name at least one sample, as photos:people/a.jpg"


@dataclass
class DataConfig:
    """Every backend of the run, and what they share."""

    _target_: str = "factory.datamodule.FactoryDataModule"
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
    # Values are BackendConfig; `Any` lets `+data.backends.NAME={...}` in, which `check` then types.
    backends: dict[str, Any] = opt(factory=dict, meaning="the backends, by name")
    sampling: Any = opt(MISSING, "follows the group `sampling`")
    cache: Any = opt(MISSING, "follows the group `cache`")
    prefetch: Any = opt(MISSING, "follows the group `prefetch`")
    engine: Any = opt(MISSING, "follows the group `engine`")
    accept_changed_plan: bool = opt(
        False, "continue from a checkpoint whose plan was another, from the same step on"
    )
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
