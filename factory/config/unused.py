"""Parts of a composed config that nothing would read: unknown names, parts without a class."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from typing import Any

from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from factory.config.compose import suggest
from factory.config.schema.run import EncoderConfig, PathsConfig, RunConfig
from factory.config.secrets import masked
from factory.config.signatures import arguments_of

# Parts of which each value is an object to be made, and what takes one of them away.
_OBJECTS = {"encoder": "encoder/{}=none", "callbacks": "~callbacks.{}"}
_CLOSED = {"": RunConfig, "paths": PathsConfig, "encoder": EncoderConfig}


def unused(cfg: DictConfig, overrides: Iterable[str] = ()) -> Iterator[str]:
    """Yield a sentence for each part of a config that would be accepted and ignored."""
    for key, schema in _CLOSED.items():
        yield from _unknown(cfg, key, [option.name for option in fields(schema)])
    for key in _OBJECTS:
        yield from _objects(cfg, key)
    yield from _arguments(cfg, "")
    yield from _labels(cfg)
    yield from _hydra(overrides)


def _unknown(cfg: DictConfig, parent: str, known: list[str]) -> Iterator[str]:
    """Yield names that no schema has, unless an interpolation reads them."""
    if parent and OmegaConf.is_missing(cfg, parent):
        return  # reported as such
    node = cfg[parent] if parent else cfg
    names = [str(name) for name in node if name not in known]
    text = OmegaConf.to_yaml(cfg, resolve=False) if names else ""
    for name in names:
        key = f"{parent}.{name}" if parent else name
        if not re.search(rf"\$\{{{re.escape(key)}\b", text):
            where = parent or "the config"
            yield f"{key}: {where} has no option {name!r}; {suggest(name, known)}"


def _objects(cfg: DictConfig, parent: str) -> Iterator[str]:
    """Yield what is no object to be made where one has to be."""
    slots = [option.name for option in fields(EncoderConfig)]
    if OmegaConf.is_missing(cfg, parent):
        return
    for name, node in cfg[parent].items():
        if parent == "encoder" and (node is None or name not in slots):
            continue  # nothing is encoded, or it is said already
        if not isinstance(node, DictConfig) or "_target_" not in node:
            given = OmegaConf.to_container(node) if OmegaConf.is_config(node) else node
            shown = masked(f"{parent}.{name}={given!r}").partition("=")[2]
            yield (
                f"{parent}.{name} must be a mapping with a _target_, got {shown}; set "
                f"{parent}.{name}._target_=my_package.MyClass, or leave it out: "
                + _OBJECTS[parent].format(name)
            )


def _arguments(node: Any, path: str) -> Iterator[str]:
    """Yield names that the class of a part does not take; typed parts have their own check."""
    if isinstance(node, ListConfig):
        parts: Iterable[tuple[Any, Any]] = enumerate(node._content)  # type: ignore[arg-type]  # noqa: SLF001
    elif isinstance(node, DictConfig) and isinstance(node._content, dict):  # noqa: SLF001 - unresolved
        parts = node._content.items()  # noqa: SLF001
        target = node._content.get("_target_")  # noqa: SLF001
        if target is not None and OmegaConf.get_type(node) is dict:
            yield from _wrong(str(target), node, path)
    else:
        return
    for name, part in parts:
        yield from _arguments(part, f"{path}.{name}" if path else str(name))


def _wrong(target: str, node: DictConfig, path: str) -> Iterator[str]:
    known = arguments_of(target)
    if known is None:
        return
    for name in node:
        given = str(name)
        if given not in known and not given.startswith("_"):
            hint = suggest(given, known) if known else "it takes none"
            yield f"{path}.{given}: {target} has no argument {given!r}; {hint}"


def _labels(cfg: DictConfig) -> Iterator[str]:
    """Yield forced sizes of shapes that no crop of a backend gives.

    Shapes that follow from the samples themselves are known after the scan only.
    """
    reached: dict[str, tuple[list[str], set[str] | None]] = {}
    for name, node in cfg.data.backends.items():
        try:
            forced = node.get("aspect_sizes")
            if not isinstance(forced, DictConfig) or not forced:
                continue
            found = _shapes(node)
        except (OmegaConfBaseException, TypeError, ValueError, AttributeError):
            continue  # reported by the check of its own values
        own = node._content["aspect_sizes"]._is_interpolation()  # noqa: SLF001 - unresolved
        key = "data" if own else f"data.backends.{name}"
        labels, shapes = reached.setdefault(key, ([str(label) for label in forced], set()))
        reached[key] = labels, None if found is None or shapes is None else shapes | found
    for key, (labels, shapes) in reached.items():
        for label in labels:
            if shapes is not None and not any(_equal(label, shape) for shape in shapes):
                listed = ", ".join(sorted(shapes, key=float))
                yield (
                    f"{key}.aspect_sizes has the label {label!r}, which no shape has that is cut "
                    f"to here; labels are {listed}"
                )


def _equal(label: str, shape: str) -> bool:
    try:
        return float(label) == float(shape)
    except ValueError:
        return True  # refused as no label


def _shapes(node: DictConfig) -> set[str] | None:
    """Return the labels of all targets a backend can have; None where samples decide."""
    # Brings numpy, for those alone who force sizes.
    import numpy as np

    from factory.media.geometry.target_size import TargetRule

    aspect = str(getattr(node.crop.aspect, "value", node.crop.aspect))
    if aspect not in ("square", "closest", "random"):
        return None
    ratios = [1.0] if aspect != "closest" else []  # random falls back to a square
    if aspect != "square":
        given = OmegaConf.to_container(node.crop.aspect_buckets)
        ratios += [float(e["aspect"] if isinstance(e, Mapping) else e) for e in given]  # type: ignore[union-attr, arg-type]
    kind = str(getattr(node.resolution_type, "value", node.resolution_type))
    numbers = (node.resolution, node.alignment, node.maximum_canvas, *ratios)
    if any(number is not None and number <= 0 for number in numbers):
        return None  # reported by the check of their own values
    rule = TargetRule(node.resolution, kind, node.alignment, 2, node.maximum_canvas)
    wide = np.array(ratios)
    return {f"{label:g}" for label in rule.sizes(wide, wide < 1).label}


def _hydra(overrides: Iterable[str]) -> Iterator[str]:
    """Yield settings of Hydra that it does not have; it accepts any after a plus."""
    own = HydraConfig.get().overrides.hydra if HydraConfig.initialized() else []
    for override in dict.fromkeys([*overrides, *own]):
        key = override.partition("=")[0]
        if not key.startswith("+") or not key.lstrip("+").startswith("hydra."):
            continue
        node: Any = OmegaConf.structured(HydraConf)
        path = key.lstrip("+").split(".")[1:]
        for depth, name in enumerate(path):
            if not isinstance(node, DictConfig) or OmegaConf.get_type(node) is dict:
                break
            if name not in node:
                where = ".".join(["hydra", *path[:depth]])
                known = [str(option) for option in node]
                yield f"{masked(override)}: {where} has no option {name!r}; {suggest(name, known)}"
                break
            node = node._get_node(name)  # noqa: SLF001 - read without resolving it
