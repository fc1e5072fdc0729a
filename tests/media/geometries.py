"""Geometries and sizes for property tests: every setting, of every unit."""

from typing import Any

import numpy as np
from hypothesis import strategies as st

from factory.media.geometry.geometry import Geometry

RATIOS = (0.5, 0.75, 1.0, 1.33, 2.0)
ALIGNMENTS = (1, 8, 16, 32, 48, 64)
RESOLUTIONS = {
    "area": (0.1, 0.25, 0.5, 1.0, 1.4, 2.0, 4.0),
    "pixel_area": (256, 500, 512, 720, 1024),
    "pixel": (64, 480, 500, 512, 1000, 1024),
}
# What is too large, and the size such pictures are shrunk to.
LIMITS = {
    "area": ((2.0, 1.5), (0.5, 0.5), (19.0, 0.1)),
    "pixel_area": ((1536, 1280), (2048, 512)),
    "pixel": ((1536, 1280), (1024, 1024)),
}
edges = st.integers(1, 20_000)
sizes = st.lists(st.tuples(edges, edges), min_size=1, max_size=30)


@st.composite
def geometries(draw: st.DrawFn, **fixed: Any) -> Geometry:
    """Return a geometry of random settings, some of them fixed; half of the time the plain ones."""
    kind = draw(st.sampled_from(sorted(RESOLUTIONS)))
    alignment = draw(st.sampled_from(ALIGNMENTS))
    settings: dict[str, Any] = {
        "resolution": draw(st.sampled_from(RESOLUTIONS[kind])),
        "resolution_type": kind,
        "alignment": alignment,
        "aspect_rounding": draw(st.sampled_from([-1, 0, 1, 2, 3])),
        "crop_aspect": draw(st.sampled_from(["preserve", "square", "closest", "random"])),
        "crop_style": draw(st.sampled_from(["center", "random", "corner", "face"])),
        "crop_aspect_buckets": draw(st.lists(st.sampled_from(RATIOS), min_size=1, max_size=4)),
    }
    if draw(st.booleans()):
        limits = draw(st.sampled_from([(None, None), *LIMITS[kind]]))
        settings["maximum_image_size"], settings["target_downsample_size"] = limits
        settings["maximum_canvas"] = draw(st.sampled_from([None, 0.005, 0.3, 1.0]))
        labels = (1.0, 2.0) if settings["aspect_rounding"] == 0 else (0.5, 1.0, 2.0)
        forced = dict.fromkeys(labels, (3 * alignment, 5 * alignment))
        settings["aspect_sizes"] = draw(st.sampled_from([{}, forced]))
    return Geometry(**settings | fixed)


def numbers(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return uniform numbers [rows, 3] and a focus [rows, 2], half of it NaN."""
    rng = np.random.default_rng(seed)
    focus = rng.uniform(-0.1, 1.1, (rows, 2)).astype(np.float32)
    focus[rng.random(rows) < 0.5] = np.nan
    return rng.random((rows, 3)), focus
