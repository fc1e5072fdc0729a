"""Which config was a run made of? Read from its folder, and composed again."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from factory.composer import compose
from factory.errors import ConfigError
from factory.sampling.fingerprint import difference

# Which source of configs a run was given beside the factory's own.
_OF_USERS = ("command-line", "hydra.searchpath in command-line")
# Parts of a config that shape the data; a model or a trainer changed since does not matter.
_OF_DATA = ("seed", "storage", "metadata", "sampling", "cache", "encoder", "data")


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
    given = [str(text) for text in _read(folder, "overrides.yaml")]
    runtime = OmegaConf.select(_read(folder, "hydra.yaml"), "hydra.runtime")
    if runtime is None:
        raise ConfigError(f"{folder / '.hydra/hydra.yaml'} says nothing about the run's start")
    theirs = [each.path for each in runtime.config_sources if each.provider in _OF_USERS]
    config_dir = theirs[0].removeprefix("file://") if theirs else None
    used = [text for text in given if not text.startswith("hydra.")]
    config = compose([*used, *overrides], config_dir=config_dir)
    config.paths.run_dir = str(folder.resolve())
    before = _shown(_read(folder, "config.yaml"))
    now = _shown(config if not overrides else compose(used, config_dir=config_dir))
    changes = difference(before, now)
    return FormerRun(folder, config, [*used, *overrides], Path(runtime.cwd), changes)


def _read(folder: Path, name: str) -> Any:
    file = folder / ".hydra" / name
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
        return {str(key): _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list) else value


def run_length(config: DictConfig) -> Iterator[tuple[str, int]]:
    """Yield the limits a run's trainer has: ("steps" or "epochs", how many)."""
    for kind in ("steps", "epochs"):
        limit = config.trainer.get(f"max_{kind}")
        if limit is not None and limit >= 0:
            yield kind, int(limit)
