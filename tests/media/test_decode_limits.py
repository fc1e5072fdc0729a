"""Limits on memory, scans, parts and time: what asks for more has a reason, and nothing ends."""

import io
import struct
import threading
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from factory.catalog.facts import TRANSIENT
from factory.catalog.scan.media_type import Pictures
from factory.engine.local_engine import LocalEngine
from factory.errors import MediaError
from factory.media.decode import decode
from factory.media.decode_limits import BEYOND_LIMITS, DecodeLimits
from factory.media.headers import MAX_PIXELS, NeedMoreBytes, measure
from factory.records import ObjectInfo
from factory.storage.local import LocalStorage
from factory.storage.memory import MemoryStorage
from tests.media.pictures import encode, gradient, plain, samples

SMALL = DecodeLimits(memory_mb=8)


def flat(kind: str, width: int, height: int, **options: object) -> bytes:
    return encode(Image.new("RGB", (width, height), "teal"), kind, **options)


def scanned(data: bytes, **limits: float) -> str:
    """Return why a scan of a file drops it, or an empty text."""
    storage = MemoryStorage("limits")
    storage.write("a.jpg", data)
    (outcome,) = Pictures(limits=DecodeLimits(**limits)).measure_many(
        storage, [storage.head("a.jpg")], max_pixels=MAX_PIXELS, verify=False
    )
    return str(outcome) if isinstance(outcome, MediaError) else ""


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP", "TIFF", "BMP", "AVIF"])
def test_a_picture_beyond_the_memory_is_dropped_at_the_scan_and_not_decoded(kind: str) -> None:
    data = flat(kind, 3000, 2000)
    for outcome in (
        lambda: measure(data, len(data), limits=SMALL),
        lambda: decode(data, limits=SMALL),
    ):
        with pytest.raises(MediaError, match=r"data\.limits\.memory_mb=") as caught:
            outcome()
        assert caught.value.reason == "too large"
    named = int(str(caught.value).partition("memory_mb=")[2].split(",")[0])
    assert decode(data, limits=DecodeLimits(memory_mb=named)).shape == (2000, 3000, 3)


def test_a_large_photograph_is_decoded_at_a_reduced_scale_within_little_memory() -> None:
    data = flat("JPEG", 12_000, 8_400)
    assert measure(data, len(data), limits=SMALL)[:2] == (12_000, 8_400)
    assert decode(data, at_least=(1024, 716), limits=SMALL).shape == (1050, 1500, 3)
    with pytest.raises(MediaError, match=r"data\.limits\.memory_mb="):
        decode(data, limits=SMALL)


def test_a_progressive_one_needs_all_of_its_coefficients() -> None:
    data = flat("JPEG", 3000, 2000, progressive=True)
    with pytest.raises(MediaError, match="3000 x 2000 px, which takes"):
        measure(data, len(data), limits=SMALL)
    assert decode(data, at_least=(300, 200)).shape == (250, 375, 3)


def test_a_file_of_gigabytes_is_not_read(tmp_path) -> None:
    storage = LocalStorage(str(tmp_path))
    (tmp_path / "a.png").write_bytes(plain("PNG"))
    (tmp_path / "b.jpg").write_bytes(plain("JPEG"))
    for name in ("a.png", "b.jpg"):
        with (tmp_path / name).open("r+b") as file:
            file.truncate(20 * 2**30)
    infos = list(storage.objects())
    for verify in (False, True):
        outcomes = Pictures().measure_many(storage, infos, max_pixels=MAX_PIXELS, verify=verify)
        for outcome in outcomes:
            assert isinstance(outcome, MediaError)
            assert outcome.reason == "too large"
            assert "data.limits.memory_mb=2048" in str(outcome).replace("20481", "20480")


