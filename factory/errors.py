"""What can go wrong, as one tree: every error the factory raises on purpose.

::

    FactoryError
    ├─ ConfigError            a composed config cannot be built (all problems at once)
    ├─ MissingExtraError      an optional dependency is absent (also an ImportError)
    ├─ StorageError           bytes cannot be listed, read or written
    │  ├─ ObjectNotFoundError     (also a FileNotFoundError)
    │  ├─ AccessDeniedError       credentials missing, wrong or too weak (also a PermissionError)
    │  ├─ StorageUnavailableError server down, refused, too slow (also a ConnectionError)
    │  ├─ ContentMismatchError    bytes that are not those that were stored
    │  └─ UnsafeKeyError          a key that leaves its root
    ├─ MediaError             bytes that are not the picture or video they claim to be
    ├─ TableError             a table without the columns it was said to have
    ├─ EmptyBackendError      no sample is left to train on
    ├─ PairingError           samples without the conditioning they must have
    ├─ PlanError              a mixture that cannot be planned
    ├─ ResumeError            a checkpoint that is damaged, without state or of another plan
    ├─ EngineError            bulk work that other machines cannot do
    ├─ CacheError             encoded tensors missing, damaged or of another shape
    ├─ QuarantineError        more samples cannot be used than the run allows
    ├─ FetchError             background prefetch ended without a batch
    └─ PeerError              another process of the run died, hangs or failed

A message names the key or sample, what was given, what is allowed, and the command or
edit that mends it. Errors of workers keep their type and gain context through `add_note`.
"""

from collections.abc import Iterable
from typing import Any


class FactoryError(Exception):
    """Base of every error the factory raises on purpose."""


class ConfigError(FactoryError, ValueError):
    """A composed config that cannot be built.

    Attributes:
        problems: One sentence for each problem found, in the order of the config.
    """

    def __init__(self, problems: str | Iterable[str]) -> None:
        """Join one or many problems into a message."""
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        if len(self.problems) == 1:
            message = self.problems[0]
        else:
            lines = "\n".join(f"  {n}. {text}" for n, text in enumerate(self.problems, 1))
            message = f"{len(self.problems)} problems:\n{lines}"
        super().__init__(message)


class MissingExtraError(FactoryError, ImportError):
    """An optional dependency is absent; the message names the extra that brings it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        """Name the absent package, what wanted it, and the extra to install."""
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed; "
            f"install it with: pip install 'data-backend-factory[{extra}]'"
        )
        self._given = (package, extra, purpose)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the three arguments, not the message."""
        return type(self), self._given, self.__dict__


class StorageError(FactoryError):
    """Bytes cannot be listed, read or written."""


class ObjectNotFoundError(StorageError, FileNotFoundError):
    """A key that is not there."""


class AccessDeniedError(StorageError, PermissionError):
    """Credentials that are missing, wrong or too weak."""


class StorageUnavailableError(StorageError, ConnectionError):
    """A server that is down, refuses, or does not answer in time."""


class ContentMismatchError(StorageError):
    """Bytes that are not those that were stored, by their checksum or their number."""


class UnsafeKeyError(StorageError, ValueError):
    """A key that would leave the root it is confined to."""


class MediaError(FactoryError):
    """Bytes that are not the picture or video they claim to be.

    Attributes:
        reason: A short phrase for tables of dropped samples, such as "truncated".
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        """Keep the short reason and show the detail after it."""
        self.reason = reason
        super().__init__(f"{reason}: {detail}" if detail else reason)


class TableError(FactoryError):
    """A table without the columns, types or rows it was said to have."""


class EmptyBackendError(FactoryError):
    """No sample is left to train on."""


class PairingError(FactoryError):
    """Samples without the conditioning they must have."""


class PlanError(FactoryError, ValueError):
    """A mixture that cannot be planned."""


class ResumeError(FactoryError):
    """A checkpoint that is damaged, lacks the data's state, or belongs to another plan."""


class EngineError(FactoryError):
    """Bulk work that other machines cannot do: none to be reached, no room, or lost again."""


class CacheError(FactoryError):
    """Encoded tensors that are missing, damaged or of another shape."""


class QuarantineError(FactoryError):
    """More samples cannot be used than the run allows."""


class FetchError(FactoryError):
    """Background prefetch ended without delivering the batch that was due."""


class PeerError(FactoryError):
    """Another process of the run died, hangs or failed, so that this one cannot go on."""
