"""Problems of a config that is to be imported, each with its category."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from factory.errors import ConfigError

# Characters of a value that a message shows: enough to know it again.
SHOWN = 60

CATEGORIES: dict[str, str] = {
    "unreadable": "the file cannot be read, or is not a JSON list of objects",
    "empty_config": "no dataset is declared, or every one is disabled",
    "missing_key": "a key that is needed is absent or blank",
    "missing_path": "a folder does not exist",
    "invalid_value": "a value outside of what is allowed",
    "invalid_type": "a value of the wrong JSON type",
    "suspicious_value": "a value whose unit is almost surely mistaken",
    "unknown_type": "a storage or metadata backend that does not exist",
    "unknown_dataset_type": "a kind of dataset that does not exist",
    "unknown_reference": "a link to a dataset that is not there, or of another kind",
    "unsupported_combination": "keys that exclude each other",
    "duplicate_id": "two datasets of one id",
    "text_embed_default": "more than one default text_embeds set",
    "removed_key": "a key that upstream has removed",
    "circular_dependency": "datasets that depend on each other in a circle",
    "schedule": "windows in which nothing can be trained",
}


@dataclass(frozen=True)
class ImportProblem:
    """One finding.

    Attributes:
        category: A key of `CATEGORIES`.
        message: Names the dataset and key, what was given, and what is allowed; never the
            value of a secret.
    """

    category: str
    message: str

    def __post_init__(self) -> None:
        """Refuse a category that nobody could look up."""
        if self.category not in CATEGORIES:
            raise ValueError(f"category must be one of {', '.join(CATEGORIES)}")

    def __str__(self) -> str:
        """Return the message, then the category in brackets."""
        return f"{self.message} [{self.category}]"


class ImportRefusedError(ConfigError):
    """A config that cannot be imported.

    Attributes:
        found: Every problem with its category, in the order of the config.
    """

    def __init__(self, found: Iterable[ImportProblem]) -> None:
        """Keep the findings and join their sentences."""
        self.found = list(dict.fromkeys(found))
        super().__init__([str(problem) for problem in self.found])


def shown(value: Any) -> str:
    """Return a value for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
