"""How many rows were encoded while training, and for want of what?"""

from collections.abc import Iterator

from factory.backends.encode_missing import EncodeCounts
from factory.runtime.batches.batch import Batch


class EncodedCounts:
    """What this process's batches needed encoded, counted in the trainer's thread.

    Attributes:
        found: The counts of each backend that had any, by name.
    """

    def __init__(self) -> None:
        """Begin with nothing counted."""
        self.found: dict[str, EncodeCounts] = {}

    def restart(self) -> None:
        """Do nothing: what was encoded stays encoded."""

    def note(self, batch: Batch) -> None:
        """Count what was encoded for a batch."""
        if batch.encoded:
            tally = self.found.setdefault(batch.backend, EncodeCounts())
            tally.encoded += batch.encoded
            tally.rebuilt += batch.rebuilt

    @property
    def total(self) -> EncodeCounts:
        """All backends together."""
        each = self.found.values()
        return EncodeCounts(sum(one.encoded for one in each), sum(one.rebuilt for one in each))

    def lines(self) -> Iterator[str]:
        """Yield "photos: 120 rows encoded while training" for each backend that had any."""
        for name, tally in self.found.items():
            lost = f", {tally.rebuilt} of them damaged or gone" if tally.rebuilt else ""
            yield f"{name}: {tally.encoded} rows encoded while training{lost}"
