"""What upstream's keys mean, kept in this project's options."""

from typing import Any

import pytest

from factory.importers.simpletuner import project_options
from factory.importers.simpletuner.dataset import Dataset, Outcome
from factory.importers.simpletuner.import_report import outcome, rows
from tests.importers.simpletuner.building import converted, entry, one


@pytest.fixture
def all_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let planned options count as there, whatever this version has."""
    there = project_options.is_option
    for module in ("project_options", "dataset"):
        monkeypatch.setattr(
            f"factory.importers.simpletuner.{module}.is_option",
            lambda target: there(target) or target in project_options.PLANNED,
        )
    monkeypatch.setattr("factory.importers.simpletuner.sample_options.takes_weights", lambda: True)


def test_a_folder_is_the_root_of_a_storage_of_its_own() -> None:
    made = one(instance_data_dir=None, instance_data_root="/pictures")
    assert made.pins["storage"] == "local"
    assert made.body["storage"] == {"root": "/pictures"}
    assert made.body["prefix"] == ""


@pytest.mark.parametrize(
    ("keys", "body"),
    [
        ({"repeats": 3}, {"repeats": 3}),
        ({"repeats": "3"}, {"repeats": 3}),
        ({"repeats": 0}, {}),
        ({"probability": 0.25}, {"probability": 0.25}),
        ({"probability": ""}, {}),
        ({"probability": 1}, {}),
        ({"max_num_samples": 9}, {"max_samples": 9}),
        ({"end_epoch": 3}, {"window": {"end_epoch": 3}}),
        ({"end_step": 0, "end_epoch": -1}, {}),
        ({"start_epoch": "junk"}, {}),
        ({"disable_after_epoch_step": 90}, {"window": {"fade_to_step": 90}}),
        ({"disable_after_epoch_step": "junk"}, {}),
        ({"disable_after_epoch_step": 0}, {}),
        ({"slider_strength": "0.7"}, {"slider_strength": 0.7}),
        ({"slider_strength": -2}, {"slider_strength": -2}),
        ({"slider_strength": "abc"}, {}),
        ({"minimum_image_size": 512}, {"minimum_image_size": 512}),
        ({"minimum_aspect_ratio": 0, "maximum_aspect_ratio": 2}, {"maximum_aspect_ratio": 2}),
        ({"vae_cache_ondemand": True}, {"encode_mode": "on_demand"}),
        ({"vae_cache_disable": True, "vae_cache_ondemand": True}, {"encode_mode": "transient"}),
        ({"vae_cache_disable": False}, {}),
    ],
)
def test_numbers_keep_their_meaning(keys: dict[str, Any], body: dict[str, Any]) -> None:
    made = one({"caption_dropout_probability": 0}, **keys)
    assert made.body == {"storage": {"root": "/data/d"}, "prefix": "", **body}


def test_windows_of_a_second_dataset() -> None:
    made = converted(entry(), entry(id="late", start_epoch=2, start_step=10, end_step=99))
    window = {"start_epoch": 2, "start_step": 10, "end_step": 99}
    assert made.datasets[1].body["window"] == window
    # A fade that would leave nothing of the window is none.
    late = entry(id="late", start_step=10, disable_after_epoch_step=9)
    assert converted(entry(), late).datasets[1].body["window"] == {"start_step": 10}


@pytest.mark.parametrize(
    ("keys", "option", "crop"),
    [
        ({}, "random", None),
        ({"crop_style": "center"}, "preserve", None),
        ({"crop_style": "centre", "crop_aspect": "square"}, "preserve", None),
        ({"crop": True}, "square", {"style": "random"}),
        ({"crop": True, "crop_style": "corner"}, "square", {"style": "corner"}),
        ({"crop": True, "crop_aspect": "preserve"}, "random", None),
        (
            {"crop": True, "crop_aspect": "closest", "crop_aspect_buckets": [1, 0.75]},
            "closest",
            {"style": "random", "aspect_buckets": [1.0, 0.75]},
        ),
        (
            {"crop": True, "crop_aspect": "random", "crop_style": "center",
             "crop_aspect_buckets": [{"aspect_bucket": 1.5, "weight": 1.0}]},
            "preserve",
            {"aspect": "random", "aspect_buckets": [1.5]},
        ),
    ],
)  # fmt: skip
def test_crops(keys: dict[str, Any], option: str, crop: dict[str, Any] | None) -> None:
    made = one(**keys)
    assert (made.pins["crop"], made.body.get("crop")) == (option, crop)


def test_faces_become_random_where_they_are_not_looked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("factory.importers.simpletuner.sample_options.has_faces", lambda: False)
    made = one(crop=True, crop_style="face")
    assert made.body["crop"] == {"style": "random"}
    assert outcome(made, "crop_style").outcome is Outcome.changed
    monkeypatch.setattr("factory.importers.simpletuner.sample_options.has_faces", lambda: True)
    assert one(crop=True, crop_style="face").body["crop"] == {"style": "face"}


WEIGHTED = [{"aspect": 1.0, "weight": 0.75}, {"aspect_ratio": 2, "weight": 0.25}]


@pytest.mark.usefixtures("all_options")
def test_weights_are_carried_where_there_is_an_option() -> None:
    made = one(crop=True, crop_aspect="random", crop_aspect_buckets=WEIGHTED)
    expected = [{"aspect": 1.0, "weight": 0.75}, {"aspect": 2.0, "weight": 0.25}]
    assert made.body["crop"]["aspect_buckets"] == expected


def test_weights_that_cannot_be_carried_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("factory.importers.simpletuner.sample_options.takes_weights", lambda: False)
    made = one(crop=True, crop_aspect="random", crop_aspect_buckets=WEIGHTED)
    assert made.body["crop"]["aspect_buckets"] == [1.0, 2.0]
    assert outcome(made, "crop_aspect_buckets").outcome is Outcome.later


@pytest.mark.parametrize(
    ("keys", "option", "caption"),
    [
        ({}, "filename", None),
        ({"caption_strategy": "textfile"}, "textfile", None),
        (
            {"caption_strategy": "textfile", "disable_multiline_split": True},
            "textfile",
            {"split_lines": False},
        ),
        (
            {"caption_strategy": "instanceprompt", "instance_prompt": "a cat"},
            "instance",
            {"prompt": "a cat"},
        ),
        (
            {"only_instance_prompt": True, "instance_prompt": ["a", " ", "b"]},
            "instance",
            {"prompt": ["a", "b"]},
        ),
        (
            {"prepend_instance_prompt": True, "instance_prompt": "sks"},
            "filename",
            {"prepend": "sks"},
        ),
        ({"instance_prompt": "unused"}, "filename", None),
    ],
)
def test_captions(keys: dict[str, Any], option: str, caption: dict[str, Any] | None) -> None:
    made = one({"caption_dropout_probability": 0}, **keys)
    assert (made.pins["caption"], made.body.get("caption")) == (option, caption)


def test_defaults_come_from_the_arguments() -> None:
    args = {
        "--caption_strategy": "textfile", "resolution": "512", "resolution_type": "pixel",
        "minimum-image-size": 256, "aspect_bucket_alignment": 8, "seed": 7,
        "data_backend_sampling": "uniform", "gradient_accumulation_steps": 4,
        "--train_batch_size": 2,
    }  # fmt: skip
    made = converted(entry(), args=args, gpus=3)
    (dataset,) = made.datasets
    assert dataset.pins["caption"] == "textfile"
    assert dataset.body["minimum_image_size"] == 256
    assert "resolution" not in dataset.body
    expected = {"batch_size": 24, "seed": 7, "resolution": 512, "resolution_type": "pixel"}
    assert made.data == {**expected, "alignment": 8}
    assert (made.sampling, made.accumulation) == ("uniform", 4)


@pytest.mark.parametrize(
    ("launch", "size"),
    [
        ({}, 4),
        ({"gpus": 8}, 32),
        ({"gpus": 2, "accumulation": 3}, 24),
        ({"gpus": 2, "batch_size": 7}, 7),
    ],
)
def test_the_global_batch(launch: dict[str, int], size: int) -> None:
    made = converted(entry(train_batch_size="4"), **launch)
    assert made.data["batch_size"] == size
    assert f"data.batch_size = {size}" in made.remarks[0]


def test_datasets_of_other_batch_sizes_keep_their_own() -> None:
    made = converted(
        entry(train_batch_size=4), entry(id="e", train_batch_size=4),
        entry(id="f", train_batch_size=1), entry(id="v", dataset_type="eval", train_batch_size=9),
        gpus=2, accumulation=3,
    )  # fmt: skip
    assert made.data["batch_size"] == 24
    assert [each.body.get("batch_size") for each in made.datasets] == [None, None, 6, None]


def test_the_commonest_resolution_is_the_runs() -> None:
    made = converted(
        entry(id="a", resolution=512), entry(id="b", resolution=512),
        entry(id="c", resolution=1.0, resolution_type="area"),
    )  # fmt: skip
    assert (made.data["resolution"], made.data["resolution_type"]) == (512, "pixel_area")
    assert "resolution" not in made.datasets[0].body
    assert made.datasets[2].body["resolution"] == 1.0
    assert made.datasets[2].body["resolution_type"] == "area"


def csv_entry(**keys: Any) -> dict[str, Any]:
    shared = {"csv_file": "/lists/a.csv", "csv_cache_dir": "/c", "csv_caption_column": "says"}
    return entry(type="csv", instance_data_dir=None, **{**shared, **keys})


def test_csv() -> None:
    (made,) = converted(csv_entry(csv_url_column="link")).datasets
    assert made.pins["storage"] == "csv"
    assert made.body["storage"] == {
        "table": "a.csv", "table_storage": {"root": "/lists"}, "url_column": "link",
        "cache_dir": "/c",
    }  # fmt: skip
    assert made.pins["caption"] == "csv"
    assert made.body["caption"]["columns"] == ["says"]


def test_a_csv_file_wholly_from_the_environment_is_taken_as_it_is_now() -> None:
    from factory.importers.simpletuner.convert import convert

    given = [csv_entry(csv_file="{env:LIST}")]
    made = convert(given, paths=False, environment={"LIST": "/l/b.csv"}).datasets[0]
    assert made.body["storage"]["table"] == "b.csv"
    assert outcome(made, "csv_file").outcome is Outcome.changed


def hub_entry(**keys: Any) -> dict[str, Any]:
    return entry(type="huggingface", instance_data_dir=None, dataset_name="u/d", **keys)


@pytest.mark.usefixtures("all_options")
def test_huggingface() -> None:
    block = {
        "caption_column": ["short", "long"], "fallback_caption_column": "name",
        "width_column": "w", "composite_image_config": {"enabled": True, "image_count": 4,
                                                        "select_index": 1},
        "filter_func": {"collection": "photo", "quality_thresholds": {"aes": 5.0},
                        "min_width": 512, "min_height": 256},
    }  # fmt: skip
    (made,) = converted(hub_entry(revision="abc", image_column="pic", huggingface=block)).datasets
    assert made.body["storage"] == {
        "dataset": "u/d", "split": "train", "revision": "abc", "image_column": "pic",
    }  # fmt: skip
    assert made.body["caption"]["columns"] == ["short", "long"]
    assert made.body["caption"]["fallback_columns"] == ["name"]
    assert made.body["composite"] == {"image_count": 4, "select_index": 1}
    assert made.body["filters"] == [
        {"column": "collection", "one_of": ["photo"]},
        {"column": "quality_assessment.aes", "minimum": 5.0},
        {"column": "w", "minimum": 512},
        {"column": "height", "minimum": 256},
    ]


def test_the_caption_column_outside_the_block_counts_where_the_block_has_none() -> None:
    outside, inside = (
        converted(hub_entry(caption_column="a", huggingface=block)).datasets[0]
        for block in ({}, {"caption_column": "b"})
    )
    assert outside.body["caption"]["columns"] == ["a"]
    assert inside.body["caption"]["columns"] == ["b"]


@pytest.mark.parametrize(
    ("folder", "table", "root", "prefix", "key"),
    [
        ("/d/pics", "/d/pics/meta.parquet", "/d/pics", "", "meta.parquet"),
        ("/d/pics", "/d/meta.parquet", "/d", "pics", "meta.parquet"),
        ("/d/a/pics", "/d/b/m.parquet", "/d", "a/pics", "b/m.parquet"),
        ("pics", "pics/m.parquet", "pics", "", "m.parquet"),
        ("{env:D}/pics", "{env:D}/m.parquet", "${oc.env:D,''}", "pics", "m.parquet"),
    ],
)
def test_a_table_and_its_pictures_lie_below_one_root(
    folder: str, table: str, root: str, prefix: str, key: str
) -> None:
    block = {"path": table, "filename_column": "file", "caption_column": "says",
             "identifier_includes_extension": True}  # fmt: skip
    made = one(instance_data_dir=folder, metadata_backend="parquet", parquet=block,
               caption_strategy="parquet")  # fmt: skip
    assert (made.body["storage"]["root"], made.body["prefix"]) == (root, prefix)
    assert made.body["metadata"] == {"path": key, "file_column": "file"}
    assert made.body["caption"]["columns"] == ["says"]


@pytest.mark.usefixtures("all_options")
def test_identifiers_are_without_extension_unless_said() -> None:
    made = one(metadata_backend="parquet", parquet={"path": "/data/d/m.parquet"})
    assert made.body["metadata"]["extensionless"] is True


def bucket_entry(**keys: Any) -> dict[str, Any]:
    shared = {
        "aws_bucket_name": "b", "aws_endpoint_url": "https://e", "aws_access_key_id": "k",
        "aws_secret_access_key": "s",
    }  # fmt: skip
    return entry(type="aws", instance_data_dir=None, **{**shared, **keys})


def test_a_bucket() -> None:
    given = bucket_entry(aws_data_prefix="/p/q/", aws_region_name="eu", aws_max_pool_connections=9)
    (made,) = converted(given).datasets
    assert made.pins["storage"] == "s3"
    assert made.body["storage"] == {
        "bucket": "b", "endpoint_url": "https://e", "region": "eu", "max_connections": 9,
    }  # fmt: skip
    assert made.body["prefix"] == "p/q"


def store(kind: str = "text_embeds", **keys: Any) -> dict[str, Any]:
    return entry(dataset_type=kind, instance_data_dir=None, **{"id": "te", **keys})


def test_stores_of_embeddings_keep_their_place() -> None:
    made = converted(
        entry(),
        store(cache_dir="/te", text_encoder_batch_size=8),
        store("image_embeds", id="ve", cache_dir="/ve"),
        store(id="mem", type="memory", default=True),
        bucket_entry(id="far", dataset_type="text_embeds", aws_data_prefix="t"),
    ).datasets
    text, latents, memory, far = made[1:]
    assert text.body == {"cache": {"storage": {"root": "/te"}}, "batch_size": 8}
    assert latents.body == {"cache": {"storage": {"root": "/ve"}}, "default": True}
    assert memory.body == {"cache": {"storage": {"name": "mem"}}, "default": True}
    assert far.body["cache"]["storage"]["prefix"] == "t"
    assert far.pins["cache.storage"] == "s3"


@pytest.mark.usefixtures("all_options")
def test_filters_go_to_every_dataset_that_uses_the_store() -> None:
    made = converted(
        entry(id="a"), entry(id="b", text_embeds="two"), entry(id="c", text_embed_cache="one"),
        store(id="one", default=True, caption_filter_list=["ugly", "s/a/b/"]),
        store(id="two", caption_filter_list="/filters.txt"),
    ).datasets  # fmt: skip
    captions = {dataset.name: dataset.body.get("caption", {}) for dataset in made}
    assert captions["a"]["filters"] == captions["c"]["filters"] == ["ugly", "s/a/b/"]
    assert captions["b"]["filters_file"] == "/filters.txt"
    assert "filters" not in captions["b"]
    assert made[2].body["text_embeds"] == "one"


@pytest.mark.usefixtures("all_options")
def test_shuffling_dropout_and_limits() -> None:
    shuffle = {"enable": True, "count": 2, "split_on": "comma", "position_start": 1}
    made = one(
        caption_shuffle=shuffle, maximum_image_size=2048, target_downsample_size=1536,
        max_upscale_threshold=0.2, crop=True, crop_aspect="random", crop_aspect_buckets=[1.0],
    )  # fmt: skip
    expected = {"count": 2, "split_on": "comma", "position_start": 1}
    assert made.body["caption"] == {"shuffle": expected, "dropout": 0.1}
    assert made.body["maximum_image_size"] == 2048
    assert made.body["target_downsample_size"] == 1536
    assert made.body["crop"]["max_upscale_threshold"] == 0.2
    alone = one(target_downsample_size=1536)
    assert "target_downsample_size" not in alone.body
    assert outcome(alone, "target_downsample_size").outcome is Outcome.needless
    kept = one(max_upscale_threshold=0.2)
    assert outcome(kept, "max_upscale_threshold").outcome is Outcome.needless
    off = one({"caption_dropout_probability": 0}, caption_shuffle={**shuffle, "enable": False})
    assert "caption" not in off.body


def test_conditioning_belongs_to_its_source() -> None:
    made = converted(
        entry(id="edges", dataset_type="conditioning", conditioning_type="reference_loose"),
        entry(id="photos", conditioning_data=["edges"]),
    ).datasets
    assert [dataset.name for dataset in made] == ["photos", "edges"]
    assert made[1].kind == "conditioning"
    assert made[1].body["source"] == "photos"
    assert made[1].body["type"] == "reference_loose"
    assert made[1].body["resolution"] == 1024
    assert made[1].pins["crop"] == "random"


def test_strict_conditioning_has_its_type_and_no_size() -> None:
    made = converted(
        entry(id="masks", conditioning_type="mask", resolution=512),
        entry(id="photos", conditioning_data=["masks"]),
    )
    assert made.datasets[1].body["type"] == "mask"
    assert "resolution" not in made.datasets[1].body
    assert "conditioning_sampling" not in made.data


@pytest.mark.parametrize(
    ("args", "sampling"),
    [({}, "random"), ({"conditioning_multidataset_sampling": "combined"}, "combined")],
)
def test_several_sets_are_sampled_as_they_were(args: dict[str, str], sampling: str) -> None:
    made = converted(
        entry(id="masks", conditioning_type="mask"),
        entry(id="edges", conditioning_type="controlnet"),
        entry(id="photos", conditioning_data=["masks", "edges"]),
        args=args,
    )
    assert made.data["conditioning_sampling"] == sampling


@pytest.mark.parametrize(
    ("video", "args", "frames"),
    [({"num_frames": 25}, {}, 25), ({}, {}, 125), ({}, {"framerate": 16}, 80)],
)
def test_frames_of_a_clip(video: dict[str, int], args: dict[str, Any], frames: int) -> None:
    made = one(args, dataset_type="video", video=video, resolution=480)
    assert made.body["frames"] == frames


def left_out(made: list[Dataset]) -> dict[str, str]:
    return {dataset.name: dataset.left_out for dataset in made if dataset.left_out}


def test_what_has_no_counterpart_is_left_out_with_what_depends_on_it() -> None:
    made = converted(
        entry(),
        entry(id="sound", dataset_type="audio"),
        entry(id="words", dataset_type="caption"),
        entry(id="shards", type="webshart", source="o/s", conditioning_data="masks"),
        entry(id="masks", conditioning_type="mask"),
        entry(id="alone", dataset_type="conditioning"),
        entry(id="off", disabled=True),
    )
    reasons = left_out(made.datasets)
    assert set(reasons) == {"sound", "words", "shards", "masks", "alone"}
    assert reasons["masks"] == "its source 'shards' is no set of pictures here"
    assert made.disabled == ["off"]
    assert made.is_trainable
    assert not converted(entry(dataset_type="audio")).is_trainable


def test_every_key_of_an_entry_has_a_row_and_none_shows_a_value() -> None:
    given = entry(repeats=3, repeat=1, vae_batch_size=4, slider_strength=1,
                  resolution=777, csv_file="/x", video={"num_frame": 2})  # fmt: skip
    found = rows(converted(given))
    outcomes = {row.key: row.outcome for row in found if row.dataset}
    assert set(outcomes) == {*given, "video.num_frame"}
    assert outcomes["repeats"] is Outcome.carried
    assert outcomes["repeat"] is Outcome.unknown
    assert outcomes["vae_batch_size"] is Outcome.needless
    assert outcomes["slider_strength"] is Outcome.carried
    assert outcomes["csv_file"] is Outcome.needless
    texts = {row.key: row.text for row in found}
    assert "'repeats'" in texts["repeat"]
    assert "'num_frames'" in texts["video.num_frame"]
    assert "777" not in str(found)


def test_arguments_have_rows() -> None:
    args = {"seed": 1, "eval_dataset_id": "d", "max_grounding_entities": 3, "learning_rate": 1e-4}
    found = {row.key: row.outcome for row in rows(converted(entry(), args=args)) if not row.dataset}
    assert found.pop("caption_dropout_probability") in (Outcome.carried, Outcome.later)
    assert found == {
        "seed": Outcome.carried,
        "eval_dataset_id": Outcome.needless,
        "max_grounding_entities": Outcome.left_out,
    }


def test_an_argument_that_is_not_an_option_yet_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    there = project_options.is_option
    monkeypatch.setattr(
        "factory.importers.simpletuner.dataset.is_option",
        lambda target: there(target) and target not in project_options.PLANNED,
    )
    args = {"maximum_image_size": 2048, "target_downsample_size": 1024}
    found = {row.key: row.outcome for row in rows(converted(entry(), args=args))}
    assert found["maximum_image_size"] is Outcome.later
