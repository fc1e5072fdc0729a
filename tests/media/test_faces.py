"""The largest face of a picture is found, and its absence is no error."""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from factory.errors import MissingExtraError
from factory.media import faces
from factory.media.crop import fit
from factory.media.faces import find_face
from factory.media.geometry.geometry import Geometry

Pixels = np.ndarray


@pytest.fixture(scope="module")
def astronaut() -> Pixels:
    """A portrait, 512 x 512; the face is about 130 px wide around x 220, y 115."""
    import skimage.data

    return skimage.data.astronaut()


def near(found: tuple[float, float] | None, x: float, y: float) -> None:
    assert found is not None
    assert abs(found[0] - x) < 0.06
    assert abs(found[1] - y) < 0.06


@pytest.mark.parametrize("edge", [128, 512, 1500])
def test_a_face_is_found_at_any_size(astronaut: Pixels, edge: int) -> None:
    import cv2

    resized = cv2.resize(astronaut, (edge, edge), interpolation=cv2.INTER_AREA)
    near(find_face(resized), 0.43, 0.22)


def test_fractions_are_of_width_and_of_height(astronaut: Pixels) -> None:
    wide = np.full((512, 1024, 3), 128, dtype=np.uint8)
    wide[:, 512:] = astronaut
    near(find_face(wide), (0.43 + 1) / 2, 0.22)


def test_of_several_the_largest(astronaut: Pixels) -> None:
    both = np.full((512, 1024, 3), 128, dtype=np.uint8)
    both[128:384, 128:384] = fit(astronaut, (256, 256), (0, 0), (256, 256))
    both[:, 512:] = astronaut
    near(find_face(both), 0.715, 0.22)


@pytest.mark.parametrize("name", ["coffee", "rocket", "chelsea"])
def test_pictures_without_a_face_have_none(name: str) -> None:
    import skimage.data

    assert find_face(getattr(skimage.data, name)()) is None


@pytest.mark.parametrize("shape", [(1, 1), (10, 300), (1, 4000)])
def test_slivers_have_none(shape: tuple[int, int]) -> None:
    assert find_face(np.zeros((*shape, 3), dtype=np.uint8)) is None


def test_threads_agree(astronaut: Pixels) -> None:
    small = fit(astronaut, (128, 128), (0, 0), (128, 128))
    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(find_face, [small] * 8))
    assert found == {find_face(small)}


def test_other_arrays_are_refused() -> None:
    with pytest.raises(ValueError, match=r"uint8 \[H, W, 3\], got uint8 \(4, 4\)"):
        find_face(np.zeros((4, 4), dtype=np.uint8))


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage.feature", None)
    monkeypatch.setattr(faces, "_own", faces._Own())
    with pytest.raises(MissingExtraError, match=r"data-backend-factory\[faces\]"):
        faces.face_finder()


def test_a_cut_around_the_face_holds_it(astronaut: Pixels) -> None:
    tall = np.full((1024, 512, 3), 128, dtype=np.uint8)
    tall[512:] = astronaut
    focus = np.array([find_face(tall)], dtype=np.float32)
    geometry = Geometry(256, crop_aspect="square", crop_style="face")
    sizes = np.array([512]), np.array([1024])
    shapes = geometry.decide(*sizes, np.zeros((1, 3)), focus)
    size, cut, target = (
        tuple(column[0].tolist()) for column in (shapes.intermediary, shapes.crop, shapes.target)
    )
    near(find_face(fit(tall, size, cut, target)), 0.43, 0.5)
