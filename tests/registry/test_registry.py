"""A registry orders its backends, refuses what does not fit together, and closes everything."""

import json
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from factory import (
    ConditioningBackend,
    Crop,
    EvalBackend,
    ImageBackend,
    ImageEmbedBackend,
    TextEmbedBackend,
    VisionEmbedBackend,
    Workspace,
)
from factory.encoder.dct import BlockDCT
from factory.encoder.hashed_text import HashedText
from factory.engine.local_engine import LocalEngine
from factory.errors import CacheError, ConfigError, EmptyBackendError, ObjectNotFoundError
from factory.registry.prepare import load, prepare
from factory.registry.registry import Registry
from factory.storage.local import LocalStorage
from factory.storage.memory import MemoryStorage
from tests.backends.test_image_conditioning import MeanColour
from tests.support.pictures import write_pictures

HERE = LocalStorage(".")
PLACE = Workspace(HERE)
SMALL: dict[str, Any] = {"storage": HERE, "resolution": 64, "alignment": 16}


def image(name: str, **settings: Any) -> ImageBackend:
    return ImageBackend(name=name, **{"prefix": name, **SMALL, **settings})


def latents(name: str = "latents", **settings: Any) -> ImageEmbedBackend:
    return ImageEmbedBackend(name=name, **{"cache": PLACE, "encoder": BlockDCT(), **settings})


def texts(name: str = "text", **settings: Any) -> TextEmbedBackend:
    return TextEmbedBackend(name=name, **{"cache": PLACE, "encoder": HashedText(), **settings})


def registry(*backends: Any, cache: Workspace = PLACE) -> Registry:
    return Registry(backends, cache=cache, engine=LocalEngine(workers=1))


