"""What a batch says of its captions: the texts that were used, each encoded beforehand."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from factory import Batch, FactoryDataModule
from factory.catalog.captions.shuffle import Shuffle
from factory.catalog.captions.sources import Captions, TextFileCaptions
from factory.errors import ConfigError, ObjectNotFoundError
from tests.scenarios.training.building import data_module, write_folders

pytestmark = pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")


@dataclass(frozen=True)
class Shouted(Captions):
    """A strategy of another package, which says where its texts come from and no more."""

    def _texts(self, key: str, raw: Sequence[str]) -> Iterable[str]:
        return [f"{key}, shouted".upper()]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_folders(tmp_path)
    return tmp_path


def used(data: FactoryDataModule) -> list[Batch]:
    """Return the batches of an epoch, having checked that each text is the one encoded."""
    data.prepare_data()
    data.setup()
    words = data.registry.text_embeds["text"].encoder
    batches = list(data.train_dataloader())
    for batch in batches:
        assert torch.equal(batch.text["embeds"], words.encode(batch.captions)["embeds"])
    return batches


def test_captions_are_filtered_shuffled_prefixed_and_dropped(root: Path) -> None:
    for number in range(13):
        text = f"arafed picture {number}, red, large"
        (root / "a" / f"{number:04d}.txt").write_text(text)
    captions = TextFileCaptions(
        prepend="sks", filters=["arafed "], shuffle=Shuffle(count=3), dropout=0.3
    )
    drawn = [
        (key, caption)
        for batch in used(data_module(root, caption=captions))
        for key, caption in zip(batch.keys, batch.captions, strict=True)
        if batch.backend == "a"
    ]
    for key, caption in drawn:
        tags = {f"picture {int(Path(key).stem)}", "red", "large"}
        assert caption == "" or set(caption.removeprefix("sks ").split(", ")) == tags
        assert not caption or caption.startswith("sks ")
    assert {""} < {caption for _, caption in drawn}


def test_a_strategy_of_another_package(root: Path) -> None:
    captions = Shouted(prepend="sks", shuffle=Shuffle(count=1, include_original=False))
    batches = used(data_module(root, caption=captions))
    for batch in batches:
        for key, caption in zip(batch.keys, batch.captions, strict=True):
            assert sorted(caption.removeprefix("sks ").split(", ")) == sorted(
                [key.upper(), "SHOUTED"]
            )


def test_captions_are_never_dropped_in_validation(root: Path) -> None:
    data = data_module(root, caption=TextFileCaptions(dropout=1.0))
    assert {text for batch in used(data) for text in batch.captions} == {""}
    held = [text for batch in data.val_dataloader() for text in batch.captions]
    assert set(held) == {f"picture {number}" for number in range(200, 205)}
    data.close()


def test_a_bad_filter_file_stops_the_run_before_anything_is_measured(root: Path) -> None:
    for name, kind, said in (
        ("none.txt", ObjectNotFoundError, "no filter file"),
        ("bad.txt", ConfigError, r"bad\.txt line 2: 's/\(/x/' cannot be used"),
    ):
        (root / "bad.txt").write_text("fine\ns/(/x/\n")
        data = data_module(root, caption=TextFileCaptions(filters_file=str(root / name)))
        with pytest.raises(kind, match=said):
            data.prepare_data()
        assert not list(root.rglob("*.parquet"))
