"""What was asked of a run is answered from its plan and its ledger."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from factory import FactoryDataModule
from factory.errors import ConfigError
from factory.reports.explain.explain_page import page
from factory.reports.explain.explain_terminal import show
from factory.reports.explain.explainer import Explainer
from factory.reports.explain.explanation import ExplainRequest, Explanation, parse
from factory.runtime.batches.batch import Batch, Replacement
from factory.sampling.exclusion import Exclude
from factory.sampling.mixture import Mixture
from tests.scenarios.training.building import (
    Recorder,
    Watching,
    data_module,
    trainer,
    write_folders,
)
from tests.support.pictures import write_pictures
from tests.support.streams import stream, write_shards

pytestmark = pytest.mark.filterwarnings(
    "ignore:The '.*_dataloader' does not have many workers", "ignore:.*treespec, LeafSpec.*"
)
STEPS = 9


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of nine steps in two micro-batches, with its ledger."""
    folder = tmp_path_factory.mktemp("explain")
    write_folders(folder)
    data = data_module(folder, ledger=folder / "ledger")
    trainer(folder, max_steps=STEPS, accumulate_grad_batches=2).fit(Recorder(), datamodule=data)
    data.close()
    return folder


def ask(root: Path, text: str, *, ledger: bool = True, end: int = STEPS, **settings) -> Explanation:
    data = data_module(root, **settings)
    data.setup()
    ledgers = [root / "ledger"] if ledger else []
    try:
        return Explainer(data, "RUN", end, ledgers).answer(parse([text]))
    finally:
        data.close()


