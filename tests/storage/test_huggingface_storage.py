"""A Hugging Face dataset as a storage: saved ones, Parquet folders, nested columns."""

import io
import json
import pickle
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from factory.errors import (
    AccessDeniedError,
    ObjectNotFoundError,
    StorageError,
    StorageUnavailableError,
    TableError,
    UnsafeKeyError,
)
from factory.records import UNKNOWN_SIZE
from factory.storage import HuggingFaceStorage
from factory.testing.storage import keys
from tests.storage.web import Web, web

__all__ = ["web"]  # a fixture, used by its name


def picture(kind: str, color: int) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (8, 6), (color, 0, 0)).save(file, kind)
    return file.getvalue()


PICTURES = [picture("PNG", 10), picture("JPEG", 20), picture("WEBP", 30)]


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


def table(count: int = 3, **more: list[Any]) -> Any:
    from datasets import Dataset, Features, Image, Value

    features = {
        "image": Image(),
        "caption": Value("string"),
        "tags": [Value("string")],
        "meta": {"title": Value("string"), "size": {"width": Value("int32")}},
    }
    rows = {
        "image": [{"bytes": data, "path": None} for data in PICTURES[:count]],
        "caption": ["one", "zwei", None][:count],
        "tags": [["a", "b"], [], ["c"]][:count],
        "meta": [{"title": f"t{n}", "size": {"width": n}} for n in range(count)],
    }
    return Dataset.from_dict({**rows, **more}, features=Features(features))


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("saved") / "set")
    table().save_to_disk(folder)
    return folder


@pytest.fixture(scope="session")
def with_splits(tmp_path_factory: pytest.TempPathFactory) -> str:
    from datasets import DatasetDict

    folder = str(tmp_path_factory.mktemp("splits") / "set")
    DatasetDict({"train": table(), "validation": table(1)}).save_to_disk(folder)
    return folder


@pytest.fixture
def storage(saved: str) -> Iterator[HuggingFaceStorage]:
    made = HuggingFaceStorage(saved)
    yield made
    made.close()


def test_bytes_are_those_that_were_put_in(storage: HuggingFaceStorage) -> None:
    infos = list(storage.objects())
    assert [info.key for info in infos] == [f"00000000{n}.img" for n in range(3)]
    assert [info.size for info in infos] == [len(data) for data in PICTURES]
    assert [storage.read(info.key) for info in infos] == PICTURES
    assert [storage.head(info.key) for info in infos] == infos
    assert len({info.etag for info in infos}) == 3


def test_spans(storage: HuggingFaceStorage) -> None:
    key, data = "000000001.img", PICTURES[1]
    assert storage.read(key, 2, 5) == data[2:7]
    assert storage.read(key, 3) == data[3:]
    assert storage.read(key, len(data) + 1, 5) == b""
    assert storage.read(key, 0, 0) == b""
    with pytest.raises(ValueError, match="negative"):
        storage.read(key, -1)


def test_etag_stays_and_follows_the_dataset(storage: HuggingFaceStorage, tmp_path: Path) -> None:
    etag = storage.head("000000000.img").etag
    storage.close()
    assert storage.head("000000000.img").etag == etag
    table(caption=["other", "two", "three"]).save_to_disk(tmp_path / "other")
    assert HuggingFaceStorage(str(tmp_path / "other")).head("000000000.img").etag != etag


@pytest.mark.parametrize("key", ["000000003.img", "0.img", "000000001.png", "a", "0000000001.img"])
def test_unknown_keys(storage: HuggingFaceStorage, key: str) -> None:
    for call in (storage.read, storage.head):
        with pytest.raises(ObjectNotFoundError, match=r"000000000\.img to 000000002\.img"):
            call(key)
    assert not storage.exists(key)


def test_unsafe_keys(storage: HuggingFaceStorage) -> None:
    with pytest.raises(UnsafeKeyError):
        storage.read("../000000001.img")


def test_has_no_folders(storage: HuggingFaceStorage) -> None:
    with pytest.raises(ObjectNotFoundError, match="no folders"):
        list(storage.objects("a"))


