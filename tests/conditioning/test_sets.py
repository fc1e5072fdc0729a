"""Several conditioning backends of one source: all in every batch, or one drawn for each sample."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from factory import Batch, ConfigError, FactoryDataModule
from factory.cache.gather.gather_plan import GatherPlan
from factory.cache.index.recipe_index import RowRefs
from factory.catalog.captions.draws import conditioning_draw
from factory.conditioning import Canny
from factory.errors import EmptyBackendError
from factory.reports.explain.samples import samples_of
from factory.runtime.batches.request import BatchMetadata
from tests.conditioning.building import beside, ready, write_sources
from tests.support.pictures import colour, write_pictures

SMALL = ((96, 64),)


def write_sets(root: Path) -> None:
    """Write 8 pictures; "one" lacks the last two, "two" lacks the first and the last."""
    write_sources(root)
    write_pictures(root / "one", 6, sizes=SMALL, captions=False)
    write_pictures(root / "two", 7, sizes=SMALL, captions=False)
    (root / "two/0000.png").unlink()


def batches(data: FactoryDataModule) -> list[Batch]:
    return list(data.train_dataloader())


def sets_used(data: FactoryDataModule) -> dict[str, str]:
    """Return the set that each sample of an epoch has, by key."""
    return {
        key: name
        for batch in batches(data)
        for key, name in zip(batch.keys, batch.conditioning_set, strict=True)
    }


def number(key: str) -> int:
    return int(Path(key).stem)


def test_combined_sets_are_in_every_batch_of_samples_that_have_both(tmp_path: Path) -> None:
    write_sets(tmp_path)
    data = ready(tmp_path, beside(tmp_path, "one"), beside(tmp_path, "two"))
    seen = set()
    for batch in batches(data):
        assert set(batch.conditioning) == {"one", "two"}
        assert batch.conditioning_set == []
        seen |= set(map(number, batch.keys))
    assert seen == {1, 2, 3, 4, 5}
    dropped = data.sources["pics"].catalog.decisions.dropped()
    assert dropped == {"no partner in one": 2, "no partner in two": 1}
    data.close()


@pytest.mark.parametrize("encoded", [True, False])
def test_a_drawn_set_is_named_and_is_the_sample_s_own(tmp_path: Path, encoded: bool) -> None:
    write_sources(tmp_path)
    for name, first in (("one", 512), ("two", 1024)):  # colours tell the sets apart
        write_pictures(tmp_path / name, 8, first=first, sizes=SMALL, captions=False)
        for n in range(8):
            (tmp_path / name / f"{first + n:04d}.png").rename(tmp_path / name / f"{n:04d}.png")
    sets = [beside(tmp_path, "one"), beside(tmp_path, "two")]
    data = ready(tmp_path, *sets, encoded=encoded, conditioning_sampling="random")
    used: Counter[str] = Counter()
    for batch in batches(data):
        (given,) = batch.conditioning.values()
        assert isinstance(given, torch.Tensor)
        decoded = data.registry.image_embeds["latents"].encoder.decode(given) if encoded else given
        for key, name, picture in zip(batch.keys, batch.conditioning_set, decoded, strict=True):
            wanted = torch.tensor(colour(number(key) + {"one": 512, "two": 1024}[name]))
            assert (picture[8, 8].int() - wanted).abs().max() <= 2
            used[name] += 1
    assert sum(used.values()) == 8
    assert len(used) == 2
    data.close()


def test_a_sample_without_a_partner_in_one_set_has_the_other(tmp_path: Path) -> None:
    write_sets(tmp_path)
    sets = [beside(tmp_path, "one"), beside(tmp_path, "two")]
    data = ready(tmp_path, *sets, conditioning_sampling="random")
    assert data.sources["pics"].catalog.decisions.dropped() == {"no partner in one, two": 1}
    found = sets_used(data)
    assert len(found) == 7
    assert (found["src/0000.png"], found["src/0006.png"]) == ("one", "two")
    data.close()


def test_the_draw_follows_from_seed_epoch_and_key_alone(tmp_path: Path) -> None:
    write_sources(tmp_path, 40)
    for name in ("one", "two"):
        write_pictures(tmp_path / name, 40, sizes=SMALL, captions=False)
    sets = [beside(tmp_path, "one"), beside(tmp_path, "two")]
    data = ready(tmp_path, *sets, conditioning_sampling="random")
    source = data.sources["pics"]
    rows = np.arange(40)

    def drawn(epoch: int, seed: int = 7, some: slice = slice(None)) -> list[bool]:
        found = source.partner_rows(rows[some], seed=seed, epoch=epoch)
        assert ((found["one"] >= 0) != (found["two"] >= 0)).all()
        return (found["one"] >= 0).tolist()

    assert drawn(0) == drawn(0)
    assert drawn(0, some=slice(5, 9)) == drawn(0)[5:9]
    assert drawn(1) != drawn(0) != drawn(0, seed=8)
    assert 8 < sum(drawn(0)) < 32
    # A partner that goes changes its own sample's set at most.
    before = drawn(0)
    source.conditioning["two"][1][3] = -1
    assert [n for n in range(40) if drawn(0)[n] != before[n]] in ([], [3])
    data.close()


def test_the_hash_is_the_same_in_every_process() -> None:
    """Numbers written down: Python's own hash of texts would differ from run to run."""
    draws = [conditioning_draw("edges", seed=7, epoch=epoch, key="a.png") for epoch in (0, 1)]
    assert draws == [0x5CDBD5583796B783, 0x35D8DFFCD5A8CA9]


