"""A cache that `scripts/cache.py` finds with the default config."""

from pathlib import Path

from tests.scenarios.training.building import data_module, write_folders


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
