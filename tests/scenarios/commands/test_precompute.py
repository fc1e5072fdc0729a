"""`python scripts/precompute.py` as a user runs it."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.pictures import write_pictures

ROOT = Path(__file__).parent.parent.parent.parent


def begin(place: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start the script over the folder of pictures."""
    unset = ("AWS_", "S3_ENDPOINT_URL", "DATA_BUCKET", "FACTORY_DEBUG", "RAY_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(unset)}
    environment |= {
        "DATA_DIR": str(place / "data"), "SCRATCH_DIR": str(place / "scratch"),
        "OUTPUT_DIR": str(place / "outputs"), "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    mine = ["--config-dir", str(place / "my"), "data=mine", *arguments]
    return subprocess.Popen(
        [sys.executable, str(ROOT / "scripts/precompute.py"), *mine],
        env=environment, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def run(place: Path, *arguments: str) -> tuple[int, str, str]:
    """Run the script; return its status, and what it wrote to stdout and stderr."""
    process = begin(place, *arguments)
    out, err = process.communicate(timeout=500)
    return process.returncode, out, err


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder of pictures, and an option of one's own that names it."""
    write_pictures(tmp_path / "data/photos", 12)
    (tmp_path / "my/data").mkdir(parents=True)
    (tmp_path / "my/data/mine.yaml").write_text(
        "defaults: [base, backend@backends.photos: image, backend@backends.latents: image_embeds, "
        "backend@backends.text: text_embeds, _self_]\n"
        "batch_size: 4\nresolution: 64\nalignment: 16\n"
    )
    return tmp_path


def row(table: str, backend: str) -> list[str]:
    """Return the cells of a backend's row."""
    line = next(line for line in table.splitlines() if re.match(rf". {backend} ", line))
    return [cell.strip() for cell in line.strip("│ ").split("│")]


def test_what_is_missing_is_encoded_once(place: Path) -> None:
    photo = place / "data/photos/0003.png"
    photo.write_bytes(photo.read_bytes()[:90])
    status, out, err = run(place)
    assert status == 0, err
    assert row(out, "photos")[1:4] == ["11", "0", "1"]
    assert row(out, "text")[1:3] == ["12", "0"]  # 11 captions, and the empty one
    assert "All is encoded" in out
    assert not (place / "outputs").exists()
    status, out, err = run(place)
    assert status == 0, err
    assert row(out, "photos")[1:4] == ["0", "11", "0"]
    assert "Nothing was left to encode: all 23 are cached" in out


def test_a_config_that_is_wrong_ends_with_1(place: Path) -> None:
    status, _, err = run(place, "engine=ray", "engine.encoders=0", "engine.cpus_per_encoder=0")
    assert status == 1
    assert "engine.encoders must be at least 1, got 0" in err
    assert "engine.cpus_per_encoder must be above 0, got 0" in err


@pytest.mark.long
def test_interrupted_it_goes_on_where_it_was(place: Path) -> None:
    write_pictures(place / "data/photos", 60)
    slow = (
        "encoder.image._target_=tests.engine.slow.SlowDCT",
        "+encoder.image.seconds=0.5",
        "data.backends.latents.batch_size=1",
        "cache.shard_mb=0.001",
    )
    process = begin(place, *slow)
    shards = place / "data/cache/tensors/latents/shards"
    while not (shards.exists() and list(shards.iterdir())):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=500)
    assert process.returncode == 130
    assert "interrupted; shards that were published are kept, start again to go on" in err
    status, out, err = run(place, *slow)
    assert status == 0, err
    encoded, cached = (int(cell) for cell in row(out, "photos")[1:3])
    assert encoded + cached == 60
    assert cached > 0
