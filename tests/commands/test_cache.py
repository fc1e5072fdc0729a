"""Does `scripts/cache.py` show, check, move and tidy a cache, and end with the right status?"""

import shutil
from pathlib import Path

import pytest
import torch

from factory import Workspace
from factory.cache.format.recipe import recipe_keys
from factory.cache.maintenance.transfer import compare, copy
from factory.commands import cache as command
from factory.demo.session import S3_SETTINGS
from factory.reports.cache import show_usage
from factory.reports.cache_usage import usage
from factory.storage import LocalStorage
from tests.scenarios.bad_input.making import forbidding
from tests.support.filled_cache import fill
from tests.support.stores import drop


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a filled cache."""
    folder = tmp_path_factory.mktemp("filled")
    fill(folder)
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
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Workspace(LocalStorage(str(root))).store("captions")
    drop(store, recipe_keys({}, [{"n": 1}]))
    assert command.main(["du"]) == 0
    shown = capsys.readouterr().out
    for text in ("latents BlockDCT/1", "text HashedText/1", "latents F16 [16,", "index", "all"):
        assert text in shown


def test_usage_says_which_store_lies_in_a_place_of_its_own(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here, apart = (Workspace(LocalStorage(str(each))) for each in (root, root / "apart"))
    shutil.move(root / "cache/tensors/captions", root / "apart/cache/tensors/captions")
    stores = {"latents": here.store("latents"), "captions": apart.store("captions")}
    show_usage({name: usage(store) for name, store in stores.items()}, here, {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"Cache in file://{root}/cache"
    told = [line for line in lines if "place of its own" in line]
    place = f"file://{root}/apart/cache/tensors/captions"
    assert told == [f"captions lies in a place of its own: {place}"]


def test_verifying_tells_a_damaged_row_and_fails(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["verify"]) == 0
    assert "latents: every file and row is sound" in capsys.readouterr().out
    path = shard(root, "latents")
    path.write_bytes(path.read_bytes()[:-1] + b"\7")
    assert command.main(["verify"]) == 1
    shown = capsys.readouterr().out
    assert "latents: 1 problem" in shown
    assert "captions: every file and row is sound" in shown


def test_pushing_copies_what_is_missing_and_pulling_brings_it_back(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    assert command.main(["push", "--to", str(other), "--dry-run"]) == 0
    assert not list(other.glob("**/*.safetensors"))
    assert command.main(["push", "--to", str(other)]) == 0
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
    assert command.main(["pull", "--from", str(other), "--store", "latents"]) == 0
    assert lost.read_bytes() == theirs[lost.relative_to(root / "cache/tensors")]
    (line,) = (each for each in capsys.readouterr().out.splitlines() if "latents" in each)
    assert line.split()[1] == "1"


def test_a_shard_that_was_cut_short_is_pushed_again(root: Path, tmp_path: Path) -> None:
    path = shard(root, "captions")
    data = path.read_bytes()
    assert command.main(["push", "--to", str(tmp_path / "other")]) == 0
    (tmp_path / "other" / path.relative_to(root)).write_bytes(data[:-1])  # cut short
    assert command.main(["push", "--to", str(tmp_path / "other")]) == 0
    assert (tmp_path / "other" / path.relative_to(root)).read_bytes() == data


def test_damaged_facts_are_told_in_the_end_too(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = root / "cache/catalog/photos.parquet"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"no table")
    assert command.main(["push", "--to", str(root / "other")]) == 1
    shown = capsys.readouterr().out
    assert "✗ facts of photos: not copied: damaged" in shown
    assert "✓" not in shown
    assert not (root / "other/cache/catalog/photos.parquet").exists()


def test_a_folder_that_may_not_be_written_to_is_told_before_anything_is_read(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = root / "locked"
    other.mkdir(mode=0o555)
    with forbidding():
        assert command.main(["push", "--to", str(other)]) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("AccessDenied error: ")
    assert said[1:] == [f"  --to {other} leads there"]
    assert list(other.iterdir()) == []


def test_merging_and_removing_what_was_merged(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = len(list((root / "cache/tensors/latents/shards").iterdir()))
    assert command.main(["compact", "--store", "latents"]) == 0
    assert command.main(["gc", "--dry-run"]) == 0
    assert "would be freed" in capsys.readouterr().out
    assert command.main(["gc", "--min-age", "0"]) == 0
    assert "freed" in capsys.readouterr().out
    assert len(list((root / "cache/tensors/latents/shards").iterdir())) <= before
    assert command.main(["verify"]) == 0


def test_what_merging_left_behind_is_shown_until_it_is_old_and_copied_once(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Workspace(LocalStorage(str(root))).store("latents")
    for n in range(2):  # two thin shards of one layout, with stamps of their own
        with store.writer({"kind": "thin"}) as writer:
            writer.add(recipe_keys({}, [{"n": n}]), {"x": torch.zeros(1, 2)})
    assert command.main(["compact", "--store", "latents"]) == 0
    assert "are removed by `cache.py gc`" in capsys.readouterr().out
    assert command.main(["compact", "--store", "latents"]) == 0
    assert "gc" not in capsys.readouterr().out
    assert command.main(["du", "--store", "latents"]) == 0
    (line,) = (each for each in capsys.readouterr().out.splitlines() if "x F32 [2]" in each)
    assert line.split()[-5:-2] == ["3", "4", "2"]  # shards, rows, dead
    assert command.main(["gc", "--dry-run"]) == 0
    assert "0 B would be freed" in capsys.readouterr().out
    other = LocalStorage(str(tmp_path / "other"))
    target = Workspace(other).store("latents")
    transfer = compare(store, target)
    copy(store, target, transfer)
    assert transfer.shards == len(list((root / "cache/tensors/latents/shards").iterdir()))
    assert transfer.nbytes == sum(each.size for each in transfer.missing)


def test_why_finds_a_caption(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["why", "a caption nobody wrote", "data.demo=false"]) in (0, 1)
    shown = capsys.readouterr()
    assert "a caption nobody wrote" in shown.out + shown.err


def test_a_folder_without_a_cache_is_told_and_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("du", "verify", "gc", "compact"):
        assert command.main([name]) == 1
        said = capsys.readouterr()
        assert f"nothing of latents, captions is stored in file://{tmp_path}/cache" in said.err
        assert "scripts/precompute.py with the same options fills it" in said.err
        assert said.out == ""
    assert command.main(["push", "--to", "elsewhere"]) == 1
    assert "nothing of latents, captions" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert command.main(["pull", "--from", "empty"]) == 1
    assert "correct --from, or cache.prefix" in capsys.readouterr().err
    assert command.main(["pull", "--from", "none"]) == 1
    assert "--from none leads there" in capsys.readouterr().err
    left = {path.name for path in tmp_path.iterdir()}
    assert left <= {"empty", "elsewhere", "cache", ".scratch"}  # no demo's pictures
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_bucket_that_is_not_set_says_what_is_to_be(
    root: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for name in S3_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(root / "none"))
    for arguments in (["du", "storage=s3"], ["push", "--to", "storage=s3"]):
        assert command.main(arguments) == 2
        said = capsys.readouterr().err
        for text in (
            "storage=s3 names no bucket: set DATA_BUCKET (or storage.bucket=NAME)",
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            "S3_ENDPOINT_URL",
            "python scripts/demo_s3.py",
        ):
            assert text in said
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "half")
    assert command.main(["push", "--to", "storage=s3"]) == 2
    assert "bucket is not set; set DATA_BUCKET" in capsys.readouterr().err


def test_stores_of_other_configs_are_shown_and_can_be_named(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "cache/tensors/latents").rename(root / "cache/tensors/old")
    assert command.main(["du"]) == 0
    shown = capsys.readouterr().out
    assert "also there, of no backend of this config: old (" in shown
    assert [line.split()[:2] for line in shown.splitlines() if "latents" in line] == [
        ["latents", "empty"]
    ]
    assert command.main(["verify", "--store", "old"]) == 0
    assert "old: every file and row is sound" in capsys.readouterr().out
    assert command.main(["push", "--store", "old", "--to", str(root / "other")]) == 0
    assert list((root / "other/cache/tensors").iterdir()) == [root / "other/cache/tensors/old"]
    assert command.main(["pull", "--store", "old", "--from", str(root / "other")]) == 0


def test_an_option_of_ones_own_is_found(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "conf/data").mkdir(parents=True)
    (root / "conf/data/mine.yaml").write_text("defaults:\n  - single\n  - _self_\nbatch_size: 2\n")
    assert command.main(["du", "data=mine", "--config-dir", str(root / "conf")]) == 0
    assert command.main(["du", "data=mine"]) == 2
    assert command.main(["du", "--config-dir", str(root / "nowhere")]) == 2
    assert "is no folder" in capsys.readouterr().err


def test_damage_of_what_nothing_reads_is_told_apart(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Workspace(LocalStorage(str(root))).store("latents")
    keys = recipe_keys({}, [{"n": 0}])
    for _ in range(2):
        before = set(store.shard_files.listed())
        with store.writer({"kind": "twice"}) as writer:
            writer.add(keys, {"x": torch.zeros(1, 2)})
        path = root / "cache/tensors/latents/shards" / (
            set(store.shard_files.listed()) - before
        ).pop()  # fmt: skip
        if len(before) == 9:
            path.write_bytes(path.read_bytes()[:-1] + b"\7")
    assert command.main(["verify", "--store", "latents"]) == 0
    shown = capsys.readouterr().out
    assert "latents: every row that counts is sound" in shown
    assert "of no use, so no harm: 1" in shown


def test_an_interrupt_leaves_no_traceback(
    root: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setitem(command.COMMANDS, "du", command.COMMANDS["du"]._replace(run=interrupted))
    assert command.main(["du"]) == 130
    assert "the same command goes on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["du", "--store", "nope"], "there are latents, captions"),
        (["du", "cache.ram_gbb=1"], "did you mean 'ram_gb'"),
        (["gc", "--min-age", "-1"], "--min-age must be at least 0"),
        (["gc", "--min-age", "nan"], "--min-age must be at least 0"),
        (["push", "--to", "a", "--to", "b"], "give one folder, or overrides alone"),
        (["push", "--to", "s3"], "'s3' is a storage; give storage=s3, or ./s3"),
        (["push", "--to", "gs://bucket"], "only s3://BUCKET/PATH is known"),
        (["pull", "--from", "s3:///path"], "expected s3://BUCKET or s3://BUCKET/PATH"),
        (["push", "--to", "cache.shard_mb=5"], "the other cache is this one"),
    ],
)
def test_what_cannot_be_done_ends_with_status_2(
    root: Path, capsys: pytest.CaptureFixture[str],
    arguments: list[str], message: str,
) -> None:  # fmt: skip
    assert command.main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["frob"], "choose from 'du', 'verify', 'gc', 'compact', 'why', 'push', 'pull'"),
        ([], "compare every file and row with its checksum"),
        (["du", "--foo"], "unrecognized arguments: '--foo'"),
        (["du", "latents"], "options of the config are KEY=VALUE"),
        (["du", ""], "unrecognized arguments: ''"),
        (["du", "--foo=3"], "unrecognized arguments: '--foo=3'"),
        (["push"], "usage: cache.py push --to CACHE"),
        (["why"], "usage: cache.py why KEY"),
    ],
)
def test_an_unknown_command_or_argument_ends_with_status_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["du", "verify", "gc", "compact", "why", "push", "pull"])
def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str], name: str) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main([name, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert f"usage: cache.py {name} " in shown
    assert max(map(len, shown.splitlines())) <= 100
    if command in ("push", "pull"):
        assert "s3://BUCKET/PATH" in shown
