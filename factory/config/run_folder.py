"""Run folders: claimed by a run before anything is written, and read by those that continue it.

Two processes that start in one second name the same folder, and a folder that was named by hand
may hold a run.
"""

import errno
import fcntl
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from factory.config.compose import compose
from factory.config.moved_targets import MOVED
from factory.errors import ConfigError, StorageError
from factory.sampling.fingerprint import difference

# Which source of configs a run was given beside the factory's own.
_OF_USERS = ("command-line", "hydra.searchpath in command-line")
# When a run or a sweep was begun, as its folder is named; of several in one second the number,
# and of a sweep the job's.
_BEGUN = re.compile(r"(\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d)(?:-(\d+))?(?:/(\d+))?$")
# Where Hydra writes the config of a run.
HYDRA = ".hydra"
# Parts of a config that shape the data; a model or a trainer changed since does not matter.
_OF_DATA = ("seed", "storage", "metadata", "sampling", "cache", "encoder", "data")
# What a run that has trained leaves; one that failed before may be started again in its place.
_TRAINED = ("checkpoints", "ledger")
# Variables by which launchers tell a process that it is one of several.
_SEVERAL = ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
# What a disk says that takes no more, and of what may not be written.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
# Folders of this process, locked until it ends.
_LOCKED: list[int] = []


@dataclass(frozen=True)
class FormerRun:
    """A run that was begun before.

    Attributes:
        folder: Its folder.
        config: Its config, composed again.
        overrides: What it was composed from.
        working_dir: Where it was started; relative paths of its config begin there.
        changes: What its options say otherwise than they did then, a line each.
    """

    folder: Path
    config: DictConfig
    overrides: list[str]
    working_dir: Path
    changes: list[str]


def former_run(folder: Path, overrides: Sequence[str] = ()) -> FormerRun:
    """Compose the config of a run once more.

    Args:
        folder: The run's folder, as it was printed at its end.
        overrides: What is to be different, after the run's own overrides.

    Raises:
        ConfigError: It is no run folder, or its options are gone.
    """
    used = former_overrides(folder)
    runtime = _runtime(folder)
    config_dir = _config_dir(runtime)
    config = compose([*used, *overrides], config_dir=config_dir)
    config.paths.run_dir = str(folder.resolve())
    before = _shown(_read(folder, "config.yaml"))
    now = _shown(config if not overrides else compose(used, config_dir=config_dir))
    changes = difference(before, _without_later(now, before))
    return FormerRun(folder, config, [*used, *overrides], Path(runtime.cwd), changes)


def former_overrides(folder: Path) -> list[str]:
    """Return the overrides that a run was composed from, without those of Hydra itself.

    Raises:
        ConfigError: It is no run folder.
    """
    given = [str(text) for text in _read(folder, "overrides.yaml")]
    return [text for text in given if not text.startswith("hydra.")]


def former_config_dir(folder: Path) -> str | None:
    """Return the folder of configs that a run was given beside the factory's own.

    Raises:
        ConfigError: It is no run folder.
    """
    return _config_dir(_runtime(folder))


def _runtime(folder: Path) -> Any:
    runtime = OmegaConf.select(_read(folder, "hydra.yaml"), "hydra.runtime")
    if runtime is None:
        raise ConfigError(f"{folder / HYDRA / 'hydra.yaml'} says nothing about the run's start")
    return runtime


def _config_dir(runtime: Any) -> str | None:
    theirs = [each.path for each in runtime.config_sources if each.provider in _OF_USERS]
    return theirs[0].removeprefix("file://") if theirs else None


def continued(former: Sequence[str], given: Sequence[str]) -> list[str]:
    """Return what stays of a former run's overrides beside those that are given now.

    What is set now replaces what was set, and what was set below it: another `data=` takes the
    former one's `data.backends.…` along.
    """
    changed = [_target(text) for text in given]
    return [
        text for text in former if not any(_reaches(target, _target(text)) for target in changed)
    ]


