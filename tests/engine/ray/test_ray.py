"""Bulk work on a cluster of two nodes: the same as in this process, whoever dies."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from factory import ImageBackend, ImageEmbedBackend, TextEmbedBackend, Workspace
from factory.backends.prepared import PreparedBackend
from factory.catalog.captions.sources import FilenameCaptions
from factory.encoder.dct import BlockDCT
from factory.encoder.hashed_text import HashedText
from factory.engine.engine import Engine
from factory.engine.local_engine import LocalEngine
from factory.engine.ray.ray_engine import RayEngine
from factory.errors import ConfigError, EngineError, MissingExtraError, StorageUnavailableError
from factory.registry.precompute import fill_captions, fill_pictures
from factory.storage.local import LocalStorage
from factory.storage.memory import MemoryStorage
from tests.catalog.fakes import Watched
from tests.engine.deadly import DeadlyDCT
from tests.engine.work import Doubling, inverse, place
from tests.support.pictures import write_pictures

pytestmark = [pytest.mark.usefixtures("cluster"), pytest.mark.xdist_group("ray")]
PICTURES = 24


def source_of(root: Path, cache: str, storage: Any = None, encoder: Any = None) -> PreparedBackend:
    """Return the folder "p" scanned, with a store of latents of its own."""
    files = storage or LocalStorage(str(root))
    backend = ImageBackend(
        name="pics",
        prefix="p",
        caption=FilenameCaptions(),
        storage=files,
        resolution=64,
        alignment=16,
    )
    kept = Workspace(LocalStorage(str(root / cache)))
    store = ImageEmbedBackend(
        name="latents", cache=kept, encoder=encoder or BlockDCT(), batch_size=3
    )
    facts = backend.scan(None, LocalEngine(workers=2))
    return PreparedBackend(backend, backend.catalog(facts, 0), store)


def latents(source: PreparedBackend) -> dict[str, bytes]:
    """Return the latents of every kept picture by its key."""
    found = {}
    for bucket in source.catalog.decisions.buckets:
        rows = source.gather(source.latents, bucket.rows)["latents"]
        keys = source.catalog.facts.texts("key", bucket.rows)
        found.update({k: row.numpy().tobytes() for k, row in zip(keys, rows, strict=True)})
    return found


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    write_pictures(root / "p", PICTURES)
    (root / "p" / "0005.png").write_bytes((root / "p" / "0005.png").read_bytes()[:90])
    return root


def test_results_come_in_order_from_several_processes() -> None:
    outcomes = list(RayEngine().map(place, range(300)))
    assert [item for item, _ in outcomes] == list(range(300))
    results = [result for _, result in outcomes if not isinstance(result, Exception)]
    assert [number for number, _ in results] == list(range(300))
    assert len({process for _, process in results}) > 1


def test_an_exception_is_the_result_of_its_item_alone() -> None:
    outcomes = list(RayEngine().map(inverse, [1, 0, 2]))
    assert outcomes[0] == (1, 1)
    assert isinstance(outcomes[1][1], ZeroDivisionError)
    assert outcomes[2] == (2, 0.5)


def test_only_a_bounded_number_of_items_is_taken() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for n in range(10_000):
            taken.append(n)
            yield n

    results = RayEngine().map(inverse, items())
    next(results)
    assert len(taken) <= 2 * 4  # two tasks of one item for each core
    results.close()  # type: ignore[attr-defined]


def test_units_are_shared_and_each_is_done_once(tmp_path: Path) -> None:
    reports = list(RayEngine().work(Doubling(str(tmp_path)), range(12)))
    assert sorted(reports) == [(n, 2 * n) for n in range(12)]
    assert {file.read_text() for file in tmp_path.iterdir()} == {"x"}


def test_an_encoder_that_dies_is_replaced_and_its_units_are_done_again(tmp_path: Path) -> None:
    reports = list(RayEngine().work(Doubling(str(tmp_path), deadly=3), range(8)))
    assert sorted(reports) == [(n, 2 * n) for n in range(8)]
    assert (tmp_path / "3").read_text() == "xx"


def test_a_unit_that_kills_every_encoder_ends_the_work(tmp_path: Path) -> None:
    engine = RayEngine(encoders=1)
    with pytest.raises(EngineError, match=r"died 3 times over the same samples.*lower batch_size"):
        list(engine.work(Doubling(str(tmp_path), deadly=0, times=9), range(2)))


def test_what_a_worker_raises_is_raised_here_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError, match="at 2") as caught:
        list(RayEngine().work(Doubling(str(tmp_path), wrong=2), range(8)))
    assert any("of the Ray cluster, on " in note for note in caught.value.__notes__)


def test_more_encoders_than_there_is_room_for_are_refused(tmp_path: Path) -> None:
    engine = RayEngine(encoders=9)
    with pytest.raises(EngineError, match=r"9 encoders .* has room for 4 \(4 CPUs, 0 GPUs\)"):
        list(engine.work(Doubling(str(tmp_path)), range(2)))
    with pytest.raises(EngineError, match=r"1 GPUs each were asked for.* has room for 0"):
        RayEngine(gpus_per_encoder=1).copies()


def both(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, PreparedBackend]:
    """Encode the same pictures by both engines; the Ray one is given relative paths."""
    monkeypatch.chdir(root)
    engines: dict[str, Engine] = {"local": LocalEngine(workers=2), "ray": RayEngine(encoders=2)}
    sources = {}
    for name, engine in engines.items():
        sources[name] = source_of(root, f"{tmp_path.name}-{name}", LocalStorage("."))
        filled = fill_pictures(sources[name], sources[name].latents, engine)
        assert (filled.encoded, filled.cached) == (PICTURES - 1, 0)
        assert [key.split(":")[0] for key in filled.errors.values()] == ["truncated"]
        assert fill_pictures(sources[name], sources[name].latents, engine).encoded == 0
    return sources


def test_rows_are_those_of_this_process_to_the_last_byte(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = both(pictures, tmp_path, monkeypatch)
    for source in sources.values():  # without the one that cannot be read
        facts = source.catalog.facts.with_errors({5: "truncated"})
        source.catalog = source.backend.catalog(facts, 0)
    assert latents(sources["local"]) == latents(sources["ray"])
    assert len(latents(sources["ray"])) == PICTURES - 1


def test_captions_are_those_of_this_process_to_the_last_byte(tmp_path: Path) -> None:
    captions = [f"caption {n} of many" for n in range(50)]
    rows = []
    for name, engine in (("local", LocalEngine()), ("ray", RayEngine(encoders=2))):
        kept = Workspace(LocalStorage(str(tmp_path / name)))
        store = TextEmbedBackend(name="text", cache=kept, encoder=HashedText(), batch_size=8)
        assert fill_captions(store, captions, engine).encoded == 50
        rows.append(store.gather(captions))
    assert all(torch.equal(rows[0][name], rows[1][name]) for name in rows[0])


def test_pictures_of_an_encoder_that_died_are_encoded_by_another(
    pictures: Path, tmp_path: Path
) -> None:
    deadly = DeadlyDCT(mark=str(tmp_path / "died"))
    source = source_of(pictures, f"{tmp_path.name}-deadly", encoder=deadly)
    filled = fill_pictures(source, source.latents, RayEngine(encoders=2))
    assert (tmp_path / "died").exists()
    assert filled.encoded == PICTURES - 1


def test_a_storage_that_fails_as_a_whole_fails_here(pictures: Path, tmp_path: Path) -> None:
    broken = {"p/0007.png": StorageUnavailableError("down")}
    source = source_of(pictures, f"{tmp_path.name}-broken", Watched(str(pictures)))
    source.backend.storage.broken.update(broken)  # type: ignore[attr-defined]
    with pytest.raises(StorageUnavailableError, match="down") as caught:
        fill_pictures(source, source.latents, RayEngine(encoders=2))
    assert any("while reading 'p/0007.png'" in note for note in caught.value.__notes__)


def test_a_storage_in_memory_is_refused(pictures: Path) -> None:
    source = source_of(pictures, "unused")
    assert source.latents is not None
    source.latents.cache = Workspace(MemoryStorage("here"))
    with pytest.raises(ConfigError, match=r"memory://here lies in this process's memory.*engine=l"):
        fill_pictures(source, source.latents, RayEngine())


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"data-backend-factory\[ray\]"):
        RayEngine().copies()
