"""What an import would change about training is carried, or stands in the table that is shown."""

import io
from pathlib import Path
from typing import Any

import datasets
import pytest
from rich.console import Console

import factory
from factory.config.build import make, verify
from factory.importers.simpletuner import import_report
from factory.importers.simpletuner.files import Import, write
from factory.importers.simpletuner.output import show
from tests.catalog.fakes import ENGINE
from tests.importers.simpletuner.building import categories, converted, entry, one
from tests.support.clips import write_clip

HUB: dict[str, Any] = {"type": "huggingface", "instance_data_dir": None, "dataset_name": "u/d"}


def shown(*entries: dict[str, Any], args: dict[str, Any] | None = None) -> str:
    file = io.StringIO()
    made = Import("old", "multi.json", converted(*entries, args=args))
    show(made, Console(file=file, width=1000))
    return file.getvalue()


@pytest.mark.parametrize(
    ("keys", "mode"),
    [
        ({}, "each_epoch"),
        ({"crop": True}, "each_epoch"),
        ({"crop": True, "vae_cache_ondemand": True}, "each_epoch"),
        ({"crop": True, "crop_style": "center"}, None),
        ({"crop_style": "corner", "vae_cache_disable": True}, "transient"),
        ({"dataset_type": "eval"}, None),
        ({"vae_cache_clear_each_epoch": False}, None),
    ],
)
def test_random_cuts_are_drawn_anew_where_latents_were_cleared(
    keys: dict[str, Any], mode: str | None
) -> None:
    made = converted(
        entry(**{"vae_cache_clear_each_epoch": True, **keys}), entry(id="other")
    ).datasets[0]
    assert made.body.get("encode_mode") == mode


def test_a_store_that_is_cleared_clears_for_those_who_use_it(tmp_path: Path) -> None:
    store = entry(
        id="ve", dataset_type="image_embeds", instance_data_dir=None,
        vae_cache_clear_each_epoch=True, cache_dir="/c",
    )  # fmt: skip
    cut = entry(id="cut", crop=True, crop_style="center", image_embeds="ve")
    made = converted(entry(image_embeds="ve"), cut, store)
    modes = [dataset.body.get("encode_mode") for dataset in made.datasets]
    assert modes == ["each_epoch", None, None]
    write(Import("old", "m.json", made), tmp_path)
    verify(factory.compose(["data=old", "paths.data_dir=x"], config_dir=tmp_path))


@pytest.mark.parametrize("switch", [True, "true", 1])
def test_arguments_say_when_every_set_is_encoded(switch: object) -> None:
    made = converted(entry(), args={"vae_cache_ondemand": switch}).datasets[0]
    assert made.body["encode_mode"] == "on_demand"
    assert one(vae_cache_ondemand=str(switch)).body["encode_mode"] == "on_demand"


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"timestep_sampling_offset": 0.5}, "batches carry no offset"),
        ({"disable_after_epoch_step": 0}, "0 means never"),
        ({"disable_after_epoch_step": "0"}, "'0' means never"),
        ({"disable_after_epoch_step": "soon"}, "'soon' is no number of steps"),
        ({"disable_after_epoch_step": 5, "start_step": 1}, None),
        ({"disable_after_epoch_step": "50"}, None),
        ({"dataset_type": "video", "video": {"is_i2v": True}}, "no first frame is added"),
        ({"dataset_type": "video", "video": {"is_i2v": False}}, None),
        ({"timestep_sampling_offset": 0.0}, None),
        ({"crop": "false"}, "taken for true, as upstream takes any text"),
        ({"crop": "true"}, None),
    ],
)
def test_losses_stand_in_the_terminals_table(keys: dict[str, Any], said: str | None) -> None:
    text = shown(entry(caption_strategy="filename", **keys))
    table = text.partition("Keys:")[0]
    assert (said in table) if said else ("┃ dataset" not in table)


def test_a_fade_that_ends_before_the_set_takes_part_is_told() -> None:
    late = entry(id="late", start_step=10, disable_after_epoch_step=9)
    assert "would leave nothing: no fade" in shown(entry(), late)


@pytest.mark.parametrize("captions", ["", [], {}, "a text", ["a"]])
def test_sets_of_which_all_are_used_have_no_captions_of_their_own(captions: object) -> None:
    given = entry(conditioning={"type": "canny", "captions": captions})
    combined = {"conditioning_multidataset_sampling": "combined"}
    assert categories(given, args=combined) == ["unsupported_combination"]
    assert categories(given) == []


@pytest.mark.parametrize("captions", [None, False])
def test_no_captions_of_their_own_are_no_problem(captions: object) -> None:
    given = entry(conditioning={"type": "canny", "captions": captions})
    assert categories(given, args={"conditioning_multidataset_sampling": "combined"}) == []


@pytest.mark.parametrize("shuffle", [{"count": None}, {"count": 0, "enable": False}, {"count": -1}])
def test_a_count_of_captions_is_a_count(shuffle: dict[str, Any]) -> None:
    assert len(categories(entry(caption_shuffle=shuffle))) == 1


