"""The option metadata=parquet: composed, checked and built."""

from pathlib import Path

import pytest

import factory
from factory.catalog.scan.table import ParquetTable
from factory.config.compose import compose
from factory.config.schema.help_text import help_text
from tests.config.test_compose import problems

TABLE = ("metadata@data.backends.photos=parquet",)
WHERE = "data.backends.photos.metadata"


@pytest.mark.parametrize(
    ("given", "path"),
    [("a/*.parquet", "a/*.parquet"), ("[a.parquet,b.parquet]", ("a.parquet", "b.parquet"))],
)
def test_a_table_is_built_from_config(tmp_path: Path, given: str, path: object) -> None:
    sizes = (f"{WHERE}.width_column=null", f"{WHERE}.height_column=null")
    cfg = compose(
        [*TABLE, f"{WHERE}.path={given}", f"{WHERE}.extensionless=true", *sizes,
         f"storage.root={tmp_path}"]
    )  # fmt: skip
    data = factory.build(cfg)
    table = data.registry.data["photos"].metadata
    assert table == ParquetTable(
        path,
        width_column=None,
        height_column=None,
        extensionless=True,  # type: ignore[arg-type]
    )
    assert hash(table)
    data.close()


def test_bad_values_are_named_all_at_once() -> None:
    said = problems(
        *TABLE,
        f"{WHERE}.path=[a.parquet,../b.parquet,/c.parquet,'',3]",
        f"{WHERE}.file_column=''",
        f"{WHERE}.frames_column=''",
        f"{WHERE}.height_column=null",
    )
    assert said.startswith("7 problems")
    assert "no leading '/', no '..'; got '../b.parquet'" in said
    assert "no leading '/', no '..'; got '/c.parquet'" in said
    assert "path must be a key in the storage, or a list of keys; got ''" in said
    assert "path must be a key in the storage, or a list of keys; got 3" in said
    assert f"{WHERE}.file_column must name a column" in said
    assert "frames_column must name a column, or be null" in said
    assert "width_column=width and height_column=null go together" in said


def test_a_table_must_be_named() -> None:
    assert f"{WHERE}.path" in problems(*TABLE)
    assert "path must name a table" in problems(*TABLE, f"{WHERE}.path=[]")


def test_help_tells_what_a_path_may_be() -> None:
    text = " ".join(help_text().split())
    assert "a folder, or a pattern such as tables/*.parquet" in text
    assert "names in the table have no suffix" in text
