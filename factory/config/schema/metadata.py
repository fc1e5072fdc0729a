"""Schemas of metadata: how samples are found and measured, and which rows of a table count."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from factory.config.schema.derived import settings_of


@dataclass
class MetadataConfig:
    """Fields every metadata backend shares."""

    _target_: str = MISSING


@settings_of("factory.catalog.scan.discovery.Discovery")
class DiscoveryConfig(MetadataConfig):
    """List the storage and measure the header of every picture."""

    max_megapixels = 268.0  # what the class admits, in a number that is easily read

    def problems(self: Any) -> Iterator[str]:
        """Yield which patterns match nothing."""
        for name in ("include", "exclude", "ignore"):
            for pattern in getattr(self, name):
                if not pattern.strip("/ "):
                    yield f"{name} must hold patterns such as '*.jpg' or 'raw/**', got {pattern!r}"


@settings_of("factory.catalog.scan.table.ParquetTable", rules=True)
class ParquetConfig(MetadataConfig):
    """Read names, sizes and captions from a table; no picture is opened."""


@settings_of("factory.catalog.scan.column_facts.ColumnFacts")
class ColumnsConfig(MetadataConfig):
    """Read sizes from columns of the samples' own table; no picture is opened."""


@settings_of("factory.catalog.row_filters.RowFilter", rules=True)
class RowFilterConfig:
    """A condition on one column of a backend's table; rows without a value are dropped."""
