"""Blocks of `conditioning` become sets of their own, and what has no counterpart is said."""

from pathlib import Path
from typing import Any

import pytest

import factory
from factory.conditioning import Canny, JpegArtifacts, RandomMasks, Superresolution
from factory.config.build import make, verify
from factory.importers.simpletuner.convert import Conversion
from factory.importers.simpletuner.dataset import Dataset, Outcome
from factory.importers.simpletuner.files import Import, write
from factory.importers.simpletuner.generator_options import GENERATORS
from factory.importers.simpletuner.import_report import rows
from tests.importers.simpletuner.building import categories, converted, entry


def made(*blocks: dict[str, Any], args: dict[str, Any] | None = None, **keys: Any) -> list[Dataset]:
    """Return the sets that are made of the pictures of one entry."""
    return converted(entry(conditioning=list(blocks), **keys), args=args).datasets[1:]


def generator(block: dict[str, Any], folder: Path) -> Any:
    """Return the generator that a block becomes, by way of the files that are written."""
    write(Import("old", "m.json", converted(entry(conditioning=block))), folder, force=True)
    cfg = factory.compose(["data=old"], config_dir=folder)
    (name,) = (n for n, node in cfg.data.backends.items() if node.get("generate") is not None)
    verify(cfg)
    return make(cfg.data.backends[name].generate, "generate")


BLUR = 2.0
NOISE = 5.1  # 0.02 of 255


@pytest.mark.parametrize(
    ("block", "wanted"),
    [
        ({"type": "canny"}, Canny(50, 100)),
        ({"type": "edges", "low_threshold": 100, "high_threshold": 200}, Canny(100, 200)),
        ({"type": "canny", "low_threshold": 90, "high_threshold": 20}, Canny(20, 90)),
        ({"type": "jpeg_artifacts"}, JpegArtifacts(25, 25)),
        ({"type": "jpeg", "quality": 12, "quality_range": [1, 2]}, JpegArtifacts(12, 12)),
        ({"type": "compression", "quality_mode": "range"}, JpegArtifacts(10, 50)),
        (
            {"type": "jpeg_artifacts", "quality_mode": "range", "quality_range": [40, 10]},
            JpegArtifacts(10, 40),
        ),
        (
            {"type": "jpeg_artifacts", "quality_mode": "random", "quality_list": [30, 5, 500]},
            JpegArtifacts(5, 100),
        ),
        ({"type": "superresolution"}, Superresolution(1, blur=BLUR, noise=NOISE)),
        (
            {"type": "lowres", "downscale_factor": 2, "blur_radius": 0, "add_noise": False},
            Superresolution(2, enlarge="linear"),
        ),
        (
            {"type": "super_resolution", "blur_type": "box", "blur_radius": 1, "noise_level": 0},
            Superresolution(1, blur=0.816),  # the square root of 8 / 12
        ),
        ({"type": "random_masks"}, RandomMasks()),
        (
            {"type": "inpainting", "min_coverage": 0.2, "max_coverage": 3},
            RandomMasks(0.2, 0.99),
        ),
        (
            {"type": "masks", "mask_types": ["brush", "irregular", "circle"]},
            RandomMasks(shapes=["stroke", "ellipse"]),
        ),
    ],
)  # fmt: skip
def test_each_generator_has_the_settings_that_upstream_s_had(
    block: dict[str, Any], wanted: Any, tmp_path: Path
) -> None:
    assert generator(block, tmp_path) == wanted


def test_a_set_belongs_to_its_source_and_is_named_as_upstream_names_it() -> None:
    store = entry(id="ve", dataset_type="image_embeds", instance_data_dir=None)
    given = entry(
        id="photos", conditioning={"type": "canny"}, image_embeds="ve", vae_cache_ondemand=True
    )
    edges = converted(store, given).datasets[2]
    assert edges.name == "photos_conditioning_canny"
    assert edges.pins == {"generate": "canny"}
    wanted = {"source": "photos", "type": "reference_strict", "image_embeds": "ve"}
    assert edges.body == {
        **wanted, "encode_mode": "on_demand", "generate": {"low": 50, "high": 100},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("block", "args", "kind"),
    [
        ({}, {}, "reference_strict"),
        ({"conditioning_type": "controlnet"}, {}, "controlnet"),
        ({"conditioning_type": "mask"}, {}, "mask"),
        ({"conditioning_type": "reference_loose"}, {}, "reference_strict"),
        ({"conditioning_type": "mask"}, {"controlnet": True}, "controlnet"),
    ],
)
def test_the_type_is_what_upstream_would_take(
    block: dict[str, Any], args: dict[str, Any], kind: str, tmp_path: Path
) -> None:
    for name in ("canny", "random_masks"):  # the second one's option says type: mask
        given = entry(conditioning={"type": name, **block})
        write(Import("old", "m.json", converted(given, args=args)), tmp_path, force=True)
        cfg = factory.compose(["data=old"], config_dir=tmp_path)
        assert cfg.data.backends[f"d_conditioning_{name}"].type == kind


def outcomes(conversion: Conversion, name: str) -> dict[str, tuple[Outcome, str]]:
    return {row.key: (row.outcome, row.text) for row in rows(conversion) if row.dataset == name}