def shown(findings: Explanation) -> str:
    console = Console(width=110, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    show(findings, console)
    console.file.close()
    return console.export_text()


def test_a_step_with_everything_that_is_known(root: Path) -> None:
    found = ask(root, "step=8")
    [step] = found.steps
    data = data_module(root)
    data.setup()
    planned = data.plan.at(1, 0)
    source = data.sources[planned.backend]
    assert (step.number, step.epoch, step.step, step.steps) == (8, 2, 1, 7)
    assert (step.backend, step.bucket) == (planned.backend, planned.bucket)
    assert (step.ranks, step.micros, step.notes) == (1, 2, ())
    assert [sample.row for sample in step.samples] == planned.rows.tolist()
    assert [(s.place, s.rank, s.micro) for s in step.samples] == [
        (0, 0, 0), (1, 0, 0), (2, 0, 1), (3, 0, 1),
    ]  # fmt: skip
    for sample in step.samples:
        assert sample.key == source.catalog.facts.key(sample.row)
        assert sample.caption == source.catalog.caption(sample.row, seed=7, epoch=1)
        cut = source.catalog.crop(sample.row)
        assert (sample.target, sample.crop, sample.resized) == (
            cut.target, cut.offset, cut.intermediary,
        )  # fmt: skip
        assert sample.bytes == (root / sample.key).stat().st_size
        assert (sample.width, sample.height) in {(96, 64), (64, 96), (80, 80)}
    assert sum(sample.fills for sample in step.samples) == planned.duplicates == step.fills
    chosen = {each.backend: each for each in step.choices}
    assert set(chosen) == {"a", "b"}
    assert chosen[step.backend].owed == max(each.owed for each in step.choices)
    assert found.recorded == (1, STEPS)
    assert found.notes == ()
    assert found.exclude.startswith(f"'data.exclude=[{{from_step: 8, ids: [{step.backend}:")
    text = shown(found)
    assert f"Step 8: step 1 of 7 in epoch 2, from {step.backend}, bucket {step.bucket}" in text
    for sample in step.samples:
        assert f"{step.backend}:{sample.key}" in text
        assert sample.caption in text
    assert json.loads(json.dumps(found.as_json()))["steps"][0]["number"] == 8
    document = page(found, data.sources, data.registry.engine)
    assert document.count("data:image/jpeg;base64,") == 4
    assert "<script" not in document
    assert "rank 0, micro-batch 1" in document
    data.close()


def test_without_a_ledger_the_plan_tells(root: Path) -> None:
    found, recorded = ask(root, "step=8", ledger=False), ask(root, "step=8")
    [step], [known] = found.steps, recorded.steps
    assert [s.row for s in step.samples] == [s.row for s in known.samples]
    assert step.ranks is None
    assert step.samples[0].rank is None
    assert "there is no ledger" in found.notes[0]
    assert "rank.micro" not in shown(found)


def test_a_range_has_a_line_for_each_step(root: Path) -> None:
    found = ask(root, "step=2..5")
    assert [step.number for step in found.steps] == [2, 3, 4, 5]
    assert shown(found).count("64x") >= 1
    assert "from_step: 2" in found.exclude


@pytest.mark.parametrize("ledger", [True, False])
@pytest.mark.parametrize("name", ["a/0003.png", "a:a/0003.png"])
def test_a_sample_is_found_in_every_step_that_used_it(root: Path, name: str, ledger: bool) -> None:
    found = ask(root, f"sample={name}", ledger=ledger)
    every = ask(root, f"step=1..{STEPS}", ledger=ledger)
    using = [s.number for s in every.steps if any(x.key == "a/0003.png" for x in s.samples)]
    assert using
    assert [step.number for step in found.steps] == using
    assert found.notes[0].startswith(f"a:a/0003.png is used by {len(using)} of the run's 9 steps")
    after = STEPS + 1 if ledger else 1
    assert found.exclude == f"'data.exclude=[{{from_step: {after}, ids: [a:a/0003.png]}}]'"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("step=10", "the run has the steps 1 to 9, got step=10"),
        ("step=8..12", "got step=12"),
        ("sample=nobody", "no backend has a sample of that name.*; give its storage key"),
        ("sample=a:0003.png", r"is on record; did you mean a:a/0003\.png"),
    ],
)
def test_what_is_not_there_is_an_error(root: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ask(root, text)


def test_a_changed_plan_is_said_and_the_ledger_believed(root: Path) -> None:
    found = ask(root, "step=3", seed=8)
    assert "the plan is not the one that the ledger was written with" in found.notes[0]
    [step] = found.steps
    assert [s.key for s in step.samples] == [s.key for s in ask(root, "step=3").steps[0].samples]
    assert step.notes
    assert "the plan as it is now" in step.notes[0]


def test_a_changed_catalog_is_said(tmp_path: Path) -> None:
    write_folders(tmp_path)
    data = data_module(tmp_path, ledger=tmp_path / "ledger")
    trainer(tmp_path, max_steps=2).fit(Recorder(), datamodule=data)
    data.close()
    (tmp_path / "a/0000.png").unlink()
    fresh = data_module(tmp_path)
    fresh.prepare_data()
    fresh.close()
    found = ask(tmp_path, "step=1", end=2)
    assert "the samples of a are not those that the ledger was written with" in found.notes[0]


def test_excluded_and_damaged_samples_are_named_with_what_stands_in(root: Path) -> None:
    plain = ask(root, "step=4", ledger=False).steps[0]
    gone = plain.samples[1].key
    found = ask(root, "step=4", ledger=False, exclude=[Exclude([gone], 2)]).steps[0]
    assert [s.key for s in found.samples][:1] == [plain.samples[0].key]
    [swapped] = found.samples[1].instead_of
    assert (swapped.key, swapped.stage, swapped.reason) == (
        gone, "exclude", "excluded from step 2 on",
    )  # fmt: skip


def test_replacements_on_record_are_shown(root: Path, tmp_path: Path, monkeypatch) -> None:
    note = "factory.ledger.ledger.Ledger.note"
    from factory.ledger.ledger import Ledger

    whole = Ledger.note

    def damaged(self: Ledger, batch: Batch) -> None:
        if batch.global_step == 1:
            row = int(batch.rows[2])
            one = Replacement(2, 0, "a/gone.png", "decode", "truncated: half", row, batch.keys[2])
            batch.replaced = (one,)
        whole(self, batch)

    monkeypatch.setattr(note, damaged)
    data = data_module(root, ledger=tmp_path)
    trainer(root, max_steps=2).fit(Recorder(), datamodule=data)
    found = Explainer(data, "RUN", 2, [tmp_path]).answer(ExplainRequest(1, 1))
    [swapped] = found.steps[0].samples[2].instead_of
    assert (swapped.key, swapped.reason) == ("a/gone.png", "truncated: half")
    assert "decode: truncated: half" in shown(found)
    assert "a/gone.png" in page(found, data.sources, data.registry.engine)
    data.close()


def test_samples_of_a_stream_are_on_record_by_key(tmp_path: Path) -> None:
    write_pictures(tmp_path / "a", 1)
    write_shards(tmp_path / "shards", 2, 12)
    backend = stream(str(tmp_path / "shards"))
    data = FactoryDataModule([backend], batch_size=4, ledger=tmp_path / "ledger")
    model = Watching()
    trainer(tmp_path, max_steps=3).fit(model, datamodule=data)
    inquiry = Explainer(data, "RUN", 3, [tmp_path / "ledger"])
    [step] = inquiry.answer(ExplainRequest(1, 1)).steps
    assert [sample.key for sample in step.samples] == model.batches[1].keys
    key = model.batches[2].keys[0]
    using = [n for n, batch in enumerate(model.batches, 1) if key in batch.keys]
    found = inquiry.answer(ExplainRequest(sample=key))
    assert [each.number for each in found.steps] == using
    assert found.exclude == ""
    assert Explainer(data, "RUN", 3).answer(ExplainRequest(0, 0)).steps[0].samples == ()
    data.close()


def test_the_line_to_paste_keeps_what_is_left_out_already(root: Path) -> None:
    found = ask(root, "sample=a/0003.png", exclude=[Exclude(["b:b/0101.png"], 4)])
    assert found.exclude == (
        "'data.exclude=[{from_step: 4, ids: [b:b/0101.png]}, {from_step: 10, ids: [a:a/0003.png]}]'"
    )


@pytest.mark.parametrize("name", ["a:a/0003.png", "a/0003.png"])
def test_what_is_left_out_already_is_not_named_again(root: Path, name: str) -> None:
    assert ask(root, "sample=a:a/0003.png", exclude=[Exclude([name], 4)]).exclude == ""
    later = ask(root, "sample=a:a/0003.png", exclude=[Exclude([name], 11)])
    assert "from_step: 10, ids: [a:a/0003.png]" in later.exclude


def test_the_line_to_paste_says_where_it_names_only_some(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("factory.reports.explain.explainer.NAMED", 3)
    found = ask(root, "step=8")
    assert found.exclude.count("png") == 3
    assert found.notes == ("the line to paste names the first 3 of 4 samples",)


def test_a_step_of_a_fixed_epoch_goes_on_with_passes_and_balances(root: Path) -> None:
    found = ask(root, "step=9", ledger=False, sampling=Mixture(epoch_steps=3))
    [step] = found.steps
    assert (step.epoch, step.step, step.since) == (3, 3, -5)
    assert sum(each.given for each in step.choices) == 8
    assert {each.left for each in step.choices} == {None}
    text = shown(found)
    assert "weights since step 1 of the run" in text
    assert f"pass {step.pass_number} over {step.backend}" in text


def test_a_pass_beyond_the_repeats_is_not_one_of_them(root: Path) -> None:
    cycle = {"ledger": False, "end": 12, "sampling": Mixture(epoch="cycle"), "probability": 0.3}
    found = ask(root, "step=1..12", **cycle)
    again = next(step for step in found.steps if step.pass_number > step.passes)
    assert f"pass 2 over {again.backend}" in shown(ask(root, f"step={again.number}", **cycle))