@pytest.mark.parametrize(
    "keys",
    [
        {"crop": "true"}, {"crop": "True"}, {"crop": 1}, {"minimum_image_size": 0},
        {"minimum_image_size": "", "maximum_image_size": 0, "target_downsample_size": 0},
        {**HUB, "dataset_name": None, "huggingface": {"dataset_name": "u/d"}},
        {"resolution": 480, "maximum_image_size": 480, "target_downsample_size": 480},
        {"resolution": 256, "maximum_image_size": 384, "target_downsample_size": 512},
        {"resolution": 128, "crop": "true", "maximum_image_size": 128,
         "target_downsample_size": 128},
        {**HUB, "dataset_type": "video", "video": {"num_frames": 49}},
    ],
)  # fmt: skip
def test_what_upstream_runs_composes(keys: dict[str, Any], tmp_path: Path) -> None:
    write(Import("old", "m.json", converted(entry(**keys))), tmp_path)
    verify(factory.compose(["data=old", "paths.data_dir=x"], config_dir=tmp_path))


def test_a_minimum_of_none_is_not_the_arguments() -> None:
    assert "minimum_image_size" not in one({"minimum_image_size": 512}, minimum_image_size=0).body
    assert one({"minimum_image_size": 512}).body["minimum_image_size"] == 512


def test_a_name_inside_the_block_counts_where_there_is_no_other() -> None:
    block = {"dataset_name": "u/inside", "split": "test", "revision": "v2"}
    made = one(**{**HUB, "dataset_name": None}, huggingface=block)
    assert made.body["storage"] == {"dataset": "u/inside", "split": "test", "revision": "v2"}
    made = one(**HUB, huggingface=block, split="valid")
    assert made.body["storage"] == {"dataset": "u/d", "split": "valid", "revision": "v2"}


def test_videos_of_a_hugging_face_set_are_found(tmp_path: Path) -> None:
    clips = []
    for number in range(3):
        write_clip(tmp_path / "x.mp4", number, 12)
        clips.append({"bytes": (tmp_path / "x.mp4").read_bytes(), "path": None})
    rows = {"video": clips, "text": ["a", "b", "c"]}
    features = datasets.Features(
        {"video": datasets.Video(decode=False), "text": datasets.Value("string")}
    )
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    given = entry(
        **{**HUB, "dataset_name": str(tmp_path / "saved"), "dataset_type": "video"},
        resolution=64, video={"num_frames": 9}, huggingface={"caption_column": "text"},
    )  # fmt: skip
    write(Import("old", "m.json", converted(given)), tmp_path / "conf")
    cfg = factory.compose(["data=old", "data.backends.d.storage.split=null"],
                          config_dir=tmp_path / "conf")  # fmt: skip
    backend = make(cfg.data.backends.d, "data.backends.d")
    catalog = backend.catalog(backend.scan(None, ENGINE), seed=1)
    assert len(catalog) == 3
    assert not catalog.decisions.dropped()


@pytest.mark.parametrize(
    ("keys", "at"),
    [
        ({"caption_strategy": "instanceprompt", "instance_prompt": "a {env:KEY}"}, "prompt"),
        ({"caption_strategy": "instanceprompt", "instance_prompt": ["a {env:KEY}"]}, "prompt"),
    ],
)
def test_captions_read_no_environment(keys: dict[str, Any], at: str) -> None:
    made = converted(entry(**keys), args={"caption_dropout_probability": 0}).datasets[0]
    assert made.body["caption"] in ({at: "a {env:KEY}"}, {at: ["a {env:KEY}"]})
    assert "stays as it is written" in shown(entry(**keys))


def test_no_value_of_the_environment_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HIDDEN", "s3cr3t")
    keys = ("id", "instance_data_dir", "instance_prompt", "cache_dir_vae", "unknown")
    given = entry(**dict.fromkeys(keys, "{env:HIDDEN}"), caption_strategy="instanceprompt")
    filters = entry(
        id="te", dataset_type="text_embeds", cache_dir="{env:HIDDEN}", instance_data_dir=None,
        caption_filter_list=["{env:HIDDEN}"],
    )  # fmt: skip
    made = Import("old", "m.json", converted(given, filters))
    paths = write(made, tmp_path)
    assert not any("s3cr3t" in str(path) + path.read_text() for path in paths)
    assert "${oc.env:HIDDEN,''}" in paths[1].read_text()


def test_a_choice_from_the_environment_is_refused_with_advice() -> None:
    assert categories(entry(crop_style="{env:STYLE}")) == ["invalid_value"]


def test_work_grows_with_the_number_of_datasets_and_not_with_its_square(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counted = 0
    outcome = import_report.outcome

    def counting(*given: Any) -> Any:
        nonlocal counted
        counted += 1
        return outcome(*given)

    monkeypatch.setattr(import_report, "outcome", counting)
    entries = [entry(id=f"d{n}", repeatz=1, conditioning_data=[f"c{n}"]) for n in range(100)]
    entries += [
        entry(id=f"c{n}", dataset_type="conditioning", conditioning_type="mask") for n in range(100)
    ]
    made = Import("old", "m.json", converted(*entries))
    made.files("myconf")
    keys = sum(len(given) for given in entries)
    assert counted <= keys + 1
    table = io.StringIO()
    show(made, Console(file=table, width=1000))
    assert "d0, d1, d2, d3, d4 and 95 more" in table.getvalue()


def test_a_long_chain_of_sources_is_sorted() -> None:
    count = 3000
    chain = [entry(id=f"d{n}", source_dataset_id=f"d{n + 1}") for n in range(count)]
    made = converted(*chain, entry(id=f"d{count}"))
    assert [dataset.entry.id for dataset in made.datasets[:2]] == [f"d{count}", f"d{count - 1}"]
