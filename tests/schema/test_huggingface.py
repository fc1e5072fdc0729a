"""Options of Hugging Face datasets: composed, checked and built."""

import factory
from factory.catalog.columns import ColumnFacts
from factory.catalog.row_filters import RowFilter
from factory.composer import compose
from factory.media.composite import Composite
from factory.storage.huggingface import HuggingFaceStorage
from tests.schema.test_compose import problems

HUB = (
    "+data/backend@data.backends.hub=image",
    "storage@data.backends.hub=huggingface",
    "data.backends.hub.storage.dataset=some/set",
    "metadata@data.backends.hub=columns",
)


def test_every_option_reaches_its_part() -> None:
    where = "data.backends.hub"
    cfg = compose(
        [
            *HUB,
            f"{where}.storage.subset=small",
            f"{where}.storage.cache_dir=/scratch/hf",
            f"{where}.storage.num_proc=4",
            f"{where}.metadata.width_column=size.w",
            f"{where}.composite.image_count=4",
            f"{where}.composite.select_index=2",
            f"{where}.filters=[{{column: q.score, minimum: 5}},{{column: set, one_of: [a, b]}}]",
        ]
    )
    data = factory.build(cfg)
    hub = data.registry.data["hub"]
    assert hub.storage == HuggingFaceStorage(
        "some/set", subset="small", cache_dir="/scratch/hf", num_proc=4
    )
    assert hub.metadata == ColumnFacts("size.w")
    assert hub.composite == Composite(4, 2)
    assert hub.filters == (
        RowFilter("q.score", minimum=5.0),
        RowFilter("set", one_of=("a", "b")),
    )
    data.close()


def test_bad_values_are_named_all_at_once() -> None:
    where = "data.backends.hub"
    said = problems(
        *HUB,
        f"{where}.storage.num_proc=0",
        f"{where}.composite.image_count=2",
        f"{where}.composite.select_index=2",
        f"{where}.filters=[{{column: a}},{{column: b, minimum: 2, maximum: 1}},"
        "{column: c, one_of: [1, x]}]",
    )
    assert f"{where}.storage.num_proc must be at least 1, got 0" in said
    assert "select_index must be 0 to 1 with image_count=2, got 2" in said
    assert f"{where}.filters.0.column a has no condition" in said
    assert "minimum 2 is above maximum 1" in said
    assert "one_of must hold values of one kind" in said
