"""One converted dataset: its option file, and what became of each key."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from factory.importers.simpletuner.entry import Entry
from factory.importers.simpletuner.project_options import NONE, PLANNED, default, is_option

# The group that fills each slot, and the schema of the options in it that share one.
GROUPS = {
    "storage": "/storage",
    "metadata": "/metadata",
    "caption": "/data/caption",
    "crop": "/data/crop",
    "cache": "/cache",
    "cache.storage": "/storage",
    "generate": "/data/generator",
}
COLUMNS = ("parquet", "csv", "huggingface")
SCHEMA_OF_SLOT = {"crop": "crop", "cache": "cache"}


class Outcome(StrEnum):
    """What came of a key."""

    carried = "carried"
    changed = "carried otherwise"
    later = "not in this version"
    left_out = "left out"
    needless = "not needed"
    unknown = "unknown"


@dataclass(frozen=True)
class KeyNote:
    """What came of one key.

    Attributes:
        outcome: In a word.
        text: Where it went, or why not; never a value.
    """

    outcome: Outcome
    text: str


@dataclass
class Dataset:
    """One dataset on its way from an entry to an option file.

    Attributes:
        entry: Where it comes from.
        name: What Hydra calls it.
        kind: This project's kind of backend; "" if it is left out.
        pins: The option of each slot that is pinned.
        parts: Group and option of further parts, by their place in the backend.
        body: Values, nested, without those that are defaults anyway.
        placed: For each upstream key, the options that were set from it.
        notes: For each upstream key, what is to be said beside the table.
        left_out: Why the whole entry is not imported; "" if it is.
        draws_cuts: Whether the place of a picture's cut is drawn.
    """

    entry: Entry
    name: str
    kind: str
    pins: dict[str, str] = field(default_factory=dict)
    parts: dict[str, tuple[str, str]] = field(default_factory=dict)
    body: dict[str, Any] = field(default_factory=dict)
    placed: dict[str, list[str]] = field(default_factory=dict)
    notes: dict[str, KeyNote] = field(default_factory=dict)
    left_out: str = ""
    draws_cuts: bool = False

    def text(self, key: str) -> Any:
        """Return an entry's value as it is written to YAML."""
        return self.entry.get(key, written=True)

    def pin(self, slot: str, option: str) -> None:
        """Choose the option of a slot."""
        self.pins[slot] = option

    def note(self, key: str, outcome: Outcome, text: str) -> None:
        """Say what came of a key."""
        self.notes[key] = KeyNote(outcome, text)

    def put(self, key: str, at: str, value: Any) -> bool:
        """Set an option from a key, unless the option has this value anyway.

        Args:
            key: Upstream's key.
            at: The option below the backend, such as "storage.root".
            value: Its value; None sets nothing.

        Returns:
            Whether this version has the option.
        """
        if value is None:
            return True
        target = self.target(at)
        if not is_option(target):
            planned = target in PLANNED
            what = f"`{at}` is no option of {self.kind} backends"
            self.note(key, Outcome.later if planned else Outcome.left_out, what)
            return False
        self.placed.setdefault(key, []).append(at)
        if not _same(value, default(target)):
            self._set(at.split("."), value)
        return True

    def target(self, at: str) -> str:
        """Return SCHEMA.FIELD of an option below the backend."""
        slot, _, name = at.rpartition(".")
        if slot not in GROUPS:
            return f"backend/{self.kind}.{at}"
        option = self.pins.get(slot, "")
        if slot == "caption" and option in COLUMNS:
            return f"caption/column.{name}"
        if slot == "generate":
            return f"generator/{option}.{name}"
        group = slot.rpartition(".")[2]
        return f"{SCHEMA_OF_SLOT.get(slot, f'{group}/{option}')}.{name}"

    def _set(self, path: list[str], value: Any) -> None:
        node = self.body
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = value

    def defaults(self) -> list[Any]:
        """Return the defaults list of the option file."""
        listed: list[Any] = [{f"/data/backend@{self.name}": self.kind}]
        for at, (group, option) in self.parts.items():
            listed.append({f"{group}@{self.name}.{at}": option})
        listed.append("_self_")
        for slot, option in self.pins.items():
            inside = slot.rpartition(".")[0]
            where = f"{self.name}.{inside}" if inside else self.name
            listed.append({f"override {GROUPS[slot]}@{where}": option})
        return listed


def _same(value: Any, standard: Any) -> bool:
    """Tell whether a value is the default; true is no 1 here."""
    if standard is NONE or isinstance(value, bool) != isinstance(standard, bool):
        return False
    if isinstance(standard, Mapping | list) != isinstance(value, Mapping | list):
        return False
    return bool(value == standard)