def test_rows(storage: HuggingFaceStorage) -> None:
    rows = storage.rows(["tags", "meta.title", "caption", "meta.size.width"])
    assert rows.column_names == ["key", "tags", "meta.title", "caption", "meta.size.width"]
    assert rows.to_pydict() == {
        "key": [f"00000000{n}.img" for n in range(3)],
        "tags": [["a", "b"], [], ["c"]],
        "meta.title": ["t0", "t1", "t2"],
        "caption": ["one", "zwei", None],
        "meta.size.width": [0, 1, 2],
    }
    assert storage.rows([]).to_pydict() == {"key": [f"00000000{n}.img" for n in range(3)]}


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ("captoin", r"tags.*did you mean 'caption'\?"),
        ("meta.titel", r"did you mean 'meta\.title'\?"),
        ("caption.x", "no column"),
        ("key", "'key' is taken"),
    ],
)
def test_missing_columns(storage: HuggingFaceStorage, column: str, said: str) -> None:
    with pytest.raises(TableError, match=said):
        storage.rows([column])


def test_missing_image_column(saved: str) -> None:
    storage = HuggingFaceStorage(saved, image_column="imag")
    for call in (storage.check, lambda: list(storage.objects())):
        with pytest.raises(TableError, match=r"caption.*did you mean 'image'\?"):
            call()


def test_column_without_pictures(saved: str) -> None:
    with pytest.raises(TableError, match=r"'tags'.*storage\.image_column"):
        HuggingFaceStorage(saved, image_column="tags").check()


def test_splits(with_splits: str) -> None:
    with pytest.raises(TableError, match=r"\(train, validation\); set storage\.split"):
        HuggingFaceStorage(with_splits).check()
    with pytest.raises(TableError, match=r"did you mean 'validation'\?"):
        HuggingFaceStorage(with_splits, split="valid").check()
    assert len(keys(HuggingFaceStorage(with_splits, split="train"))) == 3
    assert len(keys(HuggingFaceStorage(with_splits, split="validation"))) == 1


def test_only_split_is_chosen(tmp_path: Path) -> None:
    from datasets import DatasetDict

    DatasetDict({"train": table(2)}).save_to_disk(tmp_path / "set")
    assert len(keys(HuggingFaceStorage(str(tmp_path / "set")))) == 2


