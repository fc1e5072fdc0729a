"""Ways around work that Hydra and OmegaConf repeat; all use of their inner modules is here."""

import functools
from collections.abc import Sequence
from typing import Any

import omegaconf
from hydra._internal import defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, grammar_parser

_choices_so_far = defaults_list._create_interpolation_map  # noqa: SLF001
# A config holds some 50 texts with `${...}`, each parsed whenever its value is read. Parsed
# texts are only read; 512 of them are a few MB.
_parse = functools.lru_cache(maxsize=512)(grammar_parser.parse)


def apply() -> None:
    """Have Hydra leave out what nothing reads, in this process; safe to call twice."""
    # Hydra copies the store with all its schemas for each compose, and for each of the 200
    # groups that `--help` lists (6 s), to no end: what is read from the store is copied again.
    store = ConfigStore.instance()
    store.__deepcopy__ = lambda _: store  # type: ignore[attr-defined]
    # For each file Hydra puts all choices so far into a config, a third of the time to compose;
    # they are read only where a defaults list has `${...}` in it.
    defaults_list._create_interpolation_map = _choices_if_read  # type: ignore[assignment] # noqa: SLF001
    omegaconf.base.parse = _parse  # type: ignore[attr-defined]


def _choices_if_read(overrides: Any, defaults: Any, self_added: bool) -> DictConfig:
    if any(default.is_interpolation() for default in defaults):
        return _choices_so_far(overrides, defaults, self_added)
    return DictConfig({})


def apart(overrides: Sequence[str]) -> tuple[list[str], list[Override]]:
    """Return overrides that Hydra needs to compose, and values to be set once that is done.

    Values are only told apart where that makes no difference.
    """
    listed = list(overrides)
    try:
        parsed = OverridesParser.create().parse_overrides(listed)
    except HydraException:
        return listed, []  # refused by Hydra, too
    rest = [override for override in parsed if not _is_value(override)]
    sweeps = any(override.is_sweep_override() for override in parsed)
    # A mapping or list may be what a value is set in.
    if sweeps or any(isinstance(override.value(), dict | list) for override in rest):
        return listed, []
    values = [override for override in parsed if _is_value(override)]
    return [str(override.input_line) for override in rest], values


def _is_value(override: Override) -> bool:
    key = override.key_or_group
    return "." in key and "/" not in key and not (override.package or key.startswith("hydra."))


def set_values(config: DictConfig, values: list[Override]) -> None:
    """Set values in a composed config as Hydra sets those of its command line."""
    ConfigLoaderImpl._apply_overrides_to_config(values, config)  # noqa: SLF001
