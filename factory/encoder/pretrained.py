"""Base of encoders that load weights: which weights, when, and where they are."""

import gc
import hashlib
import json
import threading
from dataclasses import MISSING, dataclass, field, fields
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import torch

from factory.encoder.dct import FLOAT_DTYPES, float_dtype
from factory.errors import ConfigError, MissingExtraError
from factory.identity import class_identity

# Weight files up to this size enter the fingerprint whole; of larger ones as many bytes, in
# evenly spread blocks: a fine-tune changes nearly every weight, and reading 10 GB at every
# start to learn that nothing changed would take longer than loading them.
_WHOLE_BYTES = 64 * 2**20
_BLOCK_BYTES = 16 * 2**10


def optional_package(name: str, purpose: str) -> Any:
    """Import an optional package.

    Raises:
        MissingExtraError: It is not installed; `purpose` says what needs it.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingExtraError(name, "models", purpose) from error


def resolve_device(device: str) -> torch.device:
    """Return the torch device called `device`; "auto" is the accelerator, where there is one."""
    if device != "auto":
        return torch.device(device)
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


@lru_cache(maxsize=1024)
def _content(path: str, size: int, modified_ns: int) -> bytes:  # noqa: ARG001 (part of the key)
    """Return a digest of a file's bytes, or of blocks spread over a large file."""
    digest = hashlib.blake2b(digest_size=16)
    with Path(path).open("rb") as file:
        if size <= _WHOLE_BYTES:
            digest.update(file.read())
        else:
            blocks = _WHOLE_BYTES // _BLOCK_BYTES
            for block in range(blocks):
                file.seek((size - _BLOCK_BYTES) * block // (blocks - 1))
                digest.update(file.read(_BLOCK_BYTES))
    return digest.digest()


def weights_identity(model: str, revision: str | None, *subfolders: str) -> str:
    """Name the weights behind `model`.

    A local folder is named by what its config, tokenizer and safetensors files hold (those in
    `subfolders`, where given), wherever it lies; a Hub id by itself and its revision. Without
    a revision that is "main", which can move: pin a commit to keep cache and weights in step.
    """
    folder = Path(model)
    if not folder.is_dir():
        return f"{model}@{revision or 'main'}"
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted({path for name in subfolders or ("",) for path in _files(folder / name)}):
        facts = path.stat()
        digest.update(f"{path.relative_to(folder).as_posix()}\0{facts.st_size}\0".encode())
        digest.update(_content(str(path), facts.st_size, facts.st_mtime_ns))
    return f"local:{digest.hexdigest()}"


def _files(folder: Path) -> list[Path]:
    """Return the files of a model's own folder that shape what it gives."""
    kinds = {".json", ".safetensors", ".txt", ".model"}  # .model: a SentencePiece tokenizer
    return [path for path in folder.glob("*") if path.suffix in kinds]


@dataclass(kw_only=True)
class Pretrained:
    """Settings and life cycle shared by encoders that load weights.

    Loading and releasing are guarded by a lock; what is loaded neither takes part in
    comparison nor travels when pickled.

    Every setting enters the fingerprint but those a class names in `ASIDE`, so that one added
    later cannot be forgotten. Settings at their default are left out of it, so that one added
    later does not disown what was encoded before.

    Attributes:
        dtype: Type of the rows: "float16", "bfloat16" or "float32".
        compute_dtype: Type the weights have while encoding.
        device: "cpu", "cuda", ..., or "auto" for the accelerator where there is one.
        revision: Branch, tag or, better, commit of a Hub id.
        variant: Which of the weights a model comes with, such as "fp16".
    """

    # Raised when equal settings come to give other rows.
    VERSION: ClassVar[int] = 2
    # Settings that shape no row, or that `_weights` tells.
    ASIDE: ClassVar[frozenset[str]] = frozenset({"device", "revision"})

    dtype: str = "float16"
    compute_dtype: str = "float32"
    device: str = "cpu"
    revision: str | None = None
    variant: str | None = None
    _module: Any = field(default=None, init=False, repr=False, compare=False)
    _lock: threading.RLock = field(
        default_factory=threading.RLock, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        """Check the settings."""
        owner = type(self).__name__
        float_dtype(self.dtype, owner)
        self._one_of("compute_dtype", FLOAT_DTYPES)

    def _one_of(self, name: str, allowed: Any) -> None:
        """Refuse a setting that is none of the allowed values."""
        value = getattr(self, name)
        if value not in allowed:
            raise ConfigError(
                f"{type(self).__name__}.{name} is {value!r}; "
                f"allowed are {', '.join(map(repr, allowed))}"
            )

    def __getstate__(self) -> dict[str, Any]:
        """Return the settings alone."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.init}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Start unloaded, with a lock of its own."""
        fresh = type(self)(**state)
        self.__dict__.update(fresh.__dict__)

    @property
    def fingerprint(self) -> str:
        """Class, version, weights and every setting that shapes rows."""
        aside = self._aside()
        settings = {
            each.name: getattr(self, each.name)
            for each in fields(self)
            if each.init and each.name not in aside and getattr(self, each.name) != _default(each)
        }
        text = json.dumps(settings, sort_keys=True)
        return f"{class_identity(type(self), short=True)}/{self.VERSION}({self._weights()},{text})"

    def _aside(self) -> frozenset[str]:
        """Return the settings that the fingerprint leaves out, as the others stand."""
        return self.ASIDE

    def _weights(self) -> str:
        """Name the weights, whatever is done with them."""
        raise NotImplementedError

    def _load(self) -> Any:
        """Return the model, in the compute dtype and on the CPU."""
        raise NotImplementedError

    def _ready(self) -> Any:
        """Return the model on its device; loads it the first time only."""
        with self._lock:
            if self._module is None:
                self._module = self._load().requires_grad_(False).eval()
            self._module.to(resolve_device(self.device))
            return self._module

    @property
    def _compute(self) -> torch.dtype:
        return FLOAT_DTYPES[self.compute_dtype]

    @property
    def _rows_dtype(self) -> torch.dtype:
        return FLOAT_DTYPES[self.dtype]

    def offload(self) -> None:
        """Free the device and keep the weights in main memory; the next call moves them back."""
        with self._lock:
            if self._module is not None:
                self._module.to("cpu")
        _empty_device()

    def release(self) -> None:
        """Free weights and device memory; the next call loads them again."""
        with self._lock:
            self._module = None
        gc.collect()
        _empty_device()


def _default(setting: Any) -> Any:
    if setting.default_factory is not MISSING:
        return setting.default_factory()
    return setting.default


def _empty_device() -> None:
    """Give back to the device what its allocator keeps for the next tensor."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
