"""The contract of metadata backends: from a storage's objects to facts."""

from dataclasses import dataclass, field
from typing import Any, Protocol

from factory.bulk import Engine
from factory.catalog.captions import Captions
from factory.catalog.facts import Facts
from factory.catalog.medium import Medium, Pictures
from factory.storage.base import Storage


@dataclass(frozen=True)
class Scan:
    """Where to look, and what is known already.

    Attributes:
        name: The backend, for messages and progress bars.
        storage: Where the samples lie.
        prefix: Folder of the samples in the storage.
        captions: Which raw texts are wanted beside the facts.
        known: Facts of an earlier scan, or None.
        medium: What the samples are: pictures, or videos.
    """

    name: str
    storage: Storage
    prefix: str
    captions: Captions
    known: Facts | None = None
    medium: Medium = field(default_factory=Pictures)

    def origin(self, metadata: "Metadata") -> dict[str, Any]:
        """Say what facts of this scan are measured from; others are not reused."""
        return {
            "storage": self.storage.identity,
            "prefix": self.prefix,
            "metadata": repr(metadata),
            "medium": repr(self.medium),
            "captions": self.captions.source,
        }


class Metadata(Protocol):
    """How samples are found and measured."""

    def scan(self, scan: Scan, engine: Engine) -> Facts:
        """Return the facts of every sample, measuring only what is new or changed."""
