"""The storage that `data.path` chooses: by its scheme, unless one is chosen explicitly."""

import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from factory.config.compose import conf_dir
from factory.storage.fsspec_files import READ_ONLY, check_url, protocol_of

# Options of the group by the scheme of a bucket's URL.
_BUCKETS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
_AZURE = ("az", "abfs", "abfss")
# A container and its account as Azure's own tools write them.
_ACCOUNT = re.compile(r"(?P<bucket>[^@]+)@(?P<account>[^.]+)\.(?:dfs|blob)\.core\.windows\.net")


class Choice(NamedTuple):
    """What a path chooses.

    Attributes:
        option: Option of the group `storage`.
        settings: What it is set to.
        writable: Whether a cache may lie there, too.
    """

    option: str
    settings: dict[str, Any]
    writable: bool = True


def choice_of(path: str) -> Choice:
    """Return the storage that reads a path or URL.

    Raises:
        ValueError: Nothing reads it.
    """
    scheme = protocol_of(path)
    if scheme in ("file", "local"):
        return Choice("local", {"root": re.sub(r"^(?:file|local)://", "", path)})
    parts = urlsplit(path)
    prefix = parts.path.strip("/")
    if scheme in _BUCKETS:
        return Choice(_BUCKETS[scheme], {"bucket": parts.netloc, "prefix": prefix})
    if scheme in _AZURE:
        found = _ACCOUNT.fullmatch(parts.netloc)
        place = found.groupdict() if found else {"bucket": parts.netloc}
        return Choice("azure", {**place, "prefix": prefix})
    if scheme in ("http", "https"):
        return Choice("http", {"url": path}, writable=False)
    if whole := re.fullmatch(r"hf://datasets/([^/@]+/[^/@]+)(?:@([^/]+))?/?", path):
        settings = {"dataset": whole[1], "revision": whole[2]}
        return Choice("huggingface", settings, writable=False)
    try:
        check_url(path)
    except ValueError as error:
        raise ValueError(str(error).replace("storage.url", "data.path", 1)) from None
    writable = scheme not in READ_ONLY and scheme != "hf"
    return Choice("fsspec", {"url": path}, writable)


def choose_storage(
    cfg: DictConfig, overrides: Iterable[str], kinds: Iterable[str]
) -> Iterator[str]:
    """Set the storage of a config to what `data.path` names; yield what is wrong with it.

    A storage that can be written to becomes the run's, caches included; one that is only read
    becomes that of the backends which follow the run's.

    Args:
        cfg: The config, completed in place.
        overrides: Those it was composed from: they tell whether a storage was chosen.
        kinds: Names of backends whose storage holds samples.
    """
    path = OmegaConf.select(cfg, "data.path")
    if not path or OmegaConf.is_missing(cfg, "storage"):
        return
    try:
        choice = choice_of(str(path))
    except ValueError as error:
        yield str(error)
        return
    given = _option_of(cfg.storage)
    chosen = given != "local" or any(text.partition("=")[0] == "storage" for text in overrides)
    if chosen and given == "fsspec":
        choice = Choice("fsspec", {"url": str(path)})
    if chosen and choice.option != given:
        yield (
            f"data.path={path} is read by storage={choice.option}, and storage={given} is chosen; "
            "take one of them away"
        )
    elif choice.option not in _options():
        yield f"data.path={path} needs storage={choice.option}, which this version does not have"
    elif choice.option == given:
        cfg.storage.update(choice.settings)
    elif choice.writable:
        cfg.storage = _made(choice)
    else:
        _pin(cfg.data.backends, kinds, choice)


def _pin(backends: DictConfig, names: Iterable[str], choice: Choice) -> None:
    """Give backends that follow the run's storage one of their own."""
    for name in names:
        values: Any = OmegaConf.to_container(backends[name], resolve=False)
        if values["storage"] == "${storage}":
            backends[name].storage = _made(choice)


def _options() -> dict[str, Any]:
    entries = ConfigStore.instance().repo["schema"]["storage"]
    return {name.removesuffix(".yaml"): entry.node for name, entry in entries.items()}


def _option_of(node: DictConfig) -> str:
    """Return the option that a storage was composed from."""
    kind = OmegaConf.get_type(node)
    return next((n for n, schema in _options().items() if OmegaConf.get_type(schema) is kind), "")


def _made(choice: Choice) -> Any:
    """Return an option of the group with its settings, as the command line would compose it."""
    file = conf_dir() / "storage" / f"{choice.option}.yaml"
    own: Any = OmegaConf.load(file)
    return OmegaConf.merge(_options()[choice.option], own.get("storage", {}), choice.settings)
