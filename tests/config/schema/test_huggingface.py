"""Options of Hugging Face datasets: composed, checked and built."""

import factory
from factory.catalog.row_filters import RowFilter
from factory.catalog.scan.column_facts import ColumnFacts
from factory.config.compose import compose
from factory.media.composite import Composite
from factory.storage.huggingface import HuggingFaceStorage
from tests.config.test_compose import problems

HUB = (
    "+data/backend@data.backends.hub=image",
    "storage@data.backends.hub=huggingface",
    "data.backends.hub.storage.dataset=some/set",
    "metadata@data.backends.hub=columns",
    "data/caption@data.backends.hub=huggingface",
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


BIG = (
    "+data/backend@data.backends.big=stream",
    "data.backends.big.storage.dataset=some/set",
)


def test_a_stream_is_built_from_config() -> None:
    cfg = compose([*BIG, "data.backends.big.samples=1000", "data.backends.big.buffer=64"])
    data = factory.build(cfg)
    big = data.registry.streams["big"]
    assert big.storage == HuggingFaceStorage("some/set")
    assert (big.samples, big.buffer, big.prefix) == (1000, 64, "")
    assert big.caption.columns == ("caption",)
    assert "big" in data.registry.data
    assert "big" not in data.registry.samples
    data.close()


def test_what_a_stream_cannot_follow_is_named_at_once() -> None:
    where = "data.backends.big"
    said = problems(
        BIG[0],
        f"storage@{where}=inherit",
        f"data/caption@{where}=textfile",
        f"{where}.max_samples=5",
        f"{where}.samples=0",
        f"{where}.buffer=0",
    )
    assert f"storage@{where}=huggingface" in said
    assert f"data/caption@{where}=huggingface" in said
    assert "set samples for the length of an epoch" in said
    assert f"{where}.samples must be at least 1, got 0" in said
    assert f"{where}.buffer must be at least 1, got 0" in said


def test_the_short_form_says_what_to_pin() -> None:
    said = problems("+data.backends.big={kind:stream}")
    assert "storage@data.backends.big=huggingface" in said
