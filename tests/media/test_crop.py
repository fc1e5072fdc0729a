"""Resizing and cutting: sizes, places, quality."""

import io
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from factory.media.crop import fit
from factory.media.decode import decode
from factory.media.geometry.geometry import Geometry
from factory.media.resample import opencv
from tests.media.pictures import encode, gradient
from tests.support.examples import examples


@pytest.mark.parametrize("scaled", [(96, 64), (48, 32), (30, 20), (200, 133), (7, 5)])
def test_nearest_pixels_are_taken_from_where_the_middle_falls(scaled: tuple[int, int]) -> None:
    numbers = np.arange(96 * 64, dtype=np.uint32).reshape(64, 96)
    image = np.stack([numbers & 255, numbers >> 8, numbers % 7], axis=2).astype(np.uint8)
    wide, tall = scaled
    top, left = tall // 4, wide // 4
    target = (wide - 2 * left, tall - 2 * top)
    cut = fit(image, scaled, (top, left), target, nearest=True)
    assert cut.flags.c_contiguous
    for y in range(target[1]):
        for x in range(target[0]):
            row = min(int((top + y + 0.5) * 64 / tall), 63)
            column = min(int((left + x + 0.5) * 96 / wide), 95)
            assert (cut[y, x] == image[row, column]).all()


def photographs() -> list[NDArray[np.uint8]]:
    """Return real photographs that installed packages carry."""
    import skimage.data
    from sklearn.datasets import load_sample_images

    own = [skimage.data.astronaut(), skimage.data.chelsea(), skimage.data.coffee()]
    return [*own, skimage.data.rocket(), *load_sample_images().images]


def psnr(left: NDArray[np.uint8], right: NDArray[np.uint8]) -> float:
    """Return the peak signal-to-noise ratio in dB, 99 at most."""
    error = float(np.mean((left.astype(float) - right) ** 2))
    return min(99.0, 10 * math.log10(255**2 / error)) if error else 99.0


def against_lanczos(*, exact: bool, enlarged: float = 1.0) -> list[float]:
    """Return the PSNR of photographs against a full decode and Lanczos by Pillow, dB."""
    values = []
    for photograph in photographs():
        picture = Image.fromarray(photograph)
        wide, tall = (int(edge * enlarged) for edge in picture.size)
        data = encode(picture.resize((wide, tall), Image.Resampling.LANCZOS), "JPEG", quality=92)
        for edge in (192, 256, 384):
            shapes = Geometry(edge, alignment=32).decide(np.array([wide]), np.array([tall]))
            size, target = shapes.intermediary[0].tolist(), shapes.target[0].tolist()
            top, left = shapes.crop[0].tolist()
            pixels = decode(data, at_least=None if exact else tuple(size))
            got = fit(pixels, tuple(size), (top, left), tuple(target), exact=exact)
            with Image.open(io.BytesIO(data)) as image:
                whole = np.asarray(image.convert("RGB").resize(size, Image.Resampling.LANCZOS))
            values.append(psnr(got, whole[top : top + target[1], left : left + target[0]]))
    return values


@pytest.mark.parametrize("enlarged", [1.0, 2.5])
def test_fast_quality_against_a_full_decode_and_lanczos(enlarged: float) -> None:
    values = against_lanczos(exact=False, enlarged=enlarged)
    assert np.mean(values) >= 39.0, values
    assert min(values) >= 31.0, values


def test_exact_is_a_full_decode_and_lanczos() -> None:
    values = against_lanczos(exact=True)
    # All that is left is how the place of the cut is rounded.
    assert min(values) >= 70.0, values


@pytest.mark.parametrize("shrink", [1.2, 1.6, 2.0, 3.3, 6.7])
def test_every_scale_is_near_lanczos(shrink: float) -> None:
    values = []
    for photograph in photographs():
        tall, wide = (round(edge / shrink) for edge in photograph.shape[:2])
        size = (wide, tall)
        wanted = Image.fromarray(photograph).resize(size, Image.Resampling.LANCZOS)
        got = fit(photograph, size, (0, 0), size)
        values.append(psnr(got, np.asarray(wanted)))
    assert np.mean(values) >= 42.0, values


edges = st.integers(1, 60)


@settings(max_examples=examples(300), deadline=None)
@given(st.tuples(edges, edges), st.tuples(edges, edges), st.data())
def test_the_result_has_the_target_size(
    source: tuple[int, int], between: tuple[int, int], data: st.DataObject
) -> None:
    wide = data.draw(st.integers(1, between[0]))
    tall = data.draw(st.integers(1, between[1]))
    left = data.draw(st.integers(0, between[0] - wide))
    top = data.draw(st.integers(0, between[1] - tall))
    image = np.full((source[1], source[0], 3), 7, dtype=np.uint8)
    cut = fit(image, between, (top, left), (wide, tall))
    assert cut.shape == (tall, wide, 3)
    assert cut.dtype == np.uint8
    assert cut.flags.c_contiguous
    assert (cut == 7).all()


