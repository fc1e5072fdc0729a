"""The data's state in a checkpoint: whatever is changed in it, it is refused by our own error."""

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.errors import ResumeError
from factory.lightning.data_state import CHECKSUM, KEY, check_state, find_state, sealed
from factory.sampling.fingerprint import hash_description

PLAN: dict[str, Any] = {
    "seed": 7, "batch_size": 4,
    "backends": {
        "a": {"repeats": 0, "rows": "x", "identity": "i"},
        "s": {"repeats": 0, "rows": "y", "identity": "j"},
    },
}  # fmt: skip
MARK: dict[str, Any] = {
    "made": 2, "pass_index": 1, "taken": 9, "fruitful": True, "waiting": [4, 7],
    "place": {"block": 1, "shards": 0, "state": {"examples_iterable": {"shard": 0}}, "index": 4},
    "counts": {"rows": 19, "batches": 2, "passes": 1, "dropped: truncated": 1},
}  # fmt: skip
OLD: dict[str, Any] = {
    "format": 1, "fingerprint": hash_description(PLAN), "plan": PLAN, "epoch": 1, "step": 3,
    "cut": None, "streams": {"s": {"identity": "j", "seed": 7, "batch": 3, "mark": MARK}},
}  # fmt: skip

VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5),
    st.binary(max_size=3),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=3), st.none(), max_size=2),
    st.just(10**30), st.just(-1), st.just({1, 2}), st.just({1: 2, "1": 3}),
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the way to every value inside."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    found = [path] if path else []
    for key, one in inner:
        if isinstance(one, dict | list):
            found += places(one, (*path, key))
        else:
            found.append((*path, key))
    return found


def changed(state: dict[str, Any], path: tuple[Any, ...], value: Any, how: str) -> dict[str, Any]:
    """Return a copy with one value set, removed, or joined by another."""
    made = copy.deepcopy(state)
    at: Any = made
    for key in path[:-1]:
        at = at[key]
    if how == "remove":
        del at[path[-1]]
    elif how == "add" and isinstance(at, dict):
        at["another"] = value
    else:
        at[path[-1]] = value
    return made


def test_old_and_new_states_are_taken() -> None:
    check_state(OLD)
    check_state({key: OLD[key] for key in ("fingerprint", "plan", "epoch", "step")})
    check_state(sealed(OLD))
    check_state(json.loads(json.dumps(sealed(OLD))))
    assert sealed(sealed(OLD)) == sealed(OLD)


@given(st.data())
def test_any_change_of_a_sealed_state_is_refused(data: st.DataObject) -> None:
    state = sealed(OLD)
    path = data.draw(st.sampled_from(places(state)))
    how = data.draw(st.sampled_from(["set", "remove", "add"]))
    made = changed(state, path, data.draw(VALUES), how)
    if path == (CHECKSUM,) and how == "remove":
        check_state(made)  # as old ones are
    elif repr(made) != repr(state):
        with pytest.raises(ResumeError):
            check_state(made)


@given(st.data())
def test_no_change_of_an_old_state_raises_a_foreign_error(data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(places(OLD)))
    how = data.draw(st.sampled_from(["set", "remove", "add"]))
    made = changed(OLD, path, data.draw(VALUES), how)
    try:
        check_state(made)
    except ResumeError as error:
        assert "checkpoint's data state" in str(error)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("epoch",), -1, "epoch is -1"),
        (("epoch",), True, "epoch is True"),
        (("epoch",), 1.0, "epoch is 1.0"),
        (("epoch",), 2**40, "epoch is"),
        (("step",), "3", "step is '3'"),
        (("format",), True, "format True"),
        (("format",), 0, "format 0"),
        (("fingerprint",), "0" * 32, "that of the plan"),
        (("fingerprint",), None, "32 hex digits"),
        (("plan", "seed"), 8, "that of the plan"),
        (("plan", "backends"), [], "a plan's description"),
        (("cut",), 1.5, "cut is 1.5"),
        (("cut",), -2, "cut is -2"),
        (("streams",), [], "a mapping of streams"),
        (("streams", "s", "identity"), "k", r"streams\.s\.identity"),
        (("streams", "s", "seed"), 8, r"streams\.s\.seed"),
        (("streams", "s", "batch"), 1, r"mark\.made is 2"),
        (("streams", "s", "mark", "made"), 3, r"counts\.batches is 2"),
        (("streams", "s", "mark", "pass_index"), 2, r"counts\.passes is 1"),
        (("streams", "s", "mark", "waiting"), [7, 4], r"mark\.waiting is 4"),
        (("streams", "s", "mark", "waiting"), [4, 9], r"mark\.waiting is 9"),
        (("streams", "s", "mark", "fruitful"), 1, "true or false"),
        (("streams", "s", "mark", "place", "block"), 10, r"place\.block is 10"),
        (("streams", "s", "mark", "place", "state"), 5, "the state of a shard"),
        (("streams", "s", "mark", "counts", "rows"), -1, r"counts\.rows is -1"),
        (("streams", "t"), None, r"streams\.t is of no backend"),
    ],
)
def test_wrong_values_of_an_old_state_are_named(path: Any, value: Any, said: str) -> None:
    with pytest.raises(ResumeError, match=said):
        check_state(changed(OLD, path, value, "set"))


@pytest.mark.parametrize("state", [None, [], "x", 3, {"epoch": 1}, {}])
def test_what_is_no_state_is_refused(state: Any) -> None:
    with pytest.raises(ResumeError):
        check_state(state)


def test_a_state_is_found_under_its_name_or_by_what_it_is() -> None:
    assert find_state({KEY: OLD, "Mine": 3}, [KEY]) is OLD
    assert find_state({"state_dict": {}, "Other": OLD}, [KEY]) is OLD
    assert find_state({"state_dict": {}, "loops": {"epoch": 1}}, [KEY]) is None
    with pytest.raises(ResumeError, match="several states of data, A, B"):
        find_state({"A": OLD, "B": OLD}, [KEY])