def many_scans(count: int) -> bytes:
    """Return a JPEG whose last scan stands there many times."""
    data = plain("JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * count + data[-2:]


def test_a_jpeg_of_thousands_of_scans_is_refused_and_one_of_many_is_not() -> None:
    start = time.monotonic()
    with pytest.raises(MediaError, match=r"data\.limits\.jpeg_scans") as caught:
        decode(many_scans(50_000))
    assert caught.value.reason == "too many scans"
    assert time.monotonic() - start < 5
    assert decode(plain("JPEG", progressive=True)).shape == (64, 96, 3)
    # What looks like scans behind the end of the picture, such as a film, is none.
    film = plain("JPEG") + b"\xff\xda" * 1000
    assert decode(film).shape == (64, 96, 3)


def gif(*blocks: bytes, size: tuple[int, int] = (9, 9)) -> bytes:
    return b"GIF89a" + struct.pack("<HHBBB", *size, 0, 0, 0) + b"".join(blocks)


@pytest.mark.parametrize(
    "data",
    [
        gif(bytes(20 * 2**20)),
        gif(b"!\xfe\0" * 200_000),
        gif(b"!\xfe" + b"\x01a" * 2_000_000),
        gif(b"," + struct.pack("<HHHHBB", 0, 0, 9, 9, 0, 2) + b"\0" + b"!\xfe\0" * 200_000),
        gif((b"," + struct.pack("<HHHHBB", 0, 0, 9, 9, 0, 2) + b"\0") * 200_000),
        b"\xff\xd8" + b"\xff" * (8 * 2**20),
        b"\xff\xd8" + b"\xff\xe0\0\2" * 2_000_000,
        b"\xff\xd8" + b"\xff\xd0" * 2_000_000,
        plain("PNG")[:33] + (b"\0\0\0\0abcd\0\0\0\0") * 300_000,
        plain("PNG")[:33] + struct.pack(">I", 2**31 - 1) + b"abcd",
        b"RIFF\xff\xff\xff\xffWEBPVP8X\x0a\0\0\0\x0e\0\0\0" + bytes(6) + b"abcd\0\0\0\0" * 300_000,
        b"\0\0\0\x10ftypavif\0\0\0\0" + b"\0\0\0\x08free" * 300_000,
        b"\0\0\0\x10ftypavif\0\0\0\0" + b"\x7f\xff\xff\xffmeta",
        b"\0\0\0\x0cJXL \r\n\x87\n" + b"\0\0\0\x08free" * 300_000,
        b"II*\0\x08\0\0\0\xff\xff" + struct.pack("<HHII", 300, 4, 10**6, 8) * 65535 + bytes(4),
    ],
)  # fmt: skip
def test_headers_that_go_on_and_on_end(data: bytes) -> None:
    start = time.monotonic()
    for size in (len(data), None):
        try:
            measure(data, size)
        except (MediaError, NeedMoreBytes):
            pass
        else:
            assert data.startswith(b"GIF")  # its first picture is there
    with pytest.raises(MediaError):
        decode(data)
    # The machine may be busy; what is guarded against takes minutes.
    assert time.monotonic() - start < 20


def test_a_text_in_a_thousand_chunks_does_not_unpack_into_memory() -> None:
    body = b"Comment\0\0" + zlib.compress(bytes(2**20))
    text = struct.pack(">I", len(body)) + b"zTXt" + body
    text += struct.pack(">I", zlib.crc32(b"zTXt" + body))
    data = plain("PNG")
    assert np.array_equal(decode(data[:33] + text * 1000 + data[33:]), gradient())


def test_a_decoder_that_takes_too_long_is_stopped() -> None:
    data = flat("PNG", 4000, 4000)
    noise = encode(Image.effect_noise((1500, 1500), 90), "GIF")
    for slow in (data, noise):
        with pytest.raises(MediaError, match=r"data\.limits\.seconds") as caught:
            decode(slow, limits=DecodeLimits(seconds=1e-9))
        assert caught.value.reason == "too slow"


def test_reasons_that_another_setting_mends_are_looked_at_again() -> None:
    assert set(BEYOND_LIMITS) <= set(TRANSIENT)
    data = flat("PNG", 3000, 2000)
    assert scanned(data, memory_mb=8).startswith("too large: PNG of 3000 x 2000 px")
    assert scanned(data) == ""


def test_decoders_wait_for_memory_of_each_other() -> None:
    limits = DecodeLimits(memory_mb=64)
    held, most, lock = 0, 0, threading.Lock()

    def hold(number: int) -> None:
        nonlocal held, most
        with limits.room(40 * 2**20):
            with lock:
                held += 1
                most = max(most, held)
            decode(SAMPLE, limits=limits)
            with lock:
                held -= 1

    for _, error in LocalEngine(8).map(hold, range(40)):
        assert error is None
    assert most == 1


SAMPLE = samples()["png"]


def test_memory_that_runs_out_drops_the_picture_it_ran_out_by(monkeypatch) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    data = flat("PNG", 4000, 4000)
    monkeypatch.setattr("factory.media.decode._rgb", full)
    with pytest.raises(MediaError, match=r"data\.limits\.memory_mb"):
        decode(data)
    with pytest.raises(MemoryError) as caught:
        decode(SAMPLE)
    assert "prefetch.batches" in caught.value.__notes__[0]


def test_a_picture_of_unknown_size_is_measured() -> None:
    storage = MemoryStorage("limits")
    storage.write("u.png", plain("PNG"))
    facts = Pictures().measure(
        storage, ObjectInfo("u.png", -1, ""), max_pixels=MAX_PIXELS, verify=False
    )
    assert facts[:2] == (96, 64)
    assert io.BytesIO(plain("PNG")).read() == storage.read("u.png")
