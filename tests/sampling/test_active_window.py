"""When a backend takes part."""

import pytest

from factory.errors import PlanError
from factory.sampling.active_window import ActiveWindow, check_windows


def test_a_window_left_alone_is_always_open() -> None:
    assert ActiveWindow().active(1, 0)
    assert ActiveWindow().active(10**6, 10**9)
    assert str(ActiveWindow()) == "always"


def test_both_ends_are_inside() -> None:
    window = ActiveWindow(start_epoch=2, start_step=10, end_epoch=3, end_step=20)
    # The 10th step is the one that follows 9 completed ones.
    assert [window.active(2, step) for step in (8, 9, 19, 20)] == [False, True, True, False]
    assert [window.active(epoch, 12) for epoch in (1, 2, 3, 4)] == [False, True, True, False]
    assert str(window) == "start_epoch=2, start_step=10, end_epoch=3, end_step=20"


def test_start_step_0_and_1_both_mean_the_first_step() -> None:
    assert ActiveWindow(start_step=0).active(1, 0)
    assert ActiveWindow(start_step=1).active(1, 0)
    assert not ActiveWindow(start_step=2).active(1, 0)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("start_epoch", 0), ("start_epoch", -1), ("start_step", -5), ("end_epoch", 0),
        ("end_step", -3), ("start_epoch", "x"), ("start_step", 2.5), ("end_step", True),
    ],
)  # fmt: skip
def test_a_wrong_bound_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"window\.{key} must be .*got {value!r}"):
        ActiveWindow(**{key: value})


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        (
            {"start_epoch": 3, "end_epoch": 2},
            "window.end_epoch 2 comes before start_epoch 3",
        ),
        ({"start_step": 9, "end_step": 8}, "window.end_step 8 comes before start_step 9"),
    ],
)
def test_an_end_before_its_start_is_refused(bounds: dict[str, int], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        ActiveWindow(**bounds)


def test_nobody_at_the_start_is_refused_with_all_windows() -> None:
    with pytest.raises(PlanError, match="active at the start") as caught:
        check_windows({"a": ActiveWindow(start_epoch=2), "b": ActiveWindow(start_step=10)})
    assert "a: start_epoch=2" in str(caught.value)
    assert "b: start_step=10" in str(caught.value)
    check_windows({"a": ActiveWindow(start_epoch=2), "b": ActiveWindow(end_step=1)})


def test_a_window_past_the_end_of_the_run_is_refused() -> None:
    windows = {
        "a": ActiveWindow(),
        "late": ActiveWindow(start_step=101),
        "later": ActiveWindow(start_epoch=4),
    }
    check_windows(windows)
    check_windows(windows, epochs=4, steps=101)
    with pytest.raises(PlanError, match=r"'late' never takes part: window\.start_step=101.* 100"):
        check_windows(windows, epochs=4, steps=100)
    with pytest.raises(PlanError, match=r"'later' never takes part: window\.start_epoch=4.* 3"):
        check_windows(windows, epochs=3)
