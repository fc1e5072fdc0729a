"""Conditioning pictures made from a source's own: edges, masks, worse copies; and how to add more.

Depth, segmentation and other models come as plugins: a `BatchGenerator` of your own, named by
`generate: {_target_: package.Class}`.
"""

from factory.conditioning.generator import BatchGenerator, Generator
from factory.conditioning.generators import Canny, JpegArtifacts, RandomMasks, Superresolution

__all__ = [
    "BatchGenerator",
    "Canny",
    "Generator",
    "JpegArtifacts",
    "RandomMasks",
    "Superresolution",
]
