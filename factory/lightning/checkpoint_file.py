"""Checks of checkpoint files and folders before they are loaded: complete, and trusted."""

import os
import zipfile
import zlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from pickle import UnpicklingError

import torch

from factory.errors import ResumeError

SUFFIX = ".ckpt"
# How a file begins that torch.save wrote before it wrote zip archives; only loading tells more.
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
# By what Lightning knows folders of its sharded strategies: the first of FSDP's (and whatever else
# torch.distributed.checkpoint writes), the second a folder of DeepSpeed's.
_META, _DEEPSPEED = "meta.pt", "checkpoint"
_INDEX = ".metadata"
# Read at a time where checksums are compared: a megabyte costs nothing to hold.
_CHUNK = 2**20
# torch's own switch for files that their owner trusts.
TRUST = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


def is_sharded(path: Path) -> bool:
    """Tell whether a folder is a checkpoint that a sharded strategy wrote."""
    return (path / _META).is_file() or (path / _DEEPSPEED).is_dir()


def check_whole(path: Path, among: Iterable[Path] | None = None) -> None:
    """Refuse a checkpoint that is empty, breaks off or is damaged.

    Args:
        path: The file, or the folder of a sharded strategy.
        among: Where to look for an older one that is whole; those beside it if None.

    Raises:
        ResumeError: It is not whole; names it, what is wrong, and the next older one that is.
    """
    fault = _fault_of(path)
    if fault is None:
        return
    older = next_older(path, path.parent.glob(f"*{SUFFIX}") if among is None else among)
    advice = (
        f"the next older one that is whole is {older}: set ckpt_path={older}"
        if older is not None
        else f"no older one that is whole lies beside it in {path.parent}; start without ckpt_path"
    )
    raise ResumeError(f"the checkpoint {path} is not whole: {fault}; {advice}")


def next_older(path: Path, among: Iterable[Path]) -> Path | None:
    """Return the newest whole checkpoint that is no newer than a file, and another file."""
    times = {}
    for file in among:
        if file.exists() and not file.samefile(path):
            times[file] = file.stat().st_mtime_ns
    limit = path.stat().st_mtime_ns
    candidates = (file for file in times if times[file] <= limit)
    ordered = sorted(candidates, key=lambda file: (times[file], str(file)), reverse=True)
    return next((file for file in ordered if _fault_of(file) is None), None)


def check_trusted(path: Path) -> None:
    """Refuse a checkpoint of classes that torch does not load by default.

    Raises:
        ResumeError: Names the classes, and how to do without them or allow them; or torch cannot
            read it at all.
    """
    if path.is_dir():
        if (path / _META).is_file():  # what DeepSpeed writes, its own loader reads
            check_trusted(path / _META)
        return
    if os.environ.get(TRUST, "").lower() in ("1", "y", "yes", "true") or _is_legacy(path):
        return
    try:
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except RuntimeError as error:  # its reader of archives is stricter than Python's
        raise ResumeError(
            f"the checkpoint {path} is not whole: {str(error).splitlines()[0]:.160}; set ckpt_path "
            "to an older one"
        ) from error
    if foreign:
        raise ResumeError(f"the checkpoint {path} {_untrusted(', '.join(sorted(foreign)))}")


def explain_failure(given: str | Path | None, error: BaseException) -> ResumeError | None:
    """Return why a checkpoint could not be loaded, if a file on this machine is at fault.

    Args:
        given: The checkpoint, if there is one.
        error: What loading it raised.
    """
    path = Path(given or "")
    if not (isinstance(error, EOFError | OSError | RuntimeError | UnpicklingError)):
        return None
    try:
        if given is None or not path.exists():
            return None
        check_whole(path)
    except ResumeError as found:
        return found
    except OSError:  # not to be read: then the error says so itself
        return None
    if isinstance(error, UnpicklingError):
        return ResumeError(f"the checkpoint {path} {_untrusted(str(error).splitlines()[-1])}")
    return None


def _untrusted(what: str) -> str:
    return (
        f"holds objects that torch does not load by default, since loading them may run code: "
        f"{what}. Keep them out of the next one (save_hyperparameters(ignore=[…]), plain values "
        "in state_dict), or allow them where the model is imported by "
        "torch.serialization.add_safe_globals([…]); or, if you trust the file as you trust a "
        f"program, set {TRUST}=1 in the environment"
    )


def _is_legacy(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_LEGACY)) == _LEGACY


def _fault_of(path: Path) -> str | None:
    """Return what is wrong with a checkpoint; None if it is whole."""
    if path.is_dir():
        return _folder_fault(path)
    facts = path.stat()
    return _fault(path, facts.st_size, facts.st_mtime_ns)


def _folder_fault(path: Path) -> str | None:
    if not is_sharded(path):
        return f"it is a folder without {_META}, so none of a sharded strategy"
    if not (path / _META).is_file():
        return None
    if not (path / _INDEX).is_file():
        return f"it lacks {_INDEX}, which is written last"
    for file in sorted(path.iterdir()):
        if file.is_file() and not file.stat().st_size:
            return f"its {file.name} is empty"
    fault = _fault_of(path / _META)
    return None if fault is None else f"of its {_META}, {fault}"


@lru_cache(maxsize=64)  # one that is chosen is looked at again when it is loaded
def _fault(path: Path, size: int, changed_ns: int) -> str | None:
    del changed_ns  # only tells files apart
    if not size:
        return "it is empty"
    if _is_legacy(path):
        return _legacy_fault(path)
    try:
        with zipfile.ZipFile(path) as archive:
            return _entry_fault(archive)
    except (zipfile.BadZipFile, EOFError, zlib.error, NotImplementedError, ValueError) as error:
        return f"its {size:,} bytes are no whole archive of torch.save ({error})"


def _entry_fault(archive: zipfile.ZipFile) -> str | None:
    entries = archive.infolist()
    if not any(entry.filename.endswith("data.pkl") for entry in entries):
        return "it is an archive, but none of torch.save"
    if not any(entry.CRC for entry in entries):
        return None  # written after torch.serialization.set_crc32_options(False)
    for entry in entries:
        try:
            with archive.open(entry) as file:
                while file.read(_CHUNK):
                    pass
        except (zipfile.BadZipFile, EOFError, zlib.error, OSError, RuntimeError):
            return f"what it holds of {entry.filename} is damaged"
    return None


def _legacy_fault(path: Path) -> str | None:
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        return None if "Unsupported" in str(error) else f"{error}"
    except (EOFError, OSError, RuntimeError) as error:
        return f"it breaks off ({error})"
    return None
