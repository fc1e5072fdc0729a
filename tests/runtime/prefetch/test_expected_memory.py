"""What batches take of memory: said before training, and refused where it cannot fit."""

import logging
from types import SimpleNamespace

import pytest

from factory.errors import ConfigError
from factory.runtime.prefetch import expected_memory
from factory.runtime.prefetch.batch_fetcher import Prefetch
from factory.runtime.prefetch.expected_memory import check_memory, expected, machine_memory

GIB = 2**30


def source(width: int, latents: int | None = None, batch_size: int | None = None):
    bucket = SimpleNamespace(width=width, height=width, frames=None)
    return SimpleNamespace(
        name="photos",
        catalog=SimpleNamespace(decisions=SimpleNamespace(buckets=[bucket])),
        latents=None if latents is None else SimpleNamespace(name="latents", batch_size=latents),
        backend=SimpleNamespace(batch_size=batch_size),
    )


def run(batch_size: int, one, ram_gb: float = 0.0):
    registry = SimpleNamespace(cache=SimpleNamespace(ram_gb=ram_gb), data=["photos"])
    made = SimpleNamespace(
        batch_size=batch_size, prefetch=Prefetch(), registry=registry, trainer=None
    )
    check_memory(made, {"photos": one})


def test_batches_of_pixels_and_encoding_are_counted() -> None:
    (part,) = expected([source(1024)], 5000, Prefetch(), 1)
    assert part.least == 2 * 5000 * 1024 * 1024 * 3
    (shared,) = expected([source(1024)], 5000, Prefetch(), 10)
    assert shared.least == part.least // 10
    (encoding,) = expected([source(1024, latents=64)], 5000, Prefetch(), 1)
    assert encoding.nbytes == 64 * 1024 * 1024 * 3 * 9


def test_what_cannot_fit_is_refused_with_its_setting(monkeypatch) -> None:
    monkeypatch.setattr(expected_memory, "machine_memory", lambda: (8 * GIB, 6 * GIB))
    with pytest.raises(ConfigError, match=r"lower data\.batch_size=5000"):
        run(5000, source(1024))
    with pytest.raises(ConfigError, match=r"lower data\.backends\.photos\.batch_size=5000"):
        run(16, source(1024, batch_size=5000))
    with pytest.raises(ConfigError, match=r"lower data\.backends\.latents\.batch_size=999"):
        run(16, source(1024, latents=999))


def test_what_leaves_little_is_said(monkeypatch, caplog) -> None:
    monkeypatch.setattr(expected_memory, "machine_memory", lambda: (8 * GIB, 1 * GIB))
    with caplog.at_level(logging.WARNING, "factory"):
        run(128, source(1024))
        assert "GiB are free; lower prefetch.batches=4" in caplog.text
        caplog.clear()
        run(2, source(64))
        assert caplog.text == ""
        run(2, source(64), ram_gb=2)
        assert "cache.ram_gb=2" in caplog.text


def test_the_limit_of_a_container_counts(monkeypatch, tmp_path) -> None:
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.limit_in_bytes").write_text(f"{GIB}\n")
    files = (tmp_path / "memory.max", tmp_path / "memory.limit_in_bytes", tmp_path / "none")
    monkeypatch.setattr(expected_memory, "_LIMITS", files)
    total, free = machine_memory()
    assert total == GIB >= free
