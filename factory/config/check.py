"""The check of a composed config: it is completed, and every problem found, before any I/O."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import (
    InterpolationKeyError,
    InterpolationResolutionError,
    InterpolationToMissingValueError,
    OmegaConfBaseException,
)

from factory.config.compose import suggest, tidy
from factory.config.data_path import choose_storage
from factory.config.moved_targets import follow
from factory.config.schema.derived import problems_of
from factory.config.schema.run import RunConfig
from factory.config.secrets import masked, without, written_secrets
from factory.config.unused import unused
from factory.errors import ConfigError, PlanError
from factory.limits import in_full
from factory.registry.build_order import build_order
from factory.sampling.rank_shares import RankLayout, check_division
from factory.storage.fsspec_files import READ_ONLY as READ_ONLY_PROTOCOLS
from factory.storage.fsspec_files import protocol_of

# What the `inherit` option of each slot composes to, and the group that fills it.
INHERIT = {
    "storage": "${storage}",
    "metadata": "${metadata}",
    "caption": "${data.caption}",
    "crop": "${data.crop}",
    "cache": "${cache}",
}
GROUP = {
    "storage": "storage",
    "metadata": "metadata",
    "caption": "data/caption",
    "crop": "data/crop",
    "cache": "cache",
}
# Kinds of embeddings, and the part of `encoder` that fills them.
EMBEDS = {"text_embeds": "text", "image_embeds": "image", "conditioning_image_embeds": "vision"}
# Storages that hold no cache.
READ_ONLY = ("UrlListStorage", "HuggingFaceStorage", "HttpStorage", "TarStorage")
# Those every run has.
USUAL_EMBEDS = ("text_embeds", "image_embeds")
_ABSENT = "{0} is taken away, and nothing works without it; choose one of its options: {0}=OPTION"
# Kinds of backends whose batches are trained on.
_OF_SAMPLES = ("image", "video", "stream")


def check(cfg: DictConfig, overrides: Iterable[str] = ()) -> None:
    """Complete a composed config in place and refuse what cannot be built.

    Raises:
        ConfigError: All problems at once, each naming the key, what was given, what is
            allowed and how to mend it.
    """
    overrides = list(overrides)
    follow(cfg)
    secrets = written_secrets(cfg)
    problems = [secret.problem for secret in secrets]
    if absent := [
        option.name for option in fields(RunConfig) if OmegaConf.is_missing(cfg, option.name)
    ]:
        # Everything else is looked for in them.
        raise ConfigError([*problems, *(_ABSENT.format(name) for name in absent)])
    problems += _shared_edits(cfg, overrides)
    problems += _adopt_plain_backends(cfg)
    problems += _add_default_embeds(cfg)
    problems += choose_storage(cfg, overrides, _names_of_samples(cfg))
    problems += _complete_image_conditioning(cfg)
    problems += _own_storages(cfg)
    problems += _missing(cfg)
    problems += _values(cfg)
    problems += _references(cfg)
    problems += _divisions(cfg)
    problems += unused(cfg, overrides)
    if problems:
        # What is wrong with a value is often said with it.
        raise ConfigError(list(dict.fromkeys(without(problem, secrets) for problem in problems)))


def _names_of_samples(cfg: DictConfig) -> list[str]:
    """Return the names of the backends that read samples from a storage."""
    nodes = cfg.data.backends.items()
    return [str(name) for name, node in nodes if "storage" in node and kind_of(node) not in EMBEDS]


def _shared_edits(cfg: DictConfig, overrides: Iterable[str]) -> Iterator[str]:
    """Find value overrides that reach through an inherited slot.

    `data.backends.photos.storage.max_attempts=9` would edit the storage every backend
    shares, because the slot is an interpolation of it.
    """
    for override in overrides:
        key, _, value = masked(override).partition("=")
        key = key.lstrip("+~")
        if "@" in key or "/" in key:
            continue
        path = key.split(".")
        for depth in range(1, len(path)):
            parent, slot = ".".join(path[: depth - 1]), path[depth - 1]
            node = OmegaConf.select(cfg, parent) if parent else cfg
            if not isinstance(node, DictConfig) or slot not in node:
                break
            if not OmegaConf.is_interpolation(node, slot):
                continue
            shared = str(OmegaConf.to_container(node, resolve=False)[slot]).strip("${}")  # type: ignore[index,call-overload]
            rest = ".".join(path[depth:])
            yield (
                f"{key} edits {shared}, which other parts share; set {shared}.{rest}={value} "
                f"for all of them, or pin this one first: {GROUP.get(slot, slot)}@{parent}=OPTION"
            )
            break


def _adopt_plain_backends(cfg: DictConfig) -> list[str]:
    """Give each backend added as a plain value the schema of its `kind`."""
    problems = []
    for name, node in list(cfg.data.backends.items()):
        if not isinstance(node, DictConfig):
            problems.append(f"data.backends.{name} is {node!r}, expected a mapping with a `kind`")
            del cfg.data.backends[name]
        elif OmegaConf.get_type(node) is dict:
            try:
                others = [other for other in cfg.data.backends if other != name]
                cfg.data.backends[name] = _adopted(f"data.backends.{name}", node, others)
            except ConfigError as error:
                problems += error.problems
                del cfg.data.backends[name]
    return problems


def _adopted(key: str, node: DictConfig, others: Iterable[Any] = ()) -> Any:
    value = dict(OmegaConf.to_container(node))  # type: ignore[arg-type]
    # The stores that a run is given are named by their kind, and may be set without saying it.
    name = key.rpartition(".")[2]
    kind = value.pop("kind", name if name in EMBEDS else None)
    kinds = sorted(_kinds())
    if kind not in kinds:
        near = get_close_matches(name, list(map(str, others)), n=1) if kind is None else []
        hint = f"did you mean data.backends.{near[0]}? " if near else ""
        raise ConfigError(
            f"{hint}{key}.kind is {kind!r}, expected one of {', '.join(kinds)}; "
            f"or compose it: +data/backend@{key}={kinds[0]}"
        )
    schema = ConfigStore.instance().load(f"schema/backend/{kind}.yaml").node
    declared = {option.name for option in fields(_kinds()[kind])}
    # A slot with a value of its own, such as none, follows nothing.
    slots = {
        slot: wired
        for slot, wired in INHERIT.items()
        if slot in declared and OmegaConf.is_missing(schema, slot)
    }
    if kind in EMBEDS:
        slots["encoder"] = f"${{encoder.{EMBEDS[kind]}}}"
    try:
        return OmegaConf.merge(schema, slots, value)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{key}: {tidy(error)}") from error


def _add_default_embeds(cfg: DictConfig) -> Iterator[str]:
    """Give a run that names no store of embeddings one of each kind, named by its kind."""
    kinds = {kind_of(node) for node in cfg.data.backends.values()}
    for kind in USUAL_EMBEDS:
        if kind in kinds:
            continue
        if kind in cfg.data.backends:
            yield (
                f"data.backends.{kind} is {kind_of(cfg.data.backends[kind])}, and a run that names "
                f"no {kind} backend is given one of that name; give yours another name, or name "
                f"one: +data/backend@data.backends.NAME={kind}"
            )
        else:
            node = OmegaConf.create({"kind": kind, "default": True})
            cfg.data.backends[kind] = _adopted(f"data.backends.{kind}", node)


def _complete_image_conditioning(cfg: DictConfig) -> list[str]:
    """Give stores of image embeddings a batch size, and refuse those without an encoder."""
    problems = []
    of_kind: dict[str, list[tuple[str, DictConfig]]] = {}
    for name, node in cfg.data.backends.items():
        of_kind.setdefault(kind_of(node), []).append((str(name), node))
    latents = [node for _, node in of_kind.get("image_embeds", ())]
    # The default one comes first, as where a backend names none.
    latents.sort(key=lambda node: _read(node, "default") is not True)
    for name, node in of_kind.get("conditioning_image_embeds", ()):
        if _read(node, "batch_size") is None and latents:
            node.batch_size = _read(latents[0], "batch_size")
        if _read(node, "encoder") is None:
            problems.append(
                f"data.backends.{name} has no encoder; choose one with encoder/vision=transformers "
                "encoder.vision.model=MODEL"
            )
    return problems


def _read(node: DictConfig, name: str) -> Any:
    """Return a value, or what stands for a missing one where it cannot be read."""
    try:
        return node[name]
    except OmegaConfBaseException:
        return MISSING  # its own check reports it


def kind_of(node: DictConfig) -> str:
    """Return the kind of a typed backend: "image", "text_embeds", and so on."""
    kind = OmegaConf.get_type(node)
    return next((name for name, schema in _kinds().items() if schema is kind), "")


def _kinds() -> dict[str, type]:
    """Return the schema of each kind of backend, plugins' included."""
    entries = ConfigStore.instance().repo["schema"]["backend"]
    return {
        name.removesuffix(".yaml"): OmegaConf.get_type(entry.node)  # type: ignore[misc]
        for name, entry in entries.items()
    }


