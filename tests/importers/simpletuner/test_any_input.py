"""Whatever a file holds, it is imported or refused with problems; nothing else comes out."""

from typing import Any

import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from factory.importers.simpletuner.convert import convert
from factory.importers.simpletuner.entry import KINDS, STORAGES
from factory.importers.simpletuner.files import Import
from factory.importers.simpletuner.keys import ARGUMENTS, KEYS
from factory.importers.simpletuner.problem import ImportRefusedError
from tests.importers.simpletuner.building import entry
from tests.support.examples import examples

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 2000), st.floats(allow_nan=False, width=16),
    st.sampled_from(["", "a", "b", "3", "random", "pixel", "{id}", "{env:HOME}", "/data/x"]),
)  # fmt: skip
JSON = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from([*KEYS, "x"]).map(lambda k: k.rpartition(".")[2]), inner,
                        max_size=3),
    ),
    max_leaves=5,
)  # fmt: skip
PLAIN = sorted(key for key in KEYS if "." not in key)
ENTRIES = st.builds(
    lambda name, kind, place, keys: {
        **entry(id=name, dataset_type=kind, type=place, csv_file="/l/u.csv", csv_cache_dir="/c",
                csv_caption_column="c", dataset_name="u/d", source="o/s", aws_bucket_name="b",
                aws_endpoint_url="https://e", aws_access_key_id="k", aws_secret_access_key="s"),
        **keys,
    },
    st.sampled_from(["a", "b", "c"]),
    st.sampled_from(list(KINDS)),
    st.sampled_from(STORAGES),
    st.dictionaries(st.sampled_from(PLAIN), JSON, max_size=3),
)  # fmt: skip


def imported(config: list[dict[str, Any]], args: dict[str, Any] | None = None) -> None:
    try:
        conversion = convert(config, args, paths=False, environment={})
    except ImportRefusedError as error:
        assert error.found
        return
    for name, text in Import("old", "m.json", conversion).files("conf").items():
        if name.endswith(".yaml"):
            assert yaml.safe_load(text)


@settings(deadline=None, max_examples=examples(150), suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(ENTRIES, max_size=3), st.dictionaries(st.sampled_from([*ARGUMENTS]), JSON))
@example([entry(parquet={"path": "../x"}, metadata_backend="parquet")], {})
@example([entry(parquet={"path": "../x"}, metadata_backend="parquet", instance_data_dir="..")], {})
def test_any_config(config: list[dict[str, Any]], args: dict[str, Any]) -> None:
    imported(config, args)


@settings(deadline=None, max_examples=examples(150), suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(PLAIN), JSON, st.sampled_from(["local", "huggingface", "csv"]))
def test_any_value_of_any_key(key: str, value: Any, place: str) -> None:
    keys = {"csv_file": "/l/u.csv", "csv_cache_dir": "/c", "csv_caption_column": "c"}
    imported([entry(**{**keys, "type": place, "dataset_name": "u/d", key: value})])
