"""A folder for each run: made for it alone, or taken where the run was told to write.

Two processes that start in one second name the same folder, and a folder that was named by hand
may hold a run. It is decided before anything is written.
"""

import errno
import fcntl
import os
from contextlib import suppress
from itertools import count
from pathlib import Path

from omegaconf import DictConfig, open_dict

from factory.config.run_folder import HYDRA
from factory.errors import ConfigError, StorageError

# What a run that has trained leaves; one that failed before may be started again in its place.
_TRAINED = ("checkpoints", "ledger")
# Variables by which launchers tell a process that it is one of several.
_SEVERAL = ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
# What a disk says that takes no more, and of what may not be written.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
# Folders of this process, locked until it ends.
_LOCKED: list[int] = []


def claim(config: DictConfig, kind: str) -> None:
    """Make a folder for a run or sweep alone, and set `hydra.KIND.dir` to it.

    A folder that is named by the time gets a number if it is there. One that was named on the
    command line is used as it is, unless it holds a run that this one does not continue.
    Processes of one run, as `torchrun` starts them, share what they are given.

    Args:
        config: The composed config, Hydra's part included; changed in place.
        kind: "run" or "sweep".

    Raises:
        ConfigError: The folder holds a run, or one that is under way.
        StorageError: It cannot be made.
    """
    if config.hydra.output_subdir is None or _is_one_of_several():
        return
    setting = f"hydra.{kind}.dir"
    wanted = Path(config.hydra[kind].dir)
    named = any(text.startswith(f"{setting}=") for text in config.hydra.overrides.hydra)
    try:
        if named:
            wanted.mkdir(parents=True, exist_ok=True)
            _check_free(wanted, setting, config.get("ckpt_path") if kind == "run" else None)
            folder = wanted
        else:
            folder = _made(wanted)
    except OSError as error:
        raise unwritable(wanted, error) from error
    _lock(folder)
    if named:
        return
    with open_dict(config):
        config.hydra[kind].dir = str(folder)
    quoted = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    # Hydra composes each job of a sweep anew, from these.
    config.hydra.overrides.hydra.append(f"{setting}='{quoted}'")


def unwritable(folder: Path, error: OSError) -> StorageError:
    """Return the error for a run folder that cannot be written, with what moves it elsewhere."""
    return StorageError(
        f"cannot write the run folder {folder}: {error.strerror or error}; free some space or "
        "allow it there, or have it elsewhere: hydra.run.dir=FOLDER for this run, "
        "paths.output_dir=FOLDER (or OUTPUT_DIR) for all"
    )


def is_unwritable(error: OSError, folder: Path) -> bool:
    """Tell whether an error is about writing to a run folder."""
    named = error.filename
    return error.errno in _FULL or (
        isinstance(named, str | os.PathLike) and Path(named).absolute().is_relative_to(folder)
    )


def _is_one_of_several() -> bool:
    several = any(os.environ.get(name, "1").strip() not in ("", "0", "1") for name in _SEVERAL)
    return several or "LOCAL_RANK" in os.environ


def _made(wanted: Path) -> Path:
    """Make a folder that was not there, under a number if its name is taken."""
    wanted.parent.mkdir(parents=True, exist_ok=True)
    for number in count(1):
        folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        with suppress(FileExistsError):
            folder.mkdir()
            break
    return folder


def _check_free(folder: Path, setting: str, checkpoint: str | None) -> None:
    """Refuse a folder in which a run has trained, unless this one goes on from there."""
    if checkpoint is not None and _lies_in(checkpoint, folder):
        return
    places = [folder, *(found.parent for found in folder.glob(f"*/{HYDRA}"))]
    if any((place / name).exists() for place in places for name in _TRAINED):
        mend = "name another folder, or remove this one"
        if setting == "hydra.run.dir":
            mend += f"; to go on with its run: ckpt_path={folder / 'checkpoints/last.ckpt'}"
        raise ConfigError(f"{setting}={folder} holds results of a run already; {mend}")


def _lies_in(checkpoint: str, folder: Path) -> bool:
    return checkpoint == "last" or Path(checkpoint).resolve().is_relative_to(folder.resolve())


def _lock(folder: Path) -> None:
    """Keep other runs out of a folder for as long as this process lives.

    Raises:
        ConfigError: Another run is under way in it.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(
            f"another run is writing into {folder}; name another folder: hydra.run.dir=FOLDER"
        ) from None
    except OSError:
        return  # a file system without locks
    _LOCKED.append(descriptor)
