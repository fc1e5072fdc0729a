"""Every problem is found at once, in the category a reader can look up."""

from pathlib import Path
from typing import Any

import pytest

from factory.errors import ConfigError
from factory.importers.simpletuner.convert import Launch, convert
from factory.importers.simpletuner.problem import CATEGORIES, ImportProblem, ImportRefusedError
from tests.importers.simpletuner.building import categories, converted, entry

AREA = {"resolution": 1.0, "resolution_type": "area"}
PIXEL = {"resolution": 1024, "resolution_type": "pixel"}
HUB = {"type": "huggingface", "instance_data_dir": None, "dataset_name": "u/d"}
SHARDS = {"type": "webshart", "instance_data_dir": None, "source": "o/s"}
RANDOM = {"crop": True, "crop_aspect": "random"}


@pytest.mark.parametrize(
    ("keys", "category"),
    [
        ({"type": None}, "missing_key"),
        ({"id": None}, "missing_key"),
        ({"id": 3}, "invalid_type"),
        ({"instance_data_dir": None}, "missing_key"),
        ({"instance_data_dir": "  "}, "missing_key"),
        ({"instance_data_dir": 3}, "invalid_type"),
        ({"repeats": "often"}, "invalid_type"),
        ({"repeats": 1.5}, "invalid_value"),
        ({"repeats": True}, "invalid_type"),
        ({"probability": [1]}, "invalid_type"),
        ({"max_num_samples": 0}, "invalid_value"),
        ({"timestep_sampling_offset": "x"}, "invalid_type"),
        ({"train_batch_size": 0}, "invalid_value"),
        ({"train_batch_size": "04"}, "invalid_value"),
        ({"train_batch_size": "٤"}, "invalid_value"),
        ({"end_step": 3, "start_step": 5, "start_epoch": 1}, "schedule"),
        ({"resolution_type": "miles"}, "invalid_value"),
        ({"resolution": "1024"}, "invalid_type"),
        ({"resolution": True}, "invalid_type"),
        ({"resolution": 0}, "invalid_value"),
        ({"resolution": 1024, "resolution_type": "area"}, "suspicious_value"),
        ({"resolution": 1, "resolution_type": "pixel"}, "suspicious_value"),
        ({**AREA, "minimum_image_size": 512}, "suspicious_value"),
        ({**AREA, "maximum_image_size": 20, "target_downsample_size": 2}, "suspicious_value"),
        ({**PIXEL, "maximum_image_size": 256, "target_downsample_size": 600}, "suspicious_value"),
        ({"maximum_image_size": 5000, "target_downsample_size": 600}, "suspicious_value"),
        ({"minimum_aspect_ratio": "1"}, "invalid_type"),
        ({"minimum_aspect_ratio": 2, "maximum_aspect_ratio": 1}, "invalid_value"),
        ({"crop": "yes"}, "invalid_type"),
        ({"crop_aspect": "round"}, "invalid_value"),
        ({"crop_style": ["center"]}, "invalid_value"),
        ({"crop_aspect": "closest"}, "missing_key"),
        ({**RANDOM, "crop_aspect_buckets": [True]}, "invalid_type"),
        ({**RANDOM, "crop_aspect_buckets": [-1.0]}, "invalid_value"),
        ({**RANDOM, "crop_aspect_buckets": [{"weight": 1.0}]}, "invalid_type"),
        ({**RANDOM, "crop_aspect_buckets": [{"aspect": 1.0}]}, "invalid_type"),
        ({**RANDOM, "crop_aspect_buckets": [{"aspect": 1, "weight": 0.5}]}, "invalid_value"),
        ({**RANDOM, "crop_aspect_buckets": [1.0, {"aspect": 1, "weight": 1}]}, "invalid_type"),
        ({"caption_strategy": "telepathy"}, "invalid_value"),
        ({"caption_strategy": "csv"}, "unsupported_combination"),
        ({"only_instance_prompt": True}, "missing_key"),
        ({"prepend_instance_prompt": True, "instance_prompt": " "}, "missing_key"),
        ({"instance_prompt": 3}, "invalid_type"),
        ({"instance_prompt": "???"}, "invalid_value"),
        ({"caption_shuffle": {"enable": 1}}, "invalid_type"),
        ({"caption_shuffle": {"count": 0}}, "invalid_value"),
        ({"caption_shuffle": {"count": "2"}}, "invalid_type"),
        ({"caption_shuffle": {"split_on": "dash"}}, "invalid_value"),
        ({"metadata_backend": "parquet"}, "missing_key"),
        ({"metadata_backend": "parquet", "parquet": {}}, "missing_key"),
        ({"metadata_backend": "parquet", "parquet": "x.parquet"}, "invalid_type"),
        ({"metadata_backend": "parquet", "parquet": {"path": 3}}, "invalid_type"),
        ({"metadata_backend": "huggingface"}, "unsupported_combination"),
        ({**HUB, "metadata_backend": "parquet"}, "unsupported_combination"),
        ({**HUB, "huggingface": {"caption_column": ["a", 3]}}, "invalid_type"),
        ({**HUB, "caption_column": ""}, "invalid_type"),
        ({**HUB, "huggingface": []}, "invalid_type"),
        ({**SHARDS, "source": None}, "missing_key"),
        ({**SHARDS, "webshart": {"shard_cache_gb": -1}}, "invalid_value"),
        ({"vae_cache_scan_behaviour": "hope"}, "invalid_value"),
        ({"disable_vae_cache": False}, "removed_key"),
        ({"conditioning": "canny"}, "invalid_type"),
        ({"conditioning": {"type": ""}}, "missing_key"),
        ({"conditioning_data": 3}, "invalid_type"),
        ({"text_embeds": "nope"}, "unknown_reference"),
        ({"text_embeds": 3}, "invalid_type"),
        ({"source_dataset_id": "nope"}, "unknown_reference"),
        ({"s2v_datasets": ["nope"]}, "unknown_reference"),
        ({"dataset_type": "video", "video": {"num_frames": True}}, "invalid_type"),
        ({"dataset_type": "text_embeds", "type": "aws"}, "missing_key"),
    ],
)
def test_one_problem_one_category(keys: dict[str, Any], category: str) -> None:
    second = entry(id="other", instance_data_dir="/o")
    assert categories(entry(**keys), second) == [category]


