"""What may change on a resume: shown key by key, taken, refused or accepted."""

import logging
from typing import Any

import pytest

from factory.errors import ResumeError
from factory.lightning.resume import STATE_FORMAT, check_format, check_plan, plan_changes

PLAN: dict[str, Any] = {
    "seed": 7, "batch_size": 4,
    "backends": {"a": {"repeats": 0, "rows": "x"}, "ab": {"repeats": 0}},
}  # fmt: skip
STATE = {"fingerprint": "f", "plan": PLAN, "epoch": 0, "step": 0}


def changed(**settings: Any) -> dict[str, Any]:
    return {**PLAN, **settings}


def test_the_error_shows_each_difference_and_how_to_accept_it() -> None:
    now = changed(batch_size=8, backends={"a": {"repeats": 2, "rows": "x"}, "ab": {"repeats": 0}})
    with pytest.raises(ResumeError) as caught:
        check_plan(PLAN, now, 3, accepted=False)
    text = str(caught.value)
    assert "  backends.a.repeats: 0 -> 2\n  batch_size: 4 -> 8\n" in text
    assert "data.accept_changed_plan=true" in text
    assert "'data.accept_changed_plan=[backends.a.repeats,batch_size]'" in text
    assert "Taken without asking: the number of ranks, micro-batches" in text


@pytest.mark.parametrize("accepted", [True, ["batch_size"], ["data.batch_size", "seed"]])
def test_an_accepted_change_is_warned_of(accepted: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        check_plan(PLAN, changed(batch_size=8), 3, accepted)
    assert "batch_size: 4 -> 8" in caplog.text


def test_a_key_stands_for_all_below_it_and_for_no_other() -> None:
    now = changed(backends={"a": {"repeats": 2, "rows": "y"}, "ab": {"repeats": 0}})
    check_plan(PLAN, now, 3, ["backends.a"])
    now["backends"] = {**PLAN["backends"], "ab": {"repeats": 1}}
    with pytest.raises(ResumeError, match=r"backends\.ab\.repeats: 0 -> 1"):
        check_plan(PLAN, now, 3, ["backends.a", "batch_size"])


def test_an_unchanged_plan_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    check_plan(PLAN, dict(PLAN), 3, accepted=True)
    assert not caplog.records


@pytest.mark.parametrize(
    ("old", "new", "is_change"),
    [
        (None, [{"from_step": 4, "key": "k"}], False),  # steps 1 to 3 are done: 4 is to come
        (None, [{"from_step": 3, "key": "k"}], True),
        ([{"from_step": 4, "key": "k"}], None, False),
        ([{"from_step": 2, "key": "k"}], None, True),
        ([{"from_step": 2, "key": "k"}], [{"from_step": 2, "key": "other"}], True),
        ([{"from_step": 2, "key": "k"}],
         [{"from_step": 2, "key": "k"}, {"from_step": 9, "key": "m"}], False),
        ([], None, False),
    ],
)  # fmt: skip
def test_exclusions_yet_to_come_may_come_and_go(old: Any, new: Any, is_change: bool) -> None:
    before = PLAN if old is None else changed(exclude=old)
    after = PLAN if new is None else changed(exclude=new)
    assert bool(plan_changes(before, after, committed=3)) == is_change


def test_a_sample_left_out_too_early_is_told_the_first_step_that_can_be() -> None:
    with pytest.raises(ResumeError) as caught:
        check_plan(PLAN, changed(exclude=[{"from_step": 3, "ids": ["k"]}]), 3, accepted=False)
    text = str(caught.value)
    assert "exclude: (absent) -> [{'from_step': 3, 'ids': ['k']}]" in text
    assert "left out up to step 3, where this checkpoint is, must stay as it was" in text
    assert "add an entry with from_step=4 or later" in text
    with pytest.raises(ResumeError) as caught:
        check_plan(PLAN, changed(seed=8), 3, accepted=False)
    assert "data.exclude" not in str(caught.value)


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({**STATE, "format": STATE_FORMAT + 1}, "written by a newer version"),
        ({**STATE, "format": "x"}, "format x"),
        ({"epoch": 1}, "lacks fingerprint, plan, step"),
    ],
)
def test_a_state_that_cannot_be_read_is_refused(state: dict[str, Any], said: str) -> None:
    with pytest.raises(ResumeError, match=said):
        check_format(state)


def test_states_from_before_there_was_a_format_are_read() -> None:
    check_format(STATE)
    check_format({**STATE, "format": STATE_FORMAT, "more": 1})
