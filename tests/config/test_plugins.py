"""A package with one entry point adds a storage and a config option."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

PLUGIN = '''
"""A plugin: one storage, its schema and its option."""
from dataclasses import dataclass

from factory.config import schema
from factory.config.schema.options import opt
from factory.config.schema.storage import StorageConfig
from factory.storage.memory import MemoryStorage


@dataclass(frozen=True)
class VaultStorage(MemoryStorage):
    host: str = "nowhere"


@dataclass
class VaultConfig(StorageConfig):
    _target_: str = "factory_acme.VaultStorage"
    host: str = opt("nowhere", "host of the vault")


def register():
    schema.store("storage/vault", VaultConfig)
'''
OPTION = """# @package _global_
defaults:
  - /schema/storage/vault@storage
  - _self_

storage:
  host: vault.example
"""


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    package = tmp_path / "factory_acme"
    (package / "conf" / "storage").mkdir(parents=True)
    (package / "__init__.py").write_text(PLUGIN)
    (package / "conf" / "__init__.py").touch()
    (package / "conf" / "storage" / "vault.yaml").write_text(OPTION)
    info = tmp_path / "factory_acme-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: factory-acme\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[factory.plugins]\nacme = factory_acme\n")
    return tmp_path


def run(plugin: Path, code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{plugin}{os.pathsep}{ROOT}"}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=environment, cwd=plugin, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_a_plugin_adds_a_storage_for_the_run_and_for_one_backend(plugin: Path) -> None:
    code = (
        "import factory\n"
        "cfg = factory.compose(['data=multi', 'storage@data.backends.photos=vault'])\n"
        "data = factory.build(cfg)\n"
        "print(data.registry.backends['photos'].storage)\n"
        "print(factory.compose(['storage=vault']).storage.host)\n"
    )
    result = run(plugin, code)
    assert result.returncode == 0, result.stderr
    assert "VaultStorage(" in result.stdout
    assert "host='vault.example'" in result.stdout
    assert result.stdout.endswith("vault.example\n")


def test_without_the_plugin_the_option_is_refused(tmp_path: Path) -> None:
    result = run(tmp_path, "import factory\nfactory.compose(['storage=vault'])")
    assert result.returncode == 1
    assert "group storage has no option 'vault'" in result.stderr


def test_a_broken_plugin_is_named_with_the_way_out(plugin: Path) -> None:
    (plugin / "factory_acme" / "__init__.py").write_text("raise ImportError('half installed')")
    result = run(plugin, "import factory\nfactory.compose([])")
    assert "plugin 'acme' (factory_acme) cannot be imported: half installed" in result.stderr
    assert "pip uninstall factory-acme" in result.stderr


def test_a_plugin_whose_registration_fails_is_named_with_the_way_out(plugin: Path) -> None:
    code = "def register():\n    raise KeyError('schema')"
    (plugin / "factory_acme" / "__init__.py").write_text(code)
    result = run(plugin, "import factory\nfactory.compose([])")
    assert "plugin 'acme' (factory_acme) fails in its register(): 'schema'" in result.stderr
    assert "pip uninstall factory-acme" in result.stderr