def test_parquet_folder(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    table().to_parquet(tmp_path / "set" / "train.parquet")
    storage = HuggingFaceStorage(str(tmp_path / "set"))
    assert [storage.read(info.key) for info in storage.objects()] == PICTURES
    assert storage.rows(["caption"])["caption"].to_pylist() == ["one", "zwei", None]
    assert len(keys(HuggingFaceStorage(str(tmp_path / "set"), split="train[:2]"))) == 2
    with pytest.raises(TableError, match="no split 'test'"):
        HuggingFaceStorage(str(tmp_path / "set"), split="test").check()


def test_folder_of_pictures(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.png").write_bytes(PICTURES[0])
    storage = HuggingFaceStorage(str(tmp_path / "set"))
    (info,) = storage.objects()
    assert info.size == UNKNOWN_SIZE
    assert storage.read(info.key) == PICTURES[0]
    assert storage.read(info.key, 1, 3) == PICTURES[0][1:4]


def test_paths_outside_the_dataset_are_not_read(tmp_path: Path) -> None:
    from datasets import Dataset, Features, Value

    secret = tmp_path / "secret.png"
    secret.write_bytes(PICTURES[0])
    paths = [str(secret), "../secret.png", "inside.png", None, "zip://a::b"]
    images = [{"bytes": None, "path": path} for path in paths]
    # A plain struct, for an Image feature would embed what it finds while saving.
    features = Features({"image": {"bytes": Value("binary"), "path": Value("string")}})
    folder = tmp_path / "set"
    Dataset.from_dict({"image": [*images, None]}, features=features).save_to_disk(folder)
    (folder / "inside.png").write_bytes(PICTURES[1])
    storage = HuggingFaceStorage(str(folder))
    infos = list(storage.objects())
    assert [info.size for info in infos] == [UNKNOWN_SIZE] * 6
    assert storage.read(infos[2].key) == PICTURES[1]
    for info in infos[:2] + infos[3:]:
        with pytest.raises(StorageError):
            storage.read(info.key)


@pytest.mark.parametrize("form", ["saved", "parquet", "jsonl"])
@pytest.mark.parametrize("kind", ["Image", "struct"])
def test_urls_in_columns_of_pictures_are_not_fetched(
    tmp_path: Path, web: Web, form: str, kind: str
) -> None:
    from datasets import Dataset, Features, Image, Value

    from factory.storage.huggingface_stream import RowStream

    plain = {"bytes": Value("binary"), "path": Value("string")}
    urls = [f"{web.url}/a.png", f"zip://a.png::{web.url}/b.zip", web.url.replace("http", "HTTP")]
    images = [{"bytes": None, "path": url} for url in urls]
    features = Features({"image": plain, "other": plain})
    made = Dataset.from_dict({"image": images, "other": images}, features=features)
    folder = tmp_path / "set"
    folder.mkdir()
    if form == "saved":
        made.save_to_disk(folder)
    elif form == "parquet":
        made.to_parquet(folder / "a.parquet")
    else:
        made.to_json(folder / "a.jsonl")
    if kind == "Image":  # as a dataset says of itself that would have them opened
        described = Features({"image": Image(), "other": Image()})
        if form == "saved":
            info = folder / "dataset_info.json"
            text = json.loads(info.read_text())
            text["features"] = described.to_dict()
            info.write_text(json.dumps(text))
        else:
            lines = ["dataset_info:", "  features:"]
            lines += [f"  - name: {name}\n    dtype: image" for name in described]
            (folder / "README.md").write_text("---\n" + "\n".join(lines) + "\n---\n")
    storage = HuggingFaceStorage(str(folder))
    for found in storage.objects():
        with pytest.raises(StorageError):
            storage.read(found.key)
    assert storage.rows(["other.path"]).column(1).to_pylist() == urls
    stream = RowStream(storage, ["other.path"])
    assert [row.data for row in stream.rows(0)] == [None] * len(urls)
    assert not web.requests


def test_missing_dataset(tmp_path: Path) -> None:
    for name in (str(tmp_path / "typo"), "nobody/has-this"):
        with pytest.raises(
            (ObjectNotFoundError, StorageUnavailableError), match=r"storage\.dataset"
        ):
            list(HuggingFaceStorage(name).objects())


class RefusalError(Exception):
    """Stands for an error of the Hub's library."""


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("RepositoryNotFoundError", ObjectNotFoundError),
        ("GatedRepoError", AccessDeniedError),
        ("ConnectTimeout", StorageUnavailableError),
        ("Whatever", StorageError),
    ],
)
def test_what_the_hub_says(
    monkeypatch: pytest.MonkeyPatch, name: str, kind: type[StorageError]
) -> None:
    import huggingface_hub

    def refuse(*args: object, timeout: float, **kwargs: object) -> None:
        assert timeout < 10
        raise type(name, (RefusalError,), {})("no")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", refuse)
    with pytest.raises(StorageError, match="some/name") as caught:
        HuggingFaceStorage("some/name").check()
    assert type(caught.value) is kind


def test_is_a_value(storage: HuggingFaceStorage, saved: str) -> None:
    storage.read("000000000.img")
    copy = pickle.loads(pickle.dumps(storage))
    assert copy == storage
    assert hash(copy) == hash(storage)
    assert repr(copy) == repr(storage)
    assert storage.identity == f"hf+{saved}@"
    assert HuggingFaceStorage("a/b", "train", "v1").identity == "hf+a/b@train#v1"
    with pytest.raises(ValueError, match=r"storage\.dataset"):
        HuggingFaceStorage("")


def test_read_only(storage: HuggingFaceStorage) -> None:
    storage.check()
    for call in (
        lambda: storage.write("a", b"x"),
        lambda: storage.delete("a"),
        lambda: storage.check(write=True),
    ):
        with pytest.raises(StorageError, match="read-only"):
            call()


def test_threads_and_processes(storage: HuggingFaceStorage) -> None:
    numbers = [n % 3 for n in range(60)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(storage.read, [f"00000000{n}.img" for n in numbers]))
    assert found == [PICTURES[n] for n in numbers]
    for method in ("fork", "spawn"):
        with ProcessPoolExecutor(1, mp_context=get_context(method)) as pool:
            assert pool.submit(storage.read, "000000002.img").result(60) == PICTURES[2]


