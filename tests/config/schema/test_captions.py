"""Captions in a config: every option reaches its strategy, and bad values are named at once."""

import pytest

from factory.catalog.captions.json_file import JsonFileCaptions
from factory.catalog.captions.shuffle import Shuffle
from factory.catalog.captions.sources import Captions, InstanceCaptions
from factory.config.build import build, verify
from factory.config.compose import compose
from factory.config.schema.help_text import help_text
from factory.errors import ConfigError
from tests.scenarios.training.test_captions import Shouted


def built(*overrides: str) -> Captions:
    data = build(compose(overrides), overrides)
    return data.registry.samples["photos"].caption


def problems(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        verify(compose(overrides), overrides)
    return str(caught.value)


def test_every_option_reaches_the_strategy() -> None:
    captions = built(
        "data/caption=jsonfile",
        "data.seed=9",
        "data.caption.prepend=sks",
        "data.caption.filters=['arafed ','s/dog/cat/']",
        "data.caption.filters_file=words.txt",
        "data.caption.shuffle={count:3,split_on:period,position_start:1,include_original:false}",
        "data.caption.dropout=0.25",
        "data.caption.fields=[caption,meta.tags]",
        "data.caption.fallback_fields=[title]",
    )
    assert captions == JsonFileCaptions(
        ("caption", "meta.tags"),
        ("title",),
        prepend="sks",
        filters=["arafed ", "s/dog/cat/"],
        filters_file="words.txt",
        shuffle=Shuffle(
            count=3, seed=9, split_on="period", position_start=1, include_original=False
        ),
        dropout=0.25,
    )


def test_prompts_are_a_text_or_a_list() -> None:
    one = built("data/caption=instance", "data.caption.prompt=a dog")
    assert one == InstanceCaptions("a dog")
    two = built("data/caption=instance", "data.caption.prompt=[a dog,a cat]")
    assert two == InstanceCaptions(["a dog", "a cat"])


def test_captions_are_not_shuffled_until_a_count_is_given() -> None:
    assert built("data.caption.shuffle.split_on=space").shuffle is None
    assert built("data.caption.shuffle.count=2").shuffle == Shuffle(count=2, seed=42)


def test_one_backend_may_differ() -> None:
    given = ["data/caption@data.backends.photos=filename", "data.backends.photos.caption.dropout=1"]
    data = build(compose(given), given)
    found = {name: backend.caption.dropout for name, backend in data.registry.samples.items()}
    assert found == {"photos": 1.0, "holdout": 0.0}


def test_a_strategy_of_another_package_is_named_by_its_target() -> None:
    captions = built(
        "data/caption=filename",
        "data.caption._target_=tests.scenarios.training.test_captions.Shouted",
        "data.caption.prepend=sks",
    )
    assert captions == Shouted(prepend="sks")


def test_all_bad_values_are_named_at_once() -> None:
    text = problems(
        "data.caption.prepend=' '",
        "data.caption.filters=['fine','s/(dog/cat/','s//x/']",
        "data.caption.filters_file=words.csv",
        "data.caption.dropout=1.5",
        "data.caption.shuffle={count:-1,split_on:coma,position_start:-2}",
        "data.caption.suffix=txt",
    )
    assert text.startswith("9 problems")
    for part in (
        "data.caption.prepend must be a text, not blank; got ' '; set data.caption.prepend=null",
        "data.caption.filters entry 2: 's/(dog/cat/' cannot be used: no regular expression: miss",
        "data.caption.filters entry 3: 's//x/' cannot be used",
        "data.caption.filters_file must end in .txt (one entry a line) or .json (a list)",
        "data.caption.dropout must be from 0 to 1, got 1.5",
        "data.caption.shuffle.count must be at least 0, got -1",
        "data.caption.shuffle.position_start must be at least 0, got -2",
        "split_on must be one of comma, space, period, got 'coma'; did you mean 'comma'?",
        "data.caption.suffix must start with a dot, got 'txt'",
    ):
        assert part in text, part


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("data/caption=jsonfile", "data.caption.fields=[]"), "fields must name at least one"),
        (("data/caption=jsonfile", "data.caption.fields=['']"), "fields must name at least one"),
        (
            ("data/caption=jsonfile", "data.caption.suffix=json"),
            "data.caption.suffix=.json",
        ),
        (("data/caption=instance", "data.caption.prompt=[' ']"), "not blank; got [' ']"),
        (("data/caption=instance",), "no value for data.caption.prompt"),
        (("data.caption.shuffle=true",), "data.caption.shuffle=true"),
        (("data.caption.shuffle.count=1.5",), "could not be converted to Integer"),
        (("data.caption.shuffle.counts=2",), "did you mean 'count'?"),
        (("data.caption.filters=arafed",), "data.caption.filters=arafed"),
    ],
)
def test_other_bad_values(overrides: tuple[str, ...], said: str) -> None:
    assert said in problems(*overrides)


@pytest.mark.parametrize("option", ["parquet", "csv", "huggingface"])
def test_columns_need_a_table(option: str) -> None:
    text = problems(f"data/caption@data.backends.photos={option}")
    assert (
        "data.backends.photos.caption reads the columns caption of a table, and "
        "metadata=discovery in LocalStorage has none; choose metadata=parquet"
    ) in text


@pytest.mark.parametrize("option", ["textfile", "jsonfile"])
def test_rows_of_a_table_have_no_files_beside(option: str) -> None:
    text = problems("data=multi", f"data/caption@data.backends.web={option}")
    assert "file beside each sample, and the rows of UrlListStorage have none" in text


def test_where_captions_lie_does_not_matter_to_partners() -> None:
    given = [
        "+data/backend@data.backends.depth=conditioning",
        "data.backends.depth.source=photos",
        "data/caption@data.backends.depth=parquet",
    ]
    verify(compose(given), given)


def test_the_guide_says_every_option_of_captions_once() -> None:
    text = help_text()
    for name in ("prepend", "filters_file", "dropout", "split_on", "fallback_fields"):
        assert text.count(f"\n  {name} ") == 1, name
