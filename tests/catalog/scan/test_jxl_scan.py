"""JPEG XL at the scan: found by its suffix, dropped without its extra, found again with it."""

import sys

import pytest

from factory.backends.image import ImageBackend
from factory.catalog.captions.sources import FilenameCaptions
from factory.storage.memory import MemoryStorage
from tests.catalog.fakes import ENGINE
from tests.media.pictures import plain, turned_jxl


def test_a_scan_without_the_extra_drops_them_and_one_with_it_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    storage = MemoryStorage()
    storage.write("p/a.jxl", turned_jxl(6))
    storage.write("p/b.jpg", plain("JPEG"))
    backend = ImageBackend(
        name="pics",
        prefix="p",
        caption=FilenameCaptions(),
        storage=storage,
        resolution=64,
        alignment=16,
    )
    with monkeypatch.context() as absent:
        absent.setitem(sys.modules, "imagecodecs", None)
        without = backend.scan(None, ENGINE)
    catalog = backend.catalog(without, 0)
    assert len(catalog) == 1
    assert catalog.decisions.dropped() == {"needs extra jxl": 1}
    catalog = backend.catalog(backend.scan(without, ENGINE), 0)
    assert len(catalog) == 2
    assert [catalog.facts.table[edge][0].as_py() for edge in ("width", "height")] == [64, 96]
