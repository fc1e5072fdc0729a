"""Folders of damaged pictures: each is kept and read, or it has a reason; nothing else happens."""

import random
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from factory import ImageBackend
from factory.backends.prepared import PreparedBackend, UnusableSample
from factory.catalog.facts import TRANSIENT, Facts
from factory.catalog.scan.discovery import Discovery
from factory.errors import EmptyBackendError
from tests.catalog.fakes import ENGINE, Watched
from tests.media.mutations import damaged
from tests.media.pictures import encode
from tests.scenarios.bad_input.making import backend

# Damage in a header may ask for any size: what is above this many MP is dropped unread.
LIMIT_MP = 1.0
KINDS = {
    "JPEG": ("RGB", "L", "CMYK"), "PNG": ("RGB", "RGBA", "P", "L", "1", "I;16"),
    "WEBP": ("RGB", "RGBA"), "GIF": ("P", "L"), "TIFF": ("RGB", "CMYK", "L"),
    "BMP": ("RGB", "L"), "AVIF": ("RGB",),
}  # fmt: skip
CASES = [(kind, mode) for kind, modes in KINDS.items() for mode in modes]
FILE = st.tuples(st.sampled_from(CASES), st.integers(1, 90), st.integers(1, 90))
FOLDER = st.lists(FILE, min_size=1, max_size=6)


@dataclass(frozen=True)
class Made:
    """A file: its name, and its bytes before and after the damage."""

    name: str
    whole: bytes
    damaged: bytes


def made(number: int, kind: str, mode: str, size: tuple[int, int], rng: random.Random) -> Made:
    """Return a picture of noise in some format, and what damage left of it."""
    pixels = np.frombuffer(rng.randbytes(size[0] * size[1] * 3), np.uint8)
    image = Image.fromarray(pixels.reshape(size[1], size[0], 3))
    image = image.convert("I").convert(mode) if mode == "I;16" else image.convert(mode)
    whole = encode(image, kind)
    return Made(f"{number}.{kind.lower()}", whole, damaged(whole, rng))


def survives(files: list[Made]) -> None:
    """Scan, decide and read a folder of damaged files, then scan it again."""
    with tempfile.TemporaryDirectory() as root:
        (Path(root) / "pics").mkdir()
        for file in files:
            (Path(root) / "pics" / file.name).write_bytes(file.damaged)
        storage = Watched(root)
        metadata = Discovery(max_megapixels=LIMIT_MP)
        one = backend(Path(root), storage=storage, metadata=metadata)
        facts = one.scan(None, ENGINE)
        assert [row.key for row in facts.rows()] == sorted(f"pics/{f.name}" for f in files)
        decisions = one.decide(facts, 0)
        assert len(facts) == decisions.kept + sum(decisions.dropped().values())
        for row, code in zip(facts.rows(), decisions.reason, strict=True):
            # What has no error of its own may still be too narrow for any bucket.
            assert code or not row.error
            assert not code or decisions.reasons[code].strip()
        if decisions.kept:
            read(PreparedBackend(one, one.catalog(facts, 0)))
        else:
            with pytest.raises(EmptyBackendError, match=f"all {len(files)} samples are dropped"):
                one.catalog(facts, 0)
        scanned_again(one, storage, facts)


def read(source: PreparedBackend) -> None:
    """Read each picture that was kept: pixels of its bucket, or advice."""
    for bucket in source.catalog.decisions.buckets:
        for row in bucket.rows.tolist():
            (sample,) = source.samples(np.array([row]), ENGINE)
            if isinstance(sample, UnusableSample):
                assert sample.reason.strip()
                assert sample.key == source.catalog.facts.key(row)
            else:
                assert sample.shape == (bucket.height, bucket.width, 3)


def scanned_again(one: ImageBackend, storage: Watched, facts: Facts) -> None:
    """Check that a second scan finds the same, and reads what may have changed alone."""
    storage.taken()
    again = one.scan(facts, ENGINE)
    assert again.table.equals(facts.table)
    transient = [row.key for row in facts.rows() if (row.error or "").startswith(TRANSIENT)]
    assert storage.taken() == transient


def examples(count: int) -> settings:
    """Return settings for some number of folders."""
    return settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck))


def files_of(folder: list[tuple[tuple[str, str], int, int]], rng: random.Random) -> list[Made]:
    """Return the files of a drawn folder."""
    return [
        made(number, kind, mode, (width, height), rng)
        for number, ((kind, mode), width, height) in enumerate(folder)
    ]


# Pillow warns of some damage as well: that is its way of saying what we give a reason for.
@pytest.mark.filterwarnings("ignore")
@examples(60)
@given(FOLDER, st.randoms(use_true_random=False))
def test_damaged_folders(
    folder: list[tuple[tuple[str, str], int, int]], rng: random.Random
) -> None:
    survives(files_of(folder, rng))


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore")
@examples(3000)
@given(FOLDER, st.randoms(use_true_random=False))
def test_thousands_of_damaged_folders(
    folder: list[tuple[tuple[str, str], int, int]], rng: random.Random
) -> None:
    survives(files_of(folder, rng))


@pytest.mark.parametrize(("kind", "mode"), CASES)
def test_the_folders_are_of_pictures_before_the_damage(kind: str, mode: str) -> None:
    rng = random.Random(kind + mode)
    file = made(0, kind, mode, (20, 10), rng)
    survives([Made(file.name, file.whole, file.whole)])
    assert file.damaged != file.whole