def test_each_set_has_its_share() -> None:
    names = ["one", "two", "three"]
    won = Counter(
        max(names, key=lambda name: conditioning_draw(name, seed=0, epoch=0, key=f"{n}.png"))
        for n in range(3000)
    )
    assert all(900 < won[name] < 1100 for name in names)


def test_sets_of_other_shapes_come_as_a_list(tmp_path: Path) -> None:
    write_sources(tmp_path)
    write_pictures(tmp_path / "one", 8, sizes=SMALL, captions=False)
    mask = beside(tmp_path, "masks", prefix="one", type="mask")
    data = ready(tmp_path, beside(tmp_path, "one"), mask, conditioning_sampling="random")
    channels = {"one": 3, "masks": 1}
    kinds = set()
    for batch in batches(data):
        given = batch.conditioning["drawn"]
        kinds.add(type(given))
        for name, one in zip(batch.conditioning_set, given, strict=True):
            assert one.shape == (48, 80, channels[name])
    assert list in kinds
    data.close()


def test_what_is_generated_can_be_drawn(tmp_path: Path) -> None:
    write_sets(tmp_path)
    edges = beside(tmp_path, "edges", generate=Canny())
    data = ready(tmp_path, beside(tmp_path, "one"), edges, conditioning_sampling="random")
    assert not data.sources["pics"].catalog.decisions.dropped()
    found = sets_used(data)
    assert found["src/0006.png"] == found["src/0007.png"] == "edges"
    told = samples_of(np.arange(8), data.sources["pics"], seed=7, epoch=0)
    for sample in told:
        name = found[sample.key]
        key = sample.key + " (generated)" if name == "edges" else sample.key.replace("src", "one")
        assert sample.partners == {name: key}
    data.close()


def test_drawing_needs_no_missing_partner_rule(tmp_path: Path) -> None:
    cond = beside(tmp_path, missing_partner="keep")
    with pytest.raises(ConfigError, match=r"cond\.missing_partner=keep is for sources whose"):
        ready(tmp_path, cond, conditioning_sampling="random")


def test_no_partner_in_any_set_is_an_error_that_names_all(tmp_path: Path) -> None:
    write_sources(tmp_path)
    for name in ("one", "two"):
        write_pictures(tmp_path / name, 1, first=99, sizes=SMALL, captions=False)
    sets = [beside(tmp_path, "one"), beside(tmp_path, "two")]
    with pytest.raises(EmptyBackendError, match="no sample has a partner in 'one, two'"):
        ready(tmp_path, *sets, conditioning_sampling="random")


@pytest.mark.parametrize("sampling", ["combined", "random"])
def test_rows_of_partners_are_asked_of_the_disk_with_those_of_their_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampling: str
) -> None:
    write_sets(tmp_path)
    sets = [beside(tmp_path, "one"), beside(tmp_path, "two")]
    data = ready(tmp_path, *sets, encoded=True, conditioning_sampling=sampling)
    source = data.sources["pics"]
    asked: list[RowRefs] = []
    monkeypatch.setattr(GatherPlan, "willneed", lambda self: asked.append(self.refs))
    rows = source.catalog.decisions.order.astype(np.int64)
    BatchMetadata.of(source, rows, seed=7, epoch=0)

    assert source.latents is not None
    wanted = [source.locations[source.latents.name].at(rows)]
    for name, theirs in source.partner_rows(rows, seed=7, epoch=0).items():
        partner = source.conditioning[name][0]
        assert partner.latents is not None
        wanted.append(partner.locations[partner.latents.name].at(theirs[theirs >= 0]))
    assert [(f.shard.tolist(), f.row.tolist()) for f in asked] == [
        (f.shard.tolist(), f.row.tolist()) for f in wanted
    ]
    data.close()