def _own_storages(cfg: DictConfig) -> Iterator[str]:
    """Refuse storages that cannot be written where a cache has to be."""
    try:
        target = str(OmegaConf.select(cfg, "cache.storage._target_"))
        url = str(OmegaConf.select(cfg, "cache.storage.url"))
    except (OmegaConfBaseException, AttributeError):
        return  # it has no value, which is reported as such
    kind = target.rpartition(".")[2]
    if kind in READ_ONLY or (kind == "FsspecStorage" and protocol_of(url) in READ_ONLY_PROTOCOLS):
        yield (f"cache.storage is {kind}, which cannot be written; set storage@cache=local")


def _missing(cfg: DictConfig) -> Iterator[str]:
    for key, error in _leaves(cfg, ""):
        if isinstance(error, InterpolationToMissingValueError):
            followed = str(error).partition("Missing mandatory value: ")[2].split()[0]
            yield f"{key} follows {followed}, which has no value; set it: {followed}=VALUE"
        elif isinstance(error, InterpolationKeyError | InterpolationResolutionError):
            yield f"{key}: {tidy(error)}"
        elif error is None:
            yield f"no value for {key}; set it: {key}=VALUE"


def _leaves(node: DictConfig | ListConfig, path: str) -> Iterator[tuple[str, Exception | None]]:
    """Yield (key, error) of what cannot be read; the error is None where the value is missing."""
    keys: Iterable[Any] = node.keys() if isinstance(node, DictConfig) else range(len(node))
    for name in keys:
        key = f"{path}.{name}" if path else str(name)
        if OmegaConf.is_missing(node, name):
            yield key, None
            continue
        try:
            value = node[name]
        except OmegaConfBaseException as error:
            yield key, error
            continue
        if OmegaConf.is_interpolation(node, name):
            continue  # what it points at is looked at where it stands
        if isinstance(value, DictConfig | ListConfig):
            yield from _leaves(value, key)


