"""The batches of one backend."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.errors import PlanError
from factory.sampling.passes import PassBatch, Passes, PlanBackend
from tests.sampling.cases import backend
from tests.support.examples import examples

sizes_lists = st.lists(st.integers(0, 30), min_size=1, max_size=5).filter(
    lambda sizes: sum(sizes) > 0
)


def all_batches(passes: Passes, epoch: int = 0) -> list[PassBatch]:
    return [passes.batch(epoch, number) for number in range(passes.per_epoch)]


@settings(max_examples=examples(150), deadline=None)
@given(sizes_lists, st.integers(1, 9), st.integers(0, 2))
def test_fill_visits_every_row_once_a_pass_and_counts_the_rest(
    sizes: list[int], batch_size: int, repeats: int
) -> None:
    source = backend(sizes=tuple(sizes), repeats=repeats)
    passes = Passes(source, batch_size, "fill", seed=1)
    assert passes.per_epoch == (repeats + 1) * sum(-(-size // batch_size) for size in sizes)
    batches = all_batches(passes)
    for index in range(repeats + 1):
        seen = Counter(
            row for each in batches if each.pass_index == index for row in each.rows.tolist()
        )
        assert set(seen) == set(source.order.tolist())
        extra = sum(each.duplicates for each in batches if each.pass_index == index)
        assert seen.total() == len(source.order) + extra
    for each in batches:
        assert len(each.rows) == batch_size
        bucket = source.buckets.index(each.bucket)
        inside = source.order[source.offsets[bucket] : source.offsets[bucket + 1]]
        assert set(each.rows.tolist()) <= set(inside.tolist())
        # A row comes twice in a batch only where the bucket is smaller than the batch.
        assert len(set(each.rows.tolist())) == min(batch_size, len(inside))


@settings(max_examples=examples(80), deadline=None)
@given(sizes_lists, st.integers(1, 9))
def test_short_visits_every_row_exactly_once(sizes: list[int], batch_size: int) -> None:
    source = backend(sizes=tuple(sizes))
    batches = all_batches(Passes(source, batch_size, "short", seed=1))
    rows = np.concatenate([each.rows for each in batches])
    assert sorted(rows.tolist()) == source.order.tolist()
    assert all(1 <= len(each.rows) <= batch_size and each.duplicates == 0 for each in batches)


@settings(max_examples=examples(80), deadline=None)
@given(sizes_lists.filter(lambda sizes: max(sizes) >= 9), st.integers(1, 9))
def test_drop_gives_full_batches_of_distinct_rows(sizes: list[int], batch_size: int) -> None:
    source = backend(sizes=tuple(sizes))
    passes = Passes(source, batch_size, "drop", seed=1)
    batches = all_batches(passes)
    rows = np.concatenate([each.rows for each in batches])
    assert len(set(rows.tolist())) == len(rows)
    assert all(len(each.rows) == batch_size for each in batches)
    assert passes.tally(0, passes.per_epoch).dropped == len(source.order) - len(rows)


@settings(max_examples=examples(100), deadline=None)
@given(
    sizes_lists.filter(lambda sizes: max(sizes) >= 9), st.integers(1, 9), st.integers(0, 2),
    st.sampled_from(["fill", "short", "drop"]), st.data(),
)  # fmt: skip
def test_a_tally_is_what_counting_gives(sizes, batch_size, repeats, short_batch, data) -> None:
    passes = Passes(backend(sizes=tuple(sizes), repeats=repeats), batch_size, short_batch, seed=4)
    count = data.draw(st.integers(0, passes.per_epoch))
    batches = all_batches(passes)[:count]
    tally = passes.tally(0, count)
    assert tally.rows == sum(len(each.rows) for each in batches)
    assert tally.duplicates == sum(each.duplicates for each in batches)


def test_order_changes_with_pass_epoch_seed_and_name() -> None:
    def order(name: str, seed: int, epoch: int, index: int) -> list[int]:
        passes = Passes(backend(name, (60, 60), repeats=1), 4, "fill", seed)
        batches = [passes.batch(epoch, index * passes.per_pass + n) for n in range(passes.per_pass)]
        return [row for each in batches for row in each.rows.tolist()]

    base = order("a", 1, 0, 0)
    others = [order("a", 1, 0, 1), order("a", 1, 1, 0), order("a", 2, 0, 0), order("b", 1, 0, 0)]
    assert all(other != base and sorted(other) == sorted(base) for other in others)
    assert order("a", 1, 0, 0) == base


def test_buckets_are_shuffled_the_same_rows_in_different_company() -> None:
    passes = Passes(backend(sizes=(40, 40)), 4, "fill", seed=1)
    buckets = [each.bucket for each in all_batches(passes)]
    changes = sum(one != two for one, two in pairwise(buckets))
    assert changes > 3
    company = [
        {frozenset(each.rows.tolist()) for each in all_batches(passes, epoch)} for epoch in (0, 1)
    ]
    assert not company[0] & company[1]


def test_a_backend_may_set_its_own_batch_size() -> None:
    passes = Passes(backend(sizes=(10,), batch_size=5), 2, "fill", seed=1)
    assert [len(each.rows) for each in all_batches(passes)] == [5, 5]


def test_drop_with_nothing_left_names_the_way_out() -> None:
    with pytest.raises(PlanError, match="short_batch=drop leaves nothing") as caught:
        Passes(backend("tiny", (3, 5), repeats=9), 8, "drop", seed=1)
    assert "'tiny'" in str(caught.value)
    assert "short_batch=fill, or batch_size=5 or less" in str(caught.value)


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(PlanError, match="one of fill, short, drop; got 'pad'"):
        Passes(backend(), 2, "pad", seed=1)


def test_shuffles_kept_ready_stay_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("factory.sampling.passes.KEPT_SHUFFLES", 5)
    passes = Passes(backend(sizes=(4,) * 12, repeats=3), 2, "fill", seed=1)
    before = [each.rows.tolist() for each in all_batches(passes)]
    assert len(passes._shuffles) <= 2 * 12 + 2  # two passes of all buckets, or 5
    assert [each.rows.tolist() for each in all_batches(passes)] == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"probability": -0.5}, "'a': probability must be 0 or more, got -0.5"),
        ({"probability": float("nan")}, "'a': probability must be 0 or more, got nan"),
        ({"repeats": -1}, "'a': repeats must be 0 or more, got -1"),
        ({"batch_size": 0}, "'a': batch_size must be 1 or more, got 0"),
    ],
)
def test_a_wrong_setting_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        backend("a", (3,), **changes)


def test_an_empty_backend_is_refused() -> None:
    with pytest.raises(PlanError, match="'a' is empty"):
        backend("a", (0,))


@pytest.mark.parametrize(
    ("offsets", "buckets"),
    [
        ([0, 3], ("x", "y")),
        ([0, 2, 1, 3], ("x", "y", "z")),
        ([1, 3], ("x",)),
        ([0, 2], ("x",)),
        ([], ()),
    ],
)
def test_offsets_that_do_not_cut_the_order_are_refused(offsets: list, buckets: tuple) -> None:
    with pytest.raises(PlanError, match="offsets must rise from 0 to 3"):
        PlanBackend("a", np.arange(3), np.array(offsets, dtype=np.int64), buckets)


def test_two_buckets_of_one_name_are_refused() -> None:
    with pytest.raises(PlanError, match="one name"):
        PlanBackend("a", np.arange(3), np.array([0, 1, 3]), ("x", "x"))


@pytest.mark.parametrize("short_batch", ["fill", "short", "drop"])
def test_batches_made_in_blocks_equal_those_made_alone(short_batch: str) -> None:
    source = backend(sizes=(5000, 37, 4100, 3, 260), repeats=1)  # networks and tables
    block, alone = (Passes(source, 7, short_batch, seed=5) for _ in range(2))
    numbers = list(range(0, block.per_epoch, 1))
    forth = [block.batch(1, number) for number in numbers]
    for number in numbers[::-1]:
        one, other = forth[number], alone.batch(1, number)
        assert one.rows.tolist() == other.rows.tolist()
        assert (one.bucket, one.duplicates) == (other.bucket, other.duplicates)


def test_rows_of_a_batch_are_the_callers_own() -> None:
    passes = Passes(backend(sizes=(40,)), 4, "fill", seed=1)
    first = [passes.batch(0, number) for number in range(10)]
    kept = [batch.rows.tolist() for batch in first]
    for batch in first:
        batch.rows[:] = -1
    assert [passes.batch(0, number).rows.tolist() for number in range(10)] == kept