def test_fields_of_descriptions_and_scores(tmp_path: Path) -> None:
    from factory.catalog.captions.caption_reader import texts_of
    from factory.catalog.captions.sources import ColumnCaptions
    from factory.catalog.row_filters import RowFilter
    from factory.catalog.scan.scan import Scan
    from factory.engine.local_engine import LocalEngine

    described = [{"short": "a", "long": ["b", "c"]}, {"short": None, "long": ["d"]}, None]
    more = {"quality": [{"score": 5.5}, {"score": 4.0}, None], "about": described}
    folder = str(tmp_path / "set")
    nested(more).save_to_disk(folder)
    storage = HuggingFaceStorage(folder)
    captions = ColumnCaptions(columns=("about.short",), fallback_columns=("about.long",))
    scan, listing = Scan("hub", storage, "", captions), storage.listing()
    texts = texts_of(scan, LocalEngine(1), listing, listing["key"], {})[0].to_pylist()
    assert [captions.captions("", text or ()) for text in texts] == [
        ("a",), ("d",), (),
    ]  # fmt: skip
    wanted = RowFilter("quality.score", minimum=5)
    assert wanted.keeps(storage.rows(["quality.score"])["quality.score"]).tolist() == [
        True, False, False,
    ]  # fmt: skip


def nested(more: dict[str, list[Any]]) -> Any:
    """Return rows of pictures with columns of any other kind; the last picture is null."""
    from datasets import Dataset, Features, Image

    rest = Dataset.from_dict(more)
    images = [{"bytes": data, "path": None} for data in PICTURES[:2]]
    pictures = Dataset.from_dict({"image": [*images, None]}, features=Features({"image": Image()}))
    for name in rest.column_names:
        pictures = pictures.add_column(name, rest[name][:])
    return pictures


def test_a_null_picture_keeps_its_row_with_the_reason(tmp_path: Path) -> None:
    from factory.backends.image import ImageBackend
    from factory.engine.local_engine import LocalEngine

    folder = str(tmp_path / "set")
    nested({"caption": ["a", "b", "c"]}).save_to_disk(folder)
    backend = ImageBackend(name="hub", storage=HuggingFaceStorage(folder))
    with pytest.raises(StorageError, match=r"row 2 .* has no picture"):
        backend.storage.read("000000002.img")
    facts = backend.scan(None, LocalEngine(1))
    assert facts.table["error"].to_pylist()[:2] == [None, None]
    assert "has no picture" in facts.table["error"].to_pylist()[2]


def test_videos_of_a_column(tmp_path: Path) -> None:
    from datasets import Dataset, Features, Video

    clips = {"video": [{"bytes": b"abc", "path": None}]}
    made = Dataset.from_dict(clips, features=Features({"video": Video()}))
    made.save_to_disk(tmp_path / "set")
    storage = HuggingFaceStorage(str(tmp_path / "set"), image_column="video")
    assert storage.read("000000000.img") == b"abc"
    assert storage.identity.endswith("set@!video")


def test_prepared_tables_go_where_they_are_told_to(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    table().to_parquet(tmp_path / "set" / "train.parquet")
    storage = HuggingFaceStorage(str(tmp_path / "set"), cache_dir=str(tmp_path / "cache"))
    assert [storage.read(key) for key in sorted(keys(storage))] == PICTURES
    assert list((tmp_path / "cache").rglob("*.arrow"))
    storage.close()
    with pytest.raises(ValueError, match="num_proc must be at least 1"):
        HuggingFaceStorage("a", num_proc=0)


def test_configurations_of_one_dataset(tmp_path: Path) -> None:
    for name, count in (("small", 1), ("large", 3)):
        (tmp_path / "set" / name).mkdir(parents=True)
        table(count).to_parquet(tmp_path / "set" / name / "train.parquet")
    listed = "".join(
        f"- config_name: {name}\n  data_files: {name}/train.parquet\n"
        for name in ("small", "large")
    )
    (tmp_path / "set" / "README.md").write_text(f"---\nconfigs:\n{listed}---\n")
    folder = str(tmp_path / "set")
    assert len(keys(HuggingFaceStorage(folder, subset="small"))) == 1
    assert len(keys(HuggingFaceStorage(folder, subset="large"))) == 3
    assert HuggingFaceStorage(folder, subset="large").identity == f"hf+{folder}:large@"
