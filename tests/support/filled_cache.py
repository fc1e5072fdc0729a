"""The script `cache.py` as a module, and a cache that it finds with the default config."""

import importlib.util
from pathlib import Path
from types import ModuleType

from tests.scenarios.training.building import data_module, write_folders

SCRIPT = Path(__file__).parent.parent.parent / "scripts" / "cache.py"


def load_script() -> ModuleType:
    """Return the script, as a module."""
    spec = importlib.util.spec_from_file_location("cache_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fill(folder: Path) -> None:
    """Write pictures, and a cache of them whose stores are named as those of data=single."""
    write_folders(folder)
    data = data_module(folder)
    for old, new in (("latents", "latents"), ("text", "captions")):
        backend = data.registry.backends.pop(old)
        backend.name = new
        data.registry.backends[new] = backend
    data.prepare_data()
    data.close()
