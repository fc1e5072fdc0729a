"""Does `scripts/cache.py` show, check, move and tidy a cache, and end with the right status?"""

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import pytest
import torch

from factory import CachePlace
from factory.cache.recipe import recipe_keys
from factory.cache.transfer import compare, copy
from factory.cache.upkeep import drop
from factory.storage import LocalStorage
from tests.datamodule.building import data_module, write_folders

SCRIPT = Path(__file__).parent.parent / "scripts" / "cache.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The script, as a module."""
    spec = importlib.util.spec_from_file_location("cache_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a filled cache, whose stores are named as those of data=single."""
    folder = tmp_path_factory.mktemp("filled")
    write_folders(folder)
    data = data_module(folder)
    for old, new in (("latents", "latents"), ("text", "captions")):
        backend = data.registry.backends.pop(old)
        backend.name = new
        data.registry.backends[new] = backend
    data.prepare_data()
    data.close()
    return folder


@pytest.fixture
def root(filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, where the config looks for the run's data."""
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    monkeypatch.setenv("SCRATCH_DIR", str(tmp_path / "scratch"))
    shutil.copytree(filled / "cache", tmp_path / "cache")
    return tmp_path


def shard(root: Path, store: str) -> Path:
    return next((root / f"cache/tensors/{store}/shards").iterdir())


def test_usage_names_stores_recipes_and_dead_rows(
    script: ModuleType, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = CachePlace(LocalStorage(str(root))).store("captions")
    drop(store, recipe_keys({}, [{"n": 1}]))
    assert script.main(["du"]) == 0
    shown = capsys.readouterr().out
    for text in ("latents BlockDCT/1", "text HashedText/1", "latents F16 [16,", "index", "all"):
        assert text in shown


def test_verifying_tells_a_damaged_row_and_fails(
    script: ModuleType, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main(["verify"]) == 0
    assert "latents: every file and row is sound" in capsys.readouterr().out
    path = shard(root, "latents")
    path.write_bytes(path.read_bytes()[:-1] + b"\7")
    assert script.main(["verify"]) == 1
    shown = capsys.readouterr().out
    assert "latents: 1 problem" in shown
    assert "captions: every file and row is sound" in shown


def test_pushing_copies_what_is_missing_and_pulling_brings_it_back(
    script: ModuleType, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    assert script.main(["push", "--to", str(other), "--dry-run"]) == 0
    assert not list(other.glob("**/*.safetensors"))
    assert script.main(["push", "--to", str(other)]) == 0
    ours, theirs = (
        {path.relative_to(each / "cache/tensors"): path.read_bytes() for path in shards}
        for each in (root, other)
        for shards in [sorted((each / "cache/tensors").glob("*/[si]*/*.safetensors"))]
    )
    assert ours
    assert ours == theirs
    lost = shard(root, "latents")
    lost.unlink()
    capsys.readouterr()
    assert script.main(["pull", "--from", str(other), "--store", "latents"]) == 0
    assert lost.read_bytes() == theirs[lost.relative_to(root / "cache/tensors")]
    (line,) = (each for each in capsys.readouterr().out.splitlines() if "latents" in each)
    assert line.split()[1] == "1"


def test_a_shard_that_was_cut_short_is_pushed_again(
    script: ModuleType, root: Path, tmp_path: Path
) -> None:
    path = shard(root, "captions")
    data = path.read_bytes()
    assert script.main(["push", "--to", str(tmp_path / "other")]) == 0
    (tmp_path / "other" / path.relative_to(root)).write_bytes(data[:-1])  # cut short
    assert script.main(["push", "--to", str(tmp_path / "other")]) == 0
    assert (tmp_path / "other" / path.relative_to(root)).read_bytes() == data


def test_merging_and_removing_what_was_merged(
    script: ModuleType, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = len(list((root / "cache/tensors/latents/shards").iterdir()))
    assert script.main(["compact", "--store", "latents"]) == 0
    assert script.main(["gc", "--dry-run"]) == 0
    assert "would be freed" in capsys.readouterr().out
    assert script.main(["gc", "--min-age", "0"]) == 0
    assert "freed" in capsys.readouterr().out
    assert len(list((root / "cache/tensors/latents/shards").iterdir())) <= before
    assert script.main(["verify"]) == 0


def test_what_merging_left_behind_is_shown_until_it_is_old_and_copied_once(
    script: ModuleType, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = CachePlace(LocalStorage(str(root))).store("latents")
    for n in range(2):  # two thin shards of one layout, with stamps of their own
        with store.writer({"kind": "thin"}) as writer:
            writer.add(recipe_keys({}, [{"n": n}]), {"x": torch.zeros(1, 2)})
    assert script.main(["compact", "--store", "latents"]) == 0
    assert "are removed by `cache.py gc`" in capsys.readouterr().out
    assert script.main(["compact", "--store", "latents"]) == 0
    assert "gc" not in capsys.readouterr().out
    assert script.main(["du", "--store", "latents"]) == 0
    (line,) = (each for each in capsys.readouterr().out.splitlines() if "x F32 [2]" in each)
    assert line.split()[-5:-2] == ["3", "4", "2"]  # shards, rows, dead
    assert script.main(["gc", "--dry-run"]) == 0
    assert "0 B would be freed" in capsys.readouterr().out
    other = LocalStorage(str(tmp_path / "other"))
    target = CachePlace(other).store("latents")
    transfer = compare(store, target)
    copy(store, target, transfer)
    assert transfer.shards == len(list((root / "cache/tensors/latents/shards").iterdir()))
    assert transfer.nbytes == sum(each.size for each in transfer.missing)


def test_why_finds_a_caption(
    script: ModuleType, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main(["why", "a caption nobody wrote", "data.demo=false"]) in (0, 1)
    shown = capsys.readouterr()
    assert "a caption nobody wrote" in shown.out + shown.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["du", "--store", "nope"], "there are latents, captions"),
        (["du", "cache.ram_gbb=1"], "did you mean 'ram_gb'"),
        (["gc", "--min-age", "-1"], "--min-age must be at least 0"),
        (["push", "--to", "a", "--to", "b"], "give one folder, or overrides alone"),
        (["push", "--to", "cache.shard_mb=5"], "the other cache is this one"),
    ],
)
def test_what_cannot_be_done_ends_with_status_2(
    script: ModuleType, root: Path, capsys: pytest.CaptureFixture[str],
    arguments: list[str], message: str,
) -> None:  # fmt: skip
    assert script.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_an_unknown_command_ends_with_status_2(script: ModuleType) -> None:
    with pytest.raises(SystemExit) as ended:
        script.main(["frob"])
    assert ended.value.code == 2
