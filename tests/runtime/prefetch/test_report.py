"""Who waited for whom, in numbers and in one sentence."""

import pytest

from factory.runtime.prefetch.batch_fetcher import BatchFetcher, Prefetch
from factory.runtime.prefetch.report import FetchReport, FetchTotal

READY = FetchReport(
    delivered=100, at_once=99, waited_s=2.3, first_s=2.0, elapsed_s=102.0, making_s=40, workers=2
)
SLOW = FetchReport(
    delivered=100, at_once=5, waited_s=33.0, first_s=2.0, elapsed_s=102.0, making_s=190, workers=2
)


def test_batches_that_are_ready() -> None:
    assert READY.verdict == (
        "batches were ready 99% of the time, and the trainer waited for them 0.3% of it: "
        "training itself is the bottleneck"
    )


def test_workers_that_have_no_time_left() -> None:
    assert SLOW.verdict.startswith(
        "the trainer waited 31% of the time for batches: making them is the bottleneck "
        "(1.9 s each, 2 at once): raise prefetch.workers"
    )


def test_workers_that_have_time_left() -> None:
    uneven = FetchReport(
        delivered=10, waited_s=50, first_s=0, elapsed_s=100, making_s=100, workers=2
    )
    assert uneven.verdict.startswith(
        "the trainer waited 50% of the time for batches: those who make them were busy 50%"
    )
    assert uneven.verdict.endswith("raise prefetch.batches or prefetch.megabytes")


def test_nothing_made_ahead() -> None:
    fetcher = BatchFetcher(lambda n: sum(range(50_000)), range(9), Prefetch(mode="inline"))
    assert len(list(fetcher)) == 9
    assert fetcher.report.verdict.endswith(
        "nothing is made ahead; set prefetch=thread or prefetch=process"
    )


def test_nothing_delivered() -> None:
    assert FetchReport().verdict == "no batch was delivered"
    assert FetchReport().waited_share == FetchReport().busy_share == 0


def test_two_epochs_are_added_up() -> None:
    both = READY + SLOW
    assert both.delivered == 200
    assert both.waited_s == pytest.approx(35.3)
    assert both.waited_share == pytest.approx((0.3 + 31) / 200)


def test_a_total_follows_one_fetcher_after_another() -> None:
    total = FetchTotal()
    total.follow(lambda: READY)
    assert total.report.delivered == 100
    for _ in range(2):
        fetcher = BatchFetcher(lambda n: n, range(7), Prefetch())
        total.follow(lambda fetcher=fetcher: fetcher.report)  # type: ignore[misc]
        list(fetcher)
    assert total.report.delivered == 114
