"""OmegaConf resolvers the configs use."""

from omegaconf import Node, OmegaConf


def own_name(*, _parent_: Node) -> str:
    """Return the key the enclosing config is filed under: a backend's name."""
    return str(_parent_._key())  # noqa: SLF001 - how OmegaConf tells a resolver its place


def options_guide() -> str:
    """Return the options part of `--help`."""
    from factory.config.schema.guide import guide  # reads every schema, which register this module

    return guide()


def register() -> None:
    """Register every resolver; safe to call twice."""
    OmegaConf.register_new_resolver("options_guide", options_guide, replace=True)
    OmegaConf.register_new_resolver("own_name", own_name, replace=True)
