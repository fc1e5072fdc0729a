"""Options of the whole test run; pytest wants them in the outermost conftest."""

import functools
import gc
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from _pytest.nodeid import coerce_node_id
from hypothesis import settings

from tests.support.examples import USUAL

pytest.register_assert_rewrite("factory.testing")

gc.disable()  # until all tests are loaded; of that nothing is garbage

# As for commands: threads that spin while they wait would take the cores from other workers.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# No test is about time: a busy machine makes any example slow. Where a change is judged, the
# examples are the same for everybody; new ones are found by those who work on it.
settings.register_profile(
    "factory", deadline=None, derandomize="CI" in os.environ, max_examples=USUAL
)
# All examples of every property, before a release: pytest --hypothesis-profile=thorough
settings.register_profile("thorough", deadline=None)
settings.load_profile("factory")

# A shell has what it starts in the background ignore interrupts, and so would all programs that
# tests start and interrupt.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the golden cases come from elsewhere."""
    parser.addoption(
        "--golden-dir",
        type=Path,
        default=Path(__file__).parent / "golden",
        help="folder of the golden JSON files (default: the copies in tests/golden)",
    )


def pytest_itemcollected(item: pytest.Item) -> None:
    """Give one worker all tests that share what is made once for their file.

    Otherwise each worker makes it: a run that is trained, a filled cache, a server.
    """
    if item.get_closest_marker("xdist_group") or not isinstance(item, pytest.Function):
        return
    used = item._fixtureinfo.name2fixturedefs.values()
    if any(fixture.scope == "module" for fixtures in used for fixture in fixtures[-1:]):
        item.add_marker(pytest.mark.xdist_group(item.module.__name__))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Name groups in the ids of tests, where pytest-xdist looks for them.

    It does so itself, but in an attribute that pytest reads no more since its ids have parts.
    """
    if not config.getoption("loadgroup", default=False):
        return
    for item in items:
        group = item.get_closest_marker("xdist_group")
        if group is not None and not item.nodeid.endswith(f"@{group.args[0]}"):
            item._id = coerce_node_id(f"{item.nodeid}@{group.args[0]}")


def pytest_collection_finish() -> None:
    """Have tests share what is the same for all of them.

    What is loaded by now stays, so the garbage collector need not look through it again and again.
    Each set of options is composed once: the factory's own files do not change.
    """
    gc.enable()
    gc.freeze()
    composing: Any = sys.modules.get("factory.config.compose")
    if composing is None:
        return
    composer = composing.Composer

    @functools.cache
    def shared(config_name: str, conf: Path, plugins: tuple[object, ...]) -> Any:
        return composer(config_name, None)

    def composer_of(config_name: str, config_dir: str | Path | None) -> Any:
        if config_dir is not None:
            return composer(config_name, config_dir)
        installed = tuple(composing.plugins.installed())
        return shared(config_name, composing.conf_dir(), installed)

    composing.Composer = composer_of