def test_the_cut_is_where_the_coordinates_say() -> None:
    image = gradient(96, 64)
    cut = fit(image, (96, 64), (10, 20), (30, 40))
    assert np.array_equal(cut, image[10:50, 20:50])


def test_a_picture_of_the_right_size_is_copied_never_shared() -> None:
    image = gradient()
    cut = fit(image, (96, 64), (0, 0), (96, 64))
    assert np.array_equal(cut, image)
    assert not np.shares_memory(cut, image)
    wide = fit(image, (96, 64), (5, 0), (96, 20))
    assert not np.shares_memory(wide, image)


def test_enlarging_keeps_a_gradient() -> None:
    big = fit(gradient(96, 64), (192, 128), (0, 0), (192, 128))
    assert np.abs(big - gradient(192, 128).astype(float)).mean() < 2


def test_huge_intermediaries_are_not_made_whole() -> None:
    # A column of 300 pixels cut to a square of 1024: the whole would take 943 MB.
    column = gradient(1, 300)
    size = (1024, 307_200)
    top = (size[1] - 1024) // 2
    cut = fit(column, size, (top, 0), (1024, 1024))
    assert cut.shape == (1024, 1024, 3)
    middle = column[150, 0].astype(float)
    assert np.abs(cut[512, 512] - middle).max() <= 2
    ends = [fit(column, size, (at, 0), (1024, 1024)) for at in (0, size[1] - 1024)]
    assert ends[0][0, 0, 1] == 0
    assert ends[1][-1, -1, 1] == 255


def test_a_part_is_resized_as_the_whole_is(monkeypatch: pytest.MonkeyPatch) -> None:
    image = gradient(200, 60)
    whole = fit(image, (2000, 600), (100, 700), (400, 300))
    monkeypatch.setattr("factory.media.crop._LARGEST_WHOLE", 1)
    part = fit(image, (2000, 600), (100, 700), (400, 300))
    assert np.abs(whole - part.astype(float)).max() <= 2


@settings(max_examples=examples(200), deadline=None)
@given(st.tuples(st.integers(1, 3000), st.integers(1, 3000)), st.floats(0, 0.999))
def test_every_cut_of_the_geometry_can_be_made_in_parts(
    size: tuple[int, int], place: float
) -> None:
    geometry = Geometry(64, crop_aspect="square", crop_style="random")
    uniform = np.full((1, 3), place)
    shapes = geometry.decide(np.array([size[0]]), np.array([size[1]]), uniform)
    source = (min(size[0], 100), min(size[1], 100))
    image = np.zeros((source[1], source[0], 3), dtype=np.uint8)
    between, target = shapes.intermediary[0].tolist(), shapes.target[0].tolist()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("factory.media.crop._LARGEST_WHOLE", 64 * 64)
        cut = fit(image, tuple(between), tuple(shapes.crop[0].tolist()), tuple(target))
    assert cut.shape == (64, 64, 3)


@pytest.mark.parametrize(
    ("image", "between", "crop", "target", "words"),
    [
        (np.zeros((4, 4), np.uint8), (4, 4), (0, 0), (4, 4), r"got uint8 \(4, 4\)"),
        (np.zeros((4, 4, 4), np.uint8), (4, 4), (0, 0), (4, 4), r"\(4, 4, 4\)"),
        (np.zeros((4, 4, 3)), (4, 4), (0, 0), (4, 4), "float64"),
        (np.zeros((0, 4, 3), np.uint8), (4, 4), (0, 0), (4, 4), "not be empty"),
        (np.zeros((4, 4, 3), np.uint8), (4, 4), (1, 0), (4, 4), "top 1, left 0 must lie in"),
        (np.zeros((4, 4, 3), np.uint8), (4, 4), (0, -1), (2, 2), "left -1"),
        (np.zeros((4, 4, 3), np.uint8), (4, 4), (0, 0), (0, 2), "0 x 2"),
    ],
)
def test_wrong_arguments_are_refused(
    image: NDArray[np.uint8],
    between: tuple[int, int],
    crop: tuple[int, int],
    target: tuple[int, int],
    words: str,
) -> None:
    with pytest.raises(ValueError, match=words):
        fit(image, between, crop, target)


def test_opencv_starts_no_threads_of_its_own() -> None:
    assert opencv().getNumThreads() == 1
