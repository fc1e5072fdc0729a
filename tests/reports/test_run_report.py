"""What a person sees before the first step and after the last."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from factory import FactoryDataModule, ImageBackend, Prefetch, TextEmbedBackend, Workspace
from factory.backends.image import SampleBackend
from factory.catalog.captions.sources import FilenameCaptions
from factory.encoder.hashed_text import HashedText
from factory.metrics.stages import Stage, Telemetry
from factory.reports.run_report import (
    SHOWN_BUCKETS,
    buckets,
    dropped_lines,
    show,
    show_encoded,
    stages_table,
    stream_lines,
    where,
    wide_console,
)
from factory.storage.local import LocalStorage
from tests.scenarios.training.building import data_module, write_folders
from tests.support.pictures import write_pictures
from tests.support.streams import stream, write_shards


def printed(*things: Any, width: int = 140) -> str:
    """Return what a console as wide as this shows."""
    stream = io.StringIO()
    console = Console(file=stream, width=width)
    for thing in things:
        console.print(thing)
    return stream.getvalue()


def shown(data: FactoryDataModule) -> str:
    stream = io.StringIO()
    show(data, Console(file=stream, width=140))
    return stream.getvalue()


def cells(text: str, name: str) -> list[str]:
    """Return the cells of the first row that starts with a name."""
    row = next(line for line in text.splitlines() if line.startswith(f"│ {name} "))
    return [cell.strip() for cell in row.strip("│").split("│")]


@pytest.fixture
def data(tmp_path: Path) -> FactoryDataModule:
    write_folders(tmp_path)
    for number in range(5):
        (tmp_path / f"a/bad{number} [bold] :smile:.png").write_text("no picture")
    (tmp_path / "b/0100.txt").write_text("\n")
    made = data_module(tmp_path, probability=3.0)
    made.prepare_data()
    made.setup()
    return made


def test_backends_with_counts_buckets_and_place(data: FactoryDataModule) -> None:
    text = shown(data)
    name, kind, found, kept, dropped, sizes, place = cells(text, "a")
    assert (name, kind, found, kept, dropped, place) == ("a", "image", "18", "13", "5", "Local a")
    assert sizes == "80x48: 5, 48x80: 4, 64x64: 4"
    assert cells(text, "held")[:5] == ["held", "eval", "5", "5", "0"]


def test_dropped_samples_with_reason_count_and_names(data: FactoryDataModule) -> None:
    text = shown(data)
    assert (
        "  a: 5 not a picture (bad0 [bold] :smile:.png, bad1 [bold] :smile:.png, "
        "bad2 [bold] :smile:.png, ...)" in text
    )
    assert "  b: 1 no caption (0100.png)" in text


def test_the_mixture_with_weights_and_shares(data: FactoryDataModule) -> None:
    text = shown(data)
    plan = data.plan
    assert f"Plan epoch of {plan.steps(0)} optimizer steps, 4 samples each" in text
    assert plan.fingerprint[:12] in text
    mixture = text[text.index("Mixture of epoch 1") :]
    accounts = {account.backend: account for account in plan.accounting(0)}
    row = cells(mixture, "a")
    assert row[1:4] == [
        "3",
        "75.0%",  # of the steps in which both take part
        f"{accounts['a'].achieved:.1%}",
    ]
    assert row[4:6] == [str(accounts["a"].batches), str(accounts["a"].rows)]
    assert cells(mixture, "b")[1] == "1"


def test_a_store_that_nobody_uses_is_told_in_a_line(tmp_path: Path) -> None:
    write_folders(tmp_path)
    made = data_module(tmp_path)
    cache = made.registry.cache
    backends = [
        replace(each, text_embeds="text") if isinstance(each, SampleBackend) else each
        for each in made.registry.backends.values()
    ]
    spare = TextEmbedBackend(name="spare", cache=cache, encoder=HashedText(), default=True)
    more = FactoryDataModule([*backends, spare], cache=cache, batch_size=4)
    more.prepare_data()
    more.setup()
    (line,) = [line for line in shown(more).splitlines() if "Unused" in line]
    assert line == (
        "Unused: no backend uses the store 'spare', though it is the default of its kind; leave "
        "it out with '~data.backends.spare'"
    )
    more.close()


def test_nothing_dropped_is_not_mentioned(tmp_path: Path) -> None:
    write_folders(tmp_path)
    made = data_module(tmp_path)
    made.prepare_data()
    made.setup()
    assert list(dropped_lines(made.sources.values())) == []
    assert "Dropped" not in shown(made)
    assert "Unused" not in shown(made)


def test_rare_buckets_are_counted_together(tmp_path: Path) -> None:
    sizes = [(64 + 40 * n, 64) for n in range(SHOWN_BUCKETS + 3)]
    write_pictures(tmp_path / "a", 20, sizes=sizes)
    backend = ImageBackend(
        name="a",
        prefix="a",
        caption=FilenameCaptions(),
        storage=LocalStorage(str(tmp_path)),
        resolution=256,
        alignment=8,
    )
    made = FactoryDataModule([backend])
    made.registry.cache = data_module(tmp_path).registry.cache
    made.prepare_data()
    parts = buckets(made.sources["a"]).split(", ")
    assert len(parts) == SHOWN_BUCKETS + 1
    counts = [int(part.rpartition(": ")[2]) for part in parts]
    assert counts[:-1] == sorted(counts[:-1], reverse=True)
    assert parts[-1].startswith("3 more: ")
    assert sum(counts) == 20


def test_folders_that_look_like_markup(tmp_path: Path) -> None:
    write_pictures(tmp_path / "[red]", 4)
    backend = ImageBackend(
        name="a",
        prefix="[red]",
        caption=FilenameCaptions(),
        storage=LocalStorage(str(tmp_path)),
        resolution=64,
        alignment=8,
    )
    made = FactoryDataModule([backend])
    made.registry.cache = data_module(tmp_path).registry.cache
    made.prepare_data()
    made.setup()
    assert "Local [red]" in shown(made)


def test_stages_with_time_memory_and_counts() -> None:
    record = Telemetry()
    record.stages.append(Stage("scan a", 1.234, 100, 200, {"samples": 3, "changes": "3 added"}))
    row = cells(printed(stages_table(record)), "scan a")
    assert row == ["scan a", "1.23 s", "100 MiB", "200 MiB", "samples 3, changes 3 added"]


def encoded(*stages: Stage) -> str:
    """Return what is shown of some stages."""
    record, out = Telemetry(), io.StringIO()
    record.stages.extend(stages)
    show_encoded(record, Console(file=out, width=120))
    return out.getvalue()


def test_what_was_encoded_is_shown_once_for_each_backend() -> None:
    first = {"encoded": 4000, "cached": 16, "bytes": 2**21, "unreadable": 2}
    text = encoded(
        Stage("scan a", 1.0, counts={"samples": 9}),
        Stage("encode a", 3.5, counts=first),
        Stage("encode a", 0.5, counts={"encoded": 0, "cached": 4016, "bytes": 0}),
        Stage("encode text", 0.1, counts={"encoded": 0, "cached": 7, "bytes": 0}),
    )
    assert cells(text, "a") == ["a", "4,000", "16", "2", "2.0 MiB", "4.0 s", "1,000/s"]
    assert cells(text, "text") == ["text", "0", "7", "0", "0.0 MiB", "0.1 s", ""]
    assert "All is encoded" in text


def test_that_nothing_was_left_to_encode_is_said() -> None:
    counts = {"encoded": 0, "cached": 1200, "bytes": 0}
    text = encoded(Stage("encode a", 0.1, counts=counts))
    assert "Nothing was left to encode: all 1,200 are cached" in text
    assert "no encoder is set" in encoded()


def test_tables_in_a_file_are_not_squeezed() -> None:
    assert wide_console().width == 120


def test_streams_before_and_after(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", 2, 6)
    cache = Workspace(LocalStorage(str(tmp_path)))
    data = FactoryDataModule(
        [stream(shards, minimum_aspect_ratio=0.9)], batch_size=4, cache=cache,
        prefetch=Prefetch(mode="inline"),
    )  # fmt: skip
    data.prepare_data()
    data.setup()
    name, kind, *_, sizes, _ = cells(shown(data), "big")
    assert (name, kind) == ("big", "stream")
    assert sizes.startswith("24 samples")
    assert where(data.registry.streams["big"]) == f"HuggingFace {shards}"
    assert list(stream_lines(data.streams.values())) == ["big: nothing was read"]
    batches = iter(data.train_dataloader())
    for _ in range(2):
        next(batches)
    data.close()
    (line,) = stream_lines(data.streams.values())
    assert "2 batches" in line
    assert "dropped: minimum_aspect_ratio" in line