def problems(*backends: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        registry(*backends)
    return caught.value.problems


def test_backends_are_held_by_name_and_kind_in_order_of_need() -> None:
    edges = ConditioningBackend(name="edges", source="a", image_embeds="latents", storage=HERE)
    held = EvalBackend(name="held", **SMALL)
    made = registry(edges, image("a"), held, latents(), texts())
    assert list(made.backends) == ["latents", "text", "a", "edges", "held"]
    assert list(made.data) == ["a"]
    assert list(made.eval) == ["held"]
    assert list(made.samples) == ["a", "edges", "held"]
    assert list(made.text_embeds) == ["text"]
    assert list(made.image_embeds) == ["latents"]


def test_every_name_that_comes_twice_is_reported() -> None:
    assert problems(image("a"), image("b"), image("a"), latents("b")) == [
        "two backends are named 'a'; give each its own name",
        "two backends are named 'b'; give each its own name",
    ]


def test_an_unknown_reference_is_refused_with_a_suggestion() -> None:
    (problem,) = problems(image("a", image_embeds="latent"), latents())
    assert problem == (
        "data.backends.a.image_embeds names 'latent', which is no backend; "
        "did you mean 'latents'? backends are latents, a"
    )


def test_circles_are_refused() -> None:
    one = ConditioningBackend(name="x", source="y", storage=HERE)
    other = ConditioningBackend(name="y", source="x", storage=HERE)
    (problem,) = problems(one, other)
    assert "circle: x -> y -> x; change data.backends.x.source or data.backends.y.so" in problem


def test_a_reference_to_the_wrong_kind_names_those_of_the_right_one() -> None:
    edges = ConditioningBackend(name="edges", source="text", storage=HERE)
    found = problems(edges, image("a", text_embeds="latents"), image("b"), latents(), texts())
    assert sorted(found) == [
        "data.backends.a.text_embeds names 'latents' of type ImageEmbedBackend; name one of text",
        "data.backends.edges.source names 'text' of type TextEmbedBackend; name one of a, b",
    ]
    (alone,) = problems(image("a", text_embeds="latents"), latents())
    assert alone.endswith("there is no backend that fits")


def misaligned(*backends: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        registry(*backends).check_alignment()
    return caught.value.problems


def looks(name: str = "looks", **settings: Any) -> VisionEmbedBackend:
    return VisionEmbedBackend(name=name, cache=PLACE, encoder=MeanColour(), **settings)


# By the field that names a store: what makes one, and what asks for the one in use.
STORES: dict[str, tuple[Any, Any]] = {
    "text_embeds": (texts, Registry.text_store),
    "image_embeds": (latents, Registry.image_store),
    "conditioning_image_embeds": (looks, Registry.vision_store),
}


@pytest.mark.parametrize("field_name", STORES)
@pytest.mark.parametrize("named", [{}, {"a": "s1"}, {"a": "s1", "b": "s3"}])
def test_two_defaults_are_refused_whoever_names_a_store(
    field_name: str, named: dict[str, str]
) -> None:
    store, _ = STORES[field_name]
    stores = [store("s1", default=True), store("s2", default=True), store("s3")]
    data = [image(n, **({field_name: named[n]} if n in named else {})) for n in ("a", "b")]
    (problem,) = problems(*data, *stores)
    assert problem == (
        "data.backends.s1 and data.backends.s2 are both the default of their kind; "
        "set default=false for all but one"
    )


def test_each_kind_has_a_default_of_its_own() -> None:
    made = registry(
        image("a"), texts(default=True), latents(default=True), looks(default=True), texts("more")
    )
    assert made.unused == ["more"]


@pytest.mark.parametrize("field_name", STORES)
def test_the_named_store_then_the_default_then_the_first_listed(field_name: str) -> None:
    store, used = STORES[field_name]
    a, b = image("a", **{field_name: "s3"}), image("b")
    made = registry(a, b, store("s1"), store("s2", default=True), store("s3"))
    assert used(made, a).name == "s3"
    assert used(made, b).name == "s2"
    assert made.unused == ["s1"]
    made = registry(a, b, store("s1"), store("s2"), store("s3"))  # a needs s3 built before it
    if field_name == "conditioning_image_embeds":  # these are for those who ask for them
        assert used(made, b) is None
    else:
        assert used(made, b).name == "s1"
    only = registry(b, *([] if field_name == "image_embeds" else [latents()]))
    assert used(only, b) is None


def test_a_store_that_nobody_uses_is_known_and_no_error() -> None:
    held = EvalBackend(name="held", text_embeds="t2", **SMALL)
    edges = ConditioningBackend(name="edges", source="a", storage=HERE)
    mask = ConditioningBackend(
        name="mask", source="a", type="mask", image_embeds="l2", storage=HERE
    )
    a = image("a", text_embeds="t2", image_embeds="l1")
    stores = [texts("t1", default=True), texts("t2"), latents("l1"), latents("l2")]
    assert registry(a, held, *stores).unused == ["t1", "l2"]
    with_prompts = replace(stores[0], prompts=["a cat"])
    assert registry(a, held, with_prompts, *stores[1:]).unused == ["l2"]
    assert registry(a, held, mask, *stores).unused == ["t1", "l2"]  # masks are pixels
    assert registry(a, edges, *stores).unused == ["t1", "l2"]


RANDOM = Crop(style="random")


def test_a_backend_follows_its_store_s_mode_until_it_says_otherwise() -> None:
    a, b = image("a"), image("b", encode_mode="transient", encode_text_mode="precompute")
    edges = ConditioningBackend(name="edges", source="b", storage=HERE)
    made = registry(a, b, edges, latents(encode_mode="on_demand"), texts(encode_mode="transient"))
    modes = {name: str(made.encode_mode(each)) for name, each in made.samples.items()}
    assert modes == {"a": "on_demand", "b": "transient", "edges": "on_demand"}
    assert made.encode_text_mode(a) == "transient"
    assert made.encode_text_mode(b) == "precompute"
    assert registry(a).encode_mode(a) == registry(a).encode_text_mode(a) == "precompute"


def test_cuts_are_drawn_anew_for_training_and_its_partners_alone() -> None:
    edges = ConditioningBackend(name="edges", source="a", storage=HERE)
    held = EvalBackend(name="held", crop=RANDOM, **SMALL)
    made = registry(image("a", crop=RANDOM), edges, held, latents(encode_mode="each_epoch"))
    modes = {name: str(made.encode_mode(each)) for name, each in made.samples.items()}
    assert modes == {"a": "each_epoch", "edges": "each_epoch", "held": "precompute"}
    own = image("a", crop=RANDOM, encode_mode="on_demand")
    made = registry(own, edges, latents(encode_mode="each_epoch"))
    assert made.encode_mode(edges) == "on_demand"


def test_modes_that_make_no_sense_are_refused_with_the_mend() -> None:
    each = latents(encode_mode="each_epoch")
    (problem,) = problems(image("a"), each)
    assert problem == (
        "data.backends.a.encode_mode=each_epoch draws random cuts anew in each epoch, and with "
        "data.backends.a.crop.style=center there are none; set data.backends.a.encode_mode="
        "on_demand, or draw them: data/crop@data.backends.a=random"
    )
    edges = ConditioningBackend(name="edges", source="a", encode_mode="precompute", storage=HERE)
    (problem,) = problems(image("a", crop=RANDOM), edges, each)
    assert problem == (
        "data.backends.edges.encode_mode=precompute does not fit each_epoch of 'a', whose cuts it "
        "has; set data.backends.edges.encode_mode=each_epoch"
    )
    registry(image("a", crop=RANDOM), replace(edges, encode_mode="transient"), each)
    for build, said in (
        (lambda: image("a", encode_mode="each_epoch"), "crop.style=center there are none"),
        (lambda: image("a", encode_mode="never"), "must be one of precompute, on_demand, trans"),
        (lambda: image("a", encode_text_mode="each_epoch"), "captions have none"),
        (lambda: texts(encode_mode="each_epoch"), "encode_mode=each_epoch draws cuts of pictures"),
        (
            lambda: EvalBackend(name="h", crop=RANDOM, encode_mode="each_epoch", **SMALL),
            "h.encode_mode=precompute",
        ),
        (lambda: latents(write_batch_size=0), "latents.write_batch_size must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=said):
            build()


def test_stores_of_one_cache_have_folders_of_their_own() -> None:
    made = registry(latents("l"), texts("t"))
    assert made.backends["l"].store.prefix == "cache/tensors/l"
    assert made.backends["t"].store.prefix == "cache/tensors/t"


def test_an_alignment_that_cuts_through_latent_cells_is_refused() -> None:
    (problem,) = misaligned(image("a", alignment=12), image("b"), latents())
    assert problem == (
        "data.backends.a.alignment=12 is no multiple of the downscale 8 of 'latents', which "
        "encodes 'a'; set data.alignment=64"
    )
    registry(image("a", alignment=12)).check_alignment()  # pixels need none


@dataclass(frozen=True)
class Coarse(BlockDCT):
    """An encoder of larger cells."""

    @property
    def downscale(self) -> int:
        """Twice as many pixels as a block has."""
        return 32


def test_the_source_decides_the_alignment_of_its_partners() -> None:
    edges = ConditioningBackend(name="edges", source="a", image_embeds="coarse", storage=HERE)
    coarse = latents("coarse", encoder=Coarse())
    (problem,) = misaligned(image("a", image_embeds="latents"), edges, latents(), coarse)
    assert problem.startswith("data.backends.a.alignment=16 is no multiple of the downscale 32")
    assert "'edges'" in problem


@dataclass(frozen=True)
class Closing(LocalStorage):
    """A storage that counts how often it is closed, and may refuse."""

    closed: Counter[str] = field(default_factory=Counter, compare=False)
    label: str = ""

    def close(self) -> None:
        """Count, then fail if the label says so."""
        self.closed[self.label] += 1
        if self.label == "bad":
            raise OSError("will not close")


def test_everything_is_closed_even_if_one_close_fails() -> None:
    log: Counter[str] = Counter()
    storages = {n: Closing(".", closed=log, label=n) for n in ("one", "bad", "two", "own", "run")}
    backends: list[Any] = [image(n, storage=storages[n]) for n in ("one", "bad", "two")]
    backends.append(latents(cache=replace(PLACE, storage=storages["own"])))
    made = registry(*backends, cache=replace(PLACE, storage=storages["run"]))
    with pytest.raises(OSError, match="will not close"):
        made.close()
    assert dict(log) == dict.fromkeys(storages, 1)


@pytest.fixture
def made(tmp_path: Path) -> Registry:
    write_pictures(tmp_path / "a", 3)
    place = Workspace(LocalStorage(str(tmp_path)), scratch_dir=str(tmp_path / "scratch"))
    backend = image("a", storage=LocalStorage(str(tmp_path)))
    return registry(backend, latents(cache=place), texts(cache=place), cache=place)


def test_metrics_tell_each_stage_with_time_memory_and_counts(
    made: Registry, tmp_path: Path
) -> None:
    prepare(made, seed=0)
    made.write_metrics(tmp_path / "run/folder")
    stages = json.loads((tmp_path / "run/folder/metrics.json").read_text())["stages"]
    assert [stage["name"] for stage in stages] == [
        "check storage",
        "scan a",
        "decide",
        "encode a",
        "encode text",
        "locate rows",
    ]
    for stage in stages:
        assert set(stage) == {"name", "seconds", "rss_mb", "peak_rss_mb", "counts"}
        assert stage["seconds"] >= 0
        assert stage["peak_rss_mb"] >= stage["rss_mb"] > 1
    counts = {stage["name"]: stage["counts"] for stage in stages}
    assert counts["scan a"] == {"samples": 3, "changes": "3 added"}
    assert counts["decide"] == {"kept": 3}
    pictures, texts = counts["encode a"], counts["encode text"]
    assert (pictures["encoded"], pictures["cached"]) == (3, 0)
    assert pictures["bytes"] > 0
    # Three file names, and the empty caption that a dropped one becomes.
    assert (texts["encoded"], texts["cached"]) == (4, 0)


def test_a_second_run_does_and_writes_nothing_anew(made: Registry, tmp_path: Path) -> None:
    prepare(made, seed=0)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*") if p.is_file()}
    made.telemetry.stages.clear()
    prepare(made, seed=0)
    after = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*") if p.is_file()}
    assert before == after
    counts = {stage.name: stage.counts for stage in made.telemetry.stages}
    assert counts["scan a"]["changes"] == "3 unchanged"
    assert counts["encode a"] == {"encoded": 0, "cached": 3}


def test_load_opens_what_prepare_published_without_the_samples(
    made: Registry, tmp_path: Path
) -> None:
    first = prepare(made, seed=0)["a"]
    (tmp_path / "a").rename(tmp_path / "away")
    second = load(made, seed=0)["a"]
    assert second.catalog.identity == first.catalog.identity


def test_load_without_prepare_says_what_must_come_first(made: Registry) -> None:
    with pytest.raises(EmptyBackendError, match=r"backend 'a' has no published catalog in file:.*"):
        load(made, seed=0)
    with pytest.raises(EmptyBackendError, match=r"prepare_data\(\) must have run"):
        load(made, seed=0)


def test_a_damaged_catalog_is_measured_anew_once_it_is_deleted(
    made: Registry, tmp_path: Path
) -> None:
    prepare(made, seed=0)
    file = tmp_path / "cache/catalog/a.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(CacheError, match=r"cache/catalog/a\.parquet .* delete it and start again"):
        prepare(made, seed=0)
    file.unlink()
    assert len(prepare(made, seed=0)["a"].catalog) == 3


def test_a_catalog_of_another_format_is_measured_anew(
    made: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(made, seed=0)
    made.telemetry.stages.clear()
    monkeypatch.setattr("factory.catalog.facts_store.FORMAT_VERSION", 3)
    prepare(made, seed=0)
    counts = {stage.name: stage.counts for stage in made.telemetry.stages}
    assert counts["scan a"]["changes"] == "3 added"
    assert counts["encode a"]["cached"] == 3


def test_a_storage_that_cannot_be_reached_is_told_by_its_backend(tmp_path: Path) -> None:
    away = LocalStorage(str(tmp_path / "nowhere"))
    place = Workspace(MemoryStorage("registry"))
    made = registry(image("a", storage=away), cache=place)
    with pytest.raises(ObjectNotFoundError, match=r"nowhere.*correct storage\.root") as caught:
        prepare(made, seed=0)
    assert caught.value.__notes__ == ["while checking the storage of backend 'a'"]


def test_a_stream_cannot_be_a_source_of_conditioning() -> None:
    from factory import StreamBackend
    from factory.storage import HuggingFaceStorage

    big = StreamBackend(name="big", storage=HuggingFaceStorage("a/b"))
    edges = ConditioningBackend(name="edges", storage=MemoryStorage("edges"), source="big")
    with pytest.raises(ConfigError, match=r"data\.backends\.edges\.source names 'big'"):
        Registry([big, edges], cache=Workspace(MemoryStorage("c")), engine=LocalEngine())
