"""Conditioning as YAML says it: slots, defaults, refusals."""

import pytest

from factory import ConfigError, build, compose
from factory.conditioning import (
    Canny,
    JpegArtifacts,
    RandomMasks,
    Superresolution,
)
from factory.config.build import verify
from tests.conditioning.building import Negative

ADDED = ("+data/backend@data.backends.edges=conditioning", "data.backends.edges.source=photos")
GENERATOR = "data/generator@data.backends.edges"
EDGES = "data.backends.edges"


def problems(*overrides: str) -> str:
    given = [*ADDED, *overrides]
    with pytest.raises(ConfigError) as caught:
        verify(compose(given), given)
    return str(caught.value)


@pytest.mark.parametrize(
    ("option", "setting", "wanted", "kind"),
    [
        ("canny", "low=50", Canny(low=50.0), "controlnet"),
        ("jpeg_artifacts", "high=90", JpegArtifacts(high=90), "controlnet"),
        ("superresolution", "factor=2", Superresolution(2.0), "controlnet"),
        ("random_masks", "shapes=[stroke]", RandomMasks(shapes=["stroke"]), "mask"),
    ],
)
def test_a_generator_is_an_option_of_the_backend_s_slot(
    option: str, setting: str, wanted: object, kind: str
) -> None:
    cfg = compose([*ADDED, f"{GENERATOR}={option}", f"{EDGES}.generate.{setting}"])
    made = build(cfg).registry.samples["edges"]
    assert made.generate == wanted  # type: ignore[attr-defined]
    assert made.type == kind  # type: ignore[attr-defined]


def test_a_generator_of_one_s_own_needs_no_schema() -> None:
    own = "{_target_: tests.conditioning.building.Negative, strength: 200}"
    for given in (
        [*ADDED, f"{EDGES}.generate={own}"],
        [f"+{EDGES}={{kind: conditioning, source: photos, generate: {own}}}"],
    ):
        made = build(compose(given)).registry.samples["edges"]
        assert made.generate == Negative(200)  # type: ignore[attr-defined]


def test_what_is_no_generator_is_refused() -> None:
    cfg = compose([*ADDED, f"{EDGES}.generate={{_target_: factory.Crop}}"])
    with pytest.raises(ConfigError, match=r"must be a factory\.conditioning\.Generator, got Crop"):
        build(cfg)


def test_sizes_of_loose_references_are_pinned_and_else_the_source_s() -> None:
    loose = [*ADDED, f"{EDGES}.type=reference_loose", "data.resolution=256"]
    plain = build(compose(loose)).registry.samples["edges"]
    assert (plain.resolution, plain.crop) == (None, None)
    pinned = [*loose, f"{EDGES}.resolution=64", "data/crop@data.backends.edges=square"]
    made = build(compose(pinned)).registry.samples["edges"]
    assert (made.resolution, made.crop.aspect) == (64, "square")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([f"{EDGES}.type=masc"], "did you mean 'mask'?"),
        ([f"{GENERATOR}=cany"], "did you mean 'canny'?"),
        ([f"{EDGES}.resolution=64"], "cut exactly as its partner, so resolution cannot be set"),
        (["data/crop@data.backends.edges=square"], "so crop cannot be set here; set it for data."),
        ([f"{EDGES}.generate={{low: 3}}"], "generate must name a class: choose data/generator@"),
        (
            [f"{GENERATOR}=superresolution", f"{EDGES}.generate.shrink=cubik"],
            "linear, lanczos, nearest, got 'cubik'; did you mean 'cubic'?",
        ),
        (
            [f"{GENERATOR}=superresolution", f"{EDGES}.generate.enlarge=area"],
            "generate.enlarge must be one of cubic, linear, lanczos, nearest, got 'area'",
        ),
        (
            [f"{GENERATOR}=random_masks", f"{EDGES}.generate.shapes=[star]"],
            "generate.shapes must be one of rectangle, ellipse, stroke, got 'star'",
        ),
        ([f"{GENERATOR}=random_masks", f"{EDGES}.generate.shapes=[]"], "shapes must name at least"),
        ([f"{EDGES}.generate=canny"], "generate must name a class: choose data/generator@"),
        ([f"{GENERATOR}=canny", f"{EDGES}.generate.high=3"], "generate.high must be at least 100"),
        ([f"{GENERATOR}=random_masks", f"{EDGES}.generate.most=2"], "must be shares between 0"),
        ([f"{GENERATOR}=canny", f"{EDGES}.type=reference_loose"], "set data.backends.edges.type="),
        (
            [f"{GENERATOR}=canny", f"{EDGES}.filters=[{{column: x, minimum: 1}}]"],
            "so filters cannot be set here",
        ),
        (
            [f"{EDGES}.type=reference_loose", "data/crop@data.backends.edges=face"],
            "crop.style=face is for pictures to train on",
        ),
        (["data.conditioning_sampling=rondom"], "did you mean 'random'?"),
        ([f"{EDGES}.filters=[{{column: x, minimum: 1}}]"], "filters look at the columns x of a"),
        (
            [
                f"{EDGES}.type=reference_loose",
                f"{EDGES}.maximum_image_size=2000",
                f"{EDGES}.minimum_aspect_ratio=2",
                f"{EDGES}.maximum_aspect_ratio=1",
            ],
            "maximum_image_size cannot be checked against a size of the source",
        ),
        (
            [
                f"{EDGES}.type=reference_loose",
                f"{EDGES}.resolution=64.5",
                f"{EDGES}.resolution_type=pixel_area",
                f"{EDGES}.alignment=16",
            ],
            "must be a whole edge in px",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_the_way_out(overrides: list[str], said: str) -> None:
    assert said in problems(*overrides)


def test_how_sets_are_sampled_is_said_once_or_for_a_source() -> None:
    cfg = compose([*ADDED, "data.conditioning_sampling=random"])
    assert build(cfg).registry.data["photos"].conditioning_sampling == "random"
    cfg = compose([*ADDED, "data.backends.photos.conditioning_sampling=random"])
    assert build(cfg).registry.eval["holdout"].conditioning_sampling == "combined"
