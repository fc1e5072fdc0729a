"""Conditioning pictures follow from the pixels, the settings, the seed and the key alone."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest

from factory.conditioning import (
    BatchGenerator,
    Canny,
    Generator,
    JpegArtifacts,
    RandomMasks,
    Superresolution,
)
from factory.conditioning.generator import Pixels, as_rgb, check_made, drawing
from factory.testing.generator import PICTURE, GeneratorContract

BUILT_IN: list[Generator] = [
    Canny(), JpegArtifacts(), Superresolution(), Superresolution(noise=4, blur=1), RandomMasks(),
]  # fmt: skip


def made(generator: Generator, key: str = "a.png", seed: int = 0) -> Pixels:
    return generator(PICTURE, drawing(seed, key))


class TestBuiltIn(GeneratorContract):
    @pytest.fixture(params=BUILT_IN, ids=lambda each: type(each).__name__)
    def generator(self, request: pytest.FixtureRequest) -> Generator:
        return request.param


def test_settings_change_the_fingerprint() -> None:
    assert Canny(low=50).fingerprint != Canny().fingerprint
    assert JpegArtifacts(10, 40).fingerprint != JpegArtifacts(10, 41).fingerprint


def test_edges_are_where_the_square_ends() -> None:
    edges = made(Canny())[:, :, 0]
    assert set(np.unique(edges)) == {0, 255}
    rows, columns = np.nonzero(edges)
    assert {*rows[columns == 45].tolist()} <= {15, 16, 47, 48}
    assert not edges[20:44, 36:60].any()
    assert not edges[:12].any()


def test_jpeg_artifacts_grow_as_quality_falls() -> None:
    errors = [np.abs(made(JpegArtifacts(q, q)).astype(int) - PICTURE).mean() for q in (5, 30, 95)]
    assert errors[0] > errors[1] > errors[2]
    assert abs(made(JpegArtifacts(95, 95))[30, 45].astype(int) - PICTURE[30, 45]).max() < 6


def test_qualities_are_drawn_from_the_range() -> None:
    keys = [f"{n}.png" for n in range(30)]
    found = {made(JpegArtifacts(20, 21), key).tobytes() for key in keys}
    assert found == {made(JpegArtifacts(q, q)).tobytes() for q in (20, 21)}


def test_superresolution_by_a_factor_of_one_only_blurs_and_adds_noise() -> None:
    assert np.array_equal(made(Superresolution(1)), PICTURE)
    for other in (Superresolution(1, blur=2), Superresolution(1, noise=2)):
        assert not np.array_equal(made(other), PICTURE)


def test_superresolution_loses_what_is_finer_than_its_factor() -> None:
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    for shrink, left in (("antialias", 40), ("area", 2)):
        blurred = Superresolution(4, shrink=shrink)(stripes, drawing(0, ""))
        assert np.ptp(blurred[8:-8, 8:-8].astype(int)) < left  # grey
    coarse = np.kron(np.eye(2, dtype=np.uint8) * 255, np.ones((32, 32), np.uint8))
    coarse = np.repeat(coarse[:, :, None], 3, axis=2)
    kept = Superresolution(4)(coarse, drawing(0, ""))
    assert np.abs(kept[16, [8, 56]].astype(int) - coarse[16, [8, 56]]).max() < 5


def test_noise_is_added_while_it_is_small() -> None:
    flat = np.full((64, 64, 3), 128, dtype=np.uint8)
    noisy = Superresolution(8, enlarge="nearest", noise=10)(flat, drawing(0, ""))
    blocks = noisy.reshape(8, 8, 8, 8, 3).transpose(0, 2, 1, 3, 4).reshape(64, 64, 3)
    assert (blocks == blocks[:, :1]).all()
    assert 5 < noisy.std() < 15


@pytest.mark.parametrize(("least", "most"), [(0.1, 0.5), (0.3, 0.3), (0.02, 0.05)])
@pytest.mark.parametrize("shapes", [("rectangle", "ellipse", "stroke"), ("stroke",)])
def test_masks_cover_a_share_of_the_range(least: float, most: float, shapes: Sequence[str]) -> None:
    large = np.zeros((192, 256, 3), dtype=np.uint8)
    masks = [RandomMasks(least, most, shapes)(large, drawing(0, f"{n}.png")) for n in range(50)]
    shares = [(mask == 255).mean() for mask in masks]
    assert all(set(np.unique(mask)) == {0, 255} for mask in masks)
    assert least - 0.011 < min(shares)
    assert max(shares) < most + 0.011
    assert np.ptp(shares) > 0.4 * (most - least)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: Canny(low=300), "high must be at least 300, got 200"),
        (lambda: Canny(blur=-1), "blur must be at least 0"),
        (lambda: JpegArtifacts(0, 10), "low must be at least 1, got 0"),
        (lambda: JpegArtifacts(50, 10), "high must be at least 50, got 10"),
        (lambda: Superresolution(0.5), "factor must be at least 1, got 0.5"),
        (lambda: Superresolution(shrink="best"), "shrink must be one of antialias, area"),
        (lambda: Superresolution(noise=-1), "noise must be at least 0"),
        (lambda: RandomMasks(0.5, 0.4), "least=0.5 and most=0.4 must be shares"),
        (lambda: RandomMasks(shapes=["star"]), "shapes must be one of rectangle"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        wrong()  # type: ignore[operator]


@dataclass(frozen=True)
class Depth(BatchGenerator):
    """Brightness for depth, of many pictures at once."""

    power: float = 1.0

    def generate_batch(self, pixels: Pixels, draws: Sequence[np.random.Generator]) -> Pixels:
        """Return what is near as bright."""
        return (255 * (pixels / 255.0) ** self.power).astype(np.uint8)


def test_one_picture_is_a_batch_of_one() -> None:
    assert np.array_equal(made(Depth(2.0)), Depth(2.0).generate_batch(PICTURE[None], [])[0])


class Plain(Generator):
    """No dataclass, so its settings are unknown."""

    def __call__(self, pixels: Pixels, draw: np.random.Generator) -> Pixels:
        """Return half of the picture."""
        return pixels[::2]


def test_what_a_plugin_promises_is_held_to() -> None:
    with pytest.raises(TypeError, match="Plain must be a frozen dataclass"):
        _ = Plain().fingerprint
    with pytest.raises(ValueError, match=r"Plain gave uint8 \[32, 96, 3\] for pictures"):
        check_made(made(Plain()), PICTURE, Plain())
    with pytest.raises(ValueError, match="Plain gave float64"):
        check_made(PICTURE / 2, PICTURE, Plain())


def test_grey_becomes_three_equal_colours() -> None:
    edges = made(Canny())
    assert np.array_equal(as_rgb(edges), np.dstack([edges] * 3))
    assert as_rgb(PICTURE) is PICTURE
    assert replace(Canny(), blur=1.0).channels == 1
