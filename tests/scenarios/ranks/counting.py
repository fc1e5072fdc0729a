"""A run whose storage and encoders count what is asked of them, over all processes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from factory.encoder.dct import BlockDCT
from factory.encoder.hashed_text import HashedText
from factory.storage.local import LocalStorage
from tests.scenarios.ranks import run


def fit(root: str, folder: str, settings: dict[str, Any]) -> None:
    """Train as `run.fit` does, in a process of its own, whose classes are changed."""
    log = Path(folder) / "counts.txt"

    def counted(kind: type, method: str, name: Callable[[Any], str]) -> None:
        original = getattr(kind, method)

        def counting(self: Any, given: Any) -> Any:
            # Appending is atomic among processes for so few bytes.
            with log.open("a") as file:
                file.write(name(given) + "\n")
            return original(self, given)

        setattr(kind, method, counting)

    counted(LocalStorage, "listing", lambda prefix: f"list-{prefix.strip('/')}")
    counted(BlockDCT, "encode", lambda pictures: f"pictures-{len(pictures)}")
    counted(HashedText, "encode", lambda captions: f"texts-{len(captions)}")
    run.fit(root, folder, settings)
