"""A file of another size than its table says is never stretched, whoever reads it."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from factory.backends.image import SampleBackend
from factory.backends.pixels import Picture
from factory.catalog.captions.sources import FilenameCaptions
from factory.catalog.crops import SampleCrop
from factory.catalog.scan.table import ParquetTable
from factory.engine.local_engine import LocalEngine
from factory.errors import EmptyBackendError, MediaError
from factory.media.composite import Composite
from factory.reports.preview import thumbnails
from factory.runtime.batches.quarantine import QuarantineLimit, too_many
from tests.reports.preview.building import dry_run, problems
from tests.scenarios.bad_input.making import (
    backend,
    batches,
    details,
    dropped,
    kept,
    module,
    prepared,
)

TABLE = ParquetTable(path="t.parquet")


def photographs(root: Path, suffix: str = "jpg", turned: tuple[int, ...] = (3, 4)) -> None:
    """Write six pictures of 96 x 64 stored pixels, some turned by EXIF, and a table of these."""
    folder = root / "pics"
    folder.mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    for n in range(6):
        more = {"exif": exif.tobytes()} if n in turned else {}
        Image.new("RGB", (96, 64), (40 * n, 90, 20)).save(folder / f"{n}.{suffix}", **more)
    write_table(root, suffix, [(96, 64)] * 6)


def write_table(root: Path, suffix: str, sizes: list[tuple[int, int]]) -> None:
    names = [f"{n}.{suffix}" for n in range(len(sizes))]
    width, height = map(list, zip(*sizes, strict=True))
    table = {"file_name": names, "width": width, "height": height}
    pq.write_table(pa.table(table), root / "t.parquet")


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("decode", ["fast", "exact"])
def test_precompute_drops_them_and_names_both_sizes(
    tmp_path: Path, suffix: str, decode: str
) -> None:
    photographs(tmp_path, suffix)
    with prepared(tmp_path, encoded=True, metadata=TABLE, decode=decode) as data:
        assert kept(data) == [f"pics/{n}.{suffix}" for n in (0, 1, 2, 5)]
        assert dropped(data) == [f"pics: 2 size differs (3.{suffix}, 4.{suffix})"]
        assert (
            "96 x 64 px by its facts, 64 x 96 px in the file" in details(data)[f"pics/3.{suffix}"]
        )
    # Nothing is decoded to know it again, and a corrected table brings them back.
    with prepared(tmp_path, encoded=True, metadata=TABLE, decode=decode) as data:
        assert len(kept(data)) == 4
    upright = [(64, 96) if n in (3, 4) else (96, 64) for n in range(6)]
    write_table(tmp_path, suffix, upright)
    with prepared(tmp_path, encoded=True, metadata=TABLE, decode=decode) as data:
        assert len(kept(data)) == 6


@pytest.mark.parametrize(
    ("encoded", "mode"),
    [(True, "on_demand"), (True, "transient"), (False, None)],
)
def test_while_training_others_stand_in(tmp_path: Path, encoded: bool, mode: str | None) -> None:
    photographs(tmp_path)
    with prepared(tmp_path, encoded=encoded, metadata=TABLE, encode_mode=mode) as data:
        made = batches(data)
    replaced = {each.key: each for batch in made for each in batch.replaced}
    assert set(replaced) == {"pics/3.jpg", "pics/4.jpg"}
    assert all("64 x 96 px in the file" in each.reason for each in replaced.values())
    assert not {key for batch in made for key in batch.keys} & set(replaced)


def test_more_of_them_than_allowed_say_what_to_set() -> None:
    limit = QuarantineLimit(0, 0)
    error = too_many("pics", {"3.jpg": "decode failed: size differs: 96 x 64"}, 6, limit)
    assert "data.backends.pics.metadata.width_column=null" in str(error)
    assert "verify=true" in str(too_many("pics", {"3.jpg": "truncated"}, 6, limit))


def test_all_of_them_say_what_to_set(tmp_path: Path) -> None:
    photographs(tmp_path, turned=tuple(range(6)))
    data = module(tmp_path, metadata=TABLE, encoded=True)
    with pytest.raises(EmptyBackendError, match=r"6 size differs.*width_column=null"):
        data.prepare_data()
    data.close()


def test_a_file_replaced_under_its_etag_is_measured_anew(tmp_path: Path) -> None:
    """As where a server gives no ETag that changes."""
    photographs(tmp_path, turned=())
    pics, engine = backend(tmp_path), LocalEngine(1)
    known = pics.scan(None, engine).with_errors({0: "size differs: 9 x 9 px by its facts"})
    assert pics.scan(known, engine).table["error"].null_count == 6


def test_strips_of_composites_are_compared_too(tmp_path: Path) -> None:
    photographs(tmp_path)
    parts: dict[str, Any] = {"metadata": TABLE, "composite": Composite(2, 1), "encoded": True}
    with prepared(tmp_path, **parts) as data:
        assert dropped(data) == ["pics: 2 size differs (3.jpg, 4.jpg)"]


def test_the_dry_run_draws_no_cut_of_another_size(tmp_path: Path) -> None:
    photographs(tmp_path)
    with prepared(tmp_path, metadata=TABLE) as data:
        looks = thumbnails.looks(data.sources["pics"], np.arange(6), LocalEngine(1))
    assert [bool(look.image) for look in looks] == [True, True, True, False, False, True]
    assert "size differs" in looks[3].why


def test_what_is_of_unknown_size_is_not_compared() -> None:
    picture = Picture(0, "a.png", "", SampleCrop((8, 8), (0, 0), (8, 8)), 8, 8)
    picture.check(8, 8)
    with pytest.raises(MediaError, match="8 x 8 px by its facts, 8 x 9 px in the file"):
        picture.check(8, 9)
    Picture(0, "a.png", "", SampleCrop((8, 8), (0, 0), (8, 8))).check(3, 5)


@pytest.mark.parametrize("limit", [2, 1])
def test_a_limit_is_no_fault_of_the_files(tmp_path: Path, limit: int) -> None:
    photographs(tmp_path, turned=())
    pics: SampleBackend = backend(tmp_path, max_samples=limit)
    [problem] = problems(dry_run(tmp_path, pics, batch_size=1).summary, "over max_samples")
    assert "max_samples" in problem.fix
    assert "mend or remove" not in problem.fix


def test_rows_twice_and_rows_without_file_say_what_to_do(tmp_path: Path) -> None:
    photographs(tmp_path, turned=())
    table = {"file_name": ["0.jpg", "1.jpg", "1.jpg", "gone.jpg"]}
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    unsized = ParquetTable(path="t.parquet", width_column=None, height_column=None)
    pics = backend(tmp_path, metadata=unsized, caption=FilenameCaptions())
    summary = dry_run(tmp_path, pics, batch_size=1).summary
    [twice] = problems(summary, "duplicate row")
    assert "remove the others" in twice.fix
    [gone] = problems(summary, "file missing")
    assert "out of the table" in gone.fix
    with prepared(tmp_path, metadata=unsized) as data:
        assert kept(data) == ["pics/0.jpg", "pics/1.jpg"]
        # Published and opened again: every column holds what its type demands.
        assert data.sources["pics"].catalog.facts.table["format"].null_count == 0


@pytest.mark.parametrize("bad", [None, 0, -5, float("nan"), 64.5, 1e12])
def test_sizes_that_are_none_cost_their_rows_only(tmp_path: Path, bad: float | None) -> None:
    photographs(tmp_path, turned=())
    table = {
        "file_name": ["0.jpg", "1.jpg"],
        "width": pa.array([96.0, bad], pa.float64()),
        "height": pa.array([64.0, 64.0]),
    }
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    with prepared(tmp_path, metadata=TABLE, encoded=True) as data:
        assert kept(data) == ["pics/0.jpg"]
        assert "no size in table" in details(data)["pics/1.jpg"]
        assert "None" not in details(data)["pics/1.jpg"]


def test_a_csv_without_sizes_is_measured(tmp_path: Path) -> None:
    photographs(tmp_path, turned=())
    for name in ("2", "3", "4", "5"):
        (tmp_path / f"pics/{name}.jpg").unlink()
    (tmp_path / "t.csv").write_text("file_name,caption\n0.jpg,a\n1.jpg,b\n")
    unsized = ParquetTable(path="t.csv", width_column=None, height_column=None)
    with prepared(tmp_path, metadata=unsized) as data:
        assert kept(data) == ["pics/0.jpg", "pics/1.jpg"]
