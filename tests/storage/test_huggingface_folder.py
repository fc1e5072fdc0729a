"""A Hugging Face dataset reads its own folder only, runs no code, and maps no damaged file."""

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from factory.errors import FactoryError, StorageError, UnsafeKeyError
from factory.storage import HuggingFaceStorage
from factory.storage.huggingface_stream import RowStream
from tests.storage.test_huggingface_storage import PICTURES, table

FEATURES = {"image": [{"bytes": data, "path": None} for data in PICTURES]}
OUTSIDE = "which is not inside the dataset's folder; copy the file there"


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with nothing in it, beside files that it must not read."""
    table().save_to_disk(str(tmp_path / "other"))
    pq.write_table(pa.table(FEATURES), tmp_path / "secret.parquet")
    (tmp_path / "set").mkdir()
    return tmp_path / "set"


def saved(folder: Path) -> None:
    table().save_to_disk(str(folder))


def by_list(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        saved(folder)
        state = json.loads((folder / "state.json").read_text())
        state["_data_files"] = [{"filename": name.format(folder.parent)}]
        (folder / "state.json").write_text(json.dumps(state))

    return make


def by_splits(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / "dataset_dict.json").write_text(json.dumps({"splits": [name]}))

    return make


def by_card(text: str, file: str = "README.md") -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        shutil.copy(folder.parent / "secret.parquet", folder / "own.parquet")
        card = text.format(folder.parent)
        (folder / file).write_text(f"---\n{card}\n---\n# A card\n" if file == "README.md" else card)

    return make


def configs(files: str) -> str:
    return f"configs:\n- config_name: default\n  data_files: {files}"


def by_link(name: str, target: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        if "arrow" in name or name.endswith(".json"):
            saved(folder)
            (folder / name).unlink()
        (folder / name).symlink_to(folder.parent / target)

    return make


def split_link(folder: Path) -> None:
    (folder / "dataset_dict.json").write_text('{"splits": ["train"]}')
    (folder / "train").symlink_to(folder.parent / "other")


ARROW = "data-00000-of-00001.arrow"
LEADING_OUT = {
    "saved, parent": by_list(f"../other/{ARROW}"),
    "saved, through a folder": by_list(f"x/../../other/{ARROW}"),
    "saved, absolute": by_list("{}/other/" + ARROW),
    "saved, no name": by_list(""),
    "saved, a NUL": by_list("a\0.arrow"),
    "saved, linked file": by_link(ARROW, f"other/{ARROW}"),
    "saved, linked state": by_link("state.json", "other/state.json"),
    "splits, parent": by_splits("../other"),
    "splits, linked": split_link,
    "card, parent": by_card(configs("../secret.parquet")),
    "card, pattern": by_card(configs("'../*.parquet'")),
    "card, absolute": by_card(configs("'{}/secret.parquet'")),
    "card, URL": by_card(configs("https://127.0.0.1:1/a.parquet")),
    "card, file URL": by_card(configs("'file://{}/secret.parquet'")),
    "card, chained": by_card(configs("'zip://a.parquet::{}/a.zip'")),
    "card, a list": by_card(configs("[own.parquet, ../secret.parquet]")),
    "card, splits": by_card(configs("[{{split: train, path: [../secret.parquet]}}]")),
    "card, by split": by_card(configs("{{train: ../secret.parquet}}")),
    "card, folder": by_card("configs:\n- config_name: default\n  data_dir: .."),
    "card, second config": by_card(
        configs("own.parquet") + "\n- config_name: b\n  data_files: ../secret.parquet"
    ),
    "yaml beside": by_card(configs("../secret.parquet"), ".huggingface.yaml"),
    "infos": by_card('{{"a": {{"data_files": ["../secret.parquet"]}}}}', "dataset_infos.json"),
    "linked parquet": by_link("own.parquet", "secret.parquet"),
}


def both_ways(folder: Path) -> list[Callable[[], Any]]:
    storage = HuggingFaceStorage(str(folder))
    return [lambda: list(storage.objects()), lambda: RowStream(storage)]


@pytest.mark.parametrize("case", LEADING_OUT)
def test_what_leads_out_of_the_folder_is_refused(case: str, folder: Path) -> None:
    LEADING_OUT[case](folder)
    for read in both_ways(folder):
        with pytest.raises(UnsafeKeyError) as caught:
            read()
        assert str(folder) in str(caught.value)
        assert OUTSIDE in str(caught.value)


def test_a_linked_folder_is_not_gone_into(folder: Path) -> None:
    (folder.parent / "more").mkdir()
    shutil.copy(folder.parent / "secret.parquet", folder.parent / "more/train.parquet")
    (folder / "data").symlink_to(folder.parent / "more")
    for read in both_ways(folder):
        with pytest.raises(StorageError):
            read()


def read_all(folder: Path) -> list[bytes]:
    storage = HuggingFaceStorage(str(folder))
    found = [storage.read(info.key) for info in storage.objects()]
    storage.close()
    return found


def inner_link(folder: Path) -> None:
    (folder / "kept").mkdir()
    shutil.copy(folder.parent / "secret.parquet", folder / "kept/a.parquet")
    (folder / "train.parquet").symlink_to("kept/a.parquet")
    (folder / "README.md").write_text(f"---\n{configs('train.parquet')}\n---\n")


@pytest.mark.parametrize(
    "make",
    [
        saved,
        by_card(configs("own.parquet")),
        by_card(configs("'*.parquet'")),
        by_card("license: mit"),
        inner_link,
    ],
)
def test_what_lies_inside_is_read(make: Callable[[Path], None], folder: Path) -> None:
    make(folder)
    assert read_all(folder) == PICTURES


def test_a_copy_made_by_the_hubs_tools_is_read(folder: Path) -> None:
    """Its files are links to the blobs beside it."""
    home = folder / "datasets--acme--set"
    (home / "blobs").mkdir(parents=True)
    shutil.copy(folder.parent / "secret.parquet", home / "blobs/0123")
    revision = home / "snapshots/abc"
    revision.mkdir(parents=True)
    (revision / "train.parquet").symlink_to("../../blobs/0123")
    assert read_all(revision) == PICTURES


def test_a_folder_that_is_a_link_itself_is_read(folder: Path) -> None:
    saved(folder)
    link = folder.parent / "link"
    link.symlink_to(folder)
    assert read_all(link) == PICTURES


@pytest.mark.parametrize("beside", [True, False])
def test_code_in_a_folder_is_never_run(folder: Path, beside: bool) -> None:
    witness = folder.parent / "it ran"
    code = f"open({str(witness)!r}, 'w').close()\n"
    for name in ("set.py", "dataset.py", "__init__.py", "metadata.py", "train.py", "setup.py"):
        (folder / name).write_text(code)
    if beside:
        shutil.copy(folder.parent / "secret.parquet", folder / "train.parquet")
    for read in both_ways(folder):
        try:
            read()
        except FactoryError as error:
            assert "set.py" in str(error) or not beside
    assert not witness.exists()


def test_a_card_that_holds_itself_a_billion_times(folder: Path) -> None:
    levels = "\n".join(f"  a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12))
    by_card(f"data_files:\n  a0: &a0 x.parquet\n{levels}")(folder)
    shutil.copy(folder.parent / "secret.parquet", folder / "x.parquet")
    with suppress(FactoryError):
        read_all(folder)


@pytest.mark.parametrize("kind", ["arrow", "arrows"])
def test_damage_in_a_loose_arrow_file_is_refused(kind: str, folder: Path) -> None:
    rows = pa.table({**FEATURES, "caption": ["one", "two", "three"]})
    writer = pa.ipc.new_file if kind == "arrow" else pa.ipc.new_stream
    with writer(str(folder / "train.arrow"), rows.schema) as out:
        out.write_table(rows)
    assert read_all(folder) == PICTURES
    data = (folder / "train.arrow").read_bytes()
    at = data.index(b"onetwothree")  # before it lie the offsets
    sound = (3).to_bytes(4, "little") + (6).to_bytes(4, "little")
    offsets = data.rindex(sound, 0, at)
    damaged = data[:offsets] + (1 << 30).to_bytes(4, "little") + data[offsets + 4 :]
    (folder / "train.arrow").write_bytes(damaged)
    for read in both_ways(folder):
        with pytest.raises(StorageError, match=r"train\.arrow is damaged"):
            read()


def test_a_cut_file_is_refused(folder: Path) -> None:
    saved(folder)
    os.truncate(folder / ARROW, 700)
    for read in both_ways(folder):
        with pytest.raises(StorageError, match="is damaged, or no Arrow file"):
            read()


def test_a_missing_file_is_named(folder: Path) -> None:
    saved(folder)
    (folder / ARROW).unlink()
    for read in both_ways(folder):
        with pytest.raises(StorageError, match=f"{ARROW} is not there"):
            read()