def _values(cfg: DictConfig) -> Iterator[str]:
    """Yield what the schemas say about their own values, for every typed part."""
    if not cfg.data.backends:
        yield "data.backends is empty; choose data=single or data=multi"
    for key in ("storage", "metadata", "sampling", "cache", "prefetch", "engine", "data"):
        yield from _value_problems(key, cfg[key])
    for name, node in cfg.data.backends.items():
        yield from _value_problems(f"data.backends.{name}", node)


def _value_problems(key: str, node: DictConfig) -> Iterator[str]:
    try:
        value = OmegaConf.to_object(node)
    except OmegaConfBaseException:
        return  # reported where the value is missing
    except ValueError as error:
        yield f"{key}: {error}"
        return
    yield from _walk(key, value, node)


def _walk(key: str, value: Any, node: Any) -> Iterator[str]:
    if isinstance(value, list):
        for number, part in enumerate(value):
            yield from _walk(f"{key}.{number}", part, node._get_node(number))  # noqa: SLF001 - as below
    if is_dataclass(value):
        declared = [option.name for option in fields(value)]
        for name in vars(value).keys() - set(declared):  # "+" on the command line lets any in
            yield f"{key} has no option {name!r}; {suggest(name, declared)}"
        yield from (in_full(key, problem, vars(value)) for problem in problems_of(value))
        for name, part in vars(value).items():
            if isinstance(node, DictConfig) and name == "backends":
                continue  # each is walked on its own
            if isinstance(node, DictConfig) and not OmegaConf.is_interpolation(node, name):
                yield from _walk(f"{key}.{name}", part, node._get_node(name))  # noqa: SLF001 - the one way to read a node unresolved


def _divisions(cfg: DictConfig) -> Iterator[str]:
    """Refuse batches that the trainer's processes cannot share, where it says how many they are."""
    trainer = cfg.trainer
    given = {
        name: trainer.get(name) for name in ("devices", "num_nodes", "accumulate_grad_batches")
    }
    ranks = _count(given["devices"]) * _count(given["num_nodes"])
    micros = _count(given["accumulate_grad_batches"])
    told = " ".join(f"trainer.{name}={value}" for name, value in given.items() if _count(value) > 1)
    sizes = {"data": cfg.data, **{f"data.backends.{n}": b for n, b in cfg.data.backends.items()}}
    try:
        layout = RankLayout(
            ranks=ranks, context_parallel=cfg.data.context_parallel if ranks > 1 else 1
        )
    except PlanError as error:
        yield f"{told}: {error}"
        return
    for key, node in sizes.items():
        size = _read(node, "batch_size")
        if (key == "data" or kind_of(node) in _OF_SAMPLES) and isinstance(size, int) and size > 0:
            try:
                check_division(size, layout.replicas, micros, whom=layout.whom)
            except PlanError as error:
                yield f"{key}.batch_size={size}, {told}: {error}"


def _count(setting: Any) -> int:
    """Return how many a setting of the trainer stands for; 1 where the machine decides."""
    if isinstance(setting, str) and setting.strip().isdecimal():
        setting = int(setting)
    if isinstance(setting, ListConfig):
        return max(len(setting), 1)
    whole = isinstance(setting, int) and not isinstance(setting, bool)
    return max(setting, 1) if whole else 1


def _references(cfg: DictConfig) -> list[str]:
    try:
        order(cfg)
    except ConfigError as error:
        return error.problems
    return []


def order(cfg: DictConfig) -> list[str]:
    """Return the names of the backends as they are built: embeddings, then sources of samples.

    Raises:
        ConfigError: A backend needs one that is unknown, or that needs it in turn.
    """
    needs: dict[str, Mapping[str, str]] = {}
    for name, node in cfg.data.backends.items():
        try:
            needs[str(name)] = dict(OmegaConf.to_object(node).references())  # type: ignore[union-attr]
        except (OmegaConfBaseException, ValueError):
            needs[str(name)] = {}  # its own problem is reported by its own check
    embeds = [name for name in needs if kind_of(cfg.data.backends[name]) in EMBEDS]
    return build_order({name: needs[name] for name in [*embeds, *needs]})
