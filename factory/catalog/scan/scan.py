"""The contract of metadata backends: from a storage's objects to facts."""

from dataclasses import dataclass, field
from typing import Any, Protocol

from factory.catalog.captions.sources import Captions
from factory.catalog.facts import Facts
from factory.catalog.scan.journal import Journal
from factory.catalog.scan.media_type import MediaType, Pictures
from factory.engine.engine import Engine
from factory.errors import TableError
from factory.identity import settings_identity
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
        columns: Columns of the samples' table that filters look at; kept as "column.NAME".
        journal: Keeps what is measured until it is published; None keeps nothing.
    """

    name: str
    storage: Storage
    prefix: str
    captions: Captions
    known: Facts | None = None
    medium: MediaType = field(default_factory=Pictures)
    columns: tuple[str, ...] = ()
    journal: Journal | None = None

    def origin(self, metadata: object) -> dict[str, Any]:
        """Say what facts of this scan are measured from; others are not reused.

        Args:
            metadata: What shapes a measurement, as it prints itself.
        """
        return {
            "storage": self.storage.identity,
            "prefix": self.prefix,
            "metadata": metadata if isinstance(metadata, str) else settings_identity(metadata),
            "medium": settings_identity(self.medium),
            "captions": self.captions.source,
        }

    def check_unopened(self, advice: str) -> None:
        """Refuse to take sizes from a table where measuring takes the pictures themselves.

        Args:
            advice: The setting that opens them.

        Raises:
            TableError: Faces are looked for.
        """
        if self.medium.whole:
            raise TableError(
                f"data.backends.{self.name}.crop.style=face looks at every picture, and sizes from "
                f"a table open none, so that every cut would be at random; {advice}, or choose "
                "another crop.style"
            )


class Metadata(Protocol):
    """How samples are found and measured."""

    def scan(self, scan: Scan, engine: Engine) -> Facts:
        """Return the facts of every sample, measuring only what is new or changed."""
