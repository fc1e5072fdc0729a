"""A source made ready gives pixels, latents and texts of rows, in their order."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from factory import ConditioningBackend, FactoryDataModule, ImageBackend, Workspace
from factory.backends.embeddings import ImageEmbedBackend, TextEmbedBackend
from factory.backends.image import Crop
from factory.backends.prepared import PreparedBackend, UnusableSample
from factory.catalog.captions.sources import FilenameCaptions
from factory.encoder.dct import BlockDCT
from factory.encoder.hashed_text import HashedText
from factory.errors import EmptyBackendError, StorageUnavailableError
from factory.media.composite import Composite
from factory.storage.base import Storage
from factory.storage.local import LocalStorage
from tests.catalog.fakes import ENGINE
from tests.support.pictures import colour, write_pictures
from tests.support.pixels import pixels_of


@pytest.fixture
def source(tmp_path: Path) -> PreparedBackend:
    write_pictures(tmp_path / "p", 6)
    storage = LocalStorage(str(tmp_path))
    backend = ImageBackend(name="pics", prefix="p", storage=storage, resolution=64, alignment=16)
    return PreparedBackend(backend, backend.catalog(backend.scan(None, ENGINE), 0))


def number(key: str) -> int:
    return int(Path(key).stem)


def test_pixels_come_in_the_order_of_the_rows(source: PreparedBackend) -> None:
    rows = np.array([3, 0])
    pixels = pixels_of(source, rows, ENGINE)
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (2, 48, 80, 3)
    assert [tuple(picture[9, 9].tolist()) for picture in pixels] == [colour(3), colour(0)]


def test_a_picture_says_which_object_and_how_it_is_cut(source: PreparedBackend) -> None:
    picture = source.picture(1)
    assert (picture.row, picture.key, picture.pixels) == (1, "p/0001.png", 64 * 96)
    assert picture.etag
    assert picture.crop == source.catalog.crop(1)


def test_a_picture_that_is_damaged_or_gone_says_which_and_why(
    source: PreparedBackend, tmp_path: Path
) -> None:
    (tmp_path / "p/0003.png").write_text("no picture any more")
    (tmp_path / "p/0002.png").unlink()
    gone, whole, damaged = source.samples(np.array([2, 0, 3]), ENGINE)
    assert not isinstance(whole, UnusableSample)
    assert isinstance(gone, UnusableSample)
    assert isinstance(damaged, UnusableSample)
    assert (gone.key, gone.stage) == ("p/0002.png", "read")
    assert (damaged.key, damaged.stage) == ("p/0003.png", "decode")
    assert "not a picture" in damaged.reason


class Refusing(LocalStorage):
    """A storage of one place that refuses everything once it was listed."""

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """Refuse."""
        raise StorageUnavailableError(f"cannot read {key}: down")


class RefusingFromAfar(Refusing):
    """The same behind a network."""

    remote = True
    read_many = Storage.read_many


@pytest.mark.parametrize("kind", [Refusing, RefusingFromAfar])
def test_a_storage_that_fails_as_a_whole_is_no_sample_s_fault(
    source: PreparedBackend, tmp_path: Path, kind: type[LocalStorage]
) -> None:
    down = replace(source.backend, storage=kind(str(tmp_path)))
    with pytest.raises(StorageUnavailableError, match="down") as caught:
        list(PreparedBackend(down, source.catalog).samples(np.array([0, 1]), ENGINE))
    assert caught.value.__notes__ == ["while reading 'p/0000.png' of backend 'pics'"]


class Remote(LocalStorage):
    """A storage that is read many objects at once."""

    remote = True

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """Refuse: one by one is not how it is read."""
        raise AssertionError(key)

    def read_many(self, spans: Any) -> Any:
        """Read all there are, last first, as replies may come."""
        local = LocalStorage(self.root)
        found = {key: local.read(key, *span) for key, *span in reversed(spans)}
        return (found[key] for key, *_ in spans)


def test_a_remote_storage_is_asked_for_all_samples_at_once(
    source: PreparedBackend, tmp_path: Path
) -> None:
    rows = np.array([4, 1])
    wanted = pixels_of(source, rows, ENGINE)
    afar = replace(source.backend, storage=Remote(str(tmp_path)))
    assert torch.equal(pixels_of(PreparedBackend(afar, source.catalog), rows, ENGINE), wanted)


def test_without_stores_there_are_neither_latents_nor_embeddings(source: PreparedBackend) -> None:
    assert source.read_text(["a"]) == {}
    assert not source.gives_latents


def conditioned(root: Path, *, encoded: bool = True, **settings: Any) -> FactoryDataModule:
    """Return a data module of pictures and, paired with them, edges."""
    storage = LocalStorage(str(root))
    place = Workspace(storage, scratch_dir=str(root / "scratch"))
    shared: dict[str, Any] = {"storage": storage, "resolution": 64, "alignment": 16}
    crop = Crop(aspect="square", style="random")
    backends: list[Any] = [
        ConditioningBackend(name="edges", source="pics", prefix="cond", storage=storage),
        ImageBackend(name="pics", prefix="src", crop=crop, caption=FilenameCaptions(), **shared),
    ]
    if encoded:
        backends += [
            ImageEmbedBackend(name="latents", cache=place, encoder=BlockDCT()),
            TextEmbedBackend(name="text", cache=place, encoder=HashedText()),
        ]
    return FactoryDataModule(backends, cache=place, batch_size=4, seed=7, **settings)


# Far from the source's own colour: a mix-up of the two, or of rows, shows.
SHIFT = 512


@pytest.mark.parametrize("encoded", [True, False])
def test_batches_carry_the_partner_of_each_sample(tmp_path: Path, encoded: bool) -> None:
    write_pictures(tmp_path / "src", 12, sizes=((96, 64), (64, 96)))
    # Other pictures in front, partners missing at the end: rows of the two do not agree.
    write_pictures(tmp_path / "cond", 10, first=SHIFT, sizes=((96, 64), (64, 96)))
    for n in range(10):
        (tmp_path / f"cond/{n + SHIFT:04d}.png").rename(tmp_path / f"cond/{n:04d}.png")
    write_pictures(tmp_path / "cond/+", 3)
    data = conditioned(tmp_path, encoded=encoded)
    data.prepare_data()
    data.setup()
    assert data.sources["pics"].catalog.decisions.dropped() == {"no partner in edges": 2}
    assert data.sources["edges"].catalog.decisions.dropped() == {"no source sample": 3}
    seen = []
    for batch in data.train_dataloader():
        theirs = batch.conditioning["edges"]
        if encoded:
            theirs = BlockDCT().decode(theirs)
        for key, picture in zip(batch.keys, theirs, strict=True):
            wanted = torch.tensor(colour(number(key) + SHIFT))
            assert (picture[8, 8].int() - wanted).abs().max() <= 2
            seen.append(number(key))
    assert set(seen) == set(range(10))
    assert "edges" not in {batch.backend for batch in data.train_dataloader()}
    data.close()


def test_both_are_cut_at_the_same_place(tmp_path: Path) -> None:
    """A column that tells where it stood: both have the same ramp, and the same crop."""
    from PIL import Image

    ramp = np.repeat(np.arange(200, dtype=np.uint8)[None, :, None], 64, axis=0).repeat(3, axis=2)
    for folder in ("src", "cond"):
        (tmp_path / folder).mkdir()
        for n in range(8):
            Image.fromarray(ramp).save(tmp_path / folder / f"{n:04d}.png")
    data = conditioned(tmp_path, encoded=False)
    data.prepare_data()
    data.setup()
    places = set()
    for batch in data.train_dataloader():
        assert batch.pixels is not None
        assert torch.equal(batch.pixels, batch.conditioning["edges"])
        places |= {int(picture[0, 0, 0]) for picture in batch.pixels}
    assert len(places) > 3
    data.close()


def test_an_unreadable_partner_takes_its_sample_with_it(tmp_path: Path) -> None:
    from PIL import Image

    write_pictures(tmp_path / "src", 4, sizes=((96, 64),))
    write_pictures(tmp_path / "cond", 4, sizes=((96, 64),))
    (tmp_path / "cond/0002.png").unlink()
    Image.effect_noise((96, 64), 90).convert("RGB").save(tmp_path / "cond/0002.jpg")
    whole = (tmp_path / "cond/0002.jpg").read_bytes()
    (tmp_path / "cond/0002.jpg").write_bytes(whole[: len(whole) // 2])
    data = conditioned(tmp_path)
    data.prepare_data()
    assert data.sources["edges"].catalog.decisions.dropped() == {"truncated": 1}
    assert data.sources["pics"].catalog.decisions.dropped() == {"no partner in edges": 1}
    data.close()


def test_no_partner_at_all_says_what_became_of_them(tmp_path: Path) -> None:
    write_pictures(tmp_path / "src", 3, sizes=((96, 64),))
    write_pictures(tmp_path / "cond", 2, sizes=((64, 96),))
    write_pictures(tmp_path / "cond", 1, first=50)
    data = conditioned(tmp_path)
    with pytest.raises(EmptyBackendError) as caught:
        data.prepare_data()
    assert str(caught.value) == (
        "backend 'pics': no sample has a partner in 'edges' (2 shape differs from its source, "
        "1 no source sample); partners share their path below the prefix, without suffix: "
        "compare data.backends.pics.prefix='src' with data.backends.edges.prefix='cond'"
    )


def test_a_partner_is_not_encoded_where_another_backend_drops_its_sample(tmp_path: Path) -> None:
    write_pictures(tmp_path / "src", 4, sizes=((96, 64),))
    write_pictures(tmp_path / "cond", 4, sizes=((96, 64),))
    write_pictures(tmp_path / "more", 3, sizes=((96, 64),))
    data = conditioned(tmp_path)
    storage = LocalStorage(str(tmp_path))
    more = ConditioningBackend(name="more", source="pics", prefix="more", storage=storage)
    both = FactoryDataModule(
        [*data.registry.backends.values(), more], cache=data.registry.cache, batch_size=3, seed=7
    )
    both.prepare_data()
    made = {name: source.catalog.decisions for name, source in both.sources.items()}
    assert {name: one.kept for name, one in made.items()} == {"pics": 3, "edges": 3, "more": 3}
    assert made["edges"].dropped() == {"no source sample": 1}
    both.close()


def test_a_partner_may_be_a_part_of_a_composite(tmp_path: Path) -> None:
    from PIL import Image

    write_pictures(tmp_path / "src", 4, sizes=((96, 64),))
    (tmp_path / "cond").mkdir()
    for n in range(4):
        pair = Image.new("RGB", (192, 64), (250, 0, 0))
        pair.paste((0, 0, 250), (96, 0, 192, 64))
        pair.save(tmp_path / f"cond/{n:04d}.png")
    data = conditioned(tmp_path, encoded=False)
    edges = replace(data.registry.samples["edges"], composite=Composite(2, 1))
    data = FactoryDataModule(
        [edges, data.registry.samples["pics"]], cache=data.registry.cache, batch_size=4, seed=7
    )
    data.prepare_data()
    data.setup()
    assert len(data.sources["edges"].catalog) == 4
    batch = next(iter(data.train_dataloader()))
    assert batch.conditioning["edges"][:, 8, 8].tolist() == [[0, 0, 250]] * 4
    data.close()


def test_where_rows_lie_is_looked_up_anew_when_clips_begin_elsewhere(
    source: PreparedBackend, tmp_path: Path
) -> None:
    place = Workspace(LocalStorage(str(tmp_path)), scratch_dir=str(tmp_path / "scratch"))
    source.latents = ImageEmbedBackend(name="latents", cache=place, encoder=BlockDCT())
    facts = source.catalog.facts
    table = facts.table
    frames = pa.array([9] * len(facts), table.schema.field("frames").type)
    longer = table.set_column(table.schema.get_field_index("frames"), "frames", frames)
    asked = []
    for known in (table, table, longer):
        changed = replace(source.catalog, facts=replace(facts, table=known))
        found = replace(source, catalog=changed, locations={}).find(source.latents)
        asked.append(found.identity)
    assert asked[0] == asked[1] != asked[2]