def _target(override: str) -> tuple[str, str]:
    """Return the key of an override, and the key of what it fills."""
    key = override.partition("=")[0].lstrip("+~")
    group, _, package = key.partition("@")
    return key, f"{package}.{group.rpartition('/')[2]}" if package else key


def _reaches(changed: tuple[str, str], before: tuple[str, str]) -> bool:
    """Tell whether a change replaces what was set before, or what that belongs to."""
    if changed[0] == before[0]:
        return True
    return before[1].startswith((f"{changed[1]}.", f"{changed[1]}/"))


def _read(folder: Path, name: str) -> Any:
    file = folder / HYDRA / name
    try:
        return OmegaConf.load(file)
    except FileNotFoundError:
        raise ConfigError(
            f"{folder} is no run folder: there is no {file}; give the one that train.py named "
            "at its end (Results are in …)"
        ) from None
    except (OSError, YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error


def _shown(config: Any) -> dict[str, Any]:
    """Return what shapes the data, as it is written, without what follows elsewhere."""
    values: Any = OmegaConf.to_container(config, resolve=False, enum_to_str=True)
    return {key: _plain(values[key]) for key in _OF_DATA if key in values}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            str(key): MOVED.get(str(part), part) if key == "_target_" else _plain(part)
            for key, part in value.items()
        }
    return [_plain(part) for part in value] if isinstance(value, list) else value


def _without_later(now: dict[str, Any], before: Any) -> dict[str, Any]:
    """Leave out options that came after a run and are off: they change nothing of it."""
    known = before if isinstance(before, dict) else {}
    return {
        key: _without_later(value, known.get(key)) if isinstance(value, dict) else value
        for key, value in now.items()
        if key in known or not (value is None or value is False)
    }


def run_length(config: DictConfig) -> Iterator[tuple[str, int]]:
    """Yield the limits a run's trainer has: ("steps" or "epochs", how many)."""
    for kind in ("steps", "epochs"):
        limit = config.trainer.get(f"max_{kind}")
        if limit is not None and limit >= 0:
            yield kind, int(limit)


def newest_checkpoint(output_dir: Path, beside: Path | None = None) -> tuple[Path, Path] | None:
    """Return the folder and the last checkpoint of the newest run that left one.

    The newest run is the one begun last, whichever file was written or copied last.

    Args:
        output_dir: Where runs are looked for.
        beside: The folder of the run that asks: jobs of its own sweep are not looked at.
    """
    sweep = (
        beside.parent
        if beside is not None and (beside.parent / "multirun.yaml").is_file()
        else None
    )
    runs: dict[Path, list[Path]] = {}
    for file in output_dir.rglob("*.ckpt"):
        if sweep is None or not file.is_relative_to(sweep):
            runs.setdefault(_run_of(file), []).append(file)
    if not runs:
        return None
    newest = max(runs, key=_begun)
    return newest, max(runs[newest], key=_finality)


def _run_of(checkpoint: Path) -> Path:
    """Return the folder of the run that wrote a checkpoint."""
    for folder in checkpoint.parents:
        if (folder / HYDRA).is_dir():
            return folder
    return (
        checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent
    )


def _begun(folder: Path) -> tuple[float, int, int]:
    """Return when a run was begun: as its folder is named, else as its config was written."""
    if named := _BEGUN.search(folder.as_posix()):
        moment = datetime.strptime(named[1], "%Y-%m-%d_%H-%M-%S")  # local, as `now`
        return moment.timestamp(), int(named[2] or 1), int(named[3] or 0)
    config = folder / HYDRA
    return (config if config.is_dir() else folder).stat().st_mtime, 1, 0


def _finality(checkpoint: Path) -> tuple[bool, float]:
    """Return what orders the checkpoints of a run: `last` comes after those kept on the way."""
    return checkpoint.stem.startswith("last"), checkpoint.stat().st_mtime


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
