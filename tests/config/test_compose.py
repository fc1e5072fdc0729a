"""From overrides to a typed config: slots, pins, and advice where something is wrong."""

import shlex
import subprocess
import sys
from itertools import zip_longest
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from factory.config.build import build
from factory.config.check import check, kind_of
from factory.config.compose import compose, conf_dir, quoting_advice, refusals
from factory.errors import ConfigError
from factory.storage import S3Storage, TarStorage


def composed(*overrides: str) -> DictConfig:
    """Compose and complete, as `build` does."""
    cfg = compose(overrides)
    OmegaConf.set_struct(cfg, False)
    check(cfg, overrides)
    return cfg


def problems(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        composed(*overrides)
    return str(caught.value)


def target(node: DictConfig) -> str:
    return str(node._target_).rpartition(".")[2]


def test_every_option_of_every_group_composes() -> None:
    slots = {"data/backend", "data/dataset", "data/generator"}
    skipped = slots | {"data/base", "experiment", "hydra", "local"}
    options: dict[str, list[str]] = {}
    for file in sorted(conf_dir().rglob("*.yaml")):
        group = file.relative_to(conf_dir()).parent.as_posix()
        option = file.stem
        if group in skipped | {"."} or option in ("inherit", "base"):
            continue
        if group == "storage" and option in ("csv", "huggingface", "webdataset"):
            continue  # they fit a slot only
        options.setdefault(group, []).append(f"{group}={option}")
    # One option of each group at a time: as many configs as the largest group has options.
    for together in zip_longest(*options.values()):
        compose([option for option in together if option is not None])


@pytest.mark.parametrize("name", ["quick", "square_auto"])
def test_experiments_compose(name: str) -> None:
    composed(f"experiment={name}", "storage.root=data")


def test_storage_choice_reaches_every_backend_and_the_cache() -> None:
    cfg = composed("data=multi", "storage=s3", "storage.bucket=b")
    assert target(cfg.data.backends.photos.storage) == "S3Storage"
    assert target(cfg.data.backends.table.storage) == "S3Storage"
    assert target(cfg.cache.storage) == "S3Storage"
    assert target(cfg.data.backends.web.storage.table_storage) == "S3Storage"
    assert target(cfg.data.backends.hub.storage) == "HuggingFaceStorage"


def test_one_backend_can_be_pinned() -> None:
    cfg = composed(
        "data=multi",
        "storage=s3",
        "storage.bucket=b",
        "storage@data.backends.photos=local",
        "data/crop@data.backends.table=square",
    )
    assert target(cfg.data.backends.photos.storage) == "LocalStorage"
    assert target(cfg.data.backends.holdout.storage) == "S3Storage"
    assert cfg.data.backends.table.crop.aspect == "square"
    assert cfg.data.backends.photos.crop.aspect == "closest"


def test_cache_can_live_elsewhere() -> None:
    cfg = composed("storage@cache=memory")
    assert target(cfg.cache.storage) == "MemoryStorage"
    assert target(cfg.data.backends.latents.cache.storage) == "MemoryStorage"
    assert target(cfg.data.backends.photos.storage) == "LocalStorage"


def test_both_ways_of_adding_a_backend_agree() -> None:
    long = composed("+data/backend@data.backends.extra=image", "data.backends.extra.prefix=more")
    short = composed("+data.backends.extra={kind:image,prefix:more}")
    one = OmegaConf.to_container(long.data.backends.extra, resolve=True)
    other = OmegaConf.to_container(short.data.backends.extra, resolve=True)
    assert one == other
    assert kind_of(short.data.backends.extra) == "image"


def test_a_backend_can_be_removed() -> None:
    assert "photos" not in composed("data=multi", "~data.backends.photos").data.backends


def test_picked_datasets() -> None:
    cfg = composed("data=picked", "data/dataset=[table]")
    assert [n for n in cfg.data.backends if kind_of(cfg.data.backends[n]) == "image"] == ["table"]


def test_embeds_are_added_where_a_run_names_none() -> None:
    cfg = composed("data=picked")
    assert kind_of(cfg.data.backends.text_embeds) == "text_embeds"
    assert cfg.data.backends.image_embeds.encoder == cfg.encoder.image


def test_the_stores_a_run_is_given_can_be_set_by_their_kind() -> None:
    cfg = composed("data=picked", "+data.backends.image_embeds.encode_mode=on_demand")
    assert kind_of(cfg.data.backends.image_embeds) == "image_embeds"
    assert cfg.data.backends.image_embeds.encode_mode == "on_demand"
    assert cfg.data.backends.image_embeds.encoder == cfg.encoder.image
    text = problems("data=picked", "+data.backends.text_embeds={kind:image,prefix:photos}")
    assert "data.backends.text_embeds is image, and a run that names no text_embeds backend" in text


def test_modes_of_encoding_are_checked_before_anything_is_read() -> None:
    assert "sometimes" in problems("data.backends.latents.encode_mode=sometimes")
    text = problems(
        "data.backends.captions.encode_mode=each_epoch",
        "data.backends.captions.write_batch_size=0",
        "data.backends.photos.encode_mode=each_epoch",
        "data.backends.photos.encode_text_mode=each_epoch",
        "data.backends.holdout.encode_mode=each_epoch",
    )
    for said in (
        "data.backends.captions.encode_mode=each_epoch draws cuts of pictures anew, and captions",
        "data.backends.captions.write_batch_size must be at least 1, got 0",
        "with crop.style=center there are none; set data.backends.photos.encode_mode=on_demand",
        "or draw them: data/crop@data.backends.photos=random",
        "data.backends.photos.encode_text_mode=each_epoch draws cuts of pictures anew",
        "validation compares the same ones over time; set data.backends.holdout.encode_mode=pre",
    ):
        assert said in text
    stream = "+data/backend@data.backends.big=stream"
    text = problems(
        stream, "data.backends.big.storage.dataset=x", "data.backends.big.encode_mode=on_demand"
    )
    assert "a stream is encoded as it is read: set data.backends.big.encode_mode=null" in text
    assert "damaged" in problems("cache.damaged=ignore")


def test_unknown_keys_and_options_are_refused_all_at_once_with_suggestions() -> None:
    text = problems("data=multi", "storage=s4", "data.backends.photos.repeat=1", "sed=3")
    assert text.startswith("3 problems")
    assert "group storage has no option 's4'; did you mean 's3'?" in text
    assert "data.backends.photos has no option 'repeat'; did you mean 'repeats'?" in text
    assert "the config has no option 'sed'; did you mean 'seed'?" in text


def test_wrong_types_name_the_key_and_the_value() -> None:
    assert "'many' of type 'str' could not be converted to Integer" in problems(
        "data.backends.photos.repeats=many"
    )


def test_bad_values_are_refused_all_at_once() -> None:
    text = problems(
        "data.backends.photos.repeats=-1",
        "data.backends.photos.probability=-2",
        "data.batch_size=0",
        "prefetch.batches=0",
        "data.backends.photos.minimum_aspect_ratio=3",
        "data.backends.photos.maximum_aspect_ratio=2",
        "data.backends.photos.window.start_epoch=3",
        "data.backends.photos.window.end_epoch=2",
    )
    assert text.startswith("6 problems")
    assert "data.backends.photos.repeats must be at least 0, got -1" in text
    assert "data.backends.photos.probability must be at least 0, got -2" in text
    assert "data.batch_size must be at least 1, got 0" in text
    assert "prefetch.batches must be at least 1, got 0" in text
    assert "minimum_aspect_ratio=3 must not be above" in text
    assert "data.backends.photos.window.end_epoch 2 comes before start_epoch 3" in text


def test_mistaken_units_are_refused() -> None:
    edge = problems("data.resolution_type=area", "data.resolution=1024")
    assert "for an edge in px set data.backends.photos.resolution_type=pixel_area" in edge
    area = problems("data.resolution=1")
    assert "for megapixels set data.backends.photos.resolution_type=area" in area


def test_missing_values_name_the_key_and_the_edit() -> None:
    text = problems("data.backends.photos.prefix=???", "storage.root=???")
    assert "no value for storage.root; set it: storage.root=VALUE" in text
    assert "no value for data.backends.photos.prefix" in text


def test_bucket_must_be_set() -> None:
    assert "bucket is not set; set DATA_BUCKET" in problems("storage=s3")


def test_no_time_and_no_try_for_a_request() -> None:
    text = problems("storage=s3", "storage.deadline_s=0", "storage.max_attempts=0")
    for name in ("deadline_s", "max_attempts"):
        assert f"storage.{name} must be" in text
    slot = "data.backends.web.storage"
    text = problems("data=multi", f"{slot}.deadline_s=-1", f"{slot}.max_attempts=0")
    for name in ("deadline_s", "max_attempts"):
        assert f"{slot}.{name} must be" in text


def test_credentials_in_an_endpoint_are_refused_and_not_repeated() -> None:
    text = problems("storage=s3", "storage.bucket=b", "storage.endpoint_url=http://me:hush@host")
    assert "must not hold credentials" in text
    assert "hush" not in text


def test_edit_through_an_inherited_slot_is_refused() -> None:
    text = problems("data=multi", "data.backends.photos.storage.follow_links=true")
    assert "edits storage, which other parts share; set storage.follow_links=true" in text
    assert "storage@data.backends.photos=OPTION" in text


def test_edit_of_a_pinned_slot_is_accepted() -> None:
    cfg = composed(
        "storage@data.backends.photos=local", "data.backends.photos.storage.follow_links=true"
    )
    assert cfg.data.backends.photos.storage.follow_links
    assert not cfg.storage.follow_links


def test_unknown_kind_is_refused_with_the_kinds() -> None:
    text = problems("+data.backends.extra={kind:imag}")
    assert "data.backends.extra.kind is 'imag', expected one of conditioning, " in text


def test_unknown_reference_is_refused_with_a_suggestion() -> None:
    text = problems("data.backends.photos.image_embeds=latent")
    assert "names 'latent', which is no backend; did you mean 'latents'?" in text


def test_a_circle_of_backends_is_refused() -> None:
    text = problems(
        "+data.backends.a={kind:conditioning,source:b}",
        "+data.backends.b={kind:conditioning,source:a}",
    )
    assert "depend on each other in a circle: a -> b -> a" in text


def test_without_an_encoder_a_named_store_is_forgotten() -> None:
    cfg = compose(["encoder/image=none", "data.backends.photos.image_embeds=latents"])
    data = build(cfg)
    assert data.registry.image_embeds == {}
    assert data.registry.data["photos"].image_embeds is None


def test_building_leaves_the_config_as_it_was() -> None:
    cfg = compose(["data=picked"])
    before = OmegaConf.to_container(cfg)
    build(cfg)
    assert OmegaConf.to_container(cfg) == before


def test_a_slot_only_option_is_refused_for_the_run() -> None:
    for option in ("csv", "webdataset"):
        said = problems(f"storage={option}")
        assert f"storage={option}: it fits a slot only" in said
        assert f"set storage@data.backends.NAME={option}" in said


def test_tar_shards_lie_where_the_run_does_until_pinned() -> None:
    cfg = composed("storage@data.backends.photos=webdataset", "storage=s3", "storage.bucket=b")
    storage = cfg.data.backends.photos.storage
    assert target(storage) == "TarStorage"
    assert (target(storage.storage), target(storage.index)) == ("S3Storage", "S3Storage")
    assert storage.index_prefix == "cache/tar-index"
    pinned = composed(
        "storage@data.backends.photos=webdataset",
        "storage@data.backends.photos.storage=s3",
        "data.backends.photos.storage.storage.bucket=b",
    ).data.backends.photos.storage
    assert (target(pinned.storage), target(pinned.index)) == ("S3Storage", "LocalStorage")
    built = build(cfg).registry.data["photos"].storage
    assert isinstance(built, TarStorage)
    assert built.index == built.storage == S3Storage("b")


def test_wrong_settings_of_tar_shards_are_refused() -> None:
    said = problems(
        "storage@data.backends.photos=webdataset",
        "data.backends.photos.storage.shards=[]",
        "data.backends.photos.storage.connections=0",
        "data.backends.photos.storage.index_prefix=/",
    )
    assert "set data.backends.photos.storage.shards=['*.tar']" in said
    assert "data.backends.photos.storage.connections must be at least 1" in said
    assert "set data.backends.photos.storage.index_prefix=tar-index" in said
    assert "cache.storage is TarStorage, which cannot be written" in problems(
        "storage@cache=webdataset", "cache.storage.index=null", "cache.storage.index_prefix=x"
    )


def test_two_backends_of_one_name_in_yaml_are_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    body = "defaults: [base]\nbackends:\n  a: {kind: image}\n  a: {kind: image}\n"
    (tmp_path / "data" / "mine.yaml").write_text(body)
    with pytest.raises(ConfigError, match="duplicate key a"):
        compose(["data=mine"], config_dir=tmp_path)


def test_own_config_folder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    body = "defaults: [base]\nbackends:\n  mine: {kind: image, prefix: pics, resolution: 512}\n"
    (tmp_path / "data" / "mine.yaml").write_text(body)
    cfg = compose(["data=mine"], config_dir=tmp_path)
    OmegaConf.set_struct(cfg, False)
    check(cfg)
    assert cfg.data.backends.mine.prefix == "pics"
    assert not cfg.data.demo


def test_unknown_key_in_a_yaml_backend_is_refused_with_a_suggestion(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    body = "defaults: [base]\nbackends:\n  mine: {kind: image, prefx: pics}\n"
    (tmp_path / "data" / "mine.yaml").write_text(body)
    cfg = compose(["data=mine"], config_dir=tmp_path)
    OmegaConf.set_struct(cfg, False)
    with pytest.raises(ConfigError, match=r"data\.backends\.mine: .*did you mean 'prefix'"):
        check(cfg)


def test_no_secret_in_the_printed_config(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush-hush")
    text = OmegaConf.to_yaml(compose(["data=multi", "storage=s3"]), resolve=False)
    assert "hush-hush" not in text


def test_importing_factory_is_quick_and_brings_no_torch() -> None:
    code = (
        "import sys, factory; factory.compose; "
        "heavy = {'torch', 'lightning', 'pandas', 'datasets', 's3fs'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


@pytest.mark.parametrize("name", ["plain", "a b, c=1", "it's {here}"])
def test_a_folder_of_configs_may_have_any_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name / "data").mkdir(parents=True)
    text = "defaults: [base, {backend@backends.mine: image}, _self_]\nbatch_size: 3\n"
    (tmp_path / name / "data" / "mine.yaml").write_text(text)
    assert compose(["data=mine"], config_dir=tmp_path / name).data.batch_size == 3


def test_a_folder_of_configs_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config_dir='.*nowhere' is no folder"):
        compose(config_dir=tmp_path / "nowhere")


def test_the_edit_that_mends_a_value_can_be_typed_as_it_stands() -> None:
    with pytest.raises(ConfigError) as caught:
        build(compose(["data.batch_size=0", "cache.prefix=''", "storage=s3", "paths.bucket=null"]))
    mends = ("set data.batch_size=1", "set cache.prefix=cache", "or storage.bucket=NAME")
    assert all(mend in str(caught.value) for mend in mends)


def test_an_option_that_is_added_and_does_not_exist_is_named() -> None:
    text = problems("+data.backends.photos.repeat=1", "+prefetch.nothing=2")
    assert "data.backends.photos has no option 'repeat'; did you mean 'repeats'?" in text
    assert "prefetch has no option 'nothing'; options are batches, " in text


@pytest.mark.parametrize("mode", ["thread", "process", "inline"])
def test_every_mode_of_prefetch_can_be_chosen(mode: str) -> None:
    data = build(compose([f"prefetch={mode}", "prefetch.pin_memory=false"]))
    assert str(data.prefetch.mode) == mode
    assert data.prefetch.pins is False
    data.close()


def test_pinned_memory_is_auto_true_or_false() -> None:
    text = problems("prefetch.pin_memory=perhaps")
    assert "prefetch.pin_memory must be auto, true or false, got 'perhaps'" in text


def test_exclusions_are_checked_before_anything_is_read() -> None:
    text = problems("data.exclude=[{from_step: 0, ids: []}]")
    assert "data.exclude.0.from_step must be at least 1, got 0" in text
    assert "data.exclude.0.ids must name at least one sample" in text
    assert "no value for data.exclude.0.ids" in problems("data.exclude=[{from_step: 3}]")
    assert "data.exclude" in problems("data.exclude=[a]")


def value(written: str) -> object:
    """Return what Hydra makes of an override as it is written in a shell."""
    [word] = shlex.split(written)
    return OverridesParser.create().parse_override(word).value()


@pytest.mark.parametrize(
    "text",
    ["a=b", "/data/my(1)", "[x", "it's", "~/x", "a [b] c", 'say "hi"', "a{b}", "a;b", "naïve",
     "日本", "a&b", "<x>", "x'y\"z", '"a', "a=b\\", 'q="\\'],
)  # fmt: skip
def test_a_text_is_quoted_with_its_value_filled_in(text: str) -> None:
    [told] = refusals([f"storage.root={text}"])[0]
    assert told.startswith(f"storage.root={text}: Hydra takes this only with quotes inside: ")
    assert value(told.partition("inside: ")[2]) == text


@given(st.text(st.characters(exclude_categories=("C",)), min_size=1, max_size=12))
def test_any_text_that_is_refused_can_be_given_in_quotes(text: str) -> None:
    told = quoting_advice(f"storage.root={text}")
    written = told.partition("inside: ")[2]
    if written and text[0] not in "[{" and "${" not in text:
        assert value(written) == text


@pytest.mark.parametrize(
    ("override", "written"),
    [
        ("data.caption.filters=[s/a=b/c/,x]", "'data.caption.filters=[\"s/a=b/c/\",x]'"),
        ("+data.backends.extra={kind:image,prefix:a=b}",
         "'+data.backends.extra={kind:image,prefix:\"a=b\"}'"),
    ],
)  # fmt: skip
def test_of_a_list_or_mapping_the_texts_are_quoted(override: str, written: str) -> None:
    assert quoting_advice(override).endswith(written)


def test_a_comma_may_mean_a_list_or_a_text() -> None:
    [told] = refusals(["data.caption.prompt=a dog, running"])[0]
    assert told.endswith(
        "for one text write 'data.caption.prompt=\"a dog, running\"', "
        "for a list 'data.caption.prompt=[a dog, running]'"
    )


@pytest.mark.parametrize(
    ("given_one", "mend"),
    [
        ("+experiment=quick", "write experiment=quick"),
        ("++experiment=quick", "write experiment=quick"),
        ("+encoder/image=dct", "write encoder/image=dct"),
        ("+seed=3", "write seed=3"),
        ("trainer.min_steps=3", "write +trainer.min_steps=3"),
        ("hydra.job.env_set.A=x y", "write '+hydra.job.env_set.A=x y'"),
        ("experiment=", "options are quick, square_auto"),
        ("~data.backends.photos=x", "~data.backends.photos takes it away whatever it is"),
        ("foo", "is no KEY=VALUE"),
        ("=1", "is no KEY=VALUE"),
        ("callbacks=null", "choose an option of the group"),
    ],
)
def test_what_else_a_command_line_gets_wrong(given_one: str, mend: str) -> None:
    [told] = refusals([given_one])[0]
    assert told.startswith((f"{given_one}: ", f"{given_one!r} is"))
    assert mend in told
    assert len(told) < 200


def test_a_group_set_to_null_hides_nothing_else() -> None:
    found, accepted = refusals(["callbacks=null", "data.btch=1", "seed=3"])
    assert len(found) == 2
    assert accepted == ["seed=3"]