def test_conditioning_types_are_known() -> None:
    given = [entry(), entry(id="c", conditioning_type="magic")]
    assert categories(*given) == ["invalid_value"]


def test_links_lead_to_the_right_kind_and_to_what_is_enabled() -> None:
    assert categories(entry(text_embeds="e"), entry(id="e")) == ["unknown_reference"]
    off = entry(id="te", dataset_type="text_embeds", disable=True)
    with pytest.raises(ImportRefusedError, match="'te', which is disabled"):
        converted(entry(text_embeds="te"), off)
    with pytest.raises(ImportRefusedError, match="did you mean 'masks'"):
        converted(entry(conditioning_data="mask"), entry(id="masks", conditioning_type="mask"))


def test_latents_folders_are_not_shared() -> None:
    shared = {"cache_dir_vae": "/c"}
    assert categories(entry(**shared), entry(id="e", **shared)) == ["unsupported_combination"]
    text = entry(id="te", dataset_type="text_embeds", cache_dir="/c")
    assert categories(entry(**shared), text) == ["unsupported_combination"]


def test_ids_are_unique_also_once_filled_in() -> None:
    assert categories(entry(), entry()) == ["duplicate_id"]
    given = [entry(id="{model_family}"), entry(id="flux")]
    assert categories(*given, args={"model_family": "flux"}) == ["duplicate_id"]


def test_controlnet_demands_partners() -> None:
    assert categories(entry(), args={"controlnet": True}) == ["missing_key"]


@pytest.mark.parametrize(
    "given",
    [
        [],
        [entry(disabled=True)],
        [entry(dataset_type="text_embeds", instance_data_dir=None)],
        [entry(dataset_type="eval")],
    ],
)
def test_a_config_without_a_dataset_to_train_on_is_empty(given: list[dict[str, Any]]) -> None:
    assert categories(*given) == ["empty_config"]


@pytest.mark.parametrize(
    ("args", "category"),
    [
        ({"seed": "x"}, "invalid_type"),
        ({"seed": "inf"}, "invalid_type"),
        ({"seed": -1}, "invalid_value"),
        ({"gradient_accumulation_steps": 0}, "invalid_value"),
        ({"aspect_bucket_alignment": 8.5}, "invalid_type"),
        ({"caption_dropout_probability": 2}, "invalid_value"),
        ({"caption_dropout_probability": []}, "invalid_type"),
        ({"data_backend_sampling": "dice"}, "invalid_value"),
    ],
)
def test_arguments_are_checked(args: dict[str, Any], category: str) -> None:
    assert categories(entry(), args=args) == [category]


def test_all_missing_folders_are_listed_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    there, file = str(tmp_path), str(tmp_path / "file")
    given = [
        entry(instance_data_dir=there), entry(id="a", instance_data_dir="/no/a"),
        entry(id="b", instance_data_dir=file), entry(id="c", instance_data_dir="/no/\0"),
        entry(id="off", instance_data_dir="/no/off", disabled=True),
    ]  # fmt: skip
    with pytest.raises(ImportRefusedError) as caught:
        convert(given)
    assert [problem.category for problem in caught.value.found] == ["missing_path"] * 3
    assert "/no/a" in caught.value.problems[0]
    assert convert(given, paths=False).datasets


def test_everything_is_said_at_once() -> None:
    found = categories(
        entry(repeats=-1, probability=-1, crop_style="spiral"),
        entry(id="b", type="ftp", text_embeds="nope"),
        args={"seed": "x"},
    )
    expected = ["invalid_type", *["invalid_value"] * 3, "unknown_type", "unknown_reference"]
    assert found == expected


def test_a_refusal_is_a_config_error_with_categories_in_its_text() -> None:
    with pytest.raises(ConfigError, match=r"repeats must be at least 0, got -1 \[invalid_value\]"):
        converted(entry(repeats=-1))


def test_long_values_are_cut_in_messages() -> None:
    with pytest.raises(ImportRefusedError) as caught:
        converted(entry(crop_style="x" * 5000))
    assert len(str(caught.value)) < 300


def test_problems_have_known_categories() -> None:
    assert all(CATEGORIES.values())
    with pytest.raises(ValueError, match="category must be one of"):
        ImportProblem("misc", "x")


@pytest.mark.parametrize("launch", [{"gpus": 0}, {"accumulation": -1}, {"batch_size": 0}])
def test_counts_are_positive(launch: dict[str, int]) -> None:
    with pytest.raises(ImportRefusedError, match="at least 1"):
        Launch(**launch)