def test_every_key_of_a_block_has_a_row() -> None:
    jpeg = {
        "type": "jpeg_artifacts", "quality": 20, "compression_rounds": 3, "round_quality_decay": 1,
        "subsampling": "4:4:4", "optimize": True, "enhance_blocks": True, "block_noise_level": 0.1,
        "pre_blur": False, "pre_blur_radius": 2.0, "captions": "a bad photo", "qualty": 3,
    }  # fmt: skip
    found = outcomes(converted(entry(conditioning=jpeg)), "d_conditioning_jpeg_artifacts")
    said = {
        key.removeprefix("conditioning."): what
        for key, (what, _) in found.items()
        if key.startswith("conditioning.")
    }
    assert said == {
        "type": Outcome.carried,
        "quality": Outcome.carried,
        **dict.fromkeys(
            ("compression_rounds", "round_quality_decay", "subsampling", "enhance_blocks",
             "block_noise_level", "captions"), Outcome.left_out,
        ),
        **dict.fromkeys(("optimize", "pre_blur", "pre_blur_radius"), Outcome.needless),
        "qualty": Outcome.unknown,
    }  # fmt: skip
    assert "did you mean 'quality'?" in found["conditioning.qualty"][1]
    masks = {"type": "random_masks", "edge_blur": True, "invert_mask": True, "min_masks": 2}
    found = outcomes(converted(entry(conditioning=masks)), "d_conditioning_random_masks")
    assert found["conditioning.type"] == (
        Outcome.changed,
        (
            "to `generate`; edges are hard. They are encoded as pictures are, as upstream does; "
            "type=mask gives them as pixels"
        ),
    )
    for key in ("edge_blur", "invert_mask", "min_masks"):
        assert found[f"conditioning.{key}"][0] is Outcome.left_out


@pytest.mark.parametrize(
    ("block", "why"),
    [
        ({"type": "depth_midas"}, "no model of depth"),
        ({"type": "semantic_segmentation"}, "no model of segmentation"),
        ({"type": "flow"}, "no model of optical flow"),
        ({"type": "i2v_first_frame"}, "first one of the clip"),
        ({"type": "logc3_sdr"}, "8 bits a colour"),
        ({"type": "sketch"}, "no generator is called so here"),
        ({"type": "random_masks", "output_mode": "masked_image"}, "masks are made, not pictures"),
    ],
)
def test_what_has_no_counterpart_is_left_out_and_said(block: dict[str, Any], why: str) -> None:
    conversion = converted(entry(conditioning=[block, {"type": "canny"}]))
    name = f"d_conditioning_{block['type']}"
    ((what, text),) = outcomes(conversion, name).values()
    assert what is Outcome.left_out
    assert why in text
    assert [each.name for each in conversion.kept] == ["d", "d_conditioning_canny"]


def test_blocks_and_sets_of_files_are_both_paired_and_drawn_as_upstream_draws() -> None:
    conversion = converted(
        entry(id="photos", conditioning_data=["masks"], conditioning=[{"type": "canny"}]),
        entry(id="masks", conditioning_type="mask"),
    )
    sources = {each.name: each.body.get("source") for each in conversion.kept}
    assert sources == {"photos": None, "photos_conditioning_canny": "photos", "masks": "photos"}
    assert conversion.data["conditioning_sampling"] == "random"
    assert outcomes(conversion, "photos")["conditioning_data"][0] is Outcome.changed


def test_clips_have_sets_made_of_their_frames_and_what_is_no_set_of_samples_has_none() -> None:
    clips = converted(entry(dataset_type="video", conditioning={"type": "canny"}))
    assert [each.left_out for each in clips.datasets] == ["", ""]
    sound = converted(entry(dataset_type="audio", conditioning={"type": "canny"}))
    assert all(each.left_out for each in sound.datasets)


@pytest.mark.parametrize(
    ("block", "category"),
    [
        ({"type": "canny", "low_threshold": "dark"}, "invalid_type"),
        ({"type": "jpeg_artifacts", "quality_range": "10-50"}, "invalid_type"),
        ({"type": "jpeg_artifacts", "quality_list": []}, "invalid_type"),
        ({"type": "canny", "conditioning_type": "magic"}, "invalid_value"),
        ({"type": 3}, "missing_key"),
    ],
)
def test_what_upstream_would_fail_on_is_refused(block: dict[str, Any], category: str) -> None:
    assert categories(entry(conditioning=block)) == [category]


def test_two_blocks_of_one_type_and_captions_of_combined_sets_are_refused() -> None:
    assert categories(entry(conditioning=[{"type": "canny"}, {"type": "canny"}])) == [
        "duplicate_id"
    ]
    captioned = entry(conditioning={"type": "canny", "captions": "edges"})
    combined = {"conditioning_multidataset_sampling": "combined"}
    assert categories(captioned, args=combined) == ["unsupported_combination"]
    assert categories(captioned) == []


def test_any_name_of_a_generator_leads_to_an_option() -> None:
    for name in GENERATORS:
        (each,) = made({"type": name})
        assert not each.left_out
