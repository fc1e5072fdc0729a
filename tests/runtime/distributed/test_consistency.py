"""What is said of ranks that differ."""

from factory.runtime.distributed.consistency import check_equal, describe_difference


def test_ranks_are_named_by_what_they_differ_in() -> None:
    told = [{"a": {"b": 1}}, {"a": {"b": 2}}, {"a": {"b": 1}}, {"a": {"b": 2}}, {"a": {"b": 3}}]
    text = describe_difference(told, "their plans")
    assert text.startswith("the ranks differ in their plans")
    assert "rank 0 -> rank 1, 3:\n  a.b: 1 -> 2\n" in text
    assert "rank 0 -> rank 4:\n  a.b: 1 -> 3\n" in text


def test_one_process_agrees_with_itself() -> None:
    check_equal({"a": 1}, "their plans")
