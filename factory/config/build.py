"""Building objects from a composed config: the one place that calls `instantiate`."""

import logging
from collections.abc import Iterable
from contextlib import closing
from typing import TYPE_CHECKING, Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

from factory.config.check import EMBEDS, check, kind_of, order
from factory.config.moved_targets import follow
from factory.errors import ConfigError, FactoryError
from factory.metrics.stages import Telemetry

if TYPE_CHECKING:
    from factory.lightning.datamodule import FactoryDataModule

logger = logging.getLogger("factory")

# Marks a config that was checked in this process.
_CHECKED = "factory_checked"


def build(
    cfg: DictConfig, overrides: Iterable[str] = (), *, telemetry: Telemetry | None = None
) -> "FactoryDataModule":
    """Check a composed config and build the data module from it; no I/O.

    Args:
        cfg: A config from `factory.compose`, or from `@hydra.main`; left as it was.
        overrides: The overrides it was composed from, so that edits of shared parts are seen.
        telemetry: Where stages are recorded; one of its own if None.

    Returns:
        The data module; `prepare_data` and `setup` do the work.

    Raises:
        ConfigError: The config cannot be built; all problems at once.
    """
    # Brings torch and Lightning: some seconds, in which nothing could be said about a config.
    from factory.lightning.datamodule import FactoryDataModule

    telemetry = telemetry or Telemetry()
    with telemetry.stage("check config"):
        cfg = verify(cfg, overrides).copy()
    built = []
    for name in order(cfg):
        node = cfg.data.backends[name]
        if kind_of(node) in EMBEDS and node.encoder is None:
            # No encoder was chosen: pixels, or texts, are delivered as they are.
            _forget(cfg, kind_of(node), str(name))
            continue
        with telemetry.stage(f"build {name}"):
            built.append(made := make(node, f"data.backends.{name}"))
        _warn_of_toy(cfg, made)
    shared = ("sampling", "cache", "prefetch", "engine", "quarantine")
    parts = {key: make(cfg.data[key], f"data.{key}") for key in shared}
    accepted = cfg.data.accept_changed_plan
    return FactoryDataModule(
        built,
        batch_size=cfg.data.batch_size,
        seed=cfg.data.seed,
        accept_changed_plan=accepted if isinstance(accepted, bool) else list(accepted),
        context_parallel=cfg.data.context_parallel,
        peer_timeout_s=cfg.data.peer_timeout_s,
        exclude=make(cfg.data.exclude, "data.exclude"),
        ledger=cfg.data.ledger,
        telemetry=telemetry,
        **parts,
    )


def _warn_of_toy(cfg: DictConfig, backend: Any) -> None:
    """Say that an encoder is for the demo alone, where other data than the demo's is encoded."""
    from factory.encoder.kinds import toy_advice

    encoder = getattr(backend, "encoder", None)
    if not cfg.data.demo and (advice := toy_advice(backend.name, encoder)):
        logger.warning(advice)


def _forget(cfg: DictConfig, kind: str, name: str) -> None:
    """Take back what backends say about a store of embeddings that is not built."""
    for node in cfg.data.backends.values():
        if OmegaConf.select(node, kind) == name:
            node[kind] = None


def verify(cfg: DictConfig, overrides: Iterable[str] = ()) -> DictConfig:
    """Check a composed config without any I/O; it is left as it was.

    Returns:
        A completed copy, which `preflight` and `build` do not check again.

    Raises:
        ConfigError: The config cannot be built; all problems at once.
    """
    if cfg._get_flag(_CHECKED):  # noqa: SLF001 - OmegaConf has flags for such notes, by this name
        return cfg
    cfg = cfg.copy()
    OmegaConf.set_readonly(cfg, False)
    OmegaConf.set_struct(cfg, False)
    check(cfg, overrides)
    cfg._set_flag(_CHECKED, True)  # noqa: SLF001 - as above
    return cfg


def preflight(cfg: DictConfig, overrides: Iterable[str] = ()) -> None:
    """Check a composed config, and that its storages answer; quick, and brings no torch.

    Raises:
        ConfigError: The config cannot be built; all problems at once.
        StorageError: A storage does not answer or refuses, within 10 seconds; names the
            setting at fault.
    """
    cfg = verify(cfg, overrides)
    with closing(make(cfg.cache.storage, "cache.storage")) as storage:
        storage.check(write=True)
    with closing(make(cfg.storage, "storage")) as storage:
        storage.check()


def make(node: DictConfig | ListConfig, key: str, **given: Any) -> Any:
    """Instantiate one part of a config; plain lists and dicts reach its constructor.

    Args:
        node: The part, with a `_target_`.
        key: Where it stands in the config, for messages.
        given: Arguments that no config can hold.

    Raises:
        ConfigError: The target cannot be imported, or refuses its arguments.
    """
    follow(node)
    try:
        return instantiate(node, _convert_="all", **given)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, FactoryError):
            cause.add_note(f"while building {key}")
            raise cause from None
        reason = cause if isinstance(cause, ValueError | TypeError) else error
        raise ConfigError(f"{key}: {reason}") from error
