"""The built wheel outside the checkout: config groups travel along and Hydra finds them."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent.parent

CODE = """
import sys
import factory
from factory import FactoryDataModule, compose, build
assert {site!r} in factory.__file__, factory.__file__
cfg = compose(["data=multi", "storage=s3", "storage.bucket=b"])
data = build(cfg)
assert isinstance(data, FactoryDataModule)
print(sorted(data.registry.data))
import hydra
with hydra.initialize_config_module("factory.conf", version_base="1.3"):
    print(hydra.compose("config", ["data=single"]).data.batch_size)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(target)],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    return next(target.glob("*.whl"))


def test_every_config_group_is_in_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = {n for n in archive.namelist() if n.startswith("factory/conf/")}
        shipped = "factory/py.typed" in archive.namelist()
    expected = {f"factory/conf/{f.relative_to(ROOT / 'conf').as_posix()}"
                for f in (ROOT / "conf").rglob("*.yaml")
                if "local" not in f.relative_to(ROOT / "conf").parts[:1]}  # fmt: skip
    assert expected <= inside
    assert shipped


def test_composes_and_builds_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(site=str(site))],
        env={**environment, "PYTHONPATH": str(site)}, cwd=tmp_path,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["['hub', 'photos', 'table', 'web']", "16"]
