"""Packages that add storages, backends and config options through one entry point."""

from importlib.metadata import EntryPoint, entry_points

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

from factory.errors import ConfigError

# `[project.entry-points."factory.plugins"] NAME = "PACKAGE"` in the plugin's pyproject.toml.
GROUP = "factory.plugins"


def installed() -> list[EntryPoint]:
    """Return the entry points of installed plugins, by name."""
    return sorted(entry_points(group=GROUP), key=lambda point: point.name)


class PluginConf(SearchPathPlugin):
    """Appends each plugin's `conf/`, after the run's own, which it cannot shadow."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append `pkg://PACKAGE.conf` for each plugin."""
        for point in installed():
            search_path.append(provider=point.name, path=f"pkg://{point.module}.conf")


def load() -> None:
    """Register the search path and let every plugin file its schemas; safe to call twice.

    Raises:
        ConfigError: A plugin cannot be imported or registered; names it and how to be rid of it.
    """
    if PluginConf not in Plugins.instance().discover(SearchPathPlugin):
        Plugins.instance().register(PluginConf)
    for point in installed():
        fails = "cannot be imported"
        try:
            register = getattr(point.load(), "register", None)
            fails = "fails in its register()"
            if register is not None:
                register()
        except Exception as error:
            package = point.dist.name if point.dist else point.module
            told = str(error) or type(error).__name__
            raise ConfigError(
                f"plugin {point.name!r} ({point.value}) {fails}: {told}; "
                f"mend it, or uninstall it with: pip uninstall {package}"
            ) from error
